"""What all pictures share: fonts that have the glyphs of a text, labels of tokens, and writing a picture to a file."""

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.cells import cell_len

from transformer_jax.system import UserError
from transformer_jax.system.files import AnyPath, as_path, os_errors
from transformer_jax.system.output import Output, write_output
from transformer_jax.system.runtime import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontEntry

PICTURE_SUFFIXES = (".png", ".svg")
DPI = 150
LONGEST_SIDE = 40.0
"""Of a picture, in inches."""
FONT_SIZE = 9.0
"""In points, of labels where there is room."""
BASE_FONT = "DejaVu Sans"
"""Comes with matplotlib."""
_POINTS = 72  # to the inch
_CELL = 0.56 / _POINTS  # of a terminal, which letters fill on average: inches per point of font size

_PACKAGED_FONTS = {"pylopdf_fonts_zh_cn": "NotoSansSC-Regular.otf"}
"""Fonts in packages that pip installs, the extra `cjk`: the module and its file."""
_PREFERRED = (
    *("Noto Sans SC", "Noto Sans CJK SC", "Source Han Sans SC", "Source Han Sans CN"),
    *("PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "SimHei"),
    *("Noto Sans CJK JP", "Arial Unicode MS"),  # the first of a collection, as matplotlib names it
)
"""Where several fonts have a character: Chinese forms before Japanese ones, for reading before for display."""
_NOT_FOR_TEXT = ("last resort", "lastresort", "emoji")
"""Parts of names of fonts that have a box for every character, or pictures that matplotlib cannot draw."""
_told: set[str] = set()
"""Characters that no installed font has, as the user knows."""


@contextlib.contextmanager
def new_figure(
    width: float, height: float, texts: Iterable[str] = (), *, layout: str | None = None
) -> Iterator["Figure"]:
    """A figure to draw in within the block, in fonts that have the glyphs of `texts`; it has no state in pyplot.

    Args:
        width: in inches.
        height: in inches.
        texts: all that will be written but plain English.
        layout: matplotlib's layout engine.

    Raises:
        UserError: if matplotlib is not installed.
    """
    matplotlib = _matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "font.family": font_families(texts),
        "font.size": FONT_SIZE,
        "text.parse_math": False,  # a token may be a dollar sign
        "axes.titlesize": FONT_SIZE + 1,
        "axes.unicode_minus": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)  # type: ignore[arg-type]
        # Without it, a notebook shows figures only once pyplot has made one.
        figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]
        FigureCanvasAgg(figure)
        yield figure
        for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
            axis.get_ticklabels()  # made when first drawn otherwise, in the style of that time


def font_families(texts: Iterable[str]) -> list[str]:
    """Names of installed fonts that together have the glyphs of `texts`, the base font first.

    Characters that no installed font has are reported once, with what to install.

    Raises:
        UserError: if matplotlib is not installed.
    """
    _matplotlib()
    families = [BASE_FONT]
    missing = {each for text in texts for each in text if each.isprintable() and not each.isspace()} - _told
    for entry in (None, *_candidates()) if not "".join(missing).isascii() else ():
        name, path = (BASE_FONT, _base_path()) if entry is None else (entry.name, entry.fname)
        found = {each for each in missing if ord(each) in _characters_of(path)}
        missing = missing - found
        if found and name not in families:
            families.append(name)
        if not missing:
            break
    missing = {each for each in missing if not each.isascii()}
    if missing:
        shown = "".join(sorted(missing))
        more = f" and {len(shown) - 5:,} more" if len(shown) > 5 else ""
        logging.getLogger(__name__).warning(
            printable(
                f"No installed font has {' '.join(shown[:5])}{more}: pictures show boxes instead; install one, for "
                'Chinese with `pip install "transformer-jax[cjk]"`.'
            )
        )
        _told.update(missing)
    return families


def token_label(token: str) -> str:
    """A token as a label: white space visible, a thin mark of sentencepiece, and what does not print escaped."""
    return printable(token.replace(" ", "␣").replace("\n", "⏎").replace("▁", "_")) or "∅"


def label_inches(labels: Sequence[str], font_size: float) -> float:
    """About the width of the widest label."""
    return max((cell_len(label) for label in labels), default=0) * _CELL * font_size


def fitting_font_size(inches: float) -> float:
    """The font size of labels that each have that much room."""
    return min(FONT_SIZE, max(2.0, 0.72 * inches * _POINTS))


def upright(labels: Sequence[str], font_size: float, room: float) -> list[tuple[str, int]]:
    """Labels of an x axis and their rotations.

    If one of them is wider than `room` inches, all that have more than two letters are turned; of Chinese ones only
    those that are wider stand upright, character below character.
    """
    turns = label_inches([label for label in labels if "\n" not in label], font_size) > room
    found = []
    for label in labels:
        if cell_len(label) == 2 * len(label):
            is_wide = label_inches([label], font_size) > room
            found.append(("\n".join(label) if is_wide else label, 0))
        else:
            found.append((label, 90 if turns and cell_len(label) > 2 else 0))
    return found


def upright_inches(labels: Sequence[str], font_size: float, room: float) -> float:
    """About the height of what `upright` returns."""
    heights = [
        label_inches([label], font_size) if rotation else font_size / _POINTS * 1.2 * (1 + label.count("\n"))
        for label, rotation in upright(labels, font_size, room)
    ]
    return max(heights, default=0.0)


def name_ticks(
    axes: "Axes", side: Literal["x", "y"], labels: Sequence[str], font_size: float, room: float = 0.0
) -> None:
    """Name the ticks 0, 1, ... of an axis, "x" or "y"; on x each label has `room` inches, see `upright`."""
    if side == "y":
        axes.set_yticks(range(len(labels)), labels, fontsize=font_size)
    else:
        turned = upright(labels, font_size, room)
        axes.set_xticks(range(len(labels)), [shown for shown, _ in turned], fontsize=font_size)
        for tick, label, (shown, rotation) in zip(axes.get_xticklabels(), labels, turned, strict=True):
            tick.set(rotation=rotation, linespacing=1.2 if shown == label else 1.0)
    axes.tick_params(side, length=0, pad=2)


def picture_folder(folder: str | None, names: Sequence[str]) -> AnyPath | None:
    """A folder for pictures of these names, made if there is none; to be asked before the work that they show.

    Returns:
        Its path; None if it is None, or for a process other than the first of several, which draws nothing.

    Raises:
        UserError: if it cannot be made, or a picture cannot be written there.
    """
    from transformer_jax.system import distributed

    if folder is None or not distributed.is_main():
        return None
    path = as_path(folder)
    try:
        with os_errors(path):
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"{folder} cannot hold pictures ({reason}); name another folder.") from error
    for name in names:
        check_picture(path / name)
    return path


def check_picture(path: str | AnyPath, suffixes: Sequence[str] = PICTURE_SUFFIXES) -> None:
    """Do nothing, unless there could not be a picture of this name; to be asked before the work that it shows.

    Raises:
        UserError: if the name ends otherwise than `suffixes`, or the file cannot be written.
    """
    path = as_path(path)
    if path.suffix.lower() not in suffixes:
        *most, last = suffixes
        names = " or ".join(filter(None, (", ".join(most), last)))
        raise UserError(f"{path} cannot be drawn; name a picture that ends in {names}.")
    Output(str(path))


def save_picture(path: str | AnyPath, figure: "Figure") -> None:
    """Write a figure to a file; the same figure gives the same bytes.

    A character that no installed font has becomes a box in a PNG; an SVG leaves the fonts to its viewer.

    Args:
        path: its suffix selects PNG or SVG.
        figure: any figure of matplotlib.

    Raises:
        UserError: if the name ends otherwise, or the file cannot be written.
    """
    matplotlib = _matplotlib()
    check_picture(path)
    form = as_path(path).suffix.lower().removeprefix(".")
    content = io.BytesIO()
    # In an SVG text stays text, and nothing depends on chance.
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "transformer_jax"}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # `font_families` has reported it
        metadata = {"Date": None} if form == "svg" else {}
        figure.savefig(content, format=form, bbox_inches="tight", metadata=metadata)
    write_output(str(path), content.getvalue())


def save_pictures(folder: AnyPath, figures: "Mapping[str, Figure]") -> None:
    """`save_picture` for each figure, by the name of its file; errors are those of `save_picture`."""
    for name, figure in figures.items():
        save_picture(folder / name, figure)


def _png(figure: "Figure") -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # `font_families` has told
        figure.savefig(content, format="png", dpi=figure.dpi, bbox_inches="tight")
    return content.getvalue()


def _matplotlib() -> Any:
    """The module, imported late, as it is slow to import."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("Pictures need matplotlib; install it with `pip install matplotlib`.") from error
    return matplotlib


def _base_path() -> str:
    return str(Path(_matplotlib().get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


def _candidates() -> "Iterator[FontEntry]":
    """Installed fonts, those that we prefer first; none of matplotlib's own, some of which lie about characters."""
    from matplotlib.font_manager import fontManager

    _add_packaged()
    own = _matplotlib().get_data_path()
    regular = [
        entry
        for entry in fontManager.ttflist
        if entry.style == "normal"
        and entry.weight in (400, "normal", "regular", "book")
        and not entry.fname.startswith(own)
        and not any(word in entry.name.lower() for word in _NOT_FOR_TEXT)
    ]
    rank = {name: place for place, name in enumerate(_PREFERRED)}
    yield from sorted(regular, key=lambda entry: (rank.get(entry.name, len(rank)), entry.name))


@lru_cache(maxsize=1)
def _add_packaged() -> None:
    from matplotlib.font_manager import fontManager

    for module, file in _PACKAGED_FONTS.items():
        spec = importlib.util.find_spec(module)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            with contextlib.suppress(OSError, RuntimeError):  # a damaged installation has no font
                fontManager.addfont(Path(folder, file))


@lru_cache(maxsize=8)
def _characters_of(path: str) -> frozenset[int]:
    """Code points that a font has; none if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
