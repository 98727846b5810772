"""What all TFDS sets share; each set of ours is also tested beside its own module."""

import importlib
import io
import urllib.error

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.checksums import UrlInfo
from tensorflow_datasets.core.download.resource import get_dl_fname
from tensorflow_datasets.proto import tf_example_pb2

from transformer_jax.data import tfds_sets
from transformer_jax.data.tfds_sets import check_network, checked_folder, fingerprint, load_records
from transformer_jax.system import UserError
from transformer_jax.tasks.classification import sources as classification
from transformer_jax.tasks.couplets import sources as couplets
from transformer_jax.tasks.translation import sources as translation

OWN_SETS = translation.OWN_SETS | couplets.OWN_SETS | classification.OWN_SETS


class NotWanted(Exception):
    pass


def refuse(info):
    raise NotWanted(info.full_name)


@pytest.mark.parametrize("name", OWN_SETS)
def test_own_sets_register_their_builder_and_find_their_files(name):
    module = importlib.import_module(OWN_SETS[name])
    builder_class = tfds.builder_cls(name)
    assert builder_class.__module__ == module.__name__
    with pytest.raises(UserError, match=r"config\.data\.manual_dir is /nowhere"):
        module.local_files("/nowhere", next(iter(builder_class.builder_configs), ""))


def test_a_set_is_checked_before_anything_is_prepared(tmp_path):
    for name, full_name in (
        ("ag_news_subset", "ag_news_subset/1.0.0"),
        ("imdb_reviews", "imdb_reviews/plain_text/1.0.0"),
        ("multi30k/fr-en", "multi30k/fr-en/1.0.0"),
    ):
        with pytest.raises(NotWanted, match=full_name):
            load_records(name, "train", own_sets=OWN_SETS, data_dir=str(tmp_path), expected="", check=refuse)
    assert not list(tmp_path.rglob("*.json"))


def test_a_public_set_without_a_network_fails_at_once(tmp_path, monkeypatch):
    asked = []

    def refuse(request, timeout):
        asked.append(request.full_url)
        raise urllib.error.URLError("refused")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(UserError, match=r"aclImdb_v1\.tar\.gz cannot be reached .*in config\.data\.manual_dir"):
        load_records("imdb_reviews", "train", own_sets={}, data_dir=str(tmp_path), expected="", check=lambda info: None)
    assert len(asked) == 1


def test_one_reachable_server_suffices(tmp_path, monkeypatch):
    class Public:
        name, data_dir_root = "public", tmp_path
        url_infos = {  # noqa: RUF012  (TFDS's own form)
            f"http://{host}/{file}": UrlInfo(1, "00", file) for host in "abcde" for file in ("x", "y")
        }

    asked = []

    def check(url, title):
        asked.append(url[7])
        if url[7] != answering:
            raise UserError(f"{url} cannot be reached")

    monkeypatch.setattr(tfds_sets, "check_network", check)
    answering = "b"
    tfds_sets._check_network(Public)
    answering = "none"
    with pytest.raises(UserError, match="http://c/y cannot be reached"):
        tfds_sets._check_network(Public)
    assert asked == ["a", "b", "a", "b", "c"]
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / get_dl_fname("http://a/x", "00")).touch()
    tfds_sets._check_network(Public)


def test_a_manual_folder_is_only_read_if_named(tmp_path, monkeypatch):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "test.csv").write_text("1,a\n")
    monkeypatch.setattr("transformer_jax.tasks.classification.ag_news.URL", "http://127.0.0.1:9/")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/test\.csv cannot be reached"):
        load_records("ag_news", "test", own_sets=OWN_SETS, data_dir=str(tmp_path), expected="", check=lambda info: None)


def test_unknown_names(tmp_path):
    def fails(match, name, wanted=()):
        options = {"own_sets": OWN_SETS, "data_dir": str(tmp_path), "expected": "this or that", "check": refuse}
        with pytest.raises(UserError, match=match):
            load_records(name, "train", wanted=wanted, **options)

    fails(r"config\.data\.name is 'nothing', but must be this or that\.", "nothing")
    fails(r"'couplet/small', but couplet has no configurations; drop the slash", "couplet/small")
    fails(r"multi30k has only de-en, .*, but not de-tlh or tlh-de; name one", "multi30k", ["de-tlh", "tlh-de"])
    fails(r"imdb_reviews has only plain_text, but not html; name one", "imdb_reviews/html")


def test_values_equal_those_decoded_by_tfds():
    features = tfds.features.FeaturesDict(
        {
            "text": tfds.features.Text(),
            "empty": tfds.features.Text(),
            "label": tfds.features.ClassLabel(num_classes=3),
            "many": tfds.features.Sequence(tfds.features.Text()),
        }
    )
    record = {"text": "对联", "empty": "", "label": 2, "many": ["a", "b"]}
    serialized = features.serialize_example(features.encode_example(record))
    assert tf_example_pb2.Example.FromString(serialized)
    values = tfds_sets._values(serialized)
    assert values == {"text": "对联".encode(), "empty": b"", "label": 2, "many": [b"a", b"b"]}
    decoded = features.deserialize_example_np(serialized)
    assert all(values[name] == decoded[name] for name in ("text", "empty", "label"))


def test_checked_folder(tmp_path):
    assert checked_folder(str(tmp_path), "Any set") == tmp_path
    with pytest.raises(
        UserError, match=r"config\.data\.manual_dir is .*nowhere, which is not a folder.* Any set's files"
    ):
        checked_folder(tmp_path / "nowhere", "Any set")


def test_fingerprint_distinguishes_contents(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a")
    two.write_text("b")
    first = fingerprint({"train": (one, two)})
    assert fingerprint({"train": (one, two)}) == first
    assert fingerprint({"test": (two,), "train": (one,)}) == fingerprint({"train": (one,), "test": (two,)})
    others = {
        fingerprint(files)
        for files in ({"train": (two, one)}, {"test": (one, two)}, {"train": (one,)}, {"train": (one,), "test": (two,)})
    }
    two.write_text("c")
    assert len({first, *others, fingerprint({"train": (one, two)})}) == 6


def test_a_file_that_cannot_be_read_has_no_fingerprint(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        fingerprint({"train": (tmp_path,)})


def test_a_server_that_rejects_head_is_reachable(monkeypatch):
    def refuse(request, timeout):
        raise urllib.error.HTTPError(request.full_url, 405, "Method Not Allowed", None, io.BytesIO())

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    check_network("http://127.0.0.1/x", "Any set")


def test_no_network():
    # Nothing listens on port 9 of this machine.
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/x cannot be reached .*Any set's files in config\.data"):
        check_network("http://127.0.0.1:9/x", "Any set")
