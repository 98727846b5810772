import io
import json
import math
import sys

import pytest

from tests.bundle.toys import TEXTS, write_bundle
from transformer_jax.bundle import Translation, Translator, load
from transformer_jax.cli import main
from transformer_jax.metrics import exact_match, translation_scores


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("run") / "model")


@pytest.fixture
def run(folder, monkeypatch, capfdbinary):
    """Run a command on the model; returns (exit status, stdout, stderr)."""

    def call(command, *arguments, stdin=b"", model=folder):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="ascii"))
        status = main([command, "--model", str(model), *map(str, arguments)])
        out, err = capfdbinary.readouterr()
        return status, out.decode("utf-8"), err.decode("utf-8")

    return call


def refused(result, *expected):
    """Exit status 2, nothing on stdout, and one sentence on stderr with all these texts."""
    status, out, err = result
    lines = err.splitlines()
    assert (status, out, len(lines)) == (2, "", 1), result
    assert lines[0].startswith("transformer-jax: error: ")
    assert [text for text in expected if text not in lines[0]] == []


def as_lines(texts):
    return "".join(f"{text}\n" for text in texts)


# translate


def test_lines_of_standard_input(run, folder):
    expected = load(folder).translate(TEXTS)
    assert run("translate", stdin=as_lines(TEXTS).encode()) == (0, as_lines(expected), "")


def test_arguments(run, folder):
    assert run("translate", *TEXTS) == (0, as_lines(load(folder).translate(TEXTS)), "")


@pytest.mark.parametrize("stdin", [b"", b"\n", b"\n\n \n", b"abc", b"abc\r\n\r\ncab\r\n", "\u2028abc\n\x0b\n".encode()])
def test_as_many_lines_come_out_as_go_in(run, stdin):
    status, out, _ = run("translate", stdin=stdin)
    assert status == 0
    assert out.count("\n") == stdin.count(b"\n") + (stdin == b"abc")


def test_output_is_utf8_whatever_the_locale(run, monkeypatch):
    monkeypatch.setattr(Translator, "search", lambda *_, **__: [[Translation("对联 – ß", -1.0, -2.0)]])
    assert run("translate", "abc") == (0, "对联 – ß\n", "")


def test_n_best_and_scores(run, folder):
    found = load(folder).search(TEXTS, n_best=2)
    expected = [f"{i}\t{t.score:.4f}\t{t.text}" for i, translations in enumerate(found, 1) for t in translations]
    assert run("translate", "--n-best", 2, *TEXTS) == (0, as_lines(expected), "")
    best = [f"{i}\t{translations[0].score:.4f}\t{translations[0].text}" for i, translations in enumerate(found, 1)]
    assert run("translate", "--scores", *TEXTS) == (0, as_lines(best), "")


def test_search_options_reach_the_search(run, folder):
    model = load(folder)
    options = {"beam_size": 1, "alpha": 0.0, "max_length": 5, "min_length": 5, "no_repeat_ngram": 2, "prefix": "d"}
    arguments = ["--beam=1", "--alpha=0", "--max-length=5", "--min-length=5", "--no-repeat-ngram=2", "--prefix=d"]
    expected = model.translate(TEXTS, **options)
    assert expected != model.translate(TEXTS)
    assert run("translate", *arguments, *TEXTS) == (0, as_lines(expected), "")


def test_sampling_is_seeded(run, folder):
    draw = ["translate", "--temperature", 2, "--top-k", 9, "--top-p", 0.99, *TEXTS]
    first = run(*draw, "--seed", 1)
    expected = load(folder).translate(TEXTS, temperature=2.0, top_k=9, top_p=0.99, seed=1)
    assert first == (0, as_lines(expected), "")
    assert run(*draw, "--seed", 2) != first


def test_streaming_prints_the_greedy_translation(run, folder):
    expected = load(folder).translate(TEXTS, beam_size=1)
    assert run("translate", "--stream", *TEXTS) == (0, as_lines(expected), "")


def test_alignment_is_json(run, folder):
    status, out, err = run("translate", "--alignment", "abc", "")
    first, blank = map(json.loads, out.splitlines())
    assert (status, err) == (0, "")
    assert (first["text"], blank["text"]) == tuple(load(folder).translate(["abc", ""]))
    assert first["source"] == ["a", "b", "c", "</s>"]
    assert len(first["weights"]) == len(first["target"])
    assert all(math.isclose(sum(row), 1, abs_tol=1e-3) for row in first["weights"])
    assert blank == {"line": 2, "score": 0.0, "text": ""}


def test_output_file(run, folder, tmp_path):
    path = tmp_path / "out.txt"
    assert run("translate", "--output", path, *TEXTS) == (0, "", "")
    assert path.read_text(encoding="utf-8") == as_lines(load(folder).translate(TEXTS))
    refused(run("translate", "--output", tmp_path / "no" / "out.txt", "abc"), "out.txt", "cannot be written")
    refused(run("translate", "--output", path, "--beam", 0, "abc"), "beam_size")
    assert [each.name for each in tmp_path.iterdir()] == ["out.txt"]


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_malformed_utf8_is_named(run, stream):
    result = run("translate", *stream, stdin="abc\nä\n".encode() + b"a\xffb\nabc\n")
    refused(result, "<stdin>, line 3", "0xff", "UTF-8")


def test_malformed_utf8_in_an_argument(run):
    refused(run("translate", "abc", "\udcff"), "\\udcff", "UTF-8")
    refused(run("translate", "abc", "--prefix", "\udcff"), "\\udcff", "UTF-8")


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_a_line_of_100_000_characters(run, stream):
    result = run("translate", *stream, stdin=b"abc\n" + b"a" * 100_000 + b"\n")
    refused(result, "Line 2", "100,000 characters", "32,768")


@pytest.mark.parametrize("name", ["config.json", "characters.txt", "model.safetensors"])
def test_a_model_without_a_file(run, tmp_path, name):
    model = write_bundle(tmp_path / "model")
    (model / name).unlink()
    refused(run("translate", "abc", model=model), name, "missing")


def test_a_model_with_another_vocabulary(run, tmp_path):
    model = write_bundle(tmp_path / "model")
    path = model / "characters.txt"
    path.write_text(
        path.read_text(encoding="utf-8").replace("\na\nb\n", "\nb\na\n").replace("e", "f"), encoding="utf-8"
    )
    refused(run("translate", "abc", model=model), "another vocabulary")


def test_no_model(run, tmp_path):
    refused(run("translate", "abc", model=tmp_path / "nowhere"), "nowhere", "no folder")


def test_options_that_exclude_each_other(run):
    refused(run("translate", "--stream", "--n-best", 2, "abc"), "--stream", "--n-best")


# evaluate


@pytest.fixture
def files(tmp_path):
    """Write aligned files; returns the arguments that name them."""

    def write(sources, references):
        for name, texts in (("source", sources), ("reference", references)):
            (tmp_path / name).write_bytes(as_lines(texts).encode())
        return ["--source", tmp_path / "source", "--reference", tmp_path / "reference"]

    return write


REFERENCES = ["abc abc", "", "bad bad bad bad", "a", "b", "c", "d"]


def test_the_report(run, folder, files):
    status, out, err = run("evaluate", *files(TEXTS, REFERENCES))
    report = json.loads(out)
    assert (status, out.count("\n")) == (0, 1)
    assert "translating 7 lines" in err
    model = load(folder)
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
        "model": str(folder),
    }
    assert report == expected
    assert report["seconds"] > 0


def test_the_search_of_an_evaluation(run, folder, files):
    references = load(folder).translate(TEXTS, beam_size=1, alpha=0.0)
    status, out, _ = run("evaluate", "--beam", 1, "--alpha", 0, *files(TEXTS, references))
    assert status == 0
    report = json.loads(out)
    assert (report["beam"], report["alpha"]) == (1, 0.0)
    assert report["chrf"] == pytest.approx(100)


def config_file(tmp_path, body):
    path = tmp_path / "experiment.py"
    path.write_text(f"from transformer_jax.config import default_config\n\n{body}", encoding="utf-8")
    return path


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
    refused(run("evaluate", "--config", tmp_path / "none.py:de-en", "--split", "test"), "none.py", "no file")


def test_different_line_counts(run, files):
    refused(run("evaluate", *files(TEXTS, REFERENCES[1:])), "7 lines", "6", "source", "reference")


def test_files_that_cannot_be_read(run, files, tmp_path):
    arguments = files(["abc", "abc"], ["abc", "abc"])
    (tmp_path / "reference").write_bytes(b"abc\n\xe4bc\n")
    refused(run("evaluate", *arguments), "reference, line 2", "UTF-8")
    (tmp_path / "reference").unlink()
    refused(run("evaluate", *arguments), "reference", "does not exist")


@pytest.mark.parametrize("references", [[], ["", ""]])
def test_nothing_to_score_against(run, files, references):
    refused(run("evaluate", *files([""] * len(references), references)), "reference", "no reference text")


def test_which_data_must_be_said(run, files):
    source_and_reference = files(TEXTS, REFERENCES)
    for arguments in ([], source_and_reference[:2], [*source_and_reference, "--split", "test"], ["--split", "test"]):
        refused(run("evaluate", *arguments), "--source and --reference, or --config and --split")


# ends


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (BrokenPipeError, 141)])
def test_quiet_ends(run, monkeypatch, error, status):
    def raise_it(*_, **__):
        raise error

    monkeypatch.setattr("os.dup2", lambda *_: None)  # the test's own stdout is still needed
    monkeypatch.setattr(Translator, "search", raise_it)
    assert run("translate", "abc") == (status, "", "")


@pytest.mark.parametrize("argv", [[], ["paint"], ["translate"], ["translate", "--model", "x", "--beam", "many"]])
def test_usage_errors(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert capsys.readouterr().out == ""


def test_help_documents_the_columns_and_needs_no_jax(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(SystemExit) as caught:
        main(["translate", "--help"])
    assert caught.value.code == 0
    assert "LINE<TAB>SCORE<TAB>TEXT" in " ".join(capsys.readouterr().out.split())
