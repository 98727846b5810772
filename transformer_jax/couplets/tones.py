"""Level and oblique tones (平仄) of modern Mandarin, from the readings that pypinyin lists."""

from enum import IntFlag
from functools import cache


class Tone(IntFlag):
    """The tones a character can have; one with several readings may have both."""

    LEVEL = 1
    """平: the first and second tones."""
    OBLIQUE = 2
    """仄: the third and fourth."""
    EITHER = LEVEL | OBLIQUE


@cache
def tone(character: str) -> Tone:
    """Which tones a character has in any of its readings.

    A neutral tone counts as either, and so does a character without a reading: it can break no rule of tones.
    """
    # Its tables of readings take longer to load than all else of the package.
    from pypinyin import Style, pinyin

    readings = pinyin(character, style=Style.TONE3, heteronym=True, neutral_tone_with_five=True, errors="ignore")
    found = Tone(0)
    for reading in (reading for alternatives in readings for reading in alternatives):
        number = next((mark for mark in reading if mark.isdigit()), "5")
        found |= {"1": Tone.LEVEL, "2": Tone.LEVEL, "3": Tone.OBLIQUE, "4": Tone.OBLIQUE}.get(number, Tone.EITHER)
    return found or Tone.EITHER
