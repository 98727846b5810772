import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import transformer_jax

PACKAGE = Path(transformer_jax.__file__).parent
REPOSITORY = PACKAGE.parent
NAMES = transformer_jax.__all__


def imports_for_type_checkers():
    """(module, name, name it is given) of the imports in the stub."""
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert {node.level for node in imports} == {1}
    return [(f"transformer_jax.{node.module}", alias.name, alias.asname) for node in imports for alias in node.names]


def test_the_interpreter_finds_what_type_checkers_see():
    listed = imports_for_type_checkers()
    assert sorted(name for _, name, _ in listed) == NAMES
    assert len(set(NAMES)) == len(NAMES) > 60
    assert [name for _, name, given in listed if given != name] == []  # what PEP 484 asks of a re-export
    assert listed == sorted(listed), "by module, then by name"
    for module, name, _ in listed:
        assert getattr(transformer_jax, name) is getattr(importlib.import_module(module), name)
        assert name in dir(transformer_jax)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="No transformer_jax attribute paint"):
        _ = transformer_jax.paint


def definition(name):
    """What stands in the source: the class or function, or the assignment of a type; and its docstring."""
    found = getattr(transformer_jax, name)
    home = found.__module__.replace(".", "/") if found.__module__.startswith("transformer_jax") else None
    paths = [REPOSITORY / f"{home}.py", REPOSITORY / f"{home}/__init__.py"] if home else PACKAGE.rglob("*.py")
    for path in filter(Path.exists, paths):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node, below in zip(tree.body, [*tree.body[1:], None], strict=True):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
                return node, ast.get_docstring(node)
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
                is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                return node, below.value.value if is_text else None
    raise AssertionError(f"{name} is defined nowhere")


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_a_docstring(name):
    _, text = definition(name)
    assert text
    assert len(text.split()) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_what_raises_says_so(name):
    node, text = definition(name)
    for function in ast.walk(node):
        if isinstance(function, ast.FunctionDef) and (not function.name.startswith("_") or function.name == "__init__"):
            raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(function))
            told = f"{text} {ast.get_docstring(function)}"
            assert not raises or re.search(r"Raises:|errors (are )?those of", told, re.IGNORECASE), function.name


ROW = re.compile(r"^\| `(\w+)` \| (.+) \| \[[^]]+\]\(\.\./(transformer_jax/[\w/]+\.py)\) \|$", re.MULTILINE)


def test_the_library_page_lists_every_public_name_once_with_its_module():
    rows = ROW.findall((REPOSITORY / "docs" / "library.md").read_text(encoding="utf-8"))
    assert sorted(name for name, _, _ in rows) == NAMES
    for name, line, module in rows:
        assert len(line.split()) >= 2
        source = (REPOSITORY / module).read_text(encoding="utf-8")
        assert re.search(rf"^(class|def) {name}\b|^{name} = ", source, re.MULTILINE), f"{name} is not in {module}"


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import transformer_jax", ["jax", "flax", "sentencepiece", "sacrebleu", "tensorflow_datasets"]),
        ("import transformer_jax.cli", ["jax", "flax", "sentencepiece", "sacrebleu"]),
        (
            "from transformer_jax import dot_product_attention, Encoder, beam_search",
            ["tensorflow_datasets", "matplotlib", "pypinyin", "sacrebleu", "sentencepiece", "orbax", "num2words"],
        ),
        ("import transformer_jax; transformer_jax.load", ["tensorflow_datasets", "orbax", "tensorflow", "torch"]),
    ],
)
def test_imports_are_light(statement, unwanted):
    code = f"import sys; {statement}; print([name for name in {unwanted} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
