"""Beam search over a step function of your own: a trigram model counted from a few lines, without a network.

Run `python examples/search_over_ngrams.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import beam_search, min_length, no_repeat_ngram

LINES = """the sun sets and the moon comes up
the moon sets and the sun comes up
the moon sees the sun and the sun sees the sea
the sea sees the moon
a sun and a moon and a sea"""
PAD, START, END = 0, 1, 2

WORDS = ["<pad>", "<s>", "</s>", *sorted(set(LINES.split()))]
sentences = [[START, START, *map(WORDS.index, line.split()), END] for line in LINES.splitlines()]
counts = np.zeros((len(WORDS),) * 3, np.float32)  # of each word after each two
for sentence in sentences:
    for trigram in zip(sentence, sentence[1:], sentence[2:], strict=False):
        counts[trigram] += 1
LOGITS = jnp.log(jnp.maximum(counts, 1e-30))  # trigrams that never occurred are practically impossible


def step_fn(tokens, cache):
    """Logits [B, K, V] of the next word of each hypothesis, from its newest word and the cached one before."""
    return LOGITS[cache, tokens], tokens


def dislike(word, nats):
    """A custom processor: each `word` costs `nats` more than the model says; see `LogitsProcessor`."""
    cost = nats * (jnp.arange(len(WORDS)) == WORDS.index(word))
    return lambda history, step, log_probs: log_probs - cost


def search(beam_size=8, max_length=12, processors=(), **options):
    """The best sentences, as (text, log-probability over the length penalty), best first."""

    @jax.jit
    def run():
        cache = jnp.full((1, beam_size), START)  # leaves are [B, K, ...] and follow their hypotheses
        shapes = {"batch_size": 1, "max_length": max_length, "beam_size": beam_size}
        ids = {"bos_id": START, "eos_id": END, "pad_id": PAD}
        return beam_search(step_fn, cache, processors=processors, **shapes, **ids, **options)

    found = run()
    texts = [" ".join(WORDS[i] for i in ids if i > END) for ids in found.tokens[0].tolist()]
    return list(zip(texts, found.scores[0].tolist(), strict=True))


if __name__ == "__main__":
    nine_words = min_length(10, END)  # lengths count the end
    tries = {"as counted": (), "nine words": (nine_words,), "no two of them twice": (nine_words, no_repeat_ngram(2))}
    tries["hardly any moon"] = (dislike("moon", 3.0),)
    for name, processors in tries.items():
        print(f"{name}:")
        for text, score in search(processors=processors, n_best=3):
            print(f"  {score:7.3f}  {text}")
