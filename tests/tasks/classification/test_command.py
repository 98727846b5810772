import json

import pytest

from tests.outcomes import as_lines, refused
from tests.tasks.toys import CLASSES, write_classifier
from transformer_jax.tasks.model_folder import load

TEXTS = ["abc", "Bad", "cab ab", "字 ??"]


@pytest.fixture
def expected(classifier):
    """What the command should print."""
    return as_lines(
        f"{said.label}\t{max(said.probabilities.values()):.4f}" for said in load(classifier).classify(TEXTS)
    )


def test_texts_and_lines_of_standard_input(run, expected):
    assert run("classify", *TEXTS) == (0, expected, "")
    assert run("classify", stdin=as_lines(TEXTS).encode()) == (0, expected, "")
    assert run("classify", "--batch-size", 1, *TEXTS) == (0, expected, "")
    assert run("classify", stdin=b"") == (0, "", "")


def test_the_likeliest_classes(run, classifier, expected):
    said = load(classifier).classify(TEXTS)
    rows = [sorted(each.probabilities.items(), key=lambda item: -item[1]) for each in said]
    for top in (2, 3, 9):
        lines = ["\t".join(f"{name}\t{share:.4f}" for name, share in row[:top]) for row in rows]
        assert run("classify", "--top", top, *TEXTS) == (0, as_lines(lines), "")
    assert run("classify", "--top", 1, *TEXTS) == (0, expected, "")
    refused(run("classify", "--top", 0, "abc"), "--top is 0, but must be at least 1")
    refused(run("classify", "--top", 2, "--json", "abc"), "--json prints all classes")


def test_json_lines(run, classifier):
    status, out, err = run("classify", "--json", *TEXTS)
    found = [json.loads(line) for line in out.splitlines()]
    assert (status, err) == (0, "")
    for number, (values, said) in enumerate(zip(found, load(classifier).classify(TEXTS), strict=True), start=1):
        assert (values["line"], values["label"]) == (number, said.label)
        assert tuple(values["probabilities"]) == CLASSES
        assert values["probabilities"] == pytest.approx(said.probabilities, abs=1e-6)
        assert set(values) == {"line", "label", "probabilities"}


def test_names_of_classes_may_be_chinese(run, tmp_path):
    model = write_classifier(tmp_path / "model", classes=("体育", "财经", "天气"))
    status, out, _ = run("classify", "--json", "abc", model=model)
    assert status == 0
    assert '"体育": ' in out


def test_output_file(run, expected, tmp_path):
    path = tmp_path / "out.txt"
    assert run("classify", "--output", path, *TEXTS) == (0, "", "")
    assert path.read_text(encoding="utf-8") == expected
    refused(run("classify", "--output", tmp_path / "no" / "out.txt", "abc"), "out.txt", "cannot be written")
    refused(run("classify", "--output", tmp_path / "no", stdin=b"abc\n\xff\n"), "<stdin>, line 2")
    assert [each.name for each in tmp_path.iterdir()] == ["out.txt"]


@pytest.mark.parametrize("policy", ["stop", "blank"])
@pytest.mark.parametrize("blank", ["", " \t", "\u3000", "\u200d"])
def test_a_blank_line_has_a_blank_answer(run, blank, policy):
    lines = as_lines(["abc", blank, "Bad", blank]).encode()
    told = "transformer-jax: 2 blank lines in the input, blank in the output; the first: line 2\n"
    one, two = run("classify", "abc", "Bad")[1].splitlines()
    assert run("classify", f"--bad-lines={policy}", stdin=lines) == (0, as_lines([one, "", two, ""]), told)
    found = [json.loads(line) for line in run("classify", "--json", stdin=lines)[1].splitlines()]
    assert found[1] == {"line": 2, "label": None, "probabilities": None}
    assert [each["line"] for each in found] == [1, 2, 3, 4]


def test_bad_input(run):
    refused(run("classify", stdin=b"abc\na\xffb\n"), "<stdin>, line 2", "0xff", "UTF-8")
    refused(run("classify", "\udcff"), "UTF-8")
    refused(run("classify", "--batch-size", 0, "abc"), "--batch-size is 0")


def test_a_text_of_100_000_characters_is_cut(run):
    status, out, err = run("classify", "abcde" * 20_000)
    assert (status, out.count("\n"), err) == (0, 1, "")


def test_explanations(run, classifier):
    said = load(classifier).classify(TEXTS, explain=True)
    status, out, err = run("classify", "--explain", *TEXTS)
    assert (status, err) == (0, "")
    for line, each in zip(out.splitlines(), said, strict=True):
        label, share, *rest = line.split("\t")
        assert (label, share) == (each.label, f"{max(each.probabilities.values()):.4f}")
        effects = dict(zip(rest[::2], map(float, rest[1::2]), strict=True))
        assert effects == {word.text: pytest.approx(word.effect, abs=1e-4) for word in each.words}
        assert [abs(effect) for effect in effects.values()] == sorted(map(abs, effects.values()), reverse=True)
    found = [json.loads(line) for line in run("classify", "--explain", "--json", *TEXTS)[1].splitlines()]
    for values, each in zip(found, said, strict=True):
        assert [(word["text"], word["start"]) for word in values["words"]] == [(w.text, w.start) for w in each.words]
        assert set(values) == {"line", "label", "probabilities", "words"}
    refused(run("classify", "--explain", "--top", 2, "abc"), "--explain is about the likeliest class")
