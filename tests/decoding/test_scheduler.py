"""Lanes make room for one another without losing, doubling or changing anything."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from transformer_jax.data.tokenizers import SPECIAL_TOKENS
from transformer_jax.decoding import generator as generation
from transformer_jax.decoding import scheduler as lanes
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
def test_many_small_lanes_give_what_one_big_lane_gives(model, options, monkeypatch):
    graphdef, params = model
    sources = sources_of(60)
    moved = []
    move = lanes._moved
    monkeypatch.setattr(lanes, "_moved", lambda *args: moved.append(args[1] is None) or move(*args))
    monkeypatch.setattr(lanes, "FEW", 2)
    monkeypatch.setattr(generation, "USUAL_BEAM", options.num_hypotheses)  # so that lanes have as many rows as it says
    pooled = Generator(graphdef, batch_size=8).generate(params, sources, options)
    assert {False, True} <= set(moved), "no lane made room for another, or none was left with few"
    monkeypatch.setattr(lanes, "_pooled", lambda now: [lane for lane in now if lane.taken])
    apart = Generator(graphdef, batch_size=64).generate(params, sources, options)
    assert [[h.tokens for h in found] for found in pooled] == [[h.tokens for h in found] for found in apart]
    for ours, theirs in zip(pooled, apart, strict=True):
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], rel=1e-4, abs=1e-4)
    lengths = [len(found[0].tokens) for found in pooled]
    assert len(set(lengths)) > 8, "outputs of one length alone would test little"


def test_how_often_lanes_are_looked_at_changes_nothing(model, monkeypatch):
    graphdef, params = model
    expected = None
    for hop in (1, 3, 1_000):
        monkeypatch.setattr(lanes, "HOP", hop)
        outputs = Generator(graphdef, batch_size=8).generate(params, sources_of(20), GREEDY)
        tokens = [found[0].tokens for found in outputs]
        assert expected in (None, tokens)
        expected = tokens
