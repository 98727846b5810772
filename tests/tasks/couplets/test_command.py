import pytest

from tests.outcomes import as_lines, refused
from transformer_jax.tasks.couplets.rules import NAMES, explain, judge
from transformer_jax.tasks.model_folder import load

UPPERS = ["天", "春风有雨", "山山水水，来来去去"]
UNKNOWN = "龘鬱彁"


def columns(found):
    return as_lines(f"{replies[0].text}\t{replies[0].score:.4f}" for replies in found)


def test_uppers_and_lines_of_standard_input(run, couplet_writer):
    expected = columns(load(couplet_writer).search(UPPERS))
    assert run("couplet", *UPPERS) == (0, expected, "")
    assert run("couplet", stdin=as_lines(UPPERS).encode()) == (0, expected, "")
    assert run("couplet", *[f" {' '.join(upper)}\u3000" for upper in UPPERS]) == (0, expected, "")
    assert run("couplet", stdin=b"") == (0, "", "")


@pytest.mark.parametrize("option", ["--n", "-n"])
def test_several_lines_to_each(run, couplet_writer, option):
    found = load(couplet_writer).search(UPPERS, n_best=5)
    expected = [f"{i}\t{r.text}\t{r.score:.4f}" for i, replies in enumerate(found, start=1) for r in replies]
    assert run("couplet", option, 5, *UPPERS) == (0, as_lines(expected), "")
    assert len(expected) == 15


def test_samples_follow_the_seed(run, couplet_writer):
    model = load(couplet_writer)
    status, first, _ = run("couplet", "--sample", "--seed", 1, *UPPERS)
    assert (status, first) == (0, columns(model.search(UPPERS, temperature=1.0, seed=1)))
    draw = ["couplet", "--sample", "--temperature", 2, "--top-k", 9, "--top-p", 0.9]
    status, second, _ = run(*draw, "--seed", 1, *UPPERS)
    expected = columns(model.search(UPPERS, temperature=2.0, top_k=9, top_p=0.9, seed=1))
    assert (status, second) == (0, expected)
    assert run(*draw, "--seed", 2, *UPPERS)[1] != second
    refused(run("couplet", "--sample", "--temperature", -1, "天"), "temperature is -1")


def test_rules(run, couplet_writer):
    found = load(couplet_writer).search(UPPERS, rules="none,length", beam_size=1)
    assert run("couplet", "--rules", "none,length", "--beam", 1, *UPPERS) == (0, columns(found), "")
    assert [len(replies[0].text) for replies in found] == [len(upper) for upper in UPPERS]
    assert any(len(judge(upper, replies[0].text).kept) < 4 for upper, replies in zip(UPPERS, found, strict=True))


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("rhyme", ["'rhyme' is not a rule", *NAMES]),
        ("tones=much", ["tones=much", "hard or off"]),
        ("tones=-1", ["tones is -1", "from 0 to 1000"]),
        ("length,length=2", ["length is named twice"]),
        ("tones,none", ["'none' is not a rule"]),
    ],
)
def test_rules_that_are_none(run, rules, expected):
    refused(run("couplet", "--rules", rules, "天"), *expected)


def test_a_table_explains_each_line(run, couplet_writer):
    status, out, err = run("couplet", "--explain", *UPPERS[:2], " 春 风")
    found = load(couplet_writer).search([*UPPERS[:2], "春风"])
    blocks = out.removesuffix("\n\n").split("\n\n")
    assert (status, err, len(blocks)) == (0, "", 3)
    for block, upper, [reply] in zip(blocks, [*UPPERS[:2], "春风"], found, strict=True):
        assert block == f"{reply.text}\t{reply.score:.4f}\n{explain(upper, reply.text)}"


def test_what_was_given_up_is_told(run):
    status, out, err = run("couplet", *UPPERS[:2], "".join(map(chr, range(0x4E00, 0x4E00 + 100))))
    assert (status, out.count("\n")) == (0, 3)
    first, second = err.splitlines()
    assert "line 3: no lower line can keep all hard rules; given up: repetition" in first
    assert "line 3: the model knows only " in second


def test_unknown_characters_and_latin_text_are_answered_and_told(run):
    status, out, err = run("couplet", "天", UNKNOWN, "hello")
    lowers = [line.split("\t")[0] for line in out.splitlines()]
    assert (status, [len(lower) for lower in lowers]) == (0, [1, 3, 5])
    assert lowers[2][2] == lowers[2][3]
    assert [line for line in err.splitlines() if "the model knows none of its characters" in line] == err.splitlines()
    assert ["line 2:" in line for line in err.splitlines()] == [True, False]


def test_a_line_of_200_characters(run):
    upper = "天地玄黄" * 50
    status, out, err = run("couplet", "--beam", 1, upper)
    assert (status, err) == (0, "")
    lower = out.split("\t")[0]
    assert {"length", "repetition", "distinct"} <= set(judge(upper, lower).kept)


def test_output_file(run, couplet_writer, tmp_path):
    path = tmp_path / "out.txt"
    assert run("couplet", "--output", path, *UPPERS) == (0, "", "")
    assert path.read_text(encoding="utf-8") == columns(load(couplet_writer).search(UPPERS))


@pytest.mark.parametrize("blank", ["", " \t", "\u3000", "\u200d"])
def test_a_blank_line_has_a_blank_answer(run, blank):
    one, two = run("couplet", "天", "春风有雨")[1].splitlines()
    status, out, err = run("couplet", "天", blank, "春风有雨")
    assert (status, out) == (0, as_lines([one, "", two]))
    assert err == "transformer-jax: 1 blank line in the input, blank in the output; the first: line 2\n"
    assert run("couplet", "-n", 2, blank)[1] == "1\t\t\n"


def test_bad_input(run):
    refused(run("couplet", stdin="天\n".encode() + b"\xff\n"), "<stdin>, line 2", "0xff", "UTF-8")
    refused(run("couplet", "\udcff"), "UTF-8")
    refused(run("couplet", "天" * 1024), "Line 1 has 1,025 tokens, but the limit is 1,024")
    refused(run("couplet", "天" * 100_000), "Line 1 has 100,000 characters, but the limit is 32,768")
    refused(run("couplet", "--n", 0, "天"), "--n is 0", "from 1")
    refused(run("couplet", "--beam", 0, "天"), "--beam is 0")
