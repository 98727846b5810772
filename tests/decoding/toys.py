"""A toy language model, and plain Python searches over it that share no code with the package."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

PAD, EOS, BOS = 0, 1, 2
NUM_STATES = 64

IDS = {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD}


def step_fn(tokens, cache):
    """Logits are a row of the sentence's table, chosen by a hash of all tokens read so far."""
    state = (cache["state"] * 7 + tokens + 1) % NUM_STATES
    logits = jnp.take_along_axis(cache["table"], state[..., None, None], axis=2)[:, :, 0]
    return logits, {"state": state, "table": cache["table"], "step": cache["step"] + 1}


class Toy:
    """One random table a sentence."""

    def __init__(self, seed: int, batch_size: int = 1, vocab_size: int = 5, scale: float = 2.0):
        rng = np.random.default_rng(seed)
        self.tables = rng.normal(size=(batch_size, NUM_STATES, vocab_size), scale=scale).astype(np.float32)
        self.batch_size, _, self.vocab_size = self.tables.shape

    def only(self, sentence: int) -> "Toy":
        """The same sentence in a batch of one."""
        toy = Toy(0)
        toy.tables = self.tables[sentence : sentence + 1]
        toy.batch_size, _, toy.vocab_size = toy.tables.shape
        return toy

    def cache(self, beam_size: int):
        tables = jnp.broadcast_to(self.tables[:, None], (self.batch_size, beam_size, *self.tables.shape[1:]))
        return {"state": jnp.zeros((self.batch_size, beam_size), jnp.int32), "table": tables, "step": jnp.zeros(())}

    def log_probs(self, sentence: int, tokens: tuple[int, ...]) -> np.ndarray:
        """Of the token after BOS and `tokens`."""
        state = 0
        for token in (BOS, *tokens):
            state = (state * 7 + token + 1) % NUM_STATES
        logits = self.tables[sentence, state].astype(np.float64)
        return logits - np.log(np.exp(logits).sum())

    def log_prob(self, sentence: int, tokens: tuple[int, ...]) -> float:
        """Of a whole output."""
        return sum(self.log_probs(sentence, tokens[:i])[token] for i, token in enumerate(tokens))

    def run(self, search, **arguments):
        """`search` under jit, over this batch."""
        beam_size = arguments.get("beam_size", arguments.get("num_samples", 1))
        return jax.jit(lambda cache: search(step_fn, cache, batch_size=self.batch_size, **IDS, **arguments))(
            self.cache(beam_size)
        )


def penalty(length: int, alpha: float) -> float:
    return ((5 + length) / 6) ** alpha


def all_outputs(
    toy: Toy,
    sentence: int,
    max_length: int,
    alpha: float,
    keep: Callable[[tuple[int, ...]], bool] = lambda tokens: True,
) -> list[tuple[float, tuple[int, ...]]]:
    """Every output of at most `max_length` tokens that `keep` admits, with its score, best first."""
    words = [token for token in range(toy.vocab_size) if token not in (PAD, EOS)]
    outputs = [(*middle, EOS) for length in range(max_length) for middle in itertools.product(words, repeat=length)]
    scored = [
        (toy.log_prob(sentence, tokens) / penalty(len(tokens), alpha), tokens) for tokens in outputs if keep(tokens)
    ]
    return sorted(scored, reverse=True)


def plain_beam_search(
    toy: Toy, sentence: int, max_length: int, alpha: float, beam_size: int
) -> list[tuple[float, tuple[int, ...]]]:
    """Beam search on lists, without early stop."""
    alive, ended = [(0.0, ())], []
    for step in range(max_length):
        candidates = []
        for total, tokens in alive:
            log_probs = toy.log_probs(sentence, tokens)
            allowed = [EOS] if step == max_length - 1 else [t for t in range(toy.vocab_size) if t != PAD]
            candidates += [(total + log_probs[token], (*tokens, token)) for token in allowed]
        candidates = sorted(candidates, reverse=True)[: 2 * beam_size]
        ended += [(total / penalty(step + 1, alpha), tokens) for total, tokens in candidates if tokens[-1] == EOS]
        ended = sorted(ended, reverse=True)[:beam_size]
        alive = [(total, tokens) for total, tokens in candidates if tokens[-1] != EOS][:beam_size]
    return ended


def plain_transformers_search(
    toy: Toy, sentence: int, max_length: int, alpha: float, beam_size: int
) -> list[tuple[float, tuple[int, ...]]]:
    """Beam search on lists as Hugging Face's `generate` does it, `early_stopping=False`."""
    alive, ended = [(0.0, ())], []
    for length in range(1, max_length + 1):
        candidates = []
        for total, tokens in alive:
            log_probs = toy.log_probs(sentence, tokens)
            log_probs[PAD] = -np.inf
            if length == max_length:
                log_probs[:] = -np.inf
                log_probs[EOS] = 0.0
            candidates += [(total + log_probs[token], (*tokens, token)) for token in range(toy.vocab_size)]
        candidates = sorted(candidates, reverse=True)[: 2 * beam_size]
        best = [(total, tokens) for total, tokens in candidates[:beam_size] if total > -np.inf]
        ended += [(total / length**alpha, tokens) for total, tokens in best if tokens[-1] == EOS]
        ended = sorted(ended, reverse=True)[:beam_size]
        alive = [(total, tokens) for total, tokens in candidates if tokens[-1] != EOS][:beam_size]
        if len(ended) == beam_size and alive[0][0] / length**alpha <= ended[-1][0]:
            break
    return ended


def plain_greedy_search(toy: Toy, sentence: int, max_length: int) -> tuple[int, ...]:
    tokens: tuple[int, ...] = ()
    while len(tokens) < max_length - 1 and EOS not in tokens:
        log_probs = toy.log_probs(sentence, tokens)
        log_probs[PAD] = -np.inf
        tokens += (int(log_probs.argmax()),)
    return tokens if EOS in tokens else (*tokens, EOS)


def outputs_of(result, sentence: int) -> list[tuple[int, ...]]:
    """The outputs of one sentence without padding; empty slots left out."""
    tokens, lengths = np.asarray(result.tokens), np.asarray(result.lengths)
    return [tuple(row[:n].tolist()) for row, n in zip(tokens[sentence], lengths[sentence], strict=True) if n]
