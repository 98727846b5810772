"""Decoding: beam search, greedy search, sampling and streaming over `step_fn(tokens, cache) -> (logits, cache)`."""

from transformer_jax.decoding.constraints import (
    LogitsProcessor,
    forbid_sequences,
    forbid_tokens,
    min_length,
    no_repeat_ngram,
    renormalize,
)
from transformer_jax.decoding.options import CONVENTIONS, Conventions, conventions_named, length_penalty
from transformer_jax.decoding.sampling import keep_top_k, keep_top_p, sample, scale_temperature, stream
from transformer_jax.decoding.search import SearchResult, StepFn, beam_search, greedy_search

__all__ = [
    "CONVENTIONS",
    "Conventions",
    "LogitsProcessor",
    "SearchResult",
    "StepFn",
    "beam_search",
    "conventions_named",
    "forbid_sequences",
    "forbid_tokens",
    "greedy_search",
    "keep_top_k",
    "keep_top_p",
    "length_penalty",
    "min_length",
    "no_repeat_ngram",
    "renormalize",
    "sample",
    "scale_temperature",
    "stream",
]
