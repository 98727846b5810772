"""Every example runs, and its numbers are correct."""

import itertools
import json
import math
import re
import runpy
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import transformer_jax
from tests.tasks.toys import write_bundle
from transformer_jax.cli import main
from transformer_jax.tasks.registry import REGISTRY

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TESTED = {
    "attention_in_nnx",
    "attention_maps",
    "fourth_task",
    "pure_attention",
    "schedule_elsewhere",
    "search_over_ngrams",
    "tfds_elsewhere",
}


def example(name, run_name="example"):
    """The globals of an example, which prints only if run as `__main__`."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name=run_name)


def test_every_example_is_tested_short_and_tells_how_to_run_it():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == TESTED
    for path in EXAMPLES.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= (60 if path.stem == "fourth_task" else 70)
        assert f"`python examples/{path.name}" in text


def test_attention_in_nnx_reads_sets_and_learns():
    it = example("attention_in_nnx")
    model = it["ValueOfLargest"](16, rngs=nnx.Rngs(0))
    items, is_there, answers = it["draw"](jax.random.key(0))
    for pairs, there, answer in zip(items.tolist(), is_there.tolist(), answers.tolist(), strict=True):
        assert max(itertools.compress(pairs, there))[1] == answer
    said = model(items, is_there)
    order = jnp.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_allclose(model(items[:, order], is_there[:, order]), said, atol=1e-5)
    np.testing.assert_allclose(model(jnp.where(is_there[..., None], items, -7.0), is_there), said, atol=1e-5)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    losses = [float(it["step"](model, optimizer, it["draw"](jax.random.key(i)))) for i in range(100)]
    assert losses[-1] < 0.6 * np.var(answers)  # the best constant answer's loss


def test_pure_attention_is_equation_one(capsys):
    it = example("pure_attention", "__main__")
    query, key, value = (np.asarray(it[name], np.float64) for name in ("query", "key", "value"))
    lengths = [6, 3]
    for b, n, t in itertools.product(range(2), range(4), range(7)):
        seen = range(min(t + 1, lengths[b]))
        powers = np.exp([query[b, t, n] @ key[b, s, n] / math.sqrt(16) for s in seen])
        expected = sum(p * value[b, s, n] for p, s in zip(powers / powers.sum(), seen, strict=True))
        np.testing.assert_allclose(it["literal"][b, t, n], expected, atol=1e-5)
        np.testing.assert_allclose(it["weights"][b, n, t, : len(seen)], powers / powers.sum(), atol=1e-5)
    np.testing.assert_allclose(it["fast"], it["literal"], atol=1e-5)
    np.testing.assert_allclose(it["mapped"], [it["literal"], 2 * it["literal"], 0 * it["literal"]], atol=1e-5)
    assert (it["reads"][0] > 0).tolist() == [True] * 4 + [False] * 3
    assert not it["reads"][1].any()
    assert "reads the positions [0 1 2 3]" in capsys.readouterr().out


def sentences_of(lines, longest):
    """Every sentence possible under a trigram model of these lines, with its log-probability, by enumeration."""
    counts = {}
    for line in lines.splitlines():
        words = ["<s>", "<s>", *line.split(), "</s>"]
        for trigram in zip(words, words[1:], words[2:], strict=False):
            after = counts.setdefault(trigram[:2], {})
            after[trigram[2]] = after.get(trigram[2], 0) + 1
    found, growing = {}, [(("<s>", "<s>"), 0.0)]
    while growing:
        words, log_prob = growing.pop()
        after = counts[words[-2:]]
        for word, count in after.items():
            grown = (*words, word), log_prob + math.log(count / sum(after.values()))
            if word == "</s>":
                found[" ".join(words[2:])] = grown[1]
            elif len(words) - 1 < longest:
                growing.append(grown)
    return found


@pytest.mark.parametrize("disliked", [None, "moon"])
def test_search_over_ngrams_finds_what_enumeration_finds(disliked):
    it = example("search_over_ngrams")
    log_probs = sentences_of(it["LINES"], longest=11)
    assert len(log_probs) > 50

    def score(text):
        words = text.split()
        cost = 3.0 * words.count(disliked)
        return (log_probs[text] - cost) / ((5 + len(words) + 1) / 6) ** 0.6

    processors = (it["dislike"](disliked, 3.0),) if disliked else ()
    found = it["search"](beam_size=64, max_length=12, n_best=5, processors=processors)
    expected = sorted(map(score, log_probs), reverse=True)[:5]
    np.testing.assert_allclose([value for _, value in found], expected, atol=1e-4)
    np.testing.assert_allclose([score(text) for text, _ in found], expected, atol=1e-4)
    assert len({text for text, _ in found}) == 5


def test_search_over_ngrams_prints_what_the_processors_ask_for(capsys):
    example("search_over_ngrams", "__main__")
    parts = [part.splitlines() for part in capsys.readouterr().out.split(":\n")]
    texts = [[line.split(maxsplit=1)[1] for line in part if line.startswith("  ")] for part in parts[1:]]
    assert [len(found) for found in texts] == [3] * 4
    _, long, varied, without_moon = texts
    assert all(len(text.split()) >= 9 for text in long + varied)
    assert any(repeats(text) for text in long)
    assert not any(repeats(text) for text in varied)
    assert not any("moon" in text for text in without_moon)


def repeats(text):
    """Whether a bigram occurs twice."""
    words = text.split()
    return len({*itertools.pairwise(words)}) < len(words) - 1


def test_schedule_elsewhere_follows_equation_three_and_learns(capsys):
    it = example("schedule_elsewhere", "__main__")
    for step in (1, 50, 100, 101, 400):
        expected = 0.5 * 512**-0.5 * min(step**-0.5, step * 100**-1.5)
        assert float(it["noam"](step - 1)) == pytest.approx(expected, rel=1e-5)
    losses = re.findall(r"loss (\S+) at first, (\S+) at last", capsys.readouterr().out)
    assert len(losses) == 2
    for first, last in losses:
        assert float(last) < 0.1 * float(first)


def test_tfds_elsewhere_reads_our_builder_and_learns_a_dictionary(tmp_path, monkeypatch):
    # Four sentences instead of Multi30k.
    monkeypatch.setattr("transformer_jax.tasks.translation.multi30k._check_files", lambda files, languages: None)
    it = example("tfds_elsewhere")
    for language, lines in (("de", it["GERMAN"]), ("en", it["ENGLISH"])):
        (tmp_path / f"train.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    records = it["read"](tmp_path, tmp_path / "prepared")
    assert [(records[i]["de"].decode(), records[i]["en"].decode()) for i in range(len(records))] == list(
        zip(it["GERMAN"], it["ENGLISH"], strict=True)
    )
    # Model 1 again, with matrices: t(e|f), normalized expected counts.
    german, english = (sorted({w for line in it[side] for w in line.split()}) for side in ("GERMAN", "ENGLISH"))
    table = np.ones((len(german), len(english)))
    for _ in range(10):
        counts = np.zeros_like(table)
        for f, e in zip(it["GERMAN"], it["ENGLISH"], strict=True):
            block = np.ix_([german.index(w) for w in f.split()], [english.index(w) for w in e.split()])
            counts[block] += table[block] / table[block].sum(axis=0)
        table = counts / counts.sum(axis=1, keepdims=True)
    learned = it["main"](tmp_path)
    assert learned == it["main"]()
    for f, e in itertools.product(german, english):
        assert learned[f].get(e, 0.0) == pytest.approx(table[german.index(f), english.index(e)], abs=1e-9)
    assert {f: max(found, key=found.get) for f, found in learned.items()}["Hund"] == "dog"


def test_attention_maps_draw_the_weights(tmp_path):
    it = example("attention_maps")
    model = write_bundle(tmp_path / "model")
    [[best]] = transformer_jax.load(model).translate(["decade"], return_attention=True)
    source, target, weights = best.alignment
    lines = it["main"](str(model), "decade", 0, 1).splitlines()
    assert [line.strip() for line in lines[: len(source)]] == source
    rows = [line.split("|")[1] for line in lines[len(source) :]]
    assert len(rows) == len(target)
    shades = [[it["SHADES"].index(shade) for shade in row[::2]] for row in rows]
    assert shades == np.minimum(np.floor(weights[0, 1] * 10), 9).astype(int).tolist()
    assert it["main"](str(model), "decade").splitlines()[: len(source)] == lines[: len(source)]


@pytest.fixture(scope="module")
def backwards(tmp_path_factory):
    """A short run of the fourth task: its definitions, its config and its outcome."""
    it = example("fourth_task")
    config = it["get_config"]()
    config.model.update(d_model=16, d_ff=16, num_encoder_layers=1, num_decoder_layers=1)
    config.data.update(max_length=16, row_length=16, tokens_per_batch=256)
    config.training.update(num_steps=6, checkpoint_every=6, log_every=6)
    config.decoding.update(beam_size=1, max_extra_tokens=0)
    yield it, config, transformer_jax.run(config, tmp_path_factory.mktemp("backwards"))
    del REGISTRY["backwards"]


def test_a_fourth_task_trains_and_its_folder_loads_as_its_class(backwards):
    it, config, outcome = backwards
    assert math.isfinite(outcome.scores["loss"])
    model = transformer_jax.load(outcome.model)
    assert type(model) is transformer_jax.Translator
    task = it["Backwards"](transformer_jax.config.from_config_dict(config), None)
    assert all(target == source[::-1] and len(source) < 16 for source, target in task.validation)
    assert len(task.validation) > 5
    sources = [source for source, _ in task.validation]
    evaluate = transformer_jax.training.make_evaluator(task, task.config)
    outputs = [output for _, output, _ in evaluate(model.params, final=True).samples]
    assert model.translate(sources) == outputs
    scores = model.score(*map(list, zip(*task.validation, strict=True)))
    total = sum(score.log_prob for score in scores)
    tokens = sum(len(source) + 1 for source in sources)
    assert outcome.scores["loss"] == pytest.approx(-total / tokens, rel=1e-4)


def test_a_fourth_task_has_a_command_of_its_own(backwards, capfdbinary):
    _, _, outcome = backwards
    words = ["drei", "quatre"]
    assert main(["reverse", "--model", str(outcome.model), *words]) == 0
    expected = "".join(f"{word}\n" for word in transformer_jax.load(outcome.model).translate(words))
    assert capfdbinary.readouterr().out.decode() == expected
    assert main(["classify", "--model", str(outcome.model), "drei"]) == 2
    assert "use transformer-jax reverse" in capfdbinary.readouterr().err.decode()


def test_a_fourth_task_is_evaluated_by_the_command_line(backwards, capfdbinary, tmp_path):
    it, config, outcome = backwards
    pairs = it["Backwards"](transformer_jax.config.from_config_dict(config), None).validation[:9]
    for name, texts in zip(("source", "reference"), zip(*pairs, strict=True), strict=True):
        (tmp_path / name).write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    evaluate = ["evaluate", "--model", str(outcome.model)]
    files = ["--source", str(tmp_path / "source"), "--reference", str(tmp_path / "reference")]
    assert main([*evaluate, *files]) == 0
    report = json.loads(capfdbinary.readouterr().out)
    assert report["lines"] == 9
    assert {"exact_match", "perplexity_per_token", "perplexity_per_character"} <= set(report)
    assert main([*evaluate, *files, "--rules", "none"]) == 2
    assert "--rules means nothing for a model of pairs" in capfdbinary.readouterr().err.decode()
    assert main([*evaluate, "--config", str(EXAMPLES / "fourth_task.py"), "--split", "test"]) == 2
    assert main([*evaluate, "--config", str(EXAMPLES / "fourth_task.py"), "--split", "validation"]) == 0
    assert json.loads(capfdbinary.readouterr().out)["perplexity_per_token"] > 1


def test_the_step_of_a_fourth_task_has_its_flops(backwards):
    it, config, _ = backwards
    task = it["Backwards"](transformer_jax.config.from_config_dict(config), None)
    rows = [[example] for example in task.encode(task.validation[:2])]
    assert task.flops(task.collate(rows, 16, 2)) > 1e4


def test_a_task_that_is_not_registered_is_a_clear_error(backwards, monkeypatch):
    _, config, outcome = backwards
    monkeypatch.delitem(REGISTRY, "backwards")
    with pytest.raises(transformer_jax.UserError, match=r"task is 'backwards', .* \(register_task\)\."):
        transformer_jax.load(outcome.model)
    with pytest.raises(transformer_jax.UserError, match=r"config\.task is 'backwards', but must be one of "):
        transformer_jax.run(config, outcome.model.parent)


@pytest.mark.soak
def test_a_fourth_task_learns(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fourth_task.py"])
    example("fourth_task", "__main__")
    said = capsys.readouterr().out
    assert float(re.search(r"  step [0-9,]+: exact match (\S+)", said)[1]) > 0.8
    assert said.splitlines()[-1].startswith("['ierd', ")
