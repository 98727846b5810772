"""Promise 14: files of another set, partial ones and damaged prepared records are named, not taken."""

import gzip
import hashlib
import shutil

import pytest

from transformer_jax.config import DataConfig
from transformer_jax.data.readers import read_records
from transformer_jax.system import UserError
from transformer_jax.tasks.classification import ag_news
from transformer_jax.tasks.classification.sources import load_texts
from transformer_jax.tasks.couplets import couplet_dataset
from transformer_jax.tasks.couplets.sources import load_couplets
from transformer_jax.tasks.translation import multi30k
from transformer_jax.tasks.translation.sources import load_pairs

LINES = {
    f"{stem}.{language}": [f"{stem} {language} {n}" for n in range(3)]
    for stem in ("train", "val")
    for language in ("de", "en")
}


def content(lines):
    return "".join(f"{line}\n" for line in lines).encode()


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A small Multi30k whose checksums and lines are known."""
    monkeypatch.setattr(multi30k, "SPLITS", {"train": ("train", 3), "validation": ("val", 3)})
    known = {name: hashlib.sha256(content(lines)).hexdigest() for name, lines in LINES.items()}
    monkeypatch.setattr(multi30k, "CONTENTS", known)
    folder = tmp_path / "raw"
    folder.mkdir()
    for name, lines in LINES.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content(lines)))
    return folder


def pairs(raw, split="train"):
    return load_pairs(DataConfig(name="multi30k", manual_dir=str(raw), data_dir=str(raw.parent / "tfds")), split)


def test_the_right_files_are_taken_however_they_are_compressed(raw):
    assert pairs(raw)[0] == ("train de 0", "train en 0")
    (raw / "train.de.gz").unlink()
    (raw / "train.de").write_bytes(content(LINES["train.de"]))
    assert pairs(raw)[2] == ("train de 2", "train en 2")


@pytest.mark.parametrize("name", LINES)
def test_files_of_another_set_are_refused(raw, name):
    (raw / f"{name}.gz").write_bytes(gzip.compress(content(["another", "set", "altogether"])))
    with pytest.raises(UserError, match=rf"{name}\.gz is not {name} of Multi30k \(its SHA-256 differs\); copy it from"):
        pairs(raw)
    assert not list((raw.parent / "tfds").rglob("*.array_record*"))


def test_a_partial_file_is_refused(raw):
    path = raw / "train.en.gz"
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(UserError, match=r"train\.en\.gz is a damaged or truncated gzip file"):
        pairs(raw)


def test_known_checksums_are_those_of_the_real_files(data_dir):
    for name, checksum in multi30k.CONTENTS.items():
        with gzip.open(data_dir / "multi30k" / f"{name}.gz") as stream:
            assert hashlib.sha256(stream.read()).hexdigest() == checksum
    with pytest.raises(UserError, match=r"is not train\.de of Multi30k"):
        multi30k._check_files(
            {"train": tuple(data_dir / "tatoeba_en_de" / f"train.{s}.gz" for s in ("de", "en"))}, ("de", "en")
        )


def test_another_set_as_large_as_ag_news_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ag_news, "SPLITS", {"train": (2, "0" * 32)})
    (tmp_path / "train.csv").write_text('"1","a","b"\n"2","c","d"\n')
    config = DataConfig("ag_news", manual_dir=str(tmp_path), data_dir=str(tmp_path / "tfds"))
    with pytest.raises(UserError, match=r"train\.csv is not train\.csv of AG News \(its MD5 differs"):
        load_texts(config, "train")


def test_another_set_larger_than_the_couplets_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(couplet_dataset, "SPLITS", {"train": 1})
    (tmp_path / "train").mkdir()
    for name in ("in.txt", "out.txt"):
        (tmp_path / "train" / name).write_text("山 水\n花 月\n", encoding="utf-8")
    config = DataConfig(name="couplet", manual_dir=str(tmp_path), data_dir=str(tmp_path / "tfds"))
    with pytest.raises(UserError, match=r"in\.txt has more than the 1 lines of the couplet set"):
        load_couplets(config, "train")


@pytest.fixture
def prepared(raw):
    pairs(raw)
    [path] = (raw.parent / "tfds").rglob("*train.array_record*")
    return path


def flip(path, place):
    stored = bytearray(path.read_bytes())
    stored[int(place * (len(stored) - 1))] ^= 0xFF
    path.write_bytes(stored)


DAMAGE = {
    "emptied": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "missing": lambda path: path.unlink(),
    "records": lambda path: path.write_bytes(
        path.read_bytes()[:65_600].replace(b"train", b"tRain") + path.read_bytes()[65_600:]
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_prepared_records_are_named_with_the_remedy(raw, prepared, damage):
    shutil.copy(prepared, prepared.parent.parent / "whole")
    DAMAGE[damage](prepared)
    with pytest.raises(
        UserError, match=r"array_record.* is missing, damaged or trunc.*; delete the folder .* to prepare"
    ) as caught:
        read_records(pairs(raw), range(3))
    assert "\n" not in str(caught.value)


def test_records_damaged_while_a_training_reads_them(raw, prepared, monkeypatch):
    records = pairs(raw)
    assert records[1] == ("train de 1", "train en 1")

    def fail(indices):
        raise RuntimeError("Corrupted Riegeli/records file\nmore lines")

    monkeypatch.setattr(type(records._records._records), "__getitems__", lambda _, indices: fail(indices))
    prepared.write_bytes(b"")
    with pytest.raises(
        UserError, match=r"array_record-00000-of-00001 is missing, damaged .*; delete the folder"
    ) as caught:
        read_records(records, [2])
    assert "\n" not in str(caught.value)
