"""The data pipeline, from records to batches of token ids, without JAX."""

from typing import NamedTuple

PAD, BOS, EOS, UNK = 0, 1, 2, 3


class SpecialTokens(NamedTuple):
    """Special-token ids of a vocabulary. Padding is always `PAD`, 0."""

    bos: int = BOS
    """First decoder input; in Marian's vocabularies the padding id."""
    eos: int = EOS
    unk: int = UNK

    def to_json(self) -> dict[str, int]:
        """The ids by their names in model files."""
        return {"start": self.bos, "end": self.eos, "unknown": self.unk}


SPECIAL_TOKENS = SpecialTokens()
"""The ids in every vocabulary trained by this package."""
