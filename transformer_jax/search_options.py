"""How to search, as one value."""

import math
from dataclasses import dataclass

from transformer_jax.decoding import conventions_named
from transformer_jax.errors import UserError


@dataclass(frozen=True)
class SearchOptions:
    """How to search (section 6.1), and what an output must keep to. Lengths do not count the end of sentence.

    Raises:
        UserError: if a value is out of range.
    """

    beam_size: int = 4
    alpha: float = 0.6
    n_best: int = 1
    """How many outputs of each sentence; the beam is at least as wide."""
    max_extra_tokens: int = 50
    """An output is at most this many tokens longer than its input, unless a prefix is."""
    max_length: int | None = None
    min_length: int = 0
    temperature: float = 0.0
    """Above 0: draw from the model, at this temperature, instead of searching."""
    top_k: int = 0
    top_p: float = 1.0
    no_repeat_ngram: int = 0
    seed: int = 0
    conventions: str = "paper"
    """What the searches of other systems do differently, by the name of the system; see `decoding.CONVENTIONS`."""

    @property
    def num_hypotheses(self) -> int:
        """How many outputs of a sentence are held at a time: the beam, or the samples."""
        return max(self.n_best, 1 if self.temperature > 0 else self.beam_size)

    def __post_init__(self) -> None:
        def require(condition: bool, name: str, remedy: str) -> None:
            if not condition:
                raise UserError(f"{name} is {getattr(self, name)}, but must be {remedy}.")

        require(self.beam_size >= 1, "beam_size", "at least 1")
        require(self.n_best >= 1, "n_best", "at least 1")
        require(math.isfinite(self.alpha), "alpha", "a finite number")
        require(self.max_extra_tokens >= 0, "max_extra_tokens", "at least 0")
        require(self.max_length is None or self.max_length >= 1, "max_length", "at least 1")
        require(self.min_length >= 0, "min_length", "at least 0")
        require(0 <= self.temperature < math.inf, "temperature", "at least 0, and finite")
        require(self.top_k >= 0, "top_k", "at least 0, which keeps all tokens")
        require(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        require(self.no_repeat_ngram >= 0, "no_repeat_ngram", "at least 0, which allows all")
        require(0 <= self.seed < 2**32, "seed", "from 0 to 4,294,967,295")
        conventions_named(self.conventions)
