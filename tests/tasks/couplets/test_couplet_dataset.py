import gzip

import pytest
import tensorflow_datasets as tfds

from transformer_jax.config import DataConfig
from transformer_jax.system import UserError
from transformer_jax.tasks.couplets import couplet_dataset as couplet
from transformer_jax.tasks.couplets.sources import load_couplets, read_couplets


@pytest.fixture
def write(tmp_path):
    """Write a split's two files, with a space after each character as in the real ones."""

    def write(split, uppers, lowers, suffix=""):
        (tmp_path / split).mkdir(parents=True, exist_ok=True)
        for name, lines in (("in.txt", uppers), ("out.txt", lowers)):
            content = "".join(" ".join(line) + " \n" for line in lines).encode()
            (tmp_path / split / (name + suffix)).write_bytes(gzip.compress(content) if suffix else content)

    return write


class Downloads(tfds.download.DownloadManager):
    """Stands in for TFDS's download manager on a machine with a network."""

    def __init__(self, folder):
        self.folder = folder
        self.asked = []

    @property
    def manual_dir(self):
        raise AssertionError("no folder")

    def download_and_extract(self, url):
        self.asked.append(url)
        return self.folder


def test_prepared_from_a_folder(write, tmp_path):
    write("train", ["花开，", "春", "春"], ["月落，", "秋", "冬"], ".gz")
    config = DataConfig(name="couplet", manual_dir=str(tmp_path), data_dir=str(tmp_path / "tfds"))
    assert load_couplets(config, "train") == [("花开，", "月落，"), ("春", "秋"), ("春", "冬")]
    assert load_couplets(config, "train[1:]") == [("春", "秋"), ("春", "冬")]
    with pytest.raises(UserError, match=r"couplet/1\.0\.0 has no split 'test', only train"):
        load_couplets(config, "test")
    write("test", ["山"], ["水"])
    assert load_couplets(config, "test") == [("山", "水")], "prepared again, as the folder has changed"


def test_files_of_a_folder(write, tmp_path):
    with pytest.raises(UserError, match=r"has no couplets; it needs train/in\.txt and train/out\.txt .* unpacked from"):
        couplet.local_files(tmp_path)
    with pytest.raises(UserError, match=r"manual_dir is .*nowhere, which is not a folder"):
        couplet.local_files(tmp_path / "nowhere")
    write("test", ["山"], ["水"])
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "in.txt").touch()
    assert couplet.local_files(tmp_path) == {"test": (tmp_path / "test" / "in.txt", tmp_path / "test" / "out.txt")}


def test_a_download_is_checked_by_its_lines(write, tmp_path, monkeypatch):
    monkeypatch.setattr(couplet, "SPLITS", {"train": 2, "test": 1})
    monkeypatch.setattr(couplet, "check_network", lambda url, title: None)
    downloads = Downloads(tmp_path)

    def download():
        builder = couplet.Couplet(data_dir=tmp_path / "tfds", file_format="array_record")
        return {split: list(examples) for split, examples in builder._split_generators(downloads).items()}

    write("couplet/train", ["山", "花"], ["水", "月"])
    with pytest.raises(UserError, match=r"couplet/test/in\.txt cannot be read"):
        download()
    write("couplet/test", ["天"], ["地"])
    train = [(0, {"upper": "山", "lower": "水"}), (1, {"upper": "花", "lower": "月"})]
    assert download() == {"train": train, "test": [(0, {"upper": "天", "lower": "地"})]}
    assert set(downloads.asked) == {couplet.URL}
    write("couplet/train", ["山"], ["水"])
    with pytest.raises(UserError, match=r"train/in\.txt has 1 lines instead of 2; delete it and download"):
        download()


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(couplet, "URL", "http://127.0.0.1:9/couplet.tar.gz")
    config = DataConfig(name="couplet", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"couplet\.tar\.gz cannot be reached .* in config\.data\.manual_dir"):
        load_couplets(config, "train")


def test_the_real_test_split(data_dir, tmp_path):
    """All of it, and a cut of the training part, which takes minutes to prepare as a whole."""
    real = data_dir / "couplet"
    folder = tmp_path / "raw"
    (folder / "train").mkdir(parents=True)
    for name in ("in.txt", "out.txt"):
        with gzip.open(real / "train" / f"{name}.gz") as file:
            (folder / "train" / name).write_bytes(b"".join(file.readline() for _ in range(500)))
    (folder / "test").symlink_to(real / "test")
    config = DataConfig(name="couplet", manual_dir=str(folder), data_dir=str(tmp_path / "tfds"))
    train, test = load_couplets(config, "train"), load_couplets(config, "test")
    assert train[0] == ("晚风摇树树还挺", "晨露润花花更红")
    assert (len(train), len(test)) == (500, 2_000)
    assert test == read_couplets(real / "test" / "in.txt", real / "test" / "out.txt")
    assert all(len(upper) == len(lower) > 0 for upper, lower in train + test)


@pytest.mark.soak
def test_all_real_couplets(data_dir, tmp_path):
    real = data_dir / "couplet"
    config = DataConfig(name="couplet", manual_dir=str(real), data_dir=str(tmp_path))
    train = load_couplets(config, "train")
    assert len(train) == 740_333
    assert train == read_couplets(real / "train" / "in.txt.gz", real / "train" / "out.txt.gz")
