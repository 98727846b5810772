"""The data pipeline, from records to batches of token ids, without JAX."""

from collections.abc import Iterable
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


def text_ids(ids: Iterable[int]) -> list[int]:
    """Those of the ids that stand for text: all before the first EOS but PAD and BOS, in vocabularies trained here."""
    kept: list[int] = []
    for token_id in map(int, ids):
        if token_id == EOS:
            break
        if token_id not in (PAD, BOS):
            kept.append(token_id)
    return kept
