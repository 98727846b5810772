"""The shape of the package: imports point downward, files stay small, and no configuration field is idle."""

import ast
import dataclasses
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from transformer_jax.config import Config

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "transformer_jax"

# Low to high. A module imports from lower rows, or from its own package; neighbours in a row don't know each other.
LAYERS = (
    ("errors",),
    ("attention", "positions", "data", "decoding"),
    ("layers",),
    ("models",),
    ("config",),
    ("losses", "metrics", "optim"),
    ("sharding",),
    ("steps",),
    ("generation",),
    ("tasks",),
    ("bundle",),
    ("training", "interop"),
    ("cli",),
    ("__init__", "__main__"),
)
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}
STANDS_ALONE = ("attention", "positions")
"""These import nothing of ours at all."""
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}


def module_name(path: Path) -> str:
    """`data.batching` for transformer_jax/data/batching.py, `data` for its `__init__.py`, `__init__` for the root."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def unit(module: str) -> str:
    """The name in LAYERS that `module` belongs to."""
    return module.split(".")[0]


def imports(source: str) -> Iterator[str]:
    """Full names of all modules and names that a source imports, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what is imported"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(source: str) -> set[str]:
    """Those of our modules that a source imports, as named in MODULES."""
    found = set()
    for name in imports(source):
        root, _, rest = name.partition(".")
        if root == "transformer_jax":
            # `transformer_jax.data.batching.pack` may be a module or a name within one.
            candidates = (rest, rest.rpartition(".")[0])
            found.add(next((module for module in candidates if module in MODULES), "__init__"))
    return found


def faults(module: str, source: str) -> list[str]:
    """What is wrong with the imports of a module."""
    wrong = []
    for target in own_imports(source):
        lower = RANK[unit(target)] < RANK[unit(module)]
        sibling = unit(target) == unit(module)
        if not (lower or sibling) or unit(module) in STANDS_ALONE:
            wrong.append(f"{module} imports {target}")
    roots = {name.split(".")[0] for name in imports(source)}
    if unit(module) == "data":
        wrong += [f"{module} imports {root}" for root in sorted(roots & JAX)]
    wrong += [f"{module} imports {root}" for root in sorted(roots & {"tensorflow", "torch"})]
    return wrong


def test_every_module_has_its_place():
    assert {unit(module) for module in MODULES} <= set(RANK)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module):
    assert faults(module, MODULES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("models", "from transformer_jax.config import Config"),
        ("models", "import transformer_jax.config"),
        ("attention", "from transformer_jax.errors import UserError"),
        ("data.example", "def late():\n    import jax.numpy as jnp"),
        ("decoding.example", "from transformer_jax import models"),
        ("decoding.example", "from transformer_jax.layers import Linear"),
        ("errors", "from transformer_jax import Anything"),
        ("cli", "from torch import nn"),
    ],
)
def test_the_check_sees_what_is_wrong(module, source):
    assert len(faults(module, source)) == 1


def test_no_cycles():
    graph = {module: own_imports(path.read_text(encoding="utf-8")) - {module} for module, path in MODULES.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert order.index("errors") < order.index("config")


def config_fields() -> list[tuple[str, str]]:
    """Group and name of each field of an experiment; the group of those at the top is `config`."""
    top, groups = Config(), []
    for field in dataclasses.fields(top):
        value = getattr(top, field.name)
        if dataclasses.is_dataclass(value):
            groups += [(field.name, inner.name) for inner in dataclasses.fields(value)]
        else:
            groups.append(("config", field.name))
    return groups


def read_attributes() -> set[tuple[str, str]]:
    """(last name of the object, attribute) of each attribute that the package reads outside `config.py`."""
    reads = set()
    for module, path in MODULES.items():
        if module != "config":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    reads.add((ast.unparse(node.value).split(".")[-1], node.attr))
                elif isinstance(node, ast.FunctionDef):
                    reads |= read_by_name(node)
    return reads


def read_by_name(function: ast.FunctionDef) -> set[tuple[str, str]]:
    """What `{name: getattr(config, name) for name in ("d_model", ...)}` reads."""
    reads = set()
    for node in ast.walk(function):
        if isinstance(node, ast.DictComp) and "getattr(config, name)" in ast.unparse(node.value):
            # The names stand in the comprehension, or in a tuple beside it.
            reads |= {("config", n.value) for n in ast.walk(function) if isinstance(n, ast.Constant)}
    return reads


READS = read_attributes()
TOP = {field.name for field in dataclasses.fields(Config)}


@pytest.mark.parametrize(("group", "name"), config_fields())
def test_every_config_field_has_a_reader(group, name):
    # A group is passed on as `config` or under its own name: `config.data.name`, `data.name`, `data_config.name`.
    readers = {(group, name), (f"{group}_config", name)}
    if group == "config" or name not in TOP:
        readers.add(("config", name))
    found = bool(readers & READS)
    assert found, f"no module reads {group}.{name}: drop the field, or use it"


SOURCES = [
    path
    for folder in ("transformer_jax", "configs", "tests", "benchmarks")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
] + sorted(REPOSITORY.glob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_files_are_short_and_finished(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    unfinished = "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X"))
    assert not re.search(rf"\b({unfinished})\b", text)
