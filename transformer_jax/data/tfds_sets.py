# ruff: noqa: D102  (the fields are documented in config.DataConfig)
"""TFDS sets by name, our own and public ones, as random access to raw records; no TensorFlow."""

import contextlib
import importlib
import sys
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

from transformer_jax.data import OWN_SETS
from transformer_jax.data.pipeline import MappedRecords
from transformer_jax.data.readers import check_network, fingerprint
from transformer_jax.system.errors import UserError
from transformer_jax.system.files import AnyPath, as_path, is_remote

_SERVERS_TO_TRY = 3


class OwnSet(Protocol):
    """The module of a builder of ours, a TFDS builder class under the name of the set beside this function."""

    def local_files(self, folder: str | AnyPath, config: str) -> Mapping[str, tuple[AnyPath, ...]]:
        """The files of a `manual_dir` by split, for a configuration of the builder (empty: it has none).

        Raises:
            UserError: if the folder does not exist, or lacks files.
        """


@runtime_checkable
class TfdsConfig(Protocol):
    """What is read here of `config.DataConfig`, whose fields these are."""

    @property
    def name(self) -> str: ...
    @property
    def manual_dir(self) -> str: ...
    @property
    def data_dir(self) -> str: ...


def load_records(
    config: TfdsConfig, split: str, *, expected: str, check: Callable[[Any], None], wanted: Sequence[str] = ()
) -> Sequence[Mapping[str, Any]]:
    """A split of a set as records of its plain features (text as bytes, labels as int), prepared first if need be.

    Args:
        config: `name` is one of `OWN_SETS` or any TFDS set; its configuration may follow a slash.
        split: as TFDS writes it, such as `train`, `train[:1000]` or `train+test`.
        expected: what `config.data.name` may be, for the error that tells it.
        check: raises UserError if the set, given as its `DatasetInfo`, has not the features that are needed; called
            before anything is downloaded.
        wanted: configurations of which the first that the set has is taken where `name` has none; empty: its first one.

    Raises:
        UserError: for an unknown set, configuration or split, files that are missing or broken, and no network.
    """
    import tensorflow_datasets as tfds

    builder = _builder(config, expected, wanted)
    check(builder.info)
    _prepare(builder, config.manual_dir)
    splits = builder.info.splits
    if not splits:
        raise UserError(f"{builder.data_dir} has no splits; delete that folder to have it prepared anew.")
    for part in split.split("+"):
        if part.partition("[")[0].strip() not in splits:
            raise UserError(f"{builder.info.full_name} has no split {part!r}, only {', '.join(splits)}.")
    try:
        examples = builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    except (NotImplementedError, ValueError, AssertionError) as error:
        cause = str(error).partition("\n")[0]
        raise UserError(
            f"{split!r} of {builder.data_dir} cannot be read at random ({cause}); mend the split's name, or delete "
            "that folder to have it prepared anew."
        ) from error
    return MappedRecords(examples, _values)


def _values(serialized: bytes) -> dict[str, Any]:
    """Feature to value of a stored `tf.train.Example`; features of other than one value as lists.

    TFDS's own decoding takes ten times as long, and has nothing more to do for text and labels.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    record = {}
    for name, feature in tf_example_pb2.Example.FromString(serialized).features.feature.items():
        values = getattr(feature, feature.WhichOneof("kind")).value
        record[name] = values[0] if len(values) == 1 else list(values)
    return record


def _builder(config: TfdsConfig, expected: str, wanted: Sequence[str]) -> Any:
    import tensorflow_datasets as tfds

    name, _, chosen = config.name.partition("/")
    try:
        builder_configs = _builder_class(name).builder_configs
    except (ValueError, ImportError) as error:
        raise UserError(f"config.data.name is {config.name!r}, but must be {expected}.") from error
    if chosen and not builder_configs:
        raise UserError(f"config.data.name is {config.name!r}, but {name} has no configurations; drop the slash.")
    if builder_configs:
        candidates = [chosen] if chosen else list(wanted or builder_configs)
        chosen = next((candidate for candidate in candidates if candidate in builder_configs), "")
        if not chosen:
            raise UserError(
                f"{name} has only {', '.join(sorted(builder_configs))}, but {' or '.join(candidates)} is asked for; "
                "name one that it has after a slash in config.data.name."
            )
    data_dir = config.data_dir
    if is_remote(_data_root(data_dir)):  # array_record reads local files only
        raise UserError(
            f"config.data.data_dir is {_data_root(data_dir)}, but prepared sets must be on this machine; name a local "
            "folder (the raw files may be in gs://, see config.data.manual_dir)."
        )
    if config.manual_dir and name in OWN_SETS:
        # TFDS prepares a set once per data folder, and would not see that the files are others now.
        files = cast(OwnSet, importlib.import_module(OWN_SETS[name])).local_files(config.manual_dir, chosen)
        data_dir = str(_data_root(data_dir) / f"manual-{fingerprint(files)}")
    try:
        return tfds.builder(name, config=chosen or None, data_dir=data_dir or None, file_format="array_record")
    except ValueError as error:  # prepared there before, in TFDS's other format
        raise UserError(
            f"{name} under {_data_root(data_dir)} was not prepared as array_record; delete that folder or name another "
            "in config.data.data_dir."
        ) from error


def _builder_class(name: str) -> Any:
    import tensorflow_datasets as tfds

    if name in OWN_SETS:
        importlib.import_module(OWN_SETS[name])  # here and not above, as TFDS is slow to import
    # TFDS registers its translation sets only after others, some of which need TensorFlow and stop it.
    with contextlib.suppress(ImportError):
        importlib.import_module("tensorflow_datasets.translate")
    return tfds.builder_cls(name)


def _data_root(data_dir: str) -> AnyPath:
    import tensorflow_datasets as tfds

    return as_path(data_dir or tfds.core.constants.DATA_DIR).expanduser()


def _prepare(builder: Any, manual_dir: str) -> None:
    """Download and write the set unless that has been done; TFDS shows it under its name only when complete."""
    import tensorflow_datasets as tfds

    if builder.is_prepared():
        return
    if not manual_dir:
        if builder.name in OWN_SETS:
            # TFDS would take a folder `downloads/manual` for one that was asked for; this one surely does not exist.
            manual_dir = str(as_path(builder.data_dir) / "no-manual-dir")
        else:
            _check_network(builder)
    settings = tfds.download.DownloadConfig(manual_dir=manual_dir or None, try_download_gcs=False)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
            builder.download_and_prepare(download_config=settings, file_format="array_record")
    except UserError:
        raise
    except Exception as error:  # of the network, the disk, or the builder's own code
        if as_path(builder.data_dir).exists():  # another process was faster
            builder.info.read_from_directory(builder.data_dir)
            return
        cause = str(error).partition("\n")[0]
        raise UserError(
            f"{builder.info.full_name} could not be prepared ({type(error).__name__}: {cause}); check the network, "
            "or name a folder with its files in config.data.manual_dir."
        ) from error


def _check_network(builder: Any) -> None:
    """Fail at once without a network; one server that answers will do, as others may be gone for good."""
    from tensorflow_datasets.core.download.resource import get_dl_fname

    addresses = {url: info for url, info in (builder.url_infos or {}).items() if url.startswith("http")}
    downloads = as_path(builder.data_dir_root) / "downloads"
    names = [get_dl_fname(url, info.checksum) for url, info in addresses.items()]
    if any((folder / name).exists() for folder in (downloads, downloads / builder.name) for name in names):
        return  # what is there may be all that is needed
    servers = {urllib.parse.urlsplit(url).netloc: url for url in addresses}
    refusal: UserError | None = None
    for url in list(servers.values())[:_SERVERS_TO_TRY]:
        try:
            check_network(url, builder.name)
        except UserError as error:
            refusal = error
        else:
            return
    if refusal is not None:
        raise refusal
