"""The shape of the package: imports point downward, files stay small, and no configuration field is idle."""

import ast
import dataclasses
import graphlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from transformer_jax.config import Config
from transformer_jax.task_groups import task_groups

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "transformer_jax"

# Low to high. A module imports from lower rows, or from its own package; neighbours in a row don't know each other.
LAYERS = (
    ("system",),
    ("sharding", "data", "task_groups", "plots"),
    ("nn",),
    ("decoding",),
    ("config",),
    ("tasks",),
    ("training", "interop"),
    ("experiments", "serving", "demo"),
    ("cli",),
    ("__init__", "__main__"),
)
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}
STANDS_ALONE = ("nn.attention",)
"""These import nothing of ours at all."""
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}


def module_name(path: Path) -> str:
    """`data.pipeline` for transformer_jax/data/pipeline.py, `data` for its `__init__.py`, `__init__` for the root."""
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
        ("nn.attention", "from transformer_jax.system import UserError"),
        ("data.example", "def late():\n    import jax.numpy as jnp"),
        ("decoding.example", "from transformer_jax import tasks"),
        ("decoding.example", "from transformer_jax.config import Config"),
        ("sharding", "from transformer_jax.nn import Seq2Seq"),
        ("data.example", "from transformer_jax.decoding.generator import Generator"),
        ("system.files", "from transformer_jax import Anything"),
        ("cli", "from torch import nn"),
    ],
)
def test_the_check_sees_what_is_wrong(module, source):
    assert len(faults(module, source)) == 1


def test_the_package_stays_small():
    assert len(MODULES) <= 126
    assert len({unit(module) for module in MODULES if "." not in module and MODULES[module].parent == PACKAGE}) <= 8
    assert len(LAYERS) <= 10


ONE_IDEA_PER_ROOM = {"__init__", "task", "sources", "command", "metrics", "service", "tab"}
"""File names that may come more than once: they mean the same in each room."""


def test_a_file_name_means_one_thing():
    counts = Counter(path.stem for path in MODULES.values())
    assert [name for name, count in counts.items() if count > 1 and name not in ONE_IDEA_PER_ROOM] == []


ROOMS = {"translation", "classification", "couplets"}
TASKS = {"translation", "classification", "couplet", "transformer"}
DEFAULTS = {("config", "translation")}
"""What is trained unless `config.task` says otherwise."""


def names_of_tasks(module: str, source: str) -> list[str]:
    """Imports of a task's room, and strings that name a room or a task, docstrings apart."""
    found = [name for name in imports(source) if name.split(".")[:2] == ["transformer_jax", "tasks"]]
    found = [name for name in found if ROOMS & set(name.split(".")[2:3])]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            is_task = node.value in TASKS and (module, node.value) not in DEFAULTS
            if is_task or re.match(rf"transformer_jax\.tasks\.({'|'.join(ROOMS)})\b", node.value):
                found.append(node.value)
    return found


@pytest.mark.parametrize("module", [module for module in MODULES if unit(module) != "tasks"])
def test_nothing_outside_tasks_knows_a_task(module):
    assert names_of_tasks(module, MODULES[module].read_text(encoding="utf-8")) == []


def test_the_check_sees_names_of_tasks():
    assert names_of_tasks("cli", "from transformer_jax.tasks.couplets import rules") != []
    assert names_of_tasks("cli", "from transformer_jax.tasks import couplets") != []
    assert names_of_tasks("cli", "x = task == 'couplet'") == ["couplet"]
    assert names_of_tasks("cli", "x = 'transformer_jax.tasks.couplets.rules:Rules'") != []
    assert names_of_tasks("cli", "from transformer_jax.tasks.registry import registered") == []
    assert names_of_tasks("config", "task = 'translation'") == []
    assert names_of_tasks("config", "task = 'couplet'") == ["couplet"]


def test_no_cycles():
    graph = {module: own_imports(path.read_text(encoding="utf-8")) - {module} for module, path in MODULES.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert order.index("system") < order.index("config")


GROUPS = {field.name: type(getattr(Config(), field.name)) for field in dataclasses.fields(Config)}
GROUPS = {name: cls for name, cls in GROUPS.items() if dataclasses.is_dataclass(cls)} | {"config": Config}
GROUPS |= {name: task_groups()[name] for name in sorted(TASKS) if name in task_groups()}
FIELDS = [
    (group, field.name)
    for group, cls in GROUPS.items()
    for field in dataclasses.fields(cls)
    if field.name not in GROUPS and (group, field.name) != ("config", "groups")
] + [("mesh", "data")]


def pairs(target: ast.expr, value: ast.expr) -> list[tuple[ast.expr, ast.expr]]:
    """The assignments that an assignment of tuples is made of."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return list(zip(target.elts, value.elts, strict=True))
    return [(target, value)]


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
        elif isinstance(node, ast.arg) and node.annotation is not None:
            # `own: CoupletConfig`, quoted or not
            annotation = ast.unparse(node.annotation).strip("'")
            for group in set(GROUPS) - {"config"}:
                if annotation == GROUPS[group].__name__:
                    aliases[node.arg] = {group}
        elif isinstance(node, ast.Assign):
            # `spec = config.tokenizer`, also of several at a time
            for target in node.targets:
                for name, value in pairs(target, node.value):
                    if isinstance(value, ast.Attribute) and value.attr in GROUPS:
                        aliases[ast.unparse(name)] = {value.attr}
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
    assert ("data", "name") in set(reads("def f(config: 'DataConfig'):\n    return config.name"))
    assert ("couplet", "rules") in set(reads("def f(own: CoupletConfig):\n    return own.rules"))
    assert ("couplet", "rules") in set(reads("data, own = config.data, config.couplet\nx = own.rules"))
    assert ("couplet", "rules") in set(reads("x = self.config.couplet.rules"))
    assert ("couplet", "rules") not in set(reads("x = model.settings.rules, own.rules"))


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
