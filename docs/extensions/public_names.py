"""The directive `public-names`, the docstrings of the names in one table of library.md."""

import inspect
import re
import typing
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import stringify_annotation

import transformer_jax

LIBRARY = Path(__file__).resolve().parent.parent / "library.md"
ROW = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)

RANGE = re.compile(r"~?typing\.Annotated\[([^\[\]]+?), \w+\((?:[^()]|\([^()]*\))*\)\]")
"""A type with the range of its values, which configuration.md has."""
ALIASES = {
    name: stringify_annotation(value, "smart")
    for name in transformer_jax.__all__
    if typing.get_origin(value := getattr(transformer_jax, name)) is not None
}
"""The public type aliases, and what stands for them in the signatures of autodoc."""


def sections() -> dict[str, list[str]]:
    """The headings of library.md below which public names are listed, each with its names."""
    parts = re.split(r"^### (.+)$", LIBRARY.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {title: ROW.findall(text) for title, text in zip(parts[::2], parts[1::2], strict=True)}


def written(annotations: str | None) -> str | None:
    """Annotations as a reader wants them: our type aliases by name, no ranges, arrays as `Float[Array, "B T D"]`."""
    if annotations is None:
        return None
    for name, alias in ALIASES.items():
        annotations = annotations.replace(alias, f"~transformer_jax.{name}")
    annotations = RANGE.sub(r"\1", annotations)
    return annotations.replace("jaxlib._jax.Array", "jax.Array")


def directive_of(name: str) -> str:
    """The lines of reStructuredText that document a public name."""
    value = getattr(transformer_jax, name)
    kind = "autoclass" if inspect.isclass(value) else "autofunction"
    options = []
    if inspect.isclass(value):
        options = [":members:"] + [":show-inheritance:"] * (value.__bases__ != (object,))
    elif not hasattr(value, "__code__") and not hasattr(value, "__wrapped__"):
        kind, options = "autodata", [":no-value:"]
    return "\n".join([f".. {kind}:: transformer_jax.{name}", *(f"   {option}" for option in options)])


class PublicNames(SphinxDirective):
    """Documents the names below the heading of library.md that begins with the argument."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """The documentation of each name."""
        self.env.note_dependency(str(LIBRARY))
        [names] = [names for title, names in sections().items() if title.startswith(self.arguments[0])]
        text = "\n\n".join(map(directive_of, names))
        return self.parse_text_to_nodes(f"```{{eval-rst}}\n{text}\n```\n")


def _shorten(*event: Any) -> tuple[str | None, str | None]:
    """Answer `autodoc-process-signature`."""
    arguments, returned = event[-2:]
    return written(arguments), written(returned)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.connect("autodoc-process-signature", _shorten)
    app.add_directive("public-names", PublicNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
