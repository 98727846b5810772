"""The ids that stand for no text."""

from typing import NamedTuple

PAD, BOS, EOS, UNK = 0, 1, 2, 3


class Markers(NamedTuple):
    """The ids that stand for no text. That of padding is 0 in every vocabulary."""

    start: int = BOS
    """What a decoder reads first; padding in Marian's vocabularies."""
    end: int = EOS
    unknown: int = UNK


MARKERS = Markers()
"""Of every vocabulary made here."""
