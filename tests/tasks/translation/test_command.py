import json
import math
import re

import numpy as np
import pytest

from tests.outcomes import as_lines, refused
from tests.tasks.toys import TEXTS, write_bundle
from transformer_jax import plots
from transformer_jax.tasks.model_folder import load
from transformer_jax.tasks.translation import command
from transformer_jax.tasks.translation.translator import Translation, Translator


def test_lines_of_standard_input(run, translator):
    expected = load(translator).translate(TEXTS)
    assert run("translate", stdin=as_lines(TEXTS).encode()) == (0, as_lines(expected), "")


def test_arguments(run, translator):
    assert run("translate", *TEXTS) == (0, as_lines(load(translator).translate(TEXTS)), "")


@pytest.mark.parametrize("stdin", [b"", b"\n", b"\n\n \n", b"abc", b"abc\r\n\r\ncab\r\n", "\u2028abc\n\x0b\n".encode()])
def test_as_many_lines_come_out_as_go_in(run, stdin):
    status, out, _ = run("translate", stdin=stdin)
    assert status == 0
    assert out.count("\n") == stdin.count(b"\n") + (stdin == b"abc")


def test_output_is_utf8_whatever_the_locale(run, monkeypatch):
    monkeypatch.setattr(Translator, "search", lambda *_, **__: [[Translation("对联 – ß", -1.0, -2.0)]])
    assert run("translate", "abc") == (0, "对联 – ß\n", "")


def test_n_best_and_scores(run, translator):
    found = load(translator).search(TEXTS, n_best=2)
    expected = [f"{i}\t{t.score:.4f}\t{t.text}" for i, translations in enumerate(found, 1) for t in translations]
    assert run("translate", "--n-best", 2, *TEXTS) == (0, as_lines(expected), "")
    best = [f"{i}\t{translations[0].score:.4f}\t{translations[0].text}" for i, translations in enumerate(found, 1)]
    assert run("translate", "--scores", *TEXTS) == (0, as_lines(best), "")


def test_search_options_reach_the_search(run, translator):
    model = load(translator)
    options = {"beam_size": 1, "alpha": 0.0, "max_length": 5, "min_length": 5, "no_repeat_ngram": 2, "prefix": "d"}
    arguments = ["--beam=1", "--alpha=0", "--max-length=5", "--min-length=5", "--no-repeat-ngram=2", "--prefix=d"]
    expected = model.translate(TEXTS, **options)
    assert expected != model.translate(TEXTS)
    assert run("translate", *arguments, *TEXTS) == (0, as_lines(expected), "")


def test_sampling_is_seeded(run, translator):
    draw = ["translate", "--temperature", 2, "--top-k", 9, "--top-p", 0.99, *TEXTS]
    first = run(*draw, "--seed", 1)
    expected = load(translator).translate(TEXTS, temperature=2.0, top_k=9, top_p=0.99, seed=1)
    assert first == (0, as_lines(expected), "")
    assert run(*draw, "--seed", 2) != first


def test_streaming_prints_the_greedy_translation(run, translator):
    expected = load(translator).translate(TEXTS, beam_size=1)
    assert run("translate", "--stream", *TEXTS) == (0, as_lines(expected), "")


def test_alignment_is_json(run, translator):
    status, out, err = run("translate", "--alignment", "abc", "")
    first, blank = map(json.loads, out.splitlines())
    assert (status, err) == (0, "")
    assert (first["text"], blank["text"]) == tuple(load(translator).translate(["abc", ""]))
    assert first["source"] == ["a", "b", "c", "</s>"]
    assert len(first["weights"]) == len(first["target"])
    assert all(math.isclose(sum(row), 1, abs_tol=1e-3) for row in first["weights"])
    assert blank == {"line": 2, "score": 0.0, "text": ""}


def test_output_file(run, translator, tmp_path):
    path = tmp_path / "out.txt"
    assert run("translate", "--output", path, *TEXTS) == (0, "", "")
    assert path.read_text(encoding="utf-8") == as_lines(load(translator).translate(TEXTS))
    refused(run("translate", "--output", tmp_path / "no" / "out.txt", "abc"), "out.txt", "cannot be written")
    refused(run("translate", "--output", path, "--beam", 0, "abc"), "--beam")
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
    refused(run("translate", "abc", model=tmp_path / "nowhere"), "nowhere", "not a folder")


def test_options_that_exclude_each_other(run):
    refused(run("translate", "--stream", "--n-best", 2, "abc"), "--stream", "--n-best")


def page_data(path):
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"))[1])["examples"]


def test_attention_as_a_page(run, translator, tmp_path):
    path = tmp_path / "a.html"
    plain = run("translate", "--n-best", 2, *TEXTS)
    assert run("translate", "--n-best", 2, "--attention", path, *TEXTS) == plain
    model = load(translator)
    found = [best for best, *_ in model.search(TEXTS, n_best=2, return_attention="all") if best.alignment]
    examples = page_data(path)
    assert len(examples) == len(found) == 5
    for example, translation in zip(examples, found, strict=True):
        labels = [label.replace("␣", " ") for label in example["source"]]
        assert labels == translation.alignment.source
        for kind, weights in translation.attention._asdict().items():
            np.testing.assert_allclose(np.array(example["kinds"][kind]["weights"]) / 1000, weights, atol=0.6e-3)
        np.testing.assert_array_equal(translation.attention.cross, translation.alignment.weights)
    assert [best.attention for [best] in model.search(["abc"], return_attention=True)] == [None]


def test_attention_as_a_picture(run, tmp_path, monkeypatch):
    drawn = []
    draw = plots.attention_maps
    monkeypatch.setattr(
        plots, "attention_maps", lambda *given, **named: drawn.append((given, named)) or draw(*given, **named)
    )
    path = tmp_path / "a.svg"
    plain = run("translate", "--alignment", *TEXTS)[1]
    status, out, err = run("translate", "--alignment", "--attention", path, *TEXTS)
    assert (status, out) == (0, plain)
    assert err == f"transformer-jax: {path} shows line 1 only; a page (.html) can show more\n"
    [((weights, target, source), named)] = drawn
    first = json.loads(out.splitlines()[0])
    assert (target, source, named) == (first["target"], first["source"], {"title": first["text"]})
    np.testing.assert_allclose(weights.mean(axis=(0, 1)), first["weights"], atol=1e-4)
    assert path.read_bytes().startswith(b"<?xml")


def test_attention_of_many_lines_is_that_of_the_first(run, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "MOST_SHOWN", 2)
    path = tmp_path / "a.HTML"
    lines = ["", "abc", "Bad", "cab ab"]
    status, out, err = run("translate", "--attention", path, stdin=as_lines(lines).encode())
    assert (status, out) == run("translate", stdin=as_lines(lines).encode())[:2]
    assert ["".join(example["source"][:-1]) for example in page_data(path)] == ["abc"]
    assert "shows the first 2 lines only" in err
    assert run("translate", "--attention", tmp_path / "b.html", " ")[2].endswith("no attention to draw\n")
    assert not (tmp_path / "b.html").exists()


def test_attention_that_cannot_be_drawn_is_refused_before_the_work(run, tmp_path):
    refused(run("translate", "--attention", tmp_path / "a.pdf", "abc"), "a.pdf", ".png, .svg or .html")
    refused(run("translate", "--attention", tmp_path / "no" / "a.html", "abc"), "a.html", "cannot be written")
    refused(run("translate", "--attention", "", "abc"), "--attention is empty")
    refused(run("translate", "--stream", "--attention", tmp_path / "a.png", "abc"), "--stream", "--attention")
