import dataclasses
import gzip
import subprocess
import sys

import pytest

from transformer_jax.config import DataConfig
from transformer_jax.data.readers import read_pairs
from transformer_jax.system import UserError
from transformer_jax.tasks.translation.sources import drop_blank_pairs, load_pairs


@pytest.fixture
def write(tmp_path):
    def write(name, lines):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        content = "".join(f"{line}\n" for line in lines).encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return str(path)

    return write


@pytest.fixture
def multi30k(tmp_path, write, monkeypatch):
    """A small set of files under Multi30k's names, and the configuration to read it."""
    monkeypatch.setattr("transformer_jax.tasks.translation.multi30k._check_files", lambda files, languages: None)
    write("raw/train.de.gz", [f"Satz {i} ÄÖ" for i in range(50)])
    write("raw/train.en.gz", [f"Sentence {i}" for i in range(50)])
    write("raw/val.de", ["eins", ""])
    write("raw/val.en", ["one", "two"])
    write("raw/test_2016_flickr.de.gz", ["nur eine Seite"])
    return DataConfig(name="multi30k", manual_dir=str(tmp_path / "raw"), data_dir=str(tmp_path / "tfds"))


def test_numerals():
    pairs = load_pairs(DataConfig(name="numerals"), "validation")
    assert len(pairs) == 1_000
    with pytest.raises(UserError, match="no split"):
        load_pairs(DataConfig(name="numerals"), "dev")


def test_text(write):
    config = DataConfig(
        name="text",
        train_source=write("a.de.gz", ["Ä", "B"]),
        train_target=write("a.en", ["C", "D"]),
        validation_source=write("b.de", ["E"]),
    )
    assert list(load_pairs(config, "train")) == [("Ä", "C"), ("B", "D")]
    with pytest.raises(UserError, match=r"config\.data\.validation_target is empty"):
        load_pairs(config, "validation")
    with pytest.raises(UserError, match="no split 'test', only train, validation"):
        load_pairs(config, "test")


def test_multi30k_from_a_folder(multi30k):
    train = load_pairs(multi30k, "train")
    assert train[:] == list(train) == [(f"Satz {i} ÄÖ", f"Sentence {i}") for i in range(50)]
    assert train[49] == train[-1] == ("Satz 49 ÄÖ", "Sentence 49")
    assert list(load_pairs(multi30k, "validation")) == [("eins", "one"), ("", "two")]
    assert len(load_pairs(multi30k, "train[:10]")) == 10
    reverse = dataclasses.replace(multi30k, source_language="en", target_language="de")
    assert load_pairs(reverse, "train")[3] == ("Sentence 3", "Satz 3 ÄÖ")
    with pytest.raises(UserError, match="no split 'test_2016_flickr', only train, validation"):
        load_pairs(multi30k, "test_2016_flickr")


def test_prepared_once_for_each_content(multi30k, write):
    first = load_pairs(multi30k, "train")
    assert load_pairs(multi30k, "train")[:] == first[:]
    write("raw/train.en.gz", [f"Other {i}" for i in range(50)])
    assert load_pairs(multi30k, "train")[0] == ("Satz 0 ÄÖ", "Other 0")
    write("raw/test_2016_flickr.en.gz", ["one side only"])
    assert list(load_pairs(multi30k, "test_2016_flickr")) == [("nur eine Seite", "one side only")]


def test_prepared_in_another_format(multi30k, tmp_path):
    load_pairs(multi30k, "train")
    [info] = (tmp_path / "tfds").rglob("dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="was not prepared as array_record; delete that folder"):
        load_pairs(multi30k, "train")


def test_misaligned_files(multi30k, write, tmp_path):
    write("raw/val.en", ["one"])
    with pytest.raises(UserError, match=r"val\.de has 2 lines, but .*val\.en has 1"):
        load_pairs(multi30k, "train")
    assert not list((tmp_path / "tfds").rglob("*.array_record*")), "nothing half-written"
    write("raw/val.en", ["one", "two"])
    assert len(load_pairs(multi30k, "train")) == 50


def test_two_processes_prepare_at_once(multi30k):
    script = (
        "import sys; from transformer_jax.config import DataConfig;"
        "from transformer_jax.tasks.translation import multi30k; multi30k._check_files = lambda *_: None;"
        "from transformer_jax.tasks.translation.sources import drop_blank_pairs, load_pairs;"
        "print(len(load_pairs(DataConfig(name='multi30k', manual_dir=sys.argv[1], data_dir=sys.argv[2]), 'train')))"
    )
    command = [sys.executable, "-c", script, multi30k.manual_dir, multi30k.data_dir]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=120)
        assert out == "50\n", err


def test_mistakes_are_told(multi30k, tmp_path):
    def fails(match, **changes):
        with pytest.raises(UserError, match=match):
            load_pairs(dataclasses.replace(multi30k, **changes), "train")

    fails(r"config\.data\.name is 'multi31k'.*numerals, text, multi30k.*wmt14_translate", name="multi31k")
    fails(r"multi30k has only de-en", target_language="tlh")
    fails(r"config\.data\.source_language is 'fr'.*only de, en", name="multi30k/de-en", source_language="fr")
    fails(r"wmt14_translate has only cs-en, de-en", name="wmt14_translate", target_language="tlh")
    fails(r"mnist.* is not a translation set", name="mnist")
    fails(r"config\.data\.manual_dir is .*nowhere, which is not a folder", manual_dir=str(tmp_path / "nowhere"))
    empty = tmp_path / "empty"
    empty.mkdir()
    fails(r"empty has no Multi30k files for de-en", manual_dir=str(empty))


def test_real_multi30k(data_dir, tmp_path):
    folder = data_dir / "multi30k"
    config = DataConfig(name="multi30k", source_language="fr", manual_dir=str(folder), data_dir=str(tmp_path))
    for split, stem in (("validation", "val"), ("test_2016_flickr", "test_2016_flickr")):
        assert list(load_pairs(config, split)) == read_pairs(folder / f"{stem}.fr.gz", folder / f"{stem}.en.gz")
    assert len(load_pairs(config, "train")) == 29_000
    with pytest.raises(UserError, match="no split 'test_2018_flickr', only train, validation, test_2016_flickr"):
        load_pairs(config, "test_2018_flickr")


def test_nothing_heavy_is_imported_for_nothing():
    script = (
        "import sys, transformer_jax.tasks.translation.sources;"
        "import transformer_jax.data.pipeline, transformer_jax.data.tokenizers;"
        "print([name for name in ('jax', 'tensorflow', 'tensorflow_datasets', 'torch') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output == "[]\n"


def test_pairs_with_a_blank_side_are_dropped():
    assert drop_blank_pairs([("a", "A"), ("", "B"), ("c", " ")]) == ([("a", "A")], 2)
