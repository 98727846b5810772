"""Run the notebooks and write their .ipynb files, outputs included, from the .py files (jupytext's py:percent).

Run `python notebooks/build.py` for all, or name some: `python notebooks/build.py notebooks/01_attention.py`.
"""

import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parent


def sources():
    """The text form of every notebook, in English and Chinese."""
    return sorted(path for path in NOTEBOOKS.rglob("*.py") if path != Path(__file__).resolve())


def read(path):
    """The notebook of a .py file, without outputs; a cell's id is its place, so that files differ where cells do."""
    notebook = jupytext.read(path)
    for place, cell in enumerate(notebook.cells):
        cell.id = f"cell-{place:02}"
    kernelspec = notebook.metadata["kernelspec"]
    notebook.metadata = {"kernelspec": kernelspec, "language_info": {"name": "python"}}
    return notebook


def execute(path):
    """The notebook of a .py file, run from a fresh kernel in the root of the repository, with outputs."""
    notebook = read(path)
    NotebookClient(
        notebook, timeout=1800, record_timing=False, resources={"metadata": {"path": str(NOTEBOOKS.parent)}}
    ).execute()
    notebook.metadata["language_info"] = {"name": "python"}  # nbclient adds the version of Python
    return notebook


if __name__ == "__main__":
    for path in [Path(name).resolve() for name in sys.argv[1:]] or sources():
        nbformat.write(execute(path), path.with_suffix(".ipynb"))
        print(path.with_suffix(".ipynb").relative_to(NOTEBOOKS.parent))
