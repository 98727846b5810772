"""Promise 7: a run resumes only on the config, classes, vocabulary, data and version that it began with."""

import dataclasses
import gzip
import json
import time
from pathlib import Path

import pytest

from transformer_jax import run
from transformer_jax.config import default_config, from_config_dict
from transformer_jax.data.pipeline import digest
from transformer_jax.data.readers import MappedRecords
from transformer_jax.system import UserError
from transformer_jax.tasks.classification.sources import load_texts
from transformer_jax.training.setup import setup
from transformer_jax.training.workdir import IDENTITY_FILE, check_identity, claim, find_origin, identity_of, task_from

ROWS = [("World", "a b"), ("Sports", "c d"), ("World", "a c"), ("Sports", "d d"), ("Business", "e")] * 4
SENTENCES = ["abc", "cab", "bad", "dab ab", "ace", "bead", "cede", "deed"]


def write_rows(path, rows):
    path.write_text("".join(f"{label},{text}\n" for label, text in [("label", "text"), *rows]), encoding="utf-8")
    return str(path)


def small(task):
    config = default_config()
    config.task = task
    config.model.update(d_model=8, num_heads=2, d_ff=8, num_encoder_layers=1, num_decoder_layers=1)
    config.data.update(name="text", max_length=16, row_length=16, tokens_per_batch=64)
    config.optim.update(schedule="constant", lr=0.01, warmup_steps=1)
    config.training.update(num_steps=1, num_samples=0)
    config.decoding.update(beam_size=1, max_extra_tokens=2)
    return config


@pytest.fixture
def news(tmp_path):
    """A classifier's config on files."""
    config = small("classification")
    config.data.train_file = write_rows(tmp_path / "train.csv", ROWS)
    config.data.validation_file = write_rows(tmp_path / "validation.csv", ROWS[:3])
    config.tokenizer.update(kind="word", vocab_size=20)
    config.training.metric = "accuracy"
    return config


@pytest.fixture
def pairs(tmp_path):
    """A translator's config on files."""
    config = small("translation")
    for part in ("train", "validation"):
        for side in ("source", "target"):
            path = tmp_path / f"{part}.{side}"
            path.write_text("".join(f"{text}\n" for text in SENTENCES), encoding="utf-8")
            config.data[f"{part}_{side}"] = str(path)
    config.tokenizer.update(kind="char", vocab_size=30)
    return config


def resume(config, workdir):
    """What `setup` does of this, in its order, without building a mesh and jitting functions."""
    config = from_config_dict(config)
    origin = find_origin(config, workdir)
    task = task_from(config, origin)
    identity = identity_of(task)
    check_identity(workdir, config, identity)
    claim(workdir, config, task, origin, identity)


def begin(config, workdir):
    """A run as it is after its first checkpoint."""
    resume(config, workdir)
    (workdir / "checkpoints" / "1").mkdir(parents=True)


def refused(config, workdir, match, resume=resume):
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=match) as caught:
        resume(config, workdir)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def rename_world(folder):
    renamed = [("world" if label == "World" else label, text) for label, text in ROWS]
    write_rows(folder / "train.csv", renamed)
    write_rows(folder / "validation.csv", renamed[:3])


def test_setup_refuses_a_renamed_class_and_leaves_the_good_model(news, tmp_path):
    def set_up(config, workdir):
        setup(from_config_dict(config), workdir, started=time.monotonic())

    set_up(news, tmp_path / "run")
    (tmp_path / "run" / "model").mkdir()
    (tmp_path / "run" / "model" / "config.json").write_text("a good model")
    rename_world(tmp_path)
    refused(news, tmp_path / "run", "run on other data: the class 'World' is now 'world'; put the data back", set_up)


@pytest.mark.slow
def test_a_finished_run_keeps_its_good_model_when_a_class_is_renamed(news, tmp_path):
    run(news, tmp_path / "run")
    rename_world(tmp_path)
    refused(news, tmp_path / "run", "the class 'World' is now 'world'", run)


CLASSES = {
    "one more": ([*ROWS, ("Zoo", "a")], "the classes 'Zoo' are new"),
    "one less": ([row for row in ROWS if row[0] != "Business"], "the classes 'Business' are no longer there"),
    "others": (
        [(label.replace("o", "0"), text) for label, text in ROWS],
        r"'Sports', 'World' are no .* 'W0rld' are new",
    ),
    "one more row": ([*ROWS, ROWS[0]], r"training data \(.*train_file=.*train\.csv\) now has 21 records instead of 20"),
    "other rows": ([*ROWS[:-1], ("World", "e")], r"the 20 records of the training data .*train\.csv\) are others now"),
    "another order": (ROWS[::-1], r"the 20 records of the training data .* are others now"),
}


@pytest.mark.parametrize("case", CLASSES)
def test_other_classes_or_rows_are_refused(news, tmp_path, case):
    rows, message = CLASSES[case]
    begin(news, tmp_path / "run")
    write_rows(tmp_path / "train.csv", rows)
    write_rows(tmp_path / "validation.csv", rows[:3])
    refused(news, tmp_path / "run", message)


def test_other_validation_rows_are_refused(news, tmp_path):
    begin(news, tmp_path / "run")
    write_rows(tmp_path / "validation.csv", ROWS[1:4])
    refused(news, tmp_path / "run", r"3 records of the validation data .*validation\.csv\) are others now")


@pytest.mark.parametrize("name", ["train.source", "train.target", "validation.source", "validation.target"])
def test_other_sentences_are_refused(pairs, tmp_path, name):
    begin(pairs, tmp_path / "run")
    path = tmp_path / name
    path.write_text(path.read_text().replace("bead", "head"), encoding="utf-8")
    part = "training" if name.startswith("train") else "validation"
    refused(pairs, tmp_path / "run", rf"the 8 records of the {part} data .*{name}.* are others now")


def test_the_same_data_may_be_stored_otherwise(pairs, tmp_path):
    begin(pairs, tmp_path / "run")
    path = tmp_path / "train.source"
    path.write_bytes(gzip.compress(path.read_bytes()))
    stored = (tmp_path / "run" / IDENTITY_FILE).read_bytes()
    resume(pairs, tmp_path / "run")
    assert (tmp_path / "run" / IDENTITY_FILE).read_bytes() == stored


def move(config, group, name):
    """Move a file of the data elsewhere, compressed, and name it there."""
    path = Path(config[group][name])
    moved = path.with_name(f"moved.{path.name}.gz")
    moved.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    config[group][name] = str(moved)


@pytest.mark.parametrize("task", ["news", "pairs"])
def test_the_same_data_may_be_moved(task, request, tmp_path):
    config = request.getfixturevalue(task)
    extra = write_rows(tmp_path / "extra.csv", [("World", "b b")])
    if task == "news":
        config.classification.extra_train = extra
    begin(config, tmp_path / "run")
    for name in [name for name in config.data if name.startswith(("train_", "validation_")) and config.data[name]]:
        if Path(str(config.data[name])).is_file():
            move(config, "data", name)
    if task == "news":
        move(config, "classification", "extra_train")
    resume(config, tmp_path / "run")
    assert "moved" in (tmp_path / "run" / "config.json").read_text()


def test_other_files_are_refused_by_what_they_hold(news, pairs, tmp_path):
    begin(news, tmp_path / "news")
    news.classification.extra_train = write_rows(tmp_path / "extra.csv", [("World", "b b")])
    refused(news, tmp_path / "news", r"training data .*classification\.extra_train=.*extra\.csv\) now has 21 records")
    pairs.data.train_target = write_rows(tmp_path / "other.csv", [(text, text) for text in SENTENCES[1:]])
    begin(pairs, tmp_path / "pairs")
    pairs.data.update(train_source=pairs.data.train_target, train_target=pairs.data.train_source)
    refused(pairs, tmp_path / "pairs", r"8 records of the training data .*train_source=.*other\.csv, .* are others now")


def test_files_of_a_run_without_digests_may_not_be_moved(news, tmp_path):
    begin(news, tmp_path / "run")
    (tmp_path / "run" / IDENTITY_FILE).unlink()
    move(news, "data", "train_file")
    refused(news, tmp_path / "run", r"holds a run with config\.data\.train_file=")


def test_what_else_lies_in_the_tokenizers_folder_is_no_part_of_it(pairs, tmp_path):
    begin(pairs, tmp_path / "run")
    folder = tmp_path / "run" / "tokenizer"
    (folder / "source.characters.txt").write_text("another")
    (folder / ".snapshots").mkdir()
    resume(pairs, tmp_path / "run")
    assert list(find_origin(from_config_dict(pairs), tmp_path / "run").tokenizer_files) == ["characters.txt"]


def test_a_run_that_never_began_may_begin_on_other_data(news, tmp_path):
    resume(news, tmp_path / "run")
    write_rows(tmp_path / "train.csv", ROWS * 2)
    begin(news, tmp_path / "run")
    assert json.loads((tmp_path / "run" / IDENTITY_FILE).read_text())["training"]["records"] == 40


def test_a_run_of_an_earlier_release_resumes_and_is_compared_from_then_on(news, tmp_path):
    begin(news, tmp_path / "run")
    (tmp_path / "run" / IDENTITY_FILE).unlink()
    resume(news, tmp_path / "run")
    write_rows(tmp_path / "train.csv", [*ROWS, ROWS[0]])
    refused(news, tmp_path / "run", "21 records instead of 20")


def test_a_vocabulary_that_is_damaged_or_another_is_named(pairs, tmp_path):
    begin(pairs, tmp_path / "run")
    path = tmp_path / "run" / "tokenizer" / "characters.txt"
    content = path.read_bytes()
    path.write_bytes(content[:-4] + content[-2:] + content[-4:-2])
    refused(pairs, tmp_path / "run", r"tokenizer/characters\.txt is damaged or of another vocabulary; put back the one")
    path.unlink()
    refused(pairs, tmp_path / "run", r"tokenizer/characters\.txt is missing")


def test_a_run_of_a_later_release_names_it(news, tmp_path):
    begin(news, tmp_path / "run")
    path = tmp_path / "run" / IDENTITY_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2, "package_version": "9.1"}))
    refused(
        news, tmp_path / "run", r"identity\.json has format_version 2, but this release reads 1; .*wrote it \(9\.1\)"
    )


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"format_version": 1}', "[" * 100_000, f'{{"format_version": {"9" * 5000}}}']
)
def test_a_damaged_identity_is_named(news, tmp_path, content):
    begin(news, tmp_path / "run")
    (tmp_path / "run" / IDENTITY_FILE).write_text(content)
    refused(news, tmp_path / "run", r"identity\.json is (damaged; delete it if|not valid JSON)")


@pytest.mark.parametrize("read", [list, lambda records: MappedRecords(records, tuple)], ids=["in memory", "mapped"])
def test_every_record_counts(read):
    records = [(str(number), number) for number in range(10_000)]
    others = [records[:-1], records[::-1]]
    others += [[*records[:place], ("", 1), *records[place + 1 :]] for place in (0, 1, 1024, 5001, 9999)]
    assert digest(read(records)) == digest([list(record) for record in records])
    assert len({digest(read(records)) for records in (records, *others)}) == 8


def test_of_very_many_records_that_must_be_read_a_part_counts():
    read = []
    records = MappedRecords(range(1_000_001), lambda number: read.append(number) or number)
    assert digest(records) == digest(records) != digest(MappedRecords(range(1_000_000), int))
    assert len(read) == 2 * 4082


def test_records_that_are_no_plain_data_have_no_digest():
    assert digest([object()]) is None


def test_a_prepared_set_is_the_same_wherever_it_stands(tmp_path):
    def identify(place, rows, compress=bytes):
        manual = tmp_path / place / "files"
        manual.mkdir(parents=True)
        (manual / ("train.csv.gz" if compress is gzip.compress else "train.csv")).write_bytes(compress(rows.encode()))
        config = from_config_dict(small("classification")).data
        config = dataclasses.replace(config, name="ag_news", manual_dir=str(manual), data_dir=str(tmp_path / place))
        return digest(load_texts(config, "train")[0])

    rows = "".join(f'"{number % 4 + 1}","title {number}","text"\n' for number in range(20))
    first = identify("one", rows)
    assert first == identify("two", rows) == identify("compressed", rows, gzip.compress)
    assert first != identify("changed", rows.replace("title 7", "title 9"))
