"""What the documentation says of fields, files, flags and names is so."""

import ast
import importlib
import re
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_args

import pytest

from transformer_jax.cli import main
from transformer_jax.config import Config, default_config
from transformer_jax.system import Range, field_types
from transformer_jax.task_groups import task_groups

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    path for folder in (".", "docs", "docs/api", "docs/zh") for path in sorted((REPOSITORY / folder).glob("*.md"))
]
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))

ROW = re.compile(r"^\| `([a-z_]+(?:\.[a-z_0-9]+)?)` \| `([^|]+)` \| ([^|]*)\| (.+) \|$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def read(path):
    return path.read_text(encoding="utf-8")


def fences(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def fields():
    """`group.field` to default of every field there is."""
    found = {}
    for name, value in default_config().to_dict().items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": default for inner, default in value.items()}
        else:
            found[name] = value
    return found


def test_every_field_is_documented_once_with_its_default():
    rows = ROW.findall(read(REPOSITORY / "docs" / "configuration.md"))
    names = [name for name, *_ in rows]
    assert sorted(names) == sorted(fields())
    documented = {name: ast.literal_eval(default) for name, default, *_ in rows}
    assert documented == fields()
    assert {name: type(value) for name, value in documented.items()} == {
        name: type(value) for name, value in fields().items()
    }


def ranges_in(hint):
    """The ranges in a type such as `tuple[Annotated[int, Range(1)], ...]`."""
    if isinstance(hint, Range):
        return [hint]
    return [found for part in getattr(hint, "__metadata__", ()) or get_args(hint) for found in ranges_in(part)]


def test_every_field_is_documented_with_its_range():
    groups = {"": Config(), **{f"{name}.": group() for name, group in task_groups().items()}}
    groups |= {f"{name}.": getattr(Config(), name) for name, hint in field_types(Config).items() if is_dataclass(hint)}
    expected = {
        prefix + name: "".join(map(str, ranges_in(hint)))
        for prefix, group in groups.items()
        for name, hint in field_types(type(group)).items()
    }
    rows = ROW.findall(read(REPOSITORY / "docs" / "configuration.md"))
    documented = {name: given.strip() for name, _, given, _ in rows}
    assert documented == {name: expected[name] for name in documented}
    assert documented["optim.lr"] == "at least 0"


def test_the_fields_that_may_change_are_documented():
    from transformer_jax.training.workdir import MAY_CHANGE

    text = read(REPOSITORY / "docs" / "training.md").partition("## Interrupt and resume")[2].partition("\n## ")[0]
    assert set(re.findall(r"`([a-z_.]+)`", text)) == {name.removesuffix(".") for name in MAY_CHANGE}


@each_document
def test_relative_links_resolve(path):
    targets = [target for target in LINK.findall(read(path)) if not re.match(r"[a-z]+:", target)]
    assert [target for target in targets if not (path.parent / target).exists()] == []


def anchors(path):
    """What a heading may be linked as: lower case, hyphens for spaces, no other signs."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", read(path), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_links_to_headings_resolve(path):
    targets = re.findall(r"\]\(([\w./-]*\.md)?#([^)\s]+)\)", read(path))
    assert [
        (name, anchor) for name, anchor in targets if anchor not in anchors(path.parent / name if name else path)
    ] == []


def test_there_are_links_to_check():
    for name in ("README.md", "README.zh-CN.md", "docs/paper.md", "docs/classification.md", "docs/couplets.md"):
        assert LINK.findall(read(REPOSITORY / name))


@each_document
def test_python_blocks_compile_and_import_what_exists(path):
    for block in fences(read(path), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("transformer_jax"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_readmes_show_the_same_code():
    english, chinese = (read(REPOSITORY / name) for name in ("README.md", "README.zh-CN.md"))

    def code(text, language):
        """Blocks without their comments, which are translated."""
        return [re.sub(r"\s+#.*", "", block) for block in fences(text, language)]

    for language in ("python", "sh"):
        assert code(english, language) == code(chinese, language) != []


@each_document
def test_config_flags_name_fields(path):
    named = set(re.findall(r"--config\.([a-z_]+(?:\.[a-z_0-9]+)?)=", read(path)))
    assert named <= set(fields())


@pytest.mark.parametrize("command", ["translate", "classify", "couplet", "evaluate"])
def test_flags_of_the_command_exist(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    used = set()
    for path in DOCUMENTS:
        shown = [line for block in fences(read(path), "sh") for line in block.replace("\\\n", " ").splitlines()]
        used |= {
            flag for line in shown if f"transformer-jax {command}" in line for flag in re.findall(r" (--[a-z-]+)", line)
        }
    assert set() < used <= known


def tree():
    """Paths of the modules in the tree of docs/architecture.md: a folder is a line `NAME/ ...`, its files follow."""
    found, folders = set(), [(-1, Path())]
    for line in fences(read(REPOSITORY / "docs" / "architecture.md"), "text")[0].splitlines():
        indent = len(line) - len(line.lstrip())
        folder = re.match(r"\s*(\w+)/ ", line)
        if folder:
            folders = [(depth, path) for depth, path in folders if depth < indent]
            folders.append((indent, folders[-1][1] / folder[1]))
        parent = [path for depth, path in folders if depth < indent or (folder and depth == indent)][-1]
        found |= {str(parent / name) for name in re.findall(r"\b\w+\.py\b", line)}
    return found


def test_the_architecture_names_every_module_and_no_other():
    named = tree() | set(re.findall(r"`([\w/]+\.py)`", read(REPOSITORY / "docs" / "architecture.md")))
    package = REPOSITORY / "transformer_jax"
    assert [name for name in named if not ((REPOSITORY / name).exists() or (package / name).exists())] == []
    modules = {str(path.relative_to(REPOSITORY)) for path in package.rglob("*.py")}
    described = {name for name in modules if Path(name).name != "__init__.py"} | {"transformer_jax/__init__.py"}
    assert described <= named


@pytest.mark.parametrize(("document", "most"), [("paper.md", 40), ("architecture.md", 20)])
def test_the_paper_and_the_architecture_name_what_exists(document, most):
    dotted = re.findall(r"`([a-z0-9_]+(?:\.\w+)+)`", read(REPOSITORY / "docs" / document))
    ours = {path.stem for path in (REPOSITORY / "transformer_jax").iterdir()}
    files = {name for name in dotted if name.endswith((".py", ".json"))}
    names = {name for name in dotted if name.split(".")[0] in ours} - files - set(fields())
    assert len(names) > most
    for name in names:
        resolve(name)


def resolve(name):
    """The object of a dotted name below the package: modules first, then attributes."""
    parts = name.split(".")
    found = importlib.import_module("transformer_jax")
    for number, part in enumerate(parts):
        try:
            found = importlib.import_module(".".join(["transformer_jax", *parts[: number + 1]]))
        except ModuleNotFoundError:
            found = getattr(found, part)
    return found


@each_document
def test_no_figure_is_left_to_be_filled_in(path):
    assert not re.search(r"\{\{|TODO_", read(path))


def templates(source):
    """The texts in a program, with … for what an f-string fills in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def messages(text):
    """The messages that a page of troubleshooting explains."""
    return re.findall(r"^\*\*`(.+)`\*\*$", text, re.MULTILINE)


def test_troubleshooting_explains_messages_that_there_are():
    ours = messages(read(REPOSITORY / "docs" / "troubleshooting.md").partition("\n## Messages of JAX")[0])
    known = [text for path in (REPOSITORY / "transformer_jax").rglob("*.py") for text in templates(read(path))]
    assert len(ours) > 25
    assert [message for message in ours if not any(message in text for text in known)] == []


@pytest.mark.parametrize(("source", "expected"), [('f"a {b} c"', "a … c"), ('"a"\nx = 1', "a")])
def test_templates(source, expected):
    assert expected in templates(source)


def test_the_page_on_ones_own_data_shows_the_same_in_both_languages():
    english, chinese = (read(REPOSITORY / "docs" / name) for name in ("own_data.md", "zh/own_data.md"))
    for language in ("sh", "tsv", "csv"):
        assert fences(english, language) == fences(chinese, language) != []
