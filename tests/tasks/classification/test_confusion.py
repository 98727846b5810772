import numpy as np
import pytest
from rich.cells import cell_len

from transformer_jax.tasks.classification.metrics import confusion_table

MATRIX = np.array([[1_780, 40], [0, 8]])


def test_table():
    assert confusion_table(MATRIX, ["World", "Sci/Tech"]) == (
        "true \\ predicted  World  Sci/Tech\n"
        "World             1,780        40\n"
        "Sci/Tech              0         8"
    )  # fmt: skip


def test_table_with_wide_characters():
    table = confusion_table(MATRIX, ["体育新闻与天气预报之类", "财"])
    lines = table.split("\n")
    assert len({cell_len(line) for line in lines}) == 1
    assert [line.split() for line in lines[1:]] == [["体育新闻与天气预报之类", "1,780", "40"], ["财", "0", "8"]]
    assert len(lines[1]) < len(lines[2])


def test_names_are_as_many_as_classes():
    with pytest.raises(ValueError, match="There are 2 classes, but 1 names of classes"):
        confusion_table(MATRIX, ["a"])
