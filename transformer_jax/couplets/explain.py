"""A couplet and its rules as a table to look at."""

from rich.cells import cell_len

from transformer_jax.couplets.judge import is_mark, judge
from transformer_jax.couplets.rules import NAMES
from transformer_jax.couplets.tones import Tone, tone

_SIGNS = {Tone.LEVEL: "平", Tone.OBLIQUE: "仄", Tone.EITHER: "通"}
_BROKEN, _KEPT = "×", "·"


def explain(upper: str, lower: str, gave_up: tuple[str, ...] = ()) -> str:
    """Which rule holds where, as lines of text without a newline at the end.

    Both lines stand above each other, a column a place, with their tones: 平 level, 仄 oblique, 通 either. Below, × is
    where a rule is broken.

    Args:
        upper: the upper line.
        lower: the lower line.
        gave_up: rules that no lower line could have kept.
    """
    verdict = judge(upper, lower)
    places = range(max(len(upper), len(lower)))
    rows = [
        ("upper", list(upper), ""),
        ("", [_sign(character) for character in upper], "(should end 仄)" if verdict.upper_ends_level else ""),
        ("lower", list(lower), ""),
        ("", [_sign(character) for character in lower], ""),
    ]
    for name in NAMES:
        broken = verdict.broken[name]
        count = f"broken at {len(broken)} place{'s' * (len(broken) > 1)}"
        remark = "kept" if not broken else f"{count}, given up" if name in gave_up else count
        rows.append((name, [_BROKEN if place in broken else _KEPT for place in places], remark))
    lines = []
    for name, cells, remark in rows:
        cells = cells + [""] * (len(places) - len(cells))
        padded = [cell + " " * (2 - cell_len(cell)) for cell in cells]
        lines.append(f"{name:<12}{''.join(padded)}  {remark}".rstrip())
    return "\n".join(lines)


def _sign(character: str) -> str:
    return "" if is_mark(character) else _SIGNS[tone(character)]
