import logging
from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.data import BOS, EOS, PAD, UNK, SpecialTokens
from transformer_jax.decoding.generator import Generator
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.nn import ModelConfig, Seq2Seq, split
from transformer_jax.system import UserError

VOCABULARY = 14
CONFIG = ModelConfig(
    d_model=16,
    num_heads=2,
    d_ff=16,
    num_encoder_layers=1,
    num_decoder_layers=1,
    source_vocab_size=VOCABULARY,
    target_vocab_size=VOCABULARY,
)
GREEDY = SearchOptions(beam_size=1, max_extra_tokens=4)
BEAM = SearchOptions(beam_size=4, max_extra_tokens=4)
SAMPLES = SearchOptions(temperature=0.9, max_extra_tokens=4, n_best=2, seed=5)


@pytest.fixture(scope="module")
def model():
    """Larger weights than those a training starts from make decided outputs, different for different inputs."""
    graphdef, params = split(Seq2Seq(CONFIG, rngs=nnx.Rngs(7)))
    return graphdef, jax.tree.map(lambda leaf: 2.5 * leaf, params)


@pytest.fixture(scope="module")
def generator(model):
    return Generator(model[0], batch_size=64)


@pytest.fixture(scope="module")
def logits(model):
    """A plain call of the model, jitted for speed alone; one compilation for all lengths."""
    graphdef, params = model
    call = jax.jit(lambda source, target: nnx.merge(graphdef, params)(source, target))

    def plain(source, target):
        padded = [jnp.array([[*ids, *[PAD] * (24 - len(ids))]]) for ids in (source, target)]
        return np.asarray(call(*padded), np.float64)[0, : len(target)]

    return plain


def make_sources(count=16, seed=0, longest=8):
    """Lengths from 1, an end of sentence alone.

    Each number of rows (1, 8, 64, 256) and padded length (8, 16) is compiled, so most tests stay with one shape.
    """
    rng = np.random.default_rng(seed)
    return [[*rng.integers(4, VOCABULARY, rng.integers(0, longest)).tolist(), EOS] for _ in range(count)]


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def greedy_by_hand(
    logits, source, *, max_length, min_length=0, prefix=(), start=BOS, end=EOS, never=((PAD,), (BOS,), (UNK,))
):
    """Without a cache, a batch or a `Search`. Lengths count the end of sentence."""
    tokens, log_prob = [], 0.0
    while True:
        log_probs = log_softmax(logits(source, [start, *tokens])[-1])
        allowed = log_probs.copy()
        for *before, last in never:
            if tokens[len(tokens) - len(before) :] == before:
                allowed[last] = -np.inf
        if len(tokens) + 1 < min_length:
            allowed[end] = -np.inf
        token = int(allowed.argmax())
        if len(tokens) < len(prefix):
            token = prefix[len(tokens)]
        elif len(tokens) + 1 == max_length:
            token = end
        log_prob += log_probs[token]
        if token == end:
            return tokens, log_prob
        tokens.append(token)


def tokens_of(outputs):
    return [[hypothesis.tokens for hypothesis in hypotheses] for hypotheses in outputs]


def test_beam_of_one_equals_greedy_search_by_hand(model, generator, logits):
    sources = make_sources(seed=1)
    outputs = generator.generate(model[1], sources, GREEDY)
    for source, [best] in zip(sources, outputs, strict=True):
        tokens, log_prob = greedy_by_hand(logits, source, max_length=len(source) + 4)
        assert best.tokens == tokens
        assert best.log_prob == pytest.approx(log_prob, rel=1e-4, abs=1e-3)
    assert len({tuple(best.tokens) for [best] in outputs}) > 6, "the model must not be trivial"
    lengths = [(len(best.tokens), len(source) + 3) for source, [best] in zip(sources, outputs, strict=True)]
    assert any(length < limit for length, limit in lengths), "some outputs end by themselves"


def test_markers_and_bad_words_of_another_vocabulary(model, logits):
    """Marian's: the decoder starts with padding, the end has another id, the unknown word may be produced."""
    special_tokens, bad_words = SpecialTokens(bos=PAD, eos=9, unk=1), ((4,), (7, 8))
    generator = Generator(model[0], special_tokens=special_tokens, bad_words=bad_words)
    sources = [[*source[:-1], special_tokens.eos] for source in make_sources(seed=1)]
    outputs = generator.generate(model[1], sources, GREEDY)
    by_hand = {"start": PAD, "end": special_tokens.eos}
    for source, [best] in zip(sources, outputs, strict=True):
        limit = len(source) + 4
        tokens, log_prob = greedy_by_hand(logits, source, max_length=limit, never=((PAD,), *bad_words), **by_hand)
        assert best.tokens == tokens
        assert best.log_prob == pytest.approx(log_prob, rel=1e-4, abs=1e-3)
        assert list(generator.stream(model[1], source, GREEDY)) == tokens
        [scores] = generator.score(model[1], [source], [[*tokens, special_tokens.eos]])
        assert scores.sum() == pytest.approx(log_prob, rel=1e-4, abs=1e-3)
    free = [greedy_by_hand(logits, s, max_length=len(s) + 4, never=((PAD,),), **by_hand)[0] for s in sources]
    assert free != [best.tokens for [best] in outputs], "bad words must matter"


def test_renormalized_scores_are_of_what_may_be_produced(model, logits):
    sources = make_sources(4, seed=1)
    options = replace(GREEDY, alpha=0.0)
    plain = Generator(model[0]).generate(model[1], sources, options)
    renormalized = Generator(model[0], renormalizes=True).generate(model[1], sources, options)
    assert tokens_of(plain) == tokens_of(renormalized)
    for source, [best] in zip(sources, renormalized, strict=True):
        score, output = 0.0, [*best.tokens, EOS]
        for place, token in enumerate(output):
            allowed = np.array(logits(source, [BOS, *output[:place]])[-1])
            if place < len(source) + 3:  # at the limit the end is forced
                allowed[[PAD, BOS, UNK]] = -np.inf
                score += log_softmax(allowed)[token]
        if len(best.tokens) < len(source) + 3:
            assert best.score == pytest.approx(score, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("options", [GREEDY, BEAM], ids=["greedy", "beam"])
def test_64_sentences_give_what_64_calls_of_one_give(model, generator, options):
    sources = make_sources(64, longest=14)
    together = generator.generate(model[1], sources, options)
    alone = [generator.generate(model[1], [source], options)[0] for source in sources]
    assert tokens_of(together) == tokens_of(alone)
    for a, b in zip(together, alone, strict=True):
        assert [h.score for h in a] == pytest.approx([h.score for h in b], rel=1e-4, abs=1e-4)
    assert len({tuple(best.tokens) for best, *_ in together}) > 30


def test_samples_do_not_depend_on_the_batch(model, generator):
    """A sentence draws by its place in the list, so the list stays and the batches change."""
    sources = make_sources(64)
    together = generator.generate(model[1], sources, SAMPLES)
    alone = Generator(model[0], batch_size=1).generate(model[1], sources, SAMPLES)
    assert tokens_of(together) == tokens_of(alone)
    others = generator.generate(model[1], sources, replace(SAMPLES, seed=6))
    assert tokens_of(together) != tokens_of(others)
    assert any(first.tokens != second.tokens for first, second in together), "two draws of a sentence differ"


def test_sentences_at_the_same_place_draw_alike(model, generator):
    [same] = generator.generate(model[1], [[5, 6, EOS]], SAMPLES)
    changed = generator.generate(model[1], [[5, 6, EOS], [7, EOS], [5, 6, EOS]], SAMPLES)
    assert tokens_of([same]) == tokens_of(changed[:1])
    assert changed[0] != changed[2], "a sentence listed twice is sampled twice"


def test_several_devices_give_what_one_gives(model, generator):
    sources = make_sources(24)
    small = Generator(model[0], batch_size=8)
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    on_two = jax.device_put(model[1], jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    expected = generator.generate(model[1], sources, BEAM)
    assert tokens_of(small.generate(on_two, sources, BEAM)) == tokens_of(expected)


def test_order_is_kept(model, generator):
    sources = make_sources(seed=2)
    order = np.random.default_rng(0).permutation(16)
    straight = tokens_of(generator.generate(model[1], sources, GREEDY))
    shuffled = tokens_of(generator.generate(model[1], [sources[i] for i in order], GREEDY))
    assert shuffled == [straight[i] for i in order]


def test_no_sentences(model, generator):
    assert generator.generate(model[1], [], BEAM) == []
    assert generator.score(model[1], [], []) == []


def test_n_best_is_sorted_unique_and_scored_by_the_model(model, generator):
    sources = make_sources(seed=3)
    options = replace(BEAM, n_best=4)
    outputs = generator.generate(model[1], sources, options)
    best = generator.generate(model[1], sources, BEAM)
    for source, hypotheses, [first] in zip(sources, outputs, best, strict=True):
        assert len(hypotheses) == 4
        assert hypotheses[0] == first
        scores = [h.score for h in hypotheses]
        assert scores == sorted(scores, reverse=True)
        assert len({tuple(h.tokens) for h in hypotheses}) == 4
        rescored = generator.score(model[1], [source] * 4, [[*h.tokens, EOS] for h in hypotheses])
        for hypothesis, log_probs in zip(hypotheses, rescored, strict=True):
            length = len(hypothesis.tokens) + 1
            assert log_probs.shape == (length,)
            assert hypothesis.log_prob == pytest.approx(log_probs.sum(), rel=1e-4, abs=1e-3)
            assert hypothesis.score == pytest.approx(hypothesis.log_prob / ((5 + length) / 6) ** 0.6, rel=1e-5)


def test_more_outputs_than_beams_widen_the_beam(model, generator):
    sources = make_sources(seed=3)
    wide = generator.generate(model[1], sources, replace(BEAM, n_best=4))
    assert generator.generate(model[1], sources, replace(BEAM, beam_size=1, n_best=4)) == wide


def test_beam_finds_no_worse_than_greedy(model, generator):
    """Without a length penalty the score is the log-probability, which a wider beam seldom and never by much lowers."""
    sources = make_sources(32, seed=5)
    greedy, beam = (
        np.array([h.log_prob for [h] in generator.generate(model[1], sources, replace(options, alpha=0.0))])
        for options in (GREEDY, BEAM)
    )
    assert beam.mean() > greedy.mean()
    assert (beam > greedy - 1e-4).mean() > 0.8


def test_scores_equal_the_log_softmax_of_the_logits(model, generator, logits):
    sources, targets = make_sources(seed=6), make_sources(seed=7)
    for source, target, found in zip(sources, targets, generator.score(model[1], sources, targets), strict=True):
        expected = log_softmax(logits(source, [BOS, *target[:-1]]))[range(len(target)), target]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("options", [BEAM, SAMPLES], ids=["beam", "sample"])
def test_prefixes(model, generator, options):
    """Of unequal lengths in one batch, one of them empty, one longer than the limit."""
    sources = [[5, 6, EOS], [7, 8, 9, EOS], [4, EOS], [6, 5, EOS]]
    prefixes = [[9, 4], [], [4] * 9, [8]]
    outputs = generator.generate(model[1], sources, options, prefixes)
    for prefix, hypotheses in zip(prefixes, outputs, strict=True):
        for hypothesis in hypotheses:
            assert hypothesis.tokens[: len(prefix)] == prefix
    assert outputs[2][0].tokens == [4] * 9, "a prefix beyond the limit stays whole"
    if options is not SAMPLES:
        alone = [generator.generate(model[1], [s], options, [p])[0] for s, p in zip(sources, prefixes, strict=True)]
        assert tokens_of(outputs) == tokens_of(alone)


def test_prefixed_greedy_by_hand(model, generator, logits):
    source, prefix = [5, 6, 9, EOS], [9, 4, 9]
    [[best]] = generator.generate(model[1], [source], GREEDY, [prefix])
    tokens, log_prob = greedy_by_hand(logits, source, max_length=len(source) + 4, prefix=prefix)
    assert best.tokens == tokens
    assert best.log_prob == pytest.approx(log_prob, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize(("min_length", "max_length"), [(0, 2), (6, 7)])
def test_lengths(model, generator, logits, min_length, max_length):
    sources = make_sources(seed=8)
    options = replace(GREEDY, max_extra_tokens=50, min_length=min_length, max_length=max_length)
    outputs = generator.generate(model[1], sources, options)
    for source, [best] in zip(sources, outputs, strict=True):
        assert min_length <= len(best.tokens) + 1 <= max_length
        expected, _ = greedy_by_hand(logits, source, max_length=max_length, min_length=min_length)
        assert best.tokens == expected


def test_an_output_is_at_most_so_much_longer_than_its_input(model, generator):
    sources = make_sources(seed=9)
    # A minimum length out of reach shows where the limits are.
    forced = generator.generate(model[1], sources, replace(BEAM, min_length=100))
    assert [len(best.tokens) for [best] in forced] == [len(source) + 3 for source in sources]


def test_special_tokens_never_come_out(model, generator):
    """At this temperature all others do."""
    outputs = generator.generate(model[1], make_sources(64, seed=10), replace(SAMPLES, temperature=50.0))
    seen = {token for hypotheses in outputs for h in hypotheses for token in h.tokens}
    assert seen == set(range(VOCABULARY)) - {PAD, BOS, EOS, UNK}


def test_no_repeated_ngrams(model, generator):
    sources = make_sources(seed=11)
    pairs = lambda tokens: list(pairwise(tokens))  # noqa: E731
    repeats = [
        sum(len(pairs(h.tokens)) != len(set(pairs(h.tokens))) for [h] in generator.generate(model[1], sources, options))
        for options in (replace(GREEDY, max_extra_tokens=12), replace(GREEDY, max_extra_tokens=12, no_repeat_ngram=2))
    ]
    assert repeats[0] > 0
    assert repeats[1] == 0


def test_sampling_from_the_likeliest_token_alone_is_greedy(model, generator):
    sources = make_sources(seed=12)
    only = generator.generate(model[1], sources, replace(SAMPLES, n_best=1, top_k=1))
    assert tokens_of(only) == tokens_of(generator.generate(model[1], sources, GREEDY))


@pytest.mark.parametrize("prefix", [(), (9, 4)], ids=["free", "prefixed"])
@pytest.mark.parametrize("options", [GREEDY, replace(SAMPLES, n_best=1)], ids=["greedy", "sample"])
def test_a_stream_equals_the_output(model, generator, options, prefix):
    for source in ([5, 6, 9, EOS], [4, 13, 7, 8, EOS], [EOS]):
        [[best]] = generator.generate(model[1], [source], options, [prefix])
        assert list(generator.stream(model[1], source, options, prefix)) == best.tokens


def test_attention_is_that_of_the_model_without_padding(model, generator):
    graphdef, params = model
    source, target = [5, 6, 9, EOS], [8, 4, EOS]
    found = generator.attention(params, source, target)
    expected = nnx.merge(graphdef, params).attention_weights(jnp.array([source]), jnp.array([[BOS, *target[:-1]]]))
    assert [part.shape for part in found] == [(1, 2, 4, 4), (1, 2, 3, 3), (1, 2, 3, 4)]
    for part, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(part, reference[0], atol=1e-5)
        np.testing.assert_allclose(part.sum(-1), 1.0, atol=1e-5)
    assert not np.triu(found.decoder, 1).any(), "no look at later tokens"


def test_a_stream_of_another_length_compiles_nothing(model, generator, caplog):
    def compiled(function):
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            function()
        return [record.getMessage() for record in caplog.records if "ompil" in record.getMessage()]

    def read(*source):
        return list(generator.stream(model[1], [*source, EOS], GREEDY))

    read(5, 6)
    # Padded to the same length, and so is what may come out.
    assert compiled(lambda: read(7, 8, 9, 10, 11)) == []
    assert compiled(lambda: jax.jit(lambda x: x + 1)(jnp.zeros(3))), "the log reports compilations"


def test_parameters_that_are_not_numbers_are_told(model, generator):
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), model[1])
    for options in (GREEDY, BEAM, SAMPLES):
        with pytest.raises(UserError, match="not numbers; its parameters must be damaged"):
            generator.generate(broken, make_sources(), options)


@pytest.fixture(scope="module")
def learned():
    """A model with a table of 10 positions: fewer than the cache has slots."""
    config = replace(CONFIG, positions="learned", max_positions=10)
    graphdef, params = split(Seq2Seq(config, rngs=nnx.Rngs(7)))
    return Generator(graphdef, max_positions=config.position_limit), jax.tree.map(lambda leaf: 2.5 * leaf, params)


def test_outputs_are_never_longer_than_the_table_of_positions(learned):
    generator, params = learned
    sources = make_sources(8, seed=13)
    # A minimum length out of reach shows where the limits are: 9 tokens and the end of sentence.
    endless = replace(BEAM, min_length=100)
    prefixes = [[4] * 9, [5], *[()] * 6]
    expected = [9, *[min(len(source) + 3, 9) for source in sources[1:]]]
    assert set(expected[1:]) > {9}, "some reach the table's end, some their own limit"
    outputs = generator.generate(params, sources, endless, prefixes)
    assert [len(best.tokens) for [best] in outputs] == expected
    streamed = list(generator.stream(params, sources[0], replace(GREEDY, max_extra_tokens=50, min_length=100)))
    assert len(streamed) == 9


def test_a_prefix_longer_than_the_table_of_positions_is_told(learned):
    generator, params = learned
    with pytest.raises(UserError, match=r"prefix has 10 tokens, but .* at most 9 \(config\.model\.max_positions\)"):
        generator.generate(params, [[5, EOS]] * 2, GREEDY, [[4], [4] * 10])
    with pytest.raises(UserError, match="prefix has 10 tokens"):
        list(generator.stream(params, [5, EOS], GREEDY, [4] * 10))
