import hashlib

import pytest

from transformer_jax.data.readers import read_lines
from transformer_jax.tasks.translation.multi30k import CHECKSUMS, SPLITS, URL, Multi30k, local_files


def test_configurations_and_addresses():
    assert set(Multi30k.builder_configs) == {"de-en", "en-de", "de-fr", "fr-de", "en-fr", "fr-en"}
    assert list(SPLITS) == [
        "train",
        "validation",
        "test_2016_flickr",
        "test_2017_flickr",
        "test_2017_mscoco",
        "test_2018_flickr",
    ]
    assert all(address.startswith(URL) for address in Multi30k.url_infos)
    assert Multi30k.url_infos[URL + "val.de.gz"].checksum == CHECKSUMS["val.de.gz"][1]


@pytest.mark.parametrize("name", CHECKSUMS)
def test_checksums_and_line_counts_are_those_of_the_real_files(name, data_dir):
    path = data_dir / "multi30k" / name
    content = path.read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == CHECKSUMS[name]
    lines = dict(SPLITS.values())[name.partition(".")[0]]
    assert len(read_lines(path)) == lines


def test_only_complete_splits_count(tmp_path):
    for name in ("train.de", "train.en.gz", "val.de"):
        (tmp_path / name).write_text("a")
    assert local_files(tmp_path, "en-de") == {"train": (tmp_path / "train.en.gz", tmp_path / "train.de")}
