import pytest
from rich.cells import cell_len

from transformer_jax.tasks.couplets.rules import NAMES, explain, judge

TABLE = """\
upper       春天，花开
            通平  平平  (should end 仄)
lower       秋地、花
            平通  平
length      · · · · ×   broken at 1 place
punctuation · · × · ·   broken at 1 place
repetition  · · · · ·   kept
distinct    · · · × ·   broken at 1 place
tones       · · · · ·   kept"""


def test_a_table_as_a_person_sees_it():
    assert explain("春天，花开", "秋地、花") == TABLE


def rows_of(table):
    return {line.split()[0]: line for line in table.splitlines() if line[:1].strip()}


@pytest.mark.parametrize(
    ("upper", "lower"),
    [
        ("晚风摇树树还挺", "晨露润花花更红"),
        ("山山水水", "来去，来去去"),
        ("hello 天！", "abc"),
        ("春", ""),
        ("龘😀", "花花"),
    ],
)
def test_crosses_stand_where_the_judge_finds_faults(upper, lower):
    rows = rows_of(explain(upper, lower))
    assert list(rows) == ["upper", "lower", *NAMES]
    places = max(len(upper), len(lower))
    for name, broken in judge(upper, lower).broken.items():
        marks = rows[name][12 : 12 + 2 * places]
        assert marks.split() == ["×" if place in broken else "·" for place in range(places)]
        assert rows[name].endswith("kept" if not broken else f"broken at {len(broken)} place{'s' * (len(broken) > 1)}")


def test_columns_stand_below_each_other():
    upper, lower = "a春1，b", "雨x，y风"
    rows = rows_of(explain(upper, lower))
    for name, line in (("upper", upper), ("lower", lower)):
        for place, character in enumerate(line):
            before = rows[name][: rows[name].index(character, 12)]
            assert cell_len(before) == 12 + 2 * place
    assert all(line == line.rstrip() for line in rows.values())


def test_what_no_line_could_keep_is_told_apart():
    rows = rows_of(explain("春花", "秋春", ("distinct",)))
    assert rows["distinct"].endswith("broken at 1 place, given up")
    assert rows_of(explain("春花", "秋月", ("distinct",)))["distinct"].endswith("kept")
