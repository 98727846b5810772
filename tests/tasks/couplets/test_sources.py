import dataclasses

import pytest

from transformer_jax.config import DataConfig
from transformer_jax.data.readers import is_held_out
from transformer_jax.system import UserError
from transformer_jax.tasks.couplets import CoupletConfig
from transformer_jax.tasks.couplets.antitheses import antitheses
from transformer_jax.tasks.couplets.sources import load_couplets, load_training_data, seen_uppers

UPPERS = [f"上{chr(0x4E00 + i)}{chr(0x5E00 + i)}" for i in range(400)]


@pytest.fixture
def write(tmp_path):
    def write(name, lines):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{' '.join(line)}\n" for line in lines), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def text(write):
    """Two answers for each upper line, files of our own."""
    return DataConfig(
        name="text",
        train_source=write("in", UPPERS + UPPERS),
        train_target=write("out", ["下甲乙"] * len(UPPERS) + ["下丙丁"] * len(UPPERS)),
        validation_split="",
        validation_percent=10.0,
    )


def test_antitheses():
    config = DataConfig(name="antitheses")
    assert load_couplets(config, "test") == list(antitheses("test"))
    data = load_training_data(config, CoupletConfig())
    assert data.train == list(antitheses("train"))
    assert data.validation == list(antitheses("validation"))
    assert data.notes == [
        "Training data antitheses train: 20,000 couplets",
        "Validation data antitheses validation: 500 couplets",
    ]


def test_validation_is_cut_by_upper_line(text):
    data = load_training_data(text, CoupletConfig())
    held_out = [upper for upper in UPPERS if is_held_out(upper, 10.0)]
    assert 20 < len(held_out) < 60
    assert [upper for upper, _ in data.validation] == held_out + held_out, "with all of their answers"
    assert [upper for upper, _ in data.train] == [upper for upper in UPPERS if upper not in held_out] * 2
    assert data.notes[1] == f"Validation data: {2 * len(held_out)} of these, 10 % of the upper lines, are held out"


def test_extra_couplets_answer_no_upper_line_of_validation(text, write, tmp_path):
    extra_uppers = [*UPPERS[:100], "别的上联", "春风"]
    write("verse/train/in.txt", extra_uppers)
    write("verse/train/out.txt", ["下戊己"] * 100 + ["另外下句", "秋"])
    extra = CoupletConfig(extra_train=str(tmp_path / "verse"))
    data, without = load_training_data(text, extra), load_training_data(text, CoupletConfig())
    assert data.validation == without.validation
    extra = data.train[len(without.train) :]
    assert data.train[: len(without.train)] == without.train
    free = [upper for upper in UPPERS[:100] if not is_held_out(upper, 10.0)]
    assert 0 < len(free) < 100
    assert extra == [*((upper, "下戊己") for upper in free), ("别的上联", "另外下句")]
    assert not any(seen_uppers([upper for upper, _ in data.validation], data.train))
    assert data.notes[2].endswith("verse: 101 couplets (left out: 1 of unequal length)")
    assert data.notes[3] == f"{100 - len(free)} of these answer an upper line of validation: left out"


def test_unfit_couplets_are_left_out_of_both_parts(write):
    config = DataConfig(
        name="text",
        train_source=write("in", ["春风", "", "花开", "发财好"]),
        train_target=write("out", ["秋雨", "月", "月落时", "平安来"]),
        validation_source=write("val.in", ["新年", "快发财"]),
        validation_target=write("val.out", ["旧岁", "慢平安"]),
    )
    data = load_training_data(config, CoupletConfig(blocklist=write("words", ["发财"])))
    assert (data.train, data.validation) == ([("春风", "秋雨")], [("新年", "旧岁")])
    assert data.notes == [
        "Training data text train: 1 couplets (left out: 1 blank, 1 of unequal length, 1 with a blocked word)",
        "Validation data text validation: 1 couplets (left out: 1 with a blocked word)",
    ]
    assert len(load_couplets(config, "train")) == 4, "a split as it is"


def test_seen_uppers():
    assert seen_uppers(["春", "夏", "春"], [("春", "秋"), ("冬", "夏")]) == [True, False, True]


def test_mistakes_are_told(text, write, tmp_path):
    def fails(match, own=None, **changes):
        with pytest.raises(UserError, match=match):
            load_training_data(dataclasses.replace(text, **changes), own or CoupletConfig())

    fails(r"config\.data\.train_target is empty; name a text file with one lower line per line", train_target="")
    fails(r"config\.data\.name=text has no split 'dev', only train, validation", train_split="dev")
    fails(r"antitheses have no split 'dev'", name="antitheses", train_split="dev")
    fails(r"config\.data\.name is 'couplets', but must be antitheses, text or couplet\.", name="couplets")
    fails(r"'couplet/small', but couplet has no configurations; drop the slash", name="couplet/small")
    fails(r"ag_news_subset.* is not a couplet set, it has no 'upper'", name="ag_news_subset", data_dir=str(tmp_path))
    fails(r"config\.data\.validation_percent is 0\.0, but must be above 0 and below 100", validation_percent=0.0)
    fails(r"config\.data\.validation_percent is 100", validation_percent=100.0)
    fails(
        r"config\.data\.validation_percent is 1e-09, which holds out none of 800 records; raise it",
        validation_percent=1e-9,
    )
    fails(r"No couplets are left for training", CoupletConfig(blocklist=write("all", ["上"])))
    fails(r"missing\.txt cannot be read", CoupletConfig(blocklist=str(tmp_path / "missing.txt")))
    write("half/train/in.txt", ["春"])
    half = CoupletConfig(extra_train=str(tmp_path / "half"))
    fails(r"config\.couplet\.extra_train is .*half, which has no train/in\.txt and", half)


@pytest.mark.slow
def test_the_real_verse(data_dir, text):
    data = load_training_data(text, CoupletConfig(extra_train=str(data_dir / "couplet_verse")))
    assert data.notes[2].endswith("couplet_verse: 205,716 couplets")
    assert ("绮殿千寻起", "离宫百雉余") in data.train
