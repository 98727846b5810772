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
    ("system",),
    ("sharding", "data"),
    ("nn",),
    ("decoding",),
    ("config",),
    ("tasks",),
    ("training", "interop"),
    ("cli",),
    ("__init__", "__main__"),
)
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}
STANDS_ALONE = ("nn.attention", "nn.positions")
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
            # `transformer_jax.data.pipeline.pack` may be a module or a name within one.
            candidates = (rest, rest.rpartition(".")[0])
            found.add(next((module for module in candidates if module in MODULES), "__init__"))
    return found


def faults(module: str, source: str) -> list[str]:
    """What is wrong with the imports of a module."""
    wrong = []
    for target in own_imports(source):
        lower = RANK[unit(target)] < RANK[unit(module)]
        sibling = unit(target) == unit(module)
        if not (lower or sibling) or module in STANDS_ALONE:
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
        ("nn", "from transformer_jax.config import Config"),
        ("nn", "import transformer_jax.config"),
        ("nn.attention", "from transformer_jax.system.errors import UserError"),
        ("data.example", "def late():\n    import jax.numpy as jnp"),
        ("decoding.example", "from transformer_jax import tasks"),
        ("decoding.example", "from transformer_jax.config import Config"),
        ("sharding", "from transformer_jax.nn import Seq2Seq"),
        ("data.example", "from transformer_jax.decoding.generator import Generator"),
        ("system.errors", "from transformer_jax import Anything"),
        ("cli", "from torch import nn"),
    ],
)
def test_the_check_sees_what_is_wrong(module, source):
    assert len(faults(module, source)) == 1


def test_no_cycles():
    graph = {module: own_imports(path.read_text(encoding="utf-8")) - {module} for module, path in MODULES.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert order.index("system.errors") < order.index("config")


GROUPS = {field.name: type(getattr(Config(), field.name)) for field in dataclasses.fields(Config)}
GROUPS = {name: cls for name, cls in GROUPS.items() if dataclasses.is_dataclass(cls)} | {"config": Config}
FIELDS = [
    (group, field.name)
    for group, cls in GROUPS.items()
    for field in dataclasses.fields(cls)
    if field.name not in GROUPS
] + [("mesh", "data")]


def reads(source: str, package: str = "") -> Iterator[tuple[str, str]]:
    """(group, field) of each configuration field that a source in one of our packages may read."""
    nodes = list(ast.walk(ast.parse(source)))
    # `config`, and the arguments of lambdas, are of the classes that the source names.
    named = {node.id for node in nodes if isinstance(node, ast.Name)}
    named |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    known = {group for group, cls in GROUPS.items() if cls.__name__ in named} | {"config"}
    # `data` lies below the classes and can't name them; its `config` is the group of its own name.
    known |= {package} & set(GROUPS)
    aliases = {group: {group} for group in GROUPS} | {f"{group}_config": {group} for group in GROUPS}
    aliases["config"] = known
    for node in nodes:
        if isinstance(node, ast.Lambda):
            aliases |= {argument.arg: known for argument in node.args.args}
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute) and node.value.attr in GROUPS:
            # `spec = config.tokenizer`
            aliases |= {ast.unparse(target): {node.value.attr} for target in node.targets}
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = ast.unparse(node.value).split(".")[-1]
            yield from ((group, node.attr) for group in aliases.get(owner, ()))
        elif isinstance(node, ast.FunctionDef) and "getattr(config, name) for name in" in ast.unparse(node):
            # The names stand as strings in the comprehension, or in a tuple beside it.
            names = {inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant)}
            yield from ((group, name) for group in known for name in names)


READS = {
    read
    for module, path in MODULES.items()
    if module != "config"
    for read in reads(path.read_text(encoding="utf-8"), unit(module))
}


@pytest.mark.parametrize(("group", "name"), FIELDS)
def test_every_config_field_has_a_reader(group, name):
    found = (group, name) in READS
    assert found, f"no module reads {group}.{name}: drop the field, or use it"


def test_a_reader_is_told_from_a_namesake():
    assert set(reads("path.name, args.seed")) == set()
    assert ("data", "name") in set(reads("x = self.config.data.name"))
    assert ("tokenizer", "kind") in set(reads("spec = config.tokenizer\nprint(spec.kind)"))
    assert ("mesh", "data") not in set(reads("config.data.name"))
    assert ("mesh", "data") in set(reads("def f(config: MeshConfig):\n    return config.data"))


SOURCES = [
    path
    for folder in ("transformer_jax", "configs", "examples", "tests", "benchmarks")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
] + sorted(REPOSITORY.glob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_files_are_short_and_finished(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    unfinished = "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X"))
    assert not re.search(rf"\b({unfinished})\b", text)
