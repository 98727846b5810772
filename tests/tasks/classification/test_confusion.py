import struct
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from rich.cells import cell_len

from transformer_jax.system import UserError
from transformer_jax.tasks.classification.metrics import confusion_table, save_confusion_picture

MATRIX = np.array([[1_780, 40], [0, 8]])


def texts_of(picture):
    return [element.text for element in ET.parse(picture).iter() if element.tag.endswith("}text")]


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


def test_svg_shows_counts_and_shares(tmp_path):
    picture = tmp_path / "confusion.svg"
    save_confusion_picture(picture, MATRIX, ["体育", "$5 and $6"])
    texts = texts_of(picture)
    assert [text for text in texts if text.replace(",", "").isdecimal()] == ["1,780", "40", "0", "8"]
    assert [text for text in texts if text.endswith("%")] == ["97.8%", "2.2%", "0.0%", "100.0%"]
    assert texts.count("体育") == texts.count("$5 and $6") == 2
    assert {"true class", "predicted class", "accuracy 97.81% of 1,828"} <= set(texts)
    before = picture.read_bytes()
    save_confusion_picture(picture, MATRIX, ["体育", "$5 and $6"])
    assert picture.read_bytes() == before


def test_png(tmp_path):
    picture = tmp_path / "confusion.PNG"
    save_confusion_picture(picture, MATRIX, ["体育", "b"])
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert 300 < width < 1_000
    assert 300 < height < 1_000
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.PNG"]


@pytest.mark.parametrize(("count", "numbers", "names"), [(26, False, True), (61, False, False)])
def test_many_classes(tmp_path, count, numbers, names):
    picture = tmp_path / "confusion.svg"
    save_confusion_picture(picture, np.eye(count, dtype=int), [f"class {c}" for c in range(count)])
    texts = texts_of(picture)
    assert ("100.0%" in texts) == numbers
    assert texts.count("class 7") == 2 * names
    root = ET.parse(picture).getroot()
    assert all(float(root.get(side).removesuffix("pt")) / 72 <= 20.5 for side in ("width", "height"))


def test_a_class_without_examples(tmp_path):
    save_confusion_picture(tmp_path / "a.svg", np.array([[3, 0], [0, 0]]), ["a", "b"])
    assert texts_of(tmp_path / "a.svg").count("0.0%") == 3


def test_mistakes_are_told(tmp_path):
    with pytest.raises(UserError, match=r"a\.gif cannot be drawn; name a picture that ends in \.png or \.svg"):
        save_confusion_picture(tmp_path / "a.gif", MATRIX, ["a", "b"])
    with pytest.raises(UserError, match=r"a\.svg cannot be written \(No such file or directory\)"):
        save_confusion_picture(tmp_path / "nowhere" / "a.svg", MATRIX, ["a", "b"])
    for show in (confusion_table, lambda *arguments: save_confusion_picture(tmp_path / "a.svg", *arguments)):
        with pytest.raises(ValueError, match="There are 2 classes, but 1 names of classes"):
            show(MATRIX, ["a"])


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="Pictures need matplotlib; install it with"):
        save_confusion_picture(tmp_path / "a.svg", MATRIX, ["a", "b"])


def test_matplotlib_is_imported_late():
    script = "import sys, transformer_jax.tasks.classification.metrics; print('matplotlib' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output == "False\n"
