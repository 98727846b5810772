import ast
import subprocess
import sys
from pathlib import Path

import pytest

import transformer_jax


def names_for_type_checkers():
    """Name to module of the imports under `if TYPE_CHECKING`."""
    tree = ast.parse(Path(transformer_jax.__file__).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    return {alias.asname: node.module for node in block.body for alias in node.names}


def test_every_public_name_is_there_for_the_interpreter_and_for_type_checkers():
    assert sorted(names_for_type_checkers()) == transformer_jax.__all__
    for name, module in names_for_type_checkers().items():
        assert getattr(transformer_jax, name) is getattr(sys.modules[module], name)
        assert name in dir(transformer_jax)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'paint'"):
        _ = transformer_jax.paint


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import transformer_jax.cli", ["jax", "flax", "sentencepiece", "sacrebleu"]),
        ("import transformer_jax; transformer_jax.load", ["tensorflow_datasets", "orbax", "tensorflow", "torch"]),
    ],
)
def test_imports_are_light(statement, unwanted):
    code = f"import sys; {statement}; print([name for name in {unwanted} if name in sys.modules])"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(transformer_jax.__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "[]\n"
