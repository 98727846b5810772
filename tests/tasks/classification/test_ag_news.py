import gzip
import hashlib
import urllib.error

import pytest
import tensorflow_datasets as tfds

from transformer_jax.system import UserError
from transformer_jax.tasks.classification import ag_news
from transformer_jax.tasks.classification.ag_news import CLASSES, SPLITS, URL, AgNews, local_files


class Network(tfds.download.DownloadManager):
    """A stand-in for that of TFDS, with the content of each address."""

    def __init__(self, folder, content):
        self.folder, self.content = folder, content

    @property
    def manual_dir(self):
        raise AssertionError("no folder was given")

    def download(self, urls):
        paths = {}
        for split, url in urls.items():
            paths[split] = self.folder / f"ag_news_{split}Checksum.csv"
            paths[split].write_bytes(self.content[url])
        return paths


@pytest.fixture
def network(tmp_path, monkeypatch):
    """Small files at the public addresses, whose checksums and rows are expected."""
    content = {
        f"{URL}train.csv": b'"3","Profit up","A bank said so."\n"1","Vote","Polls, ""open"""\n',
        f"{URL}test.csv": b'"4","Chip"," Smaller "\n',
    }
    splits = {
        split: (rows, hashlib.md5(content[f"{URL}{split}.csv"]).hexdigest())
        for split, rows in {"train": 2, "test": 1}.items()
    }
    monkeypatch.setattr(ag_news, "SPLITS", splits)
    monkeypatch.setattr(ag_news, "check_network", lambda url, title: None)
    return Network(tmp_path, content)


def examples(builder, manager):
    return {split: list(records) for split, records in builder._split_generators(manager).items()}


@pytest.fixture
def builder(tmp_path):
    return AgNews(data_dir=str(tmp_path / "tfds"), file_format="array_record")


def test_what_is_expected_of_the_public_files():
    assert SPLITS == {
        "train": (120_000, "b1a00f826fdfbd249f79597b59e1dc12"),
        "test": (7_600, "d52ea96a97a2d943681189a97654912d"),
    }
    assert CLASSES == ("World", "Sports", "Business", "Sci/Tech")


def test_features(builder):
    assert tuple(builder.info.features["label"].names) == CLASSES
    assert builder.info.supervised_keys == ("text", "label")


def test_from_the_network(builder, network):
    assert examples(builder, network) == {
        "train": [
            (0, {"text": "Profit up A bank said so.", "label": "Business"}),
            (1, {"text": 'Vote Polls, "open"', "label": "World"}),
        ],
        "test": [(0, {"text": "Chip Smaller", "label": "Sci/Tech"})],
    }


def test_another_file_than_expected(builder, network):
    network.content[f"{URL}test.csv"] += b" "
    with pytest.raises(UserError, match=r"test\.csv is not the file of the known MD5 .*; delete .*Checksum\.csv and"):
        examples(builder, network)


def test_another_number_of_rows_than_expected(builder, network, monkeypatch):
    monkeypatch.setitem(ag_news.SPLITS, "train", (3, ag_news.SPLITS["train"][1]))
    with pytest.raises(UserError, match=r"train\.csv has 2 rows instead of 3; delete"):
        examples(builder, network)


def test_no_network(builder, tmp_path, monkeypatch):
    def refuse(*arguments, **settings):
        raise urllib.error.URLError("refused")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(UserError, match=r"test\.csv cannot be reached .*AG News's files in config\.data\.manual_dir"):
        examples(builder, Network(tmp_path, {}))


def test_files_of_a_folder(tmp_path):
    (tmp_path / "test.csv").write_text("1,a\n")
    assert local_files(tmp_path) == {"test": (tmp_path / "test.csv",)}
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(b"1,a\n"))
    assert local_files(tmp_path)["train"] == (tmp_path / "train.csv.gz",)
    with pytest.raises(UserError, match="nowhere, which is not a folder; name the folder with AG News's files"):
        local_files(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty has no train\.csv or test\.csv; copy them from https://raw"):
        local_files(tmp_path / "empty")
