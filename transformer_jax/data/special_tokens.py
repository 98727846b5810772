"""Special-token ids."""

from typing import NamedTuple

PAD, BOS, EOS, UNK = 0, 1, 2, 3


class SpecialTokens(NamedTuple):
    """Special-token ids of a vocabulary; that of padding is always 0."""

    bos: int = BOS
    """What a decoder reads first; padding in Marian's vocabularies."""
    eos: int = EOS
    unk: int = UNK

    def to_json(self) -> dict[str, int]:
        """As files hold them."""
        return {"start": self.bos, "end": self.eos, "unknown": self.unk}


SPECIAL_TOKENS = SpecialTokens()
"""Of every vocabulary made here."""
