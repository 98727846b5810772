"""Sphinx: `sphinx-build -W -b html docs OUT` builds the site (`pip install -e '.[docs]'`)."""

import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
PROJECT = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
sys.path[:0] = [str(DOCS / "extensions"), str(DOCS.parent)]  # this checkout, whatever is installed

project = PROJECT["name"]
version = release = PROJECT["version"]
author = "the transformer-jax authors"
copyright = author
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "repository_links",
    "public_names",
    "command_pages",
    "llms_txt",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints", "notebooks/**.md", "notebooks/**.py"]

# Notebooks are run by the tests; the site shows the outputs that they are stored with.
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # as on GitHub
# Text files are read here as they are on GitHub, whose highlighter forgives a `!pip` of IPython or a cut-off JSON.
suppress_warnings = ["misc.highlighting_failure"]
project_urls = PROJECT.get("urls", {})

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 88
default_role = "code"  # of docstrings, which write `name` as Markdown does

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"{project} {release}"
html_baseurl = os.environ.get("READTHEDOCS_CANONICAL_URL", "")
html_copy_source = False

# What can be checked without a network: links within the site.
linkcheck_ignore = [r"https?://.*"]


def _without_notebooks(app: Sphinx, name: str, source: list[str]) -> None:
    source[0] = re.sub(r"^```\{toctree\}\n:glob:.*?^```$", "", source[0], flags=re.DOTALL | re.MULTILINE)


def _set_language(app: Sphinx, name: str, template: str, context: dict[str, Any], *_: Any) -> None:
    if name.startswith(("zh/", "notebooks/zh/")):
        context["language"] = "zh-CN"


def setup(app: Sphinx) -> None:
    """Say which pages are Chinese; without notebooks, list none."""
    app.connect("html-page-context", _set_language)
    if not any((DOCS / "notebooks").rglob("*.ipynb")):  # a pattern that matches nothing is a warning without a name
        app.connect("source-read", _without_notebooks)
