"""The notebooks: text and .ipynb agree, English and Chinese have the same code, and each runs from a fresh kernel."""

import ast
import base64
import importlib.util
import json
import re
from pathlib import Path

import pytest

REASON = "notebooks need `pip install 'transformer-jax[notebooks]'`"
jupytext = pytest.importorskip("jupytext", reason=REASON)
nbformat = pytest.importorskip("nbformat", reason=REASON)
pytest.importorskip("nbclient", reason=REASON)

REPOSITORY = Path(__file__).resolve().parent.parent.parent
NOTEBOOKS = REPOSITORY / "notebooks"
SPEC = importlib.util.spec_from_file_location("build", NOTEBOOKS / "build.py")
build = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build)

SOURCES = build.sources()
ENGLISH = sorted(NOTEBOOKS.glob("[0-9]*.py"))
each = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(NOTEBOOKS).with_suffix("")))
MOST_BYTES = 300_000


def written(path):
    """The .ipynb of a .py file."""
    return nbformat.read(path.with_suffix(".ipynb"), as_version=4)


def code(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def expressions(source):
    """The syntax of a cell with all strings alike, on which Python 3.11 and 3.12, whose f-strings differ, agree."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
        elif isinstance(node, ast.JoinedStr):
            node.values = [value for value in node.values if isinstance(value, ast.FormattedValue)]
    return ast.dump(tree)


def test_there_is_a_chinese_one_for_each():
    assert [path.name for path in ENGLISH] == [path.name for path in sorted((NOTEBOOKS / "zh").glob("*.py"))]
    assert len(ENGLISH) >= 2
    assert sorted(path.with_suffix(".ipynb") for path in SOURCES) == sorted(NOTEBOOKS.rglob("*.ipynb"))


@each
def test_text_and_notebook_are_a_pair(path):
    def cells(notebook):
        return [(cell.cell_type, cell.source, cell.metadata, cell.id) for cell in notebook.cells]

    assert cells(build.read(path)) == cells(written(path))
    assert build.read(path).metadata == written(path).metadata
    nbformat.validate(written(path))


@pytest.mark.parametrize("path", ENGLISH, ids=lambda path: path.stem)
def test_both_languages_have_the_same_code(path):
    english, chinese = build.read(path), build.read(path.parent / "zh" / path.name)
    assert [cell.cell_type for cell in english.cells] == [cell.cell_type for cell in chinese.cells]
    for ours, theirs in zip(code(english), code(chinese), strict=True):
        assert expressions(ours) == expressions(theirs)
    for ours, theirs in zip(english.cells, chinese.cells, strict=True):
        assert ours.metadata == theirs.metadata
        if ours.cell_type == "markdown":
            assert re.search("[一-鿿]", theirs.source)


@each
def test_all_cells_have_run_without_complaint_and_outputs_are_small(path):
    notebook = written(path)
    pictures = 0
    numbers = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert numbers == list(range(1, len(numbers) + 1))
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            has_picture = "image/png" in output.get("data", {})
            assert has_picture or "Figure" not in output.get("data", {}).get("text/plain", "")
            pictures += has_picture
    assert pictures >= 3
    assert path.with_suffix(".ipynb").stat().st_size <= MOST_BYTES


@each
def test_outputs_have_no_traces_of_a_machine(path):
    texts = []
    for cell in written(path).cells:
        assert "execution" not in cell.metadata
        for output in cell.get("outputs", ()):
            data = {kind: value for kind, value in output.get("data", {}).items() if kind != "image/png"}
            texts.append(json.dumps([output.get("text", ""), data]))
            if "image/png" in output.get("data", {}):
                assert base64.b64decode(output.data["image/png"]).startswith(b"\x89PNG")
    assert not re.search(r"(^|[\s\"'(=])(/[a-z]\w*){2,}|[A-Z]:\\\\|0x[0-9a-f]{6}", " ".join(texts))


@each
def test_only_public_names_of_the_package_are_used(path):
    tree = ast.parse("\n".join(code(build.read(path))))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("transformer_jax"):
            assert not any(part.startswith("_") for part in [*node.module.split("."), *(a.name for a in node.names)])
        elif isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_")


@each
def test_exercises_are_checked_and_their_solutions_hidden(path):
    cells = build.read(path).cells
    checks = [cell.source for cell in cells if "check" in cell.metadata.get("tags", ())]
    solutions = [cell for cell in cells if "solution" in cell.metadata.get("tags", ())]
    assert len(checks) == len(solutions) >= 2
    for number, (check, solution) in enumerate(zip(checks, solutions, strict=True), start=1):
        assert solution.metadata.jupyter.source_hidden
        assert f"def solution_{number}(" in solution.source
        assert check.startswith(f"answer_{number} = solution_{number}  # ")
        rest = check.partition("\n")[2]
        assert f"answer_{number}(" in rest
        assert re.search(r"^\s*(assert |np\.testing\.assert_)", rest, re.M)
    asked = [number for cell in cells for number in re.findall(r"\*\*(?:Exercise|练习) (\d)\.\*\*", cell.source)]
    assert asked == [str(number) for number in range(1, len(checks) + 1)]


@each
def test_the_badge_opens_this_notebook(path):
    name = path.relative_to(REPOSITORY).with_suffix(".ipynb").as_posix()
    text = path.read_text(encoding="utf-8")
    [(repository, opened)] = re.findall(
        r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/main/([^)]+)\)", text
    )
    assert opened == name
    assert re.findall(r"git\+https://github\.com/([\w.-]+/[\w.-]+)\"", text) == [repository]


@each
def test_links_lead_somewhere(path):
    targets = re.findall(r"\]\(([^)\s]+)\)", "\n".join(cell.source for cell in build.read(path).cells))
    own = [target for target in targets if not target.startswith("https://")]
    assert own
    assert [target for target in own if not (path.parent / target.partition("#")[0]).exists()] == []


def test_the_table_links_every_notebook():
    text = (NOTEBOOKS / "README.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\(([\w/]+\.ipynb)\)", text)
    assert sorted(linked) == sorted(path.relative_to(NOTEBOOKS).with_suffix(".ipynb").as_posix() for path in SOURCES)


# The others take minutes; the code of the Chinese ones is that of the English ones, as other tests require.
SHORT = NOTEBOOKS / "03_network.py"
RUNS = [pytest.param(path, marks=pytest.mark.slow if path == SHORT else pytest.mark.soak) for path in SOURCES]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(NOTEBOOKS).with_suffix("")))
def test_the_notebook_runs_from_a_fresh_kernel(path, monkeypatch):
    pytest.importorskip("ipykernel", reason=REASON)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    # The settings of the tests, which compile without optimization, are not those of a reader.
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    notebook = build.execute(path)
    kinds = {output.output_type for cell in notebook.cells for output in cell.get("outputs", ())}
    assert "error" not in kinds  # nbclient has raised otherwise
    assert {"stream", "display_data"} <= kinds
