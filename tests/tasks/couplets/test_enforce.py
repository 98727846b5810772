import itertools
import math
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.decoding import toys
from tests.decoding.toys import Toy, outputs_of, penalty, step_fn
from transformer_jax.data import EOS, PAD, UNK
from transformer_jax.data.tokenizers import CharTokenizer
from transformer_jax.decoding import beam_search, sample
from transformer_jax.decoding.generator import _stacked
from transformer_jax.tasks.couplets.enforce import GIVEN_UP_FIRST, WEIGHT_GIVEN_UP, keep_rules, make_plan, vocabulary_of
from transformer_jax.tasks.couplets.rules import NAMES, Rules, judge

ALPHA = 0.6
MOST = 4  # tokens of a line whose length is free
MARKS = "，；！"
IDS = {"bos_id": toys.BOS, "eos_id": EOS, "pad_id": PAD}


def tokenizer_of(pieces):
    return CharTokenizer(["<pad>", "<s>", "</s>", "<unk>", *pieces])


def search(toy, uppers, rules, tokenizer, *, places, **arguments):
    """Beam search over a toy table, or `arguments` of `sample`."""
    vocabulary = vocabulary_of(tokenizer)
    plans = [make_plan(upper, held, tokenizer, vocabulary) for upper, held in zip(uppers, rules, strict=True)]
    prefix = np.zeros((len(plans), places), np.int32)
    for row, plan in zip(prefix, plans, strict=True):
        row[: len(plan.forced)] = plan.forced
    lines = _stacked([plan.line for plan in plans], len(plans), places)
    count = arguments.get("beam_size") or arguments["num_samples"]
    result = _run(toy.cache(count), vocabulary, lines, prefix, tuple(arguments.items()))
    return plans, result


@jax.jit(static_argnums=4)
def _run(cache, vocabulary, lines, prefix, arguments):
    arguments = dict(arguments)
    method = beam_search if "beam_size" in arguments else sample
    if method is sample:
        arguments["keys"] = jax.random.split(jax.random.key(arguments.pop("seed")), len(prefix))
    return method(
        step_fn,
        cache,
        batch_size=len(prefix),
        prefix=prefix,
        processors=[keep_rules(vocabulary, lines)],
        **IDS,
        **arguments,
    )


def text_of(tokens, upper, tokenizer):
    """UNK stands for the mark of the upper line at its place."""
    return "".join(
        upper[place] if token == UNK else tokenizer.piece(token) for place, token in enumerate(tokens) if token != EOS
    )


@cache
def verdicts(upper, pieces, most):
    """Every line of these characters up to a length, as tokens, and how often it breaks each rule."""
    found = []
    for length in range(most + 1):
        # Where the upper line has a mark outside the vocabulary the lower one can have it too, as UNK.
        alphabets = [
            [*enumerate(pieces, start=4), *([(UNK, mark)] if mark in MARKS and mark not in pieces else [])]
            for mark in (upper + " " * most)[:length]
        ]
        for line in itertools.product(*alphabets):
            verdict = judge(upper, "".join(piece for _, piece in line))
            found.append(((*(token for token, _ in line), EOS), [len(verdict.broken[name]) for name in NAMES]))
    return found


def brute_force(toy, sentence, upper, rules, pieces, most):
    """All lines with their scores, best first, and the rules given up: by trying every line."""
    lines = verdicts(upper, pieces, most)
    weights = {name: getattr(rules, name) for name in NAMES}

    def allowed(weights):
        marks_forced = weights["punctuation"] == math.inf
        return [
            (tokens, broken)
            for tokens, broken in lines
            if not any(weights[name] == math.inf and count for name, count in zip(NAMES, broken, strict=True))
            and (marks_forced or UNK not in tokens)
        ]

    gave_up = []
    for name in GIVEN_UP_FIRST:
        if not allowed(weights) and weights[name] == math.inf:
            weights[name] = WEIGHT_GIVEN_UP
            gave_up.append(name)
    for name in reversed(gave_up.copy()):
        if allowed(weights | {name: math.inf}):
            weights[name] = math.inf
            gave_up.remove(name)
    scored = []
    for tokens, broken in allowed(weights):
        cost = sum(weights[name] * count for name, count in zip(NAMES, broken, strict=True) if count)
        scored.append(((toy.log_prob(sentence, tokens) - cost) / penalty(len(tokens), ALPHA), tokens))
    return sorted(scored, reverse=True), set(gave_up)


def rules_of(seed):
    """Every combination of hard rules, the others off or weighted."""
    rng = np.random.default_rng(seed)
    for hard in itertools.product([True, False], repeat=len(NAMES)):
        soft = rng.choice([0.0, 0.5, 2.0], len(NAMES)).tolist()
        yield Rules(*(math.inf if is_hard else weight for is_hard, weight in zip(hard, soft, strict=True)))


VOCABULARIES = {
    "one mark": "花水长，",
    "no mark": "花树水春",
    "no level": "树水月，",
    "contrary": "花树长地",
    "one": "树，；：",
    "marks alone": "，；：！",
}
SLOW = pytest.mark.slow
UPPERS = ["树", "月，花", "水树水", "花！花地", "春，", "树月龘龘", "龘水，树"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("one mark", "no level") else SLOW) for name in VOCABULARIES]
)
def test_a_wide_beam_equals_brute_force(name):
    """Every line that the rules allow comes out, in order of penalised scores, and no other."""
    pieces = VOCABULARIES[name]
    tokenizer = tokenizer_of(pieces)
    cases = [(upper, rules) for seed, upper in enumerate(UPPERS) for rules in rules_of(seed)]
    toy = Toy(seed=1, batch_size=len(cases), vocab_size=4 + len(pieces))
    width = sum(len(pieces) ** length for length in range(MOST + 1))
    plans, result = search(
        toy, *zip(*cases, strict=True), tokenizer, places=5, beam_size=width, max_length=MOST + 1, alpha=ALPHA
    )
    dead_ends = 0
    for sentence, ((upper, rules), plan) in enumerate(zip(cases, plans, strict=True)):
        expected, gave_up = brute_force(toy, sentence, upper, rules, pieces, MOST)
        assert set(plan.gave_up) == gave_up, (upper, rules)
        found = outputs_of(result, sentence)
        scores = np.asarray(result.scores)[sentence, : len(found)]
        np.testing.assert_allclose(scores, [score for score, _ in expected], rtol=1e-4, atol=1e-4)
        assert set(found) == {tokens for _, tokens in expected}, (upper, rules)
        dead_ends += bool(gave_up)
    assert 0 < dead_ends < len(cases) / 2


def lines_by_class(upper, pieces):
    """Every line that keeps length, punctuation and repetition: each class of equal characters gets one of its own."""
    classes = sorted({character for character in upper if character not in MARKS})
    for chosen in itertools.permutations(pieces, len(classes)):
        lower = dict(zip(classes, chosen, strict=True))
        yield "".join(lower.get(character, character) for character in upper)


LONG_UPPERS = [
    "天花天地花",
    "东，龘月龘",
    "春一南一，东七",
    "东东南南西西",
    "树花花，树龘",
    "一三五七南",
    "七，一五天",
    "长行乐",
]


SEARCHES = [{"beam_size": 1}, {"beam_size": 3}, {"num_samples": 3, "seed": 4}]


@pytest.mark.parametrize(
    ("arguments", "seed"),
    [
        pytest.param(arguments, seed, marks=[] if seed == kind else SLOW)
        for kind, arguments in enumerate(SEARCHES)
        for seed in range(3)
    ],
)
def test_no_search_runs_into_a_dead_end(arguments, seed):
    """However few lines there are, all that is found is among them: beams too narrow to hold every one."""
    pieces = ["花天树地长，", "春风水月地，", "树花水月，"][seed]
    tokenizer = tokenizer_of(pieces)
    hard = Rules.parse("all")
    cases = [(upper, rules) for upper in LONG_UPPERS for rules in (hard, replace(hard, tones=0.0))]
    toy = Toy(seed=seed, batch_size=len(cases), vocab_size=4 + len(pieces))
    plans, result = search(toy, *zip(*cases, strict=True), tokenizer, places=9, max_length=9, **arguments)
    solved = 0
    for sentence, ((upper, rules), plan) in enumerate(zip(cases, plans, strict=True)):
        names = [name for name in NAMES if rules.is_hard(name)]
        lines = [line for line in lines_by_class(upper, pieces[:-1]) if set(names) <= set(judge(upper, line).kept)]
        found = [text_of(tokens, upper, tokenizer) for tokens in outputs_of(result, sentence)]
        assert bool(plan.gave_up) == (not lines)
        assert found
        if lines:
            solved += 1
            assert set(found) <= set(lines)
            if "beam_size" in arguments:
                assert len(set(found)) == min(len(lines), arguments["beam_size"])
        else:
            kept = set(names) - set(plan.gave_up)
            assert all(kept <= set(judge(upper, line).kept) for line in found)
    assert 0 < solved < len(cases)


def test_rules_that_are_off_leave_log_probs_as_they_are():
    tokenizer = tokenizer_of("花水长，")
    vocabulary = vocabulary_of(tokenizer)
    plan = make_plan("月，花", Rules.parse("none"), tokenizer, vocabulary)
    rng = np.random.default_rng(0)
    history, log_probs = rng.integers(4, 8, (1, 3, 5)), rng.normal(size=(1, 3, 8)).astype(np.float32)
    process = jax.jit(keep_rules(vocabulary, _stacked([plan.line], 1, 4)))
    for step in range(5):
        allowed = process(jnp.array(history, jnp.int32), jnp.array(step), jnp.array(log_probs))
        np.testing.assert_array_equal(allowed[..., 4:], log_probs[..., 4:])
        np.testing.assert_array_equal(allowed[..., EOS], log_probs[..., EOS])
        assert np.all(np.isneginf(allowed[..., [PAD, UNK]]))
