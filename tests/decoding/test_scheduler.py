"""Eviction and compaction of batches lose, double and change nothing."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from transformer_jax.data import SPECIAL_TOKENS
from transformer_jax.decoding import generator, scheduler
from transformer_jax.decoding.generator import Generator
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.nn import ModelConfig, Seq2Seq, split

CONFIG = ModelConfig(
    d_model=16,
    num_heads=2,
    d_ff=16,
    num_encoder_layers=1,
    num_decoder_layers=1,
    source_vocab_size=24,
    target_vocab_size=24,
)
BEAM = SearchOptions(beam_size=3, alpha=0.6, max_extra_tokens=5, n_best=2)
GREEDY = replace(BEAM, beam_size=1, n_best=1)
SAMPLES = replace(BEAM, beam_size=1, n_best=2, temperature=1.0)


@pytest.fixture(scope="module")
def model():
    """Random weights whose end of sentence is likely enough for outputs of all lengths."""
    graphdef, params = split(Seq2Seq(CONFIG, rngs=nnx.Rngs(3)))
    params["target_embedding"]["table"] = jax.tree.map(lambda a: a * 3, params["target_embedding"]["table"])
    return graphdef, params


def sources_of(count):
    random = np.random.default_rng(1)
    return [[*random.integers(4, 24, random.integers(1, 30)).tolist(), SPECIAL_TOKENS.eos] for _ in range(count)]


@pytest.mark.parametrize("options", [GREEDY, BEAM, SAMPLES], ids=["greedy", "beam", "samples"])
def test_many_small_batches_give_what_one_big_batch_gives(model, options, monkeypatch):
    graphdef, params = model
    sources = sources_of(60)
    moved = []
    move = scheduler._moved
    monkeypatch.setattr(scheduler, "_moved", lambda *args: moved.append(args[1] is None) or move(*args))
    monkeypatch.setattr(scheduler, "MIN_ROWS", 2)
    monkeypatch.setattr(generator, "USUAL_BEAM", options.num_hypotheses)  # so that batch_size counts rows
    pooled = Generator(graphdef, batch_size=8).generate(params, sources, options)
    assert {False, True} <= set(moved), "no batch had room for another, or none was left with few"
    monkeypatch.setattr(scheduler, "_compacted", lambda batches: [batch for batch in batches if batch.taken])
    apart = Generator(graphdef, batch_size=64).generate(params, sources, options)
    assert [[h.tokens for h in found] for found in pooled] == [[h.tokens for h in found] for found in apart]
    for ours, theirs in zip(pooled, apart, strict=True):
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], rel=1e-4, abs=1e-4)
    lengths = [len(found[0].tokens) for found in pooled]
    assert len(set(lengths)) > 8, "outputs of one length alone would test little"


def test_how_often_batches_are_synced_changes_nothing(model, monkeypatch):
    graphdef, params = model
    expected = None
    for steps in (1, 3, 1_000):
        monkeypatch.setattr(scheduler, "STEPS_PER_SYNC", steps)
        outputs = Generator(graphdef, batch_size=8).generate(params, sources_of(20), GREEDY)
        tokens = [found[0].tokens for found in outputs]
        assert expected in (None, tokens)
        expected = tokens
