"""The directive `public-names`, the docstrings of the names in one table of library.md."""

import inspect
import re
import typing
from pathlib import Path
from typing import Any, Generic

import optax
from docutils import nodes
from flax import nnx
from jax.typing import DTypeLike
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import inspect as autodoc_inspect
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import stringify_annotation

import transformer_jax

LIBRARY = Path(__file__).resolve().parent.parent / "library.md"
ROW = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)

RANGE = re.compile(r"(?:~?typing\.)?Annotated\[([^\[\]]+?), ~?[\w.]+\((?:[^()]|\([^()]*\))*\)\]")
"""A type with the range of its values, which configuration.md has."""
ALIASES = {
    f"transformer_jax.{name}": stringify_annotation(value, "smart")
    for name in transformer_jax.__all__
    if typing.get_origin(value := getattr(transformer_jax, name)) is not None
}
ALIASES["optax.Schedule"] = stringify_annotation(optax.Schedule, "smart")
ALIASES["jax.typing.DTypeLike"] = stringify_annotation(DTypeLike, "smart")
"""Type aliases, and what stands for them in the signatures of autodoc."""
NUMBERED = re.compile(r"^(\s*\w+: [A-Z])\.")
"""An argument explained by a letter, `batch_size: B.`, which would begin a numbered list."""


def sections() -> dict[str, list[str]]:
    """The headings of library.md below which public names are listed, each with its names."""
    parts = re.split(r"^### (.+)$", LIBRARY.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {title: ROW.findall(text) for title, text in zip(parts[::2], parts[1::2], strict=True)}


def written(annotations: str | None) -> str | None:
    """Annotations as a reader wants them: our type aliases by name, no ranges, arrays as `Float[Array, "B T D"]`."""
    if annotations is None:
        return None
    for name, alias in ALIASES.items():
        annotations = annotations.replace(alias, f"~{name}")
    annotations = RANGE.sub(r"\1", annotations)
    annotations = re.sub(r"<class 'jax\.numpy\.(\w+)'>", r"jnp.\1", annotations)  # a default
    return annotations.replace("[jaxlib._jax.Array,", "[~jax.Array,")


def directive_of(name: str) -> str:
    """The lines of reStructuredText that document a public name."""
    value = getattr(transformer_jax, name)
    if not inspect.isclass(value):
        is_function = hasattr(value, "__code__") or hasattr(value, "__wrapped__")
        return f".. {'autofunction' if is_function else 'autodata'}:: transformer_jax.{name}"
    lines = [f".. autoclass:: transformer_jax.{name}", "   :members:"]
    bases = value.__mro__[1:-1]
    if bases:
        lines.append("   :show-inheritance:")
    if all(base is Generic or base.__module__.startswith("transformer_jax.") for base in bases):
        lines.append("   :inherited-members: Generic")
    if issubclass(value, nnx.Module):  # whose docstring is that of the call, too
        lines += ["", f"   .. automethod:: transformer_jax.{name}.__call__"]
    return "\n".join(lines)


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


def _process_signature(app: Sphinx, what: str, name: str, value: Any, *rest: Any) -> tuple[str | None, str | None]:
    _, arguments, returned = rest
    if what == "class" and issubclass(value, nnx.Module):  # whose metaclass takes *args and **kwargs
        own = autodoc_inspect.signature(value.__init__, bound_method=True)
        arguments = autodoc_inspect.stringify_signature(own, show_return_annotation=False, unqualified_typehints=True)
    return written(arguments), written(returned)


def _process_docstring(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [NUMBERED.sub(r"\1\\.", line) for line in lines if not line.startswith("Alias for field number")]
    _own_lines[name] = list(lines)


def _keep_attributes(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    if what in ("attribute", "data", "property"):  # where napoleon takes for a type what stands before a colon
        lines[:] = _own_lines[name]


_own_lines: dict[str, list[str]] = {}
"""Docstrings as napoleon found them."""


def _simplify_types(app: Sphinx, document: nodes.document) -> None:
    """Write the types of attributes and properties, which no event passes by, as `written` does."""
    for node in document.findall(addnodes.desc_annotation):
        if re.search(r"jaxlib\._jax|Annotated\[", text := node.astext()):
            node.children = [nodes.Text(RANGE.sub(r"\1", text.replace("jaxlib._jax.Array", "Array")))]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.connect("autodoc-process-signature", _process_signature)
    app.connect("autodoc-process-docstring", _process_docstring, priority=400)  # before napoleon, at 500
    app.connect("autodoc-process-docstring", _keep_attributes, priority=600)
    app.connect("doctree-read", _simplify_types)
    app.add_directive("public-names", PublicNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
