from pathlib import Path

import pytest

from benchmarks.decode import _records
from benchmarks.results import OURS
from benchmarks.translators import Found, Work, _fastest, measured

WORK = Work(Path("model"), Path("exports"), ["a", "b"], ["a"], 0.6, 50, 2, False)


def found(seconds, texts=("x", "y"), milliseconds=()):
    both = (1, 4)
    outputs = {beam_size: list(texts) for beam_size in both}
    return [Found(dict.fromkeys(both, seconds), outputs, dict.fromkeys(both, 10), dict(milliseconds), "")]


@pytest.fixture
def records():
    naive = Found({1: 1.0}, {1: ["x"]}, {1: 2}, {}, "")
    everyone = {
        OURS: found(1.0, milliseconds={1: 4.0, 4: 8.0}),
        "ours ctranslate2": found(2.0),
        "ours transformers": found(1.0),
        "ctranslate2": found(3.0, ("x", "z"), {1: 6.0, 4: 6.0}),
        "uncached": [naive],
    }
    listed = list(_records(everyone, WORK, "a model", 1, "CPU"))
    by_name = {(r.subject, r.peer, r.unit): r for r in listed}
    assert len(by_name) == len(listed)
    return by_name


def test_ours_is_compared_as_it_comes_and_as_the_peer_searches(records):
    assert records["2 sentences, beam 4", "ctranslate2", "s"].ratio == 3
    assert records["2 sentences, beam 4", "ctranslate2", "tokens/s"].ratio == 3
    as_theirs = "2 sentences, beam 4, searched as CTranslate2 does"
    assert records[as_theirs, "ctranslate2", "s"].ratio == 1.5
    assert records[f"{as_theirs}: equal texts", "ctranslate2", "share"].value == 0.5


def test_a_few_sentences_without_a_cache_are_scaled_by_tokens(records):
    assert records["2 sentences, greedy", "uncached", "s"].value == 5
    assert ("2 sentences, beam 4", "uncached", "s") not in records


def test_one_alone_has_figures_of_its_own(records):
    assert records["one alone, greedy", "ctranslate2", "ms"].ratio == 1.5
    assert records["one alone, beam 4", "ctranslate2", "ms"].ratio == 0.75


def test_peers_that_are_not_there_have_no_rows(records):
    assert {peer for _, peer, _ in records} == {None, "ctranslate2", "uncached"}


def test_all_and_single_texts_are_timed(monkeypatch):
    monkeypatch.setattr("benchmarks.translators.count_tokens", lambda model, texts: sum(map(len, texts)))
    calls = []

    def translate(texts, beam_size):
        calls.append((len(texts), beam_size))
        return [text + text for text in texts]

    measure = measured(translate, WORK, alone=translate, setup="as it is")
    # The first call of each search wakes the process up.
    assert calls == [(2, 1), (2, 1), (1, 1), (2, 4), (2, 4), (1, 4)]
    repetition = measure()
    assert repetition.texts == {1: ["aa", "bb"], 4: ["aa", "bb"]}
    assert repetition.tokens == {1: 4, 4: 4}
    assert set(repetition.milliseconds) == {1, 4}
    assert repetition.setup == "as it is"
    calls.clear()
    measure = measured(translate, WORK, alone=None, warm_up=1)
    assert calls == [(1, 1), (1, 1), (1, 4), (1, 4)]
    assert measure().milliseconds == {}


def test_the_fastest_is_chosen_for_each_beam(monkeypatch):
    seconds = {("quick", 1): 2.0, ("slow", 1): 3.0, ("quick", 4): 9.0, ("slow", 4): 5.0}
    monkeypatch.setattr("benchmarks.translators._seconds", lambda name, texts, beam: seconds[name, beam] * len(texts))
    candidates = {"first": "quick", "second": "slow"}
    assert [_fastest(candidates, [["a"], ["b", "c"]], beam_size) for beam_size in (1, 4)] == ["first", "second"]
