import dataclasses
import gzip
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from transformer_jax.config import DataConfig
from transformer_jax.system import UserError
from transformer_jax.tasks.classification.ag_news import CLASSES
from transformer_jax.tasks.classification.labelled import AG_NEWS_COLUMNS, read_labelled
from transformer_jax.tasks.classification.sources import load_texts


class ToyReviews(tfds.core.GeneratorBasedBuilder):
    """A public set's like: several texts of which the title is not the first, and a test set without labels."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "body": tfds.features.Text(),
            "grade": tfds.features.ClassLabel(names=["bad", "good"]),
            "number": tfds.features.Scalar(np.int64),
            "title": tfds.features.Text(),
        }
        return self.dataset_info_from_configs(
            description="", features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples([1, 0]), "test": self._generate_examples([-1])}

    def _generate_examples(self, grades):
        for number, grade in enumerate(grades):
            yield number, {"body": f"Text {number} ä", "title": " Title", "grade": grade, "number": number}


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return str(path)

    return write


@pytest.fixture
def news(tmp_path, write):
    """AG News's files, small, and the configuration to read them."""
    write("raw/train.csv.gz", "".join(f'"{1 + i % 4}","Title {i}","Text ""{i}"" ä"\n' for i in range(30)))
    write("raw/test.csv", '"4","A chip",""\n')
    return DataConfig("ag_news", manual_dir=str(tmp_path / "raw"), data_dir=str(tmp_path / "tfds"))


def test_headlines():
    records, classes = load_texts(DataConfig("headlines"), "validation")
    assert len(records) == 1_000
    assert classes == ("markets", "science", "sports", "weather")
    assert {record.label for record in records} == set(classes)
    with pytest.raises(UserError, match="headlines have no split 'dev'"):
        load_texts(DataConfig("headlines"), "dev")


def test_own_files(write):
    config = DataConfig(
        "text",
        train_file=write("a.csv", "label,text\nspam,a\nham,b\nspam,c\n"),
        validation_file=write("b.jsonl.gz", '{"text": "d", "label": "spam"}\n'),
    )
    records, classes = load_texts(config, "train")
    assert classes == ("ham", "spam")
    assert records == [("a", "spam"), ("b", "ham"), ("c", "spam")]
    assert load_texts(config, "validation") == ([("d", "spam")], ("ham", "spam"))


@pytest.mark.parametrize(
    ("train", "validation", "split", "message"),
    [
        ("1,a\n2,b\n", "1,a\n7,b\n", "validation", r"b\.csv, row 2: the label '7' is unknown; known here: 1, 2"),
        ("1,a\n1,b\n", "1,a\n", "train", r"a\.csv has only the class '1'; a classifier needs at least two"),
        ("", "1,a\n", "train", r"config\.data\.train_file is empty; name a CSV, TSV or JSON Lines file"),
        ("", "1,a\n", "validation", r"config\.data\.train_file is empty"),
        (
            "1,a\n2,b\n",
            "",
            "validation",
            r"validation_file is empty; .* or cut a part with an empty config\.data\.validation_spl",
        ),
        ("1,a\n2,b\n", "", "test", r"config\.data\.name=text has no split 'test', only train, validation"),
    ],
)
def test_mistakes_in_own_files_are_told(write, train, validation, split, message):
    files = {name: write(file, text) if text else "" for name, file, text in
             (("train_file", "a.csv", train), ("validation_file", "b.csv", validation))}  # fmt: skip
    with pytest.raises(UserError, match=message):
        load_texts(DataConfig("text", **files, text_columns=("2",), label_column="1"), split)


def test_ag_news_from_a_folder(news):
    train, classes = load_texts(news, "train")
    assert classes == CLASSES
    assert train[:] == list(train) == [(f'Title {i} Text "{i}" ä', CLASSES[i % 4]) for i in range(30)]
    assert train[-1] == train[29]
    assert len(load_texts(news, "train[:10]")[0]) == 10
    assert list(load_texts(news, "test")[0]) == [("A chip", "Sci/Tech")]
    assert list(load_texts(news, "train[:1]+test")[0]) == [train[0], ("A chip", "Sci/Tech")]
    with pytest.raises(UserError, match=r"has no split 'dev', only"):
        load_texts(news, "train+dev")
    with pytest.raises(UserError, match=r"^'train\[:x\]' of .*; correct the split, or delete that folder") as caught:
        load_texts(news, "train[:x]")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"ag_news.* has no split 'validation', only train, test"):
        load_texts(news, "validation")


def test_prepared_anew_for_other_files(news, write):
    load_texts(news, "train")
    write("raw/test.csv", '"2","A goal",""\n"9","x","y"\n')
    with pytest.raises(UserError, match=r"test\.csv, row 2: the label '9' is unknown; known here: World, Sports"):
        load_texts(news, "test")
    write("raw/test.csv", '"2","A goal",""\n')
    assert list(load_texts(news, "test")[0]) == [("A goal", "Sports")]


def test_the_subset_of_tfds_reads_a_folder_too(news):
    subset = dataclasses.replace(news, name="ag_news_subset")
    assert load_texts(subset, "test")[0][0] == ("A chip", "Sci/Tech")


def test_any_tfds_set(tmp_path):
    config = DataConfig("toy_reviews", data_dir=str(tmp_path))
    records, classes = load_texts(config, "train")
    assert classes == ("bad", "good")
    assert list(records) == [("Title Text 0 ä", "good"), ("Title Text 1 ä", "bad")]
    with pytest.raises(UserError, match="toy_reviews has records without a label in 'test'"):
        load_texts(config, "test")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ag_nws", r"config\.data\.name is 'ag_nws', but must be headlines, text, ag_news or a TFDS set .*ag_news_sub"),
        ("mnist", "mnist.* has the features image, label, but a text and one class label are needed"),
        ("multi30k/de-en", "multi30k.* has the features .*but a text and one class label are needed"),
    ],
)  # fmt: skip
def test_sets_that_do_not_fit(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        load_texts(DataConfig(name, data_dir=str(tmp_path)), "train")


def test_real_ag_news(data_dir, tmp_path):
    # One of the two files, as preparing both takes long; test_labelled reads the other.
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "test.csv").symlink_to((data_dir / "ag_news" / "test.csv").resolve())
    config = DataConfig("ag_news", manual_dir=str(tmp_path / "raw"), data_dir=str(tmp_path / "tfds"))
    records, classes = load_texts(config, "test")
    assert len(records) == 3_800
    assert list(records) == read_labelled(data_dir / "ag_news" / "test.csv", classes=classes, columns=AG_NEWS_COLUMNS)
    with pytest.raises(UserError, match="has no split 'train', only test"):
        load_texts(config, "train")


def test_nothing_heavy_is_imported_for_nothing():
    script = (
        "import sys, transformer_jax.tasks.classification.sources;"
        "print([name for name in ('jax', 'tensorflow', 'tensorflow_datasets', 'torch') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output == "[]\n"
