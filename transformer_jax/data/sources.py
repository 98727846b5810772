# ruff: noqa: D102  (the fields are documented in config.DataConfig)
"""Sentence pairs by the name of their set: embedded, from text files, or prepared by TFDS."""

import contextlib
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from transformer_jax.data.numerals import Numerals
from transformer_jax.data.records import MappedRecords
from transformer_jax.data.text import read_pairs
from transformer_jax.errors import UserError

Pair = tuple[str, str]


@runtime_checkable
class PairsConfig(Protocol):
    """What is read here of `config.DataConfig`, whose fields these are."""

    @property
    def name(self) -> str: ...
    @property
    def source_language(self) -> str: ...
    @property
    def target_language(self) -> str: ...
    @property
    def manual_dir(self) -> str: ...
    @property
    def data_dir(self) -> str: ...
    @property
    def train_source(self) -> str: ...
    @property
    def train_target(self) -> str: ...
    @property
    def validation_source(self) -> str: ...
    @property
    def validation_target(self) -> str: ...


def load_pairs(config: PairsConfig, split: str) -> Sequence[Pair]:
    """A split of a translation set as (source, target) sentences, prepared first if need be.

    Args:
        config: `name` is numerals, text, multi30k, or a TFDS set such as `wmt14_translate/de-en`; without the part
            after the slash, the configuration for the two languages is taken.
        split: of the set, as TFDS writes it (`train`, `train[:1000]`); `text` has train and validation.

    Raises:
        UserError: for an unknown set, split or language, and for files that are missing or broken.
    """
    if config.name == "numerals":
        return Numerals(config.source_language, config.target_language, split)
    if config.name == "text":
        return _text_pairs(config, split)
    return _tfds_pairs(config, split)


def _text_pairs(config: PairsConfig, split: str) -> list[Pair]:
    files = {
        "train": (config.train_source, config.train_target),
        "validation": (config.validation_source, config.validation_target),
    }
    if split not in files:
        raise UserError(f"config.data.name=text has no split {split!r}, only {', '.join(files)}.")
    for side, path in zip(("source", "target"), files[split], strict=True):
        if not path:
            raise UserError(f"config.data.{split}_{side} is empty; name a text file, one sentence a line.")
    return read_pairs(*files[split])


def _tfds_pairs(config: PairsConfig, split: str) -> Sequence[Pair]:
    builder = _multi30k_builder(config) if _is_multi30k(config.name) else _builder(config, config.data_dir)
    languages = (config.source_language, config.target_language)
    _check_languages(builder, languages)
    _prepare(builder, config.manual_dir)
    splits = builder.info.splits
    if split.partition("[")[0] not in splits:
        raise UserError(f"{builder.info.full_name} has no split {split!r}, only {', '.join(splits)}.")
    try:
        records = builder.as_data_source(split=split)
    except (NotImplementedError, ValueError, AssertionError) as error:
        raise UserError(
            f"{split!r} of {builder.data_dir} cannot be read at random ({error}); delete that folder to have it "
            "prepared anew, or mend the split's name."
        ) from error
    source, target = languages
    return MappedRecords(records, lambda record: (record[source].decode("utf-8"), record[target].decode("utf-8")))


def _is_multi30k(name: str) -> bool:
    return name.partition("/")[0] == "multi30k"


def _multi30k_builder(config: PairsConfig) -> Any:
    """The builder, with a data folder of its own for each content of a `manual_dir`."""
    from transformer_jax.data import multi30k  # registers itself with TFDS; slow to import

    data_dir = config.data_dir
    pair = config.name.partition("/")[2] or f"{config.source_language}-{config.target_language}"
    if config.manual_dir and pair in multi30k.Multi30k.builder_configs:
        # TFDS prepares a set once per data folder, and would not see that the files are others now.
        content = multi30k.fingerprint(multi30k.local_files(config.manual_dir, pair))
        data_dir = str(_data_root(data_dir) / f"manual-{content}")
    return _builder(config, data_dir)


def _data_root(data_dir: str) -> Path:
    import tensorflow_datasets as tfds

    return Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()


def _builder(config: PairsConfig, data_dir: str) -> Any:
    import tensorflow_datasets as tfds

    name, _, chosen = config.name.partition("/")
    # TFDS registers its translation sets only after others, some of which need TensorFlow and stop it.
    with contextlib.suppress(ImportError):
        importlib.import_module("tensorflow_datasets.translate")
    try:
        builder_configs: Mapping[str, Any] = tfds.builder_cls(name).builder_configs
    except (ValueError, ImportError) as error:
        sets = sorted(known for known in tfds.list_builders(with_community_datasets=False) if "translate" in known)
        raise UserError(
            f"config.data.name is {config.name!r}, but must be numerals, text, multi30k or a TFDS translation set, "
            f"such as {', '.join(sets)}."
        ) from error
    if builder_configs:
        source, target = config.source_language, config.target_language
        wanted = [chosen] if chosen else [f"{source}-{target}", f"{target}-{source}"]
        chosen = next((candidate for candidate in wanted if candidate in builder_configs), "")
        if not chosen:
            raise UserError(
                f"config.data.name is {config.name!r} for {source}-{target}, but {name} has only "
                f"{', '.join(sorted(builder_configs))}; name one of them after a slash."
            )
    try:
        return tfds.builder(name, config=chosen or None, data_dir=data_dir or None, file_format="array_record")
    except ValueError as error:  # prepared there before, in TFDS's other format
        raise UserError(
            f"{name} under {_data_root(data_dir)} was not prepared as array_record; delete that folder or name another "
            "in config.data.data_dir."
        ) from error


def _check_languages(builder: Any, languages: tuple[str, str]) -> None:
    import tensorflow_datasets as tfds

    features = builder.info.features
    if not isinstance(features, tfds.features.Translation):
        raise UserError(f"{builder.info.full_name} is no translation set; name another in config.data.name.")
    for field, language in zip(("source_language", "target_language"), languages, strict=True):
        if language not in features:
            raise UserError(
                f"config.data.{field} is {language!r}, but {builder.info.full_name} has only "
                f"{', '.join(features.languages)}."
            )


def _prepare(builder: Any, manual_dir: str) -> None:
    """Download and write the set unless that has been done; TFDS shows it under its name only when complete."""
    import tensorflow_datasets as tfds

    if builder.is_prepared():
        return
    settings = tfds.download.DownloadConfig(manual_dir=manual_dir or None, try_download_gcs=False)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
            builder.download_and_prepare(download_config=settings, file_format="array_record")
    except UserError:
        raise
    except Exception as error:  # of the network, the disk, or the builder's own code
        if Path(builder.data_dir).exists():  # another process was faster
            builder.info.read_from_directory(builder.data_dir)
            return
        cause = str(error).partition("\n")[0]
        raise UserError(
            f"{builder.info.full_name} could not be prepared ({type(error).__name__}: {cause}); check the network, "
            "or name a folder with its files in config.data.manual_dir."
        ) from error
