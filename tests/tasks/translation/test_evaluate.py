import json
import math

import pytest

from tests.outcomes import as_lines, config_file, data_config, refused
from tests.tasks.toys import TEXTS
from transformer_jax import plots
from transformer_jax.config import DataConfig
from transformer_jax.tasks.metrics import exact_match, translation_scores
from transformer_jax.tasks.model_folder import load
from transformer_jax.tasks.translation.sources import load_training_data


@pytest.fixture
def files(tmp_path):
    """Write aligned files; returns the arguments that name them."""

    def write(sources, references):
        for name, texts in (("source", sources), ("reference", references)):
            (tmp_path / name).write_bytes(as_lines(texts).encode())
        return ["--source", tmp_path / "source", "--reference", tmp_path / "reference"]

    return write


REFERENCES = ["abc abc", "", "bad bad bad bad", "a", "b", "c", "d"]


def test_the_report(run, translator, files):
    status, out, err = run("evaluate", *files(TEXTS, REFERENCES))
    report = json.loads(out)
    assert (status, out.count("\n")) == (0, 1)
    assert "translating 7 lines" in err
    model = load(translator)
    scores = model.score(TEXTS, REFERENCES)
    nll = -sum(score.log_prob for score in scores)
    expected = {
        **translation_scores(model.translate(TEXTS), REFERENCES),
        "exact_match": exact_match(model.translate(TEXTS), REFERENCES),
        "perplexity_per_token": pytest.approx(math.exp(nll / sum(len(r) + 1 for r in REFERENCES))),
        "perplexity_per_character": pytest.approx(math.exp(nll / sum(len(r) for r in REFERENCES))),
        "lines": 7,
        "seconds": report["seconds"],
        "beam": 2,
        "alpha": 0.6,
        "model": str(translator),
    }
    assert report == expected
    assert report["seconds"] > 0


def test_the_search_of_an_evaluation(run, translator, files):
    references = load(translator).translate(TEXTS, beam_size=1, alpha=0.0)
    status, out, _ = run("evaluate", "--beam", 1, "--alpha", 0, *files(TEXTS, references))
    assert status == 0
    report = json.loads(out)
    assert (report["beam"], report["alpha"]) == (1, 0.0)
    assert report["chrf"] == pytest.approx(100)


WITH_FILES = """
def get_config(languages="de-en"):
    config = default_config()
    config.data.name = "text"
    config.data.source_language, config.data.target_language = languages.split("-")
    config.data.validation_source, config.data.validation_target = {source!r}, {reference!r}
    return config
"""


def test_data_of_a_configuration(run, files, tmp_path):
    arguments = files(TEXTS, REFERENCES)
    direct = json.loads(run("evaluate", *arguments)[1])
    config = config_file(tmp_path, WITH_FILES.format(source=str(arguments[1]), reference=str(arguments[3])))
    for choice in ("", ":de-en"):
        status, out, _ = run("evaluate", "--config", f"{config}{choice}", "--split", "validation")
        assert status == 0
        assert json.loads(out) | {"seconds": 0} == direct | {"seconds": 0}
    refused(run("evaluate", "--config", f"{config}:en-de", "--split", "validation"), "source_language", "'en'", "'de'")
    refused(run("evaluate", "--config", f"{config}:deen", "--split", "validation"), "get_config", ":deen")
    refused(run("evaluate", "--config", config, "--split", "test"), "no split 'test'")


def test_the_part_that_training_holds_out(run, tmp_path):
    table = tmp_path / "pairs.tsv"
    table.write_text("".join(f"{text}{number % 10}\tabc\n" for number, text in enumerate(10 * ["abc", "bad", "cab"])))
    data = DataConfig(name="text", train_file=str(table), validation_split="", validation_percent=40.0)
    expected = load_training_data(data).validation
    fields = {"name": "text", "train_file": str(table), "validation_split": "", "validation_percent": 40.0}
    arguments = "--config", data_config(tmp_path, **fields), "--split", "validation", "--samples", 99
    status, out, _ = run("evaluate", *arguments)
    assert status == 0
    assert [sample["input"] for sample in json.loads(out)["samples"]] == [source for source, _ in expected]
    assert 0 < len(expected) < 30


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("x = 1", "no function get_config"),
        (
            "def get_config():\n    config = default_config()\n    config.data.colour = 1\n    return config",
            "data.colour",
        ),
    ],
)
def test_configurations_that_are_none(run, tmp_path, body, expected):
    refused(run("evaluate", "--config", config_file(tmp_path, body), "--split", "validation"), expected)


def test_a_configuration_that_is_not_there(run, tmp_path):
    refused(run("evaluate", "--config", tmp_path / "none.py:de-en", "--split", "test"), "none.py", "not a file")


def test_different_line_counts(run, files):
    refused(run("evaluate", *files(TEXTS, REFERENCES[1:])), "7 lines", "6", "source", "reference")


def test_files_that_cannot_be_read(run, files, tmp_path):
    arguments = files(["abc", "abc"], ["abc", "abc"])
    (tmp_path / "reference").write_bytes(b"abc\n\xe4bc\n")
    refused(run("evaluate", *arguments), "reference, line 2", "UTF-8")
    (tmp_path / "reference").unlink()
    refused(run("evaluate", *arguments), "reference", "does not exist")


@pytest.mark.parametrize("references", [[], ["", ""], [" ", "\u200b"]])
def test_nothing_to_score_against(run, files, references):
    refused(run("evaluate", *files([""] * len(references), references)), "reference", "no reference text")


def test_which_data_must_be_said(run, files):
    source_and_reference = files(TEXTS, REFERENCES)
    for arguments in ([], source_and_reference[:2], [*source_and_reference, "--split", "test"], ["--split", "test"]):
        refused(run("evaluate", *arguments), "--source and --reference, or --config and --split")


@pytest.mark.parametrize("option", [("--data", "x.csv"), ("--picture", "x.png"), ("--rules", "none")])
def test_options_of_other_tasks_are_refused(run, files, option):
    refused(run("evaluate", *option, *files(TEXTS, REFERENCES)), option[0], "means nothing for", "translation")


def test_samples_are_the_first_lines(run, translator, files):
    report = json.loads(run("evaluate", "--samples", 2, *files(TEXTS, REFERENCES))[1])
    outputs = load(translator).translate(TEXTS)
    assert report["samples"] == [
        {"input": TEXTS[i], "output": outputs[i], "reference": REFERENCES[i]} for i in range(2)
    ]


def test_pictures(run, translator, files, tmp_path, monkeypatch):
    drawn = []
    draw = plots.length_bleu
    monkeypatch.setattr(
        plots, "length_bleu", lambda *given, **named: drawn.append((given, named)) or draw(*given, **named)
    )
    folder = tmp_path / "new" / "pictures"
    status, out, _ = run("evaluate", *files(TEXTS, REFERENCES), "--plots", folder)
    assert status == 0
    assert [path.name for path in folder.iterdir()] == ["length_bleu.png"]
    assert (folder / "length_bleu.png").read_bytes().startswith(b"\x89PNG")
    [((lengths, _, sentences), named)] = drawn
    assert lengths[-1].endswith("4")
    assert sentences.sum() == 7
    assert named["overall"] == pytest.approx(json.loads(out)["bleu"])


def test_pictures_that_cannot_be_are_refused_before_the_work(run, files, tmp_path):
    (tmp_path / "file").touch()
    refused(run("evaluate", *files(["abc"], ["abc"]), "--plots", tmp_path / "file"), "file cannot hold pictures")
    refused(run("evaluate", *files(["abc"], ["abc"]), "--plots", ""), "--plots is empty")
