"""What each figure draws: the data of its artists against the arrays, and its texts."""

import io
import logging
import shutil
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from transformer_jax import UserError, causal_mask, plots, sinusoidal_positions
from transformer_jax.plots import drawing

SOURCE, TARGET = ["▁ein", "▁Haus", "</s>"], ["a", " ", "house", "</s>"]
CHINESE = list("春江明月降，秋水碧天高")
RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.dirichlet(np.ones(3), size=(2, 3, 4))  # layers, heads, T, S


def texts_of(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def images_of(axes):
    return [np.asarray(image.get_array()) for image in axes.get_images()]


def texts_in(picture):
    return [element.text for element in ET.parse(picture).iter() if element.tag.endswith("}text")]


def heights(axes):
    return [bar.get_height() for bar in axes.patches]


def test_attention_maps():
    figure = plots.attention_maps(jnp.asarray(WEIGHTS), TARGET, SOURCE, title="a house")
    panels = [axes for axes in figure.axes if axes.get_images() and len(axes.texts) > 1]
    assert len(panels) == 6
    for place, axes in enumerate(panels):
        [image] = images_of(axes)
        layer, head = divmod(place, 3)
        np.testing.assert_allclose(image, WEIGHTS[layer, head], atol=1e-6)
        texts = [text.get_text() for text in axes.texts]
        assert f"layer {layer}, head {head}" in texts
        assert texts[:3] == ["_ein", "_Haus", "</s>"]
        assert texts[3:-1] == (["a", "␣", "house", "</s>"] if head == 0 else [])
    assert "a house" in texts_of(figure)
    sizes = {(round(w, 6), round(h, 6)) for w, h in (axes.get_position().size for axes in panels)}
    assert len(sizes) == 1


def test_a_notebook_shows_figures_without_pyplot():
    formatters = pytest.importorskip("IPython.core.formatters", reason="needs `pip install IPython`")
    figure = plots.attention_masks({"causal": causal_mask(8)[0, 0]})
    widths = []
    for dpi in (60, 120):
        figure.set_dpi(dpi)
        shown, _ = formatters.DisplayFormatter().format(figure)
        assert shown["image/png"].startswith(b"\x89PNG")
        widths.append(struct.unpack(">I", shown["image/png"][16:20])[0])
    assert widths[1] == pytest.approx(2 * widths[0], abs=2)


def test_many_maps_stay_in_their_figure():
    figure = plots.attention_maps(RANDOM.random((6, 8, 40, 30)), list("ab" * 20), list("abc" * 10))
    assert max(figure.get_size_inches()) < drawing.LONGEST_SIDE + 10
    boxes = [axes.get_position() for axes in figure.axes]
    assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_attention_of_a_token():
    weights = WEIGHTS[0, :, 1]
    figure = plots.attention_of_token(weights, SOURCE, "house")
    [image] = images_of(figure.axes[0])
    np.testing.assert_allclose(image, [*weights, weights.mean(axis=0)], atol=1e-6)
    labels = [
        [label.get_text() for label in labels()]
        for labels in (figure.axes[0].get_xticklabels, figure.axes[0].get_yticklabels)
    ]
    assert labels == [["_ein", "_Haus", "</s>"], ["head 0", "head 1", "head 2", "mean"]]
    numbers = [text.get_text() for text in figure.axes[0].texts]
    assert numbers == [f"{w:.2f}".removeprefix("0") if w >= 0.005 else "" for w in image.ravel()]
    assert "attention of “house”" in texts_of(figure)
    long = plots.attention_of_token(np.full((1, 60), 1 / 60), ["word"] * 60, "house")
    assert list(long.axes[0].texts) == []


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.attention_maps(WEIGHTS, TARGET, TARGET),
        lambda: plots.attention_of_token(WEIGHTS[0, 0], TARGET, "a"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(draw):
    with pytest.raises(ValueError, match=r"does not fit .*4.* tokens"):
        draw()


def test_positional_encodings():
    encodings = sinusoidal_positions(jnp.arange(10), 16)
    figure = plots.positional_encodings(encodings)
    table, products = (images_of(axes)[0] for axes in figure.axes[:2])
    np.testing.assert_allclose(table, encodings, atol=1e-6)
    np.testing.assert_allclose(
        products, [[a @ b for b in np.asarray(encodings)] for a in np.asarray(encodings)], atol=1e-5
    )


def test_masks():
    causal = causal_mask(4)[0, 0]
    rectangle = np.array([[True, False], [True, True], [False, True]])
    figure = plots.attention_masks({"causal": causal, "rectangle": rectangle}, ["a", "b", "c", "d"])
    for axes, mask in zip(figure.axes, (causal, rectangle), strict=True):
        [image] = images_of(axes)
        np.testing.assert_array_equal(image, mask)
        for labels, count in ((axes.get_yticklabels(), mask.shape[0]), (axes.get_xticklabels(), mask.shape[1])):
            assert [label.get_text() for label in labels] == ["a", "b", "c", "d"][:count]
    with pytest.raises(ValueError, match="4 positions, but 2 tokens"):
        plots.attention_masks({"causal": causal}, ["a", "b"])


def test_learning_curves():
    curves = {
        "runs/a": ([10, 20, 30], [3.0, float("nan"), 1.0]),
        "_b": (np.arange(100), np.arange(100) ** 0.5),
        "c": ([], []),
    }
    figure = plots.learning_curves(curves, metric="loss", title="two runs")
    [axes] = figure.axes
    for line, (steps, values) in zip(axes.lines, curves.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), steps)
        np.testing.assert_array_equal(line.get_ydata(), values)
    [legend] = figure.legends
    assert [text.get_text().lstrip("\u200b") for text in legend.get_texts()] == list(curves)
    assert (axes.get_ylabel(), axes.get_xlabel(), axes.get_title()) == ("loss", "step", "two runs")
    assert plots.learning_curves(curves, log_scale=True).axes[0].get_yscale() == "log"
    with pytest.raises(ValueError, match="'x' has 2 steps, but 1 values"):
        plots.learning_curves({"x": ([1, 2], [1.0])})


def test_many_curves_have_no_legend_but_colours_of_their_own():
    figure = plots.learning_curves({str(n): ([0, 1], [n, n]) for n in range(21)})
    assert figure.legends == []
    assert len({line.get_color() for line in figure.axes[0].lines}) == 21


def test_steps_are_whole_numbers():
    [axes] = plots.learning_curves({"short": ([20], [1.0])}).axes
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_learning_rates():
    steps = np.arange(1, 101)
    rates = np.minimum(steps**-0.5, steps * 25**-1.5)
    [axes] = plots.learning_rates({"noam": (steps, rates)}).axes
    schedule, peak = axes.lines
    np.testing.assert_allclose(schedule.get_ydata(), rates)
    assert (peak.get_xdata().tolist(), peak.get_ydata().tolist()) == ([25.0], [pytest.approx(0.2)])
    assert [text.get_text() for text in axes.texts] == ["0.2"]


def test_reliability_diagram():
    accuracy, confidence, examples = np.array([0.0, 0.5, 0.9]), np.array([0.0, 0.6, 0.8]), np.array([0, 10, 30])
    figure = plots.reliability_diagram(accuracy, confidence, examples)
    above, below = figure.axes
    assert heights(above) == pytest.approx([0.5, 0.9, 0.1, -0.1])  # accuracies, then gaps
    assert [bar.get_y() for bar in above.patches[2:]] == pytest.approx([0.5, 0.9])
    assert [bar.get_x() for bar in above.patches[:2]] == pytest.approx([1 / 3, 2 / 3])
    assert heights(below) == [0, 10, 30]
    assert "expected calibration error 10.00% of 40" in texts_of(figure)


def test_length_bleu():
    figure = plots.length_bleu(["1–3", "4"], np.array([40.0, 1.0]), np.array([1200, 3]), overall=30.25)
    [axes] = figure.axes
    assert heights(axes) == [40.0, 1.0]
    assert [text.get_text() for text in axes.texts] == ["40.0", "1.0"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1–3\n(1,200)", "4\n(3)"]
    assert [set(line.get_ydata()) for line in axes.lines] == [{30.25}]
    with pytest.raises(ValueError, match="1 groups, but 2 scores"):
        plots.length_bleu(["1"], np.ones(2), np.ones(2, int))


def test_rules_by_place():
    written, references = np.array([[0, 0.5, 1], [0.25, 0, np.nan]]), np.array([[0, 0, 0.125], [0, 0, 0]])
    figure = plots.rules_by_place(
        {"written": written, "references": references}, ["length", "tones"], np.array([1380, 20, 1])
    )
    above, below = figure.axes[:2]
    for axes, shares in ((above, written), (below, references)):
        [image] = images_of(axes)
        np.testing.assert_array_equal(np.ma.filled(image, np.nan), shares.astype(np.float32))
        assert [label.get_text() for label in axes.get_yticklabels()] == ["length", "tones"]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1\n1,380", "2\n20", "3\n1"]
    assert [text.get_text() for text in above.texts] == ["0", "50.0", "100.0", "25.0", "0", ""]
    with pytest.raises(ValueError, match="do not fit 3 rules"):
        plots.rules_by_place({"written": written}, ["a", "b", "c"])


# The confusion matrix, and files.

MATRIX = np.array([[1_780, 40], [0, 8]])


def test_svg_shows_counts_and_shares(tmp_path):
    picture = tmp_path / "confusion.svg"
    plots.save_picture(picture, plots.confusion_matrix(MATRIX, ["体育", "$5 and $6"]))
    texts = texts_in(picture)
    assert [text for text in texts if text.replace(",", "").isdecimal()] == ["1,780", "40", "0", "8"]
    assert [text for text in texts if text.endswith("%")] == ["97.8%", "2.2%", "0.0%", "100.0%"]
    assert texts.count("体育") == texts.count("$5 and $6") == 2
    assert {"true class", "predicted class", "accuracy 97.81% of 1,828"} <= set(texts)
    before = picture.read_bytes()
    plots.save_picture(picture, plots.confusion_matrix(MATRIX, ["体育", "$5 and $6"]))
    assert picture.read_bytes() == before


def test_png(tmp_path):
    picture = tmp_path / "confusion.PNG"
    plots.save_picture(picture, plots.confusion_matrix(MATRIX, ["体育", "b"]))
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert 300 < width < 1_000
    assert 300 < height < 1_000
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.PNG"]


@pytest.mark.parametrize(("count", "numbers", "names"), [(26, False, True), (61, False, False)])
def test_many_classes(tmp_path, count, numbers, names):
    picture = tmp_path / "confusion.svg"
    figure = plots.confusion_matrix(np.eye(count, dtype=int), [f"class {c}" for c in range(count)])
    plots.save_picture(picture, figure)
    texts = texts_in(picture)
    assert ("100.0%" in texts) == numbers
    assert texts.count("class 7") == 2 * names
    root = ET.parse(picture).getroot()
    assert all(float(root.get(side).removesuffix("pt")) / 72 <= 20.5 for side in ("width", "height"))


def test_a_class_without_examples(tmp_path):
    figure = plots.confusion_matrix(np.array([[3, 0], [0, 0]]), ["a", "b"])
    assert texts_of(figure).count("0.0%") == 3
    np.testing.assert_array_equal(images_of(figure.axes[0])[0], [[1, 0], [0, 0]])


def test_mistakes_are_told(tmp_path):
    figure = plots.confusion_matrix(MATRIX, ["a", "b"])
    with pytest.raises(UserError, match=r"a\.gif cannot be drawn; name a picture that ends in \.png or \.svg"):
        plots.save_picture(tmp_path / "a.gif", figure)
    plots.check_picture(tmp_path / "curves.PNG", (".png",))
    with pytest.raises(UserError, match=r"a\.svg cannot be drawn; name a picture that ends in \.png\.$"):
        plots.check_picture(tmp_path / "a.svg", (".png",))
    with pytest.raises(UserError, match=r"a\.svg cannot be written \(No such file or directory\)"):
        plots.save_picture(tmp_path / "nowhere" / "a.svg", figure)
    with pytest.raises(ValueError, match="There are 2 classes, but 1 names of classes"):
        plots.confusion_matrix(MATRIX, ["a"])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file cannot hold pictures \(File exists\); name another folder"):
        plots.picture_folder(str(tmp_path / "file"), ["a.png"])


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="Pictures need matplotlib; install it with"):
        plots.confusion_matrix(MATRIX, ["a", "b"])


def test_matplotlib_is_imported_late():
    script = "import sys, transformer_jax.plots; print([name for name in ('matplotlib', 'jax') if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output == "[]\n"


# Fonts.


@pytest.fixture
def chinese_font(monkeypatch):
    """The families for Chinese text."""
    monkeypatch.setattr(drawing, "_told", set())
    families = drawing.font_families(CHINESE)
    if len(families) == 1:
        pytest.skip('no installed font has Chinese characters; pip install "transformer-jax[cjk]" brings one')
    return families


def test_chinese_text_has_its_glyphs(chinese_font):
    paths = [findfont(FontProperties(family=[name]), fallback_to_default=False) for name in chinese_font]
    known = set().union(*(FT2Font(path).get_charmap() for path in paths))
    assert {ord(each) for each in CHINESE} <= known
    figures = [
        plots.attention_maps(RANDOM.random((1, 2, 11, 11)), CHINESE, CHINESE, title="".join(CHINESE)),
        plots.attention_of_token(RANDOM.random((2, 11)), CHINESE, "春"),
        plots.attention_masks({"因果": causal_mask(11)[0, 0]}, CHINESE),
        plots.learning_curves({"实验": ([1, 2], [1, 2])}, metric="损失", title="学习曲线"),
        plots.learning_rates({"预热": ([1, 2], [1, 2])}, title="学习率"),
        plots.confusion_matrix(MATRIX, ["体育", "科技与天气预报新闻"]),
        plots.rules_by_place({"下联": np.zeros((1, 3))}, ["平仄"]),
    ]
    for figure in figures:
        figure.savefig(io.BytesIO(), format="png")  # a missing glyph is a warning, and so an error


def test_missing_glyphs_are_told_once(monkeypatch, caplog):
    monkeypatch.setattr(drawing, "_told", set())
    monkeypatch.setattr(drawing, "_candidates", lambda: iter(()))
    with caplog.at_level(logging.WARNING, drawing.__name__):
        for _ in range(2):
            assert drawing.font_families(["plain", "▁·×→", "天地玄黄宇宙\u200d"]) == ["DejaVu Sans"]
    [record] = caplog.records
    assert record.getMessage() == (
        "No installed font has 地 天 宇 宙 玄 and 1 more: pictures show boxes instead; install one, for Chinese with "
        '`pip install "transformer-jax[cjk]"`.'
    )


def entry(name, path="/fonts/a.ttf", weight=400, style="normal"):
    return FontEntry(fname=path, name=name, style=style, weight=weight)


def test_fonts_for_reading_chinese_come_first(monkeypatch):
    unwanted = [
        entry("Noto Sans SC", weight=700),
        entry("Noto Color Emoji"),
        entry("Last Resort"),
        entry("A", style="italic"),
    ]
    own = entry("cmsy10", path=f"{matplotlib.get_data_path()}/fonts/ttf/cmsy10.ttf")
    wanted = [entry("Unifont"), entry("Noto Sans CJK JP"), entry("WenQuanYi Zen Hei"), entry("Noto Sans SC")]
    monkeypatch.setattr(fontManager, "ttflist", [*unwanted, own, *wanted])
    monkeypatch.setattr(drawing, "_PACKAGED_FONTS", {})
    drawing._add_packaged.cache_clear()
    assert list(drawing._candidates()) == wanted[::-1]


def test_fonts_in_packages_are_found(monkeypatch, tmp_path):
    (tmp_path / "fontpack").mkdir()
    (tmp_path / "fontpack" / "__init__.py").write_text("raise RuntimeError('imported')")
    shutil.copy(drawing._base_path(), tmp_path / "fontpack" / "Own.ttf")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(fontManager, "ttflist", [])
    monkeypatch.setattr(drawing, "_PACKAGED_FONTS", {"fontpack": "Own.ttf", "no_such_package": "a.ttf"})
    drawing._add_packaged.cache_clear()
    assert [found.fname for found in drawing._candidates()] == [str(tmp_path / "fontpack" / "Own.ttf")]
    drawing._add_packaged.cache_clear()


def test_labels():
    assert [drawing.token_label(token) for token in ("▁a", " ", "\n", "", "a\x1bb", "春")] == [
        "_a",
        "␣",
        "⏎",
        "∅",
        "a\\x1bb",
        "春",
    ]
    assert drawing.upright(["a", "bc", "def"], 9.0, 0.1) == [("a", 0), ("bc", 0), ("def", 90)]
    assert drawing.upright(["a", "春", "春天", "def"], 9.0, 0.2) == [("a", 0), ("春", 0), ("春\n天", 0), ("def", 90)]
    assert drawing.upright(["def", "春天"], 9.0, 1.0) == [("def", 0), ("春天", 0)]
