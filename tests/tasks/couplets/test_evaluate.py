import json
import math

import numpy as np
import pytest

from tests.outcomes import as_lines, data_config, refused
from transformer_jax import plots
from transformer_jax.tasks.couplets.rules import NAMES, Rules, couplet_scores, judge
from transformer_jax.tasks.model_folder import load

PAIRS = [("天地", "山水"), ("春风有雨", "秋月无云"), ("山山，水水", "花花，草草"), ("龘", "A"), ("天 花", "地草")]
UPPERS = ["".join(upper.split()) for upper, _ in PAIRS]
LOWERS = [lower for _, lower in PAIRS]


@pytest.fixture
def evaluate(run, couplet_writer):
    def call(*arguments):
        return run("evaluate", *arguments, model=couplet_writer)

    return call


@pytest.fixture
def files(tmp_path):
    """Write aligned files; returns their paths."""

    def write(pairs, name="test"):
        paths = tmp_path / f"{name}.upper", tmp_path / f"{name}.lower"
        for path, lines in zip(paths, zip(*pairs, strict=True), strict=True):
            path.write_text(as_lines(lines), encoding="utf-8")
        return paths

    return write


def arguments_of(paths):
    return ["--source", paths[0], "--reference", paths[1]]


def group(model, members, **search):
    """The expected report of these couplets."""
    uppers, lowers = [UPPERS[i] for i in members], [LOWERS[i] for i in members]
    written = model.reply(uppers, **search)
    nll = -sum(score.log_prob for score in model.score(uppers, lowers))
    characters = sum(map(len, lowers))

    def keep(answers):
        kept = [judge(upper, lower).kept for upper, lower in zip(uppers, answers, strict=True)]
        return {name: pytest.approx(sum(name in each for each in kept) / len(kept)) for name in NAMES}

    return {
        "lines": len(members),
        "perplexity_per_token": pytest.approx(math.exp(nll / (characters + len(members))), rel=1e-4),
        "perplexity_per_character": pytest.approx(math.exp(nll / characters), rel=1e-4),
        **couplet_scores(written, lowers),
        "keeps": keep(written),
        "references_keep": keep(lowers),
        "gave_up": 0,
    }


def test_the_report(evaluate, couplet_writer, files):
    status, out, err = evaluate(*arguments_of(files(PAIRS)))
    report = json.loads(out)
    assert status == 0
    assert report == {
        "all": group(load(couplet_writer), range(5)),
        "rules": str(Rules()),
        "seconds": report["seconds"],
        "beam": 2,
        "model": str(couplet_writer),
    }
    assert [report["all"]["keeps"][name] for name in NAMES if Rules().is_hard(name)] == [1, 1, 1, 1]
    assert report["all"]["references_keep"]["length"] == 1
    assert "writing lower lines to 5 upper lines" in err
    assert "char" in report["all"]["bleu_signature"]


def test_rules_change_what_is_written_but_not_perplexity(evaluate, couplet_writer, files):
    arguments = arguments_of(files(PAIRS))
    with_rules = json.loads(evaluate(*arguments)[1])
    without = json.loads(evaluate("--rules", "none", "--beam", 1, *arguments)[1])
    assert without["all"] == group(load(couplet_writer), range(5), rules="none", beam_size=1)
    assert (without["rules"], without["beam"]) == (str(Rules.parse("none")), 1)
    assert without["all"]["keeps"] != with_rules["all"]["keeps"]
    for name in ("perplexity_per_token", "perplexity_per_character"):
        assert without["all"][name] == with_rules["all"][name]


def test_upper_lines_of_training_are_scored_apart(evaluate, couplet_writer, files, tmp_path):
    validation, train = files(PAIRS), files([("天 花", "云草"), ("春风有雨", "秋月无云"), ("东", "西")], "train")
    config = data_config(
        tmp_path,
        name="text",
        train_source=str(train[0]),
        train_target=str(train[1]),
        validation_source=str(validation[0]),
        validation_target=str(validation[1]),
    )
    status, out, _ = evaluate("--config", config, "--split", "validation", "--samples", 1)
    report = json.loads(out)
    assert status == 0
    model = load(couplet_writer)
    for name, members in (("all", range(5)), ("unseen", [0, 2, 3]), ("seen", [1, 4])):
        [sample] = report[name].pop("samples")
        first = members[0]
        output = model.reply(UPPERS[first : first + 1])[0]
        assert sample == {"input": UPPERS[first], "output": output, "reference": LOWERS[first]}
        assert report[name] == group(model, members)


def test_antitheses(evaluate, tmp_path):
    config = data_config(tmp_path, name="antitheses")
    status, out, _ = evaluate("--config", config, "--split", "test", "--beam", 1)
    report = json.loads(out)
    assert status == 0
    assert (report["all"]["lines"], "seen" in report) == (500, False)
    assert report["unseen"] == report["all"], "no upper line stands in two splits"
    assert report["all"]["references_keep"] == dict.fromkeys(NAMES, 1.0)
    assert report["all"]["gave_up"] == 0
    refused(evaluate("--config", config, "--split", "dev"), "no split 'dev'")


@pytest.mark.parametrize(
    ("pair", "expected"),
    [(("", "花"), "test.upper, line 2"), ((" \t", "花"), "test.upper, line 2"), (("花", ""), "test.lower, line 2")],
)
def test_blank_lines_are_named_with_their_file(evaluate, files, pair, expected):
    refused(evaluate(*arguments_of(files([PAIRS[0], pair, PAIRS[1]]))), expected, "is blank")


def test_blank_lines_of_a_configuration(evaluate, files, tmp_path):
    paths = files([PAIRS[0], ("花", " ")])
    names = ("train_source", "train_target", "validation_source", "validation_target")
    config = data_config(tmp_path, name="text", **dict(zip(names, map(str, paths * 2), strict=True)))
    refused(evaluate("--config", config, "--split", "validation"), "experiment.py validation, couplet 2 is blank")


def test_files_that_do_not_fit(evaluate, files):
    upper, lower = files(PAIRS)
    lower.write_text(as_lines(LOWERS[1:]), encoding="utf-8")
    refused(evaluate(*arguments_of((upper, lower))), "5 lines", "4")
    lower.unlink()
    refused(evaluate(*arguments_of((upper, lower))), "test.lower", "does not exist")


@pytest.mark.parametrize("option", [("--data", "x.csv"), ("--picture", "x.png"), ("--alpha", 1)])
def test_options_of_other_tasks_are_refused(evaluate, files, option):
    refused(evaluate(*option, *arguments_of(files(PAIRS))), option[0], "means nothing for", "couplets")


def test_which_data_must_be_said(evaluate, files):
    paths = files(PAIRS)
    for arguments in ([], arguments_of(paths)[:2], [*arguments_of(paths), "--split", "test"], ["--split", "test"]):
        refused(evaluate(*arguments), "--source and --reference, or --config and --split")


def test_bad_rules(evaluate, files):
    refused(evaluate("--rules", "rhyme", *arguments_of(files(PAIRS))), "'rhyme' is not a rule")


def test_pictures(evaluate, couplet_writer, files, tmp_path, monkeypatch):
    drawn = []
    draw = plots.rules_by_place
    monkeypatch.setattr(plots, "rules_by_place", lambda *given: drawn.append(given) or draw(*given))
    status, _, _ = evaluate(*arguments_of(files(PAIRS)), "--plots", tmp_path / "pictures")
    assert (status, [path.name for path in (tmp_path / "pictures").iterdir()]) == (0, ["rules.png"])
    [(broken, rules, couplets)] = drawn
    assert rules == NAMES
    assert couplets.tolist() == [5, 4, 2, 2, 1]
    written = load(couplet_writer).reply(UPPERS)
    for name, lowers in (("written", written), ("references", LOWERS)):
        verdicts = [judge(upper, lower).broken for upper, lower in zip(UPPERS, lowers, strict=True)]
        expected = [[sum(place in verdict[rule] for verdict in verdicts) for place in range(5)] for rule in NAMES]
        np.testing.assert_allclose(broken[name] * couplets, expected)
