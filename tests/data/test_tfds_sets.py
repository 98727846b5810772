"""What sets of translations, couplets and news share; each is tested beside its own module."""

import importlib
import urllib.error

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.checksums import UrlInfo
from tensorflow_datasets.core.download.resource import get_dl_fname
from tensorflow_datasets.proto import tf_example_pb2

from transformer_jax.config import DataConfig
from transformer_jax.data import tfds_sets
from transformer_jax.data.tfds_sets import OWN_SETS, load_records
from transformer_jax.system.errors import UserError


class NotWanted(Exception):
    pass


def refuse(info):
    raise NotWanted(info.full_name)


@pytest.mark.parametrize("name", OWN_SETS)
def test_own_sets_register_their_builder_and_tell_their_files(name):
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
            load_records(DataConfig(name=name, data_dir=str(tmp_path)), "train", expected="", check=refuse)
    assert not list(tmp_path.rglob("*.json"))


def test_a_public_set_without_a_network_fails_at_once(tmp_path, monkeypatch):
    asked = []

    def refuse(request, timeout):
        asked.append(request.full_url)
        raise urllib.error.URLError("refused")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    config = DataConfig(name="imdb_reviews", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"aclImdb_v1\.tar\.gz cannot be reached .*in config\.data\.manual_dir"):
        load_records(config, "train", expected="", check=lambda info: None)
    assert len(asked) == 1


def test_one_server_that_answers_will_do(tmp_path, monkeypatch):
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


def test_a_manual_folder_that_nobody_named_is_not_read(tmp_path, monkeypatch):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "test.csv").write_text("1,a\n")
    monkeypatch.setattr("transformer_jax.tasks.classification.ag_news.URL", "http://127.0.0.1:9/")
    config = DataConfig(name="ag_news", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/test\.csv cannot be reached"):
        load_records(config, "test", expected="", check=lambda info: None)


def test_names_that_are_none(tmp_path):
    def fails(match, name, wanted=()):
        config = DataConfig(name=name, data_dir=str(tmp_path))
        with pytest.raises(UserError, match=match):
            load_records(config, "train", expected="this or that", check=refuse, wanted=wanted)

    fails(r"config\.data\.name is 'nothing', but must be this or that\.", "nothing")
    fails(r"'couplet/small', but couplet has no configurations; drop the slash", "couplet/small")
    fails(r"multi30k has only de-en, .*, but de-tlh or tlh-de is asked for; name one", "multi30k", ["de-tlh", "tlh-de"])
    fails(r"imdb_reviews has only plain_text, but html is asked for", "imdb_reviews/html")


def test_values_are_those_that_tfds_decodes():
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
