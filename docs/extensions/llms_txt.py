"""`llms.txt` at the root of the site: every page with its title and first sentence, for programs that read it.

The sections are the captions of the table of contents of index.md. The format is that of https://llmstxt.org.
"""

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

SUMMARY = "The encoder-decoder Transformer in JAX and Flax NNX: translation, text classification, Chinese couplets."


def pages_of(env: BuildEnvironment, name: str) -> list[str]:
    """A page and those below it, in the order of the tables of contents."""
    return [name, *(page for child in env.toctree_includes.get(name, []) for page in pages_of(env, child))]


def first_sentence(document: nodes.document) -> str:
    """The first sentence between the title of a page and its next heading, on one line; empty if there is none."""
    section = next(document.findall(nodes.section))
    for paragraph in (child for child in section.children if isinstance(child, nodes.paragraph)):
        text = " ".join(paragraph.astext().split())
        if re.search(r"[.:。：]", text):  # not a row of badges and links
            return re.split(r"(?<=[.])\s|(?<=。)|[:：]$", text)[0]
    return ""


def contents(app: Sphinx) -> str:
    """The text of `llms.txt`."""
    env = app.env
    lines = [f"# {app.config.project}", "", f"> {SUMMARY}"]
    root = app.config.root_doc
    for toctree in env.get_doctree(root).findall(addnodes.toctree):
        lines += ["", f"## {toctree['caption']}", ""]
        for page in (page for child in toctree["includefiles"] for page in pages_of(env, child)):
            uri = app.config.html_baseurl + app.builder.get_target_uri(page)
            lines.append(f"- [{env.titles[page].astext()}]({uri}): {first_sentence(env.get_doctree(page))}")
    return "\n".join(lines) + "\n"


def _write(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        (Path(app.outdir) / "llms.txt").write_text(contents(app), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Write the file at the end of a build."""
    app.connect("build-finished", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
