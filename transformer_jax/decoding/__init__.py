"""Decoding: beam search, greedy search, sampling and streaming over `step_fn(tokens, cache) -> (logits, cache)`."""

from transformer_jax.decoding.core import length_penalty
from transformer_jax.decoding.filters import keep_top_k, keep_top_p, scale_temperature
from transformer_jax.decoding.processors import LogitsProcessor, forbid_tokens, min_length, no_repeat_ngram
from transformer_jax.decoding.search import SearchResult, StepFn, beam_search, greedy_search, sample
from transformer_jax.decoding.stream import stream

__all__ = [
    "LogitsProcessor",
    "SearchResult",
    "StepFn",
    "beam_search",
    "forbid_tokens",
    "greedy_search",
    "keep_top_k",
    "keep_top_p",
    "length_penalty",
    "min_length",
    "no_repeat_ngram",
    "sample",
    "scale_temperature",
    "stream",
]
