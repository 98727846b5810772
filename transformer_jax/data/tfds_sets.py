"""TFDS sets by name, public ones and our own, with random access to raw records and without TensorFlow."""

import contextlib
import hashlib
import importlib
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

from transformer_jax.data.readers import MappedRecords, content_digest, unreadable
from transformer_jax.system import UserError
from transformer_jax.system.files import AnyPath, as_path, is_remote, os_errors

_SERVERS_TO_TRY = 3
_CAUSE_SHOWN = 200


@runtime_checkable
class OwnSet(Protocol):
    """A module that defines a TFDS builder, which importing it registers, and this function."""

    def local_files(self, folder: str | AnyPath, config: str) -> Mapping[str, tuple[AnyPath, ...]]:
        """The raw files in a `manual_dir`, by split.

        Args:
            folder: the `manual_dir`.
            config: name of the builder's configuration; empty if the builder has none.

        Raises:
            UserError: if the folder does not exist, or lacks files.
        """


def load_records(
    name: str,
    split: str,
    *,
    own_sets: Mapping[str, str],
    manual_dir: str = "",
    data_dir: str = "",
    wanted: Sequence[str] = (),
    expected: str,
    check: Callable[[Any], None],
) -> Sequence[Mapping[str, Any]]:
    """Load a split as records of plain features (text as bytes, labels as int), preparing the set if necessary.

    Args:
        name: a key of `own_sets` or any TFDS set, optionally followed by a slash and a configuration.
        split: in TFDS's notation, such as `train`, `train[:1000]` or `train+test`.
        own_sets: set name to the module, an `OwnSet`, that defines its builder.
        manual_dir: folder with the set's raw files; empty: download them.
        data_dir: where TFDS keeps prepared sets; empty: TFDS's default.
        wanted: configurations to choose from if `name` has none: the first that the set has. Empty: the set's first.
        expected: valid values of `config.data.name`, for the error about an unknown set.
        check: raises `UserError` if the set, given as its `DatasetInfo`, lacks the required features; called before
            anything is downloaded.

    Raises:
        UserError: for an unknown set, configuration or split, missing or broken files, or no network.
    """
    import tensorflow_datasets as tfds

    module = own_sets.get(name.partition("/")[0])
    own = None if module is None else cast(OwnSet, importlib.import_module(module))
    builder = _builder(name, own, manual_dir, data_dir, wanted, expected)
    check(builder.info)
    _prepare(builder, own, manual_dir)
    splits = builder.info.splits
    if not splits:
        raise UserError(f"{builder.data_dir} has no splits; delete that folder to prepare the set again.")
    for part in split.split("+"):
        if part.partition("[")[0].strip() not in splits:
            raise UserError(f"{builder.info.full_name} has no split {part!r}, only {', '.join(splits)}.")
    try:
        examples = builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    except Exception as error:  # of TFDS, of array_record or of the disk
        if isinstance(error, OSError | RuntimeError):
            raise _damaged(builder, error) from error
        cause = str(error).partition("\n")[0]
        raise UserError(
            f"{split!r} of {builder.data_dir} does not support random access ({cause}); correct the split, or delete "
            "that folder to prepare the set again."
        ) from error
    records = _Prepared(builder, examples)
    _ = records[:1]  # so that damage is reported at once where it can be
    return records


def checked_folder(folder: str | AnyPath, title: str) -> AnyPath:
    """The folder named by `config.data.manual_dir`; `title` is the set's name in the error.

    Raises:
        UserError: if it is not a folder.
    """
    found = as_path(folder)
    try:
        with os_errors(found):
            is_folder = found.is_dir()
    except OSError as error:
        raise unreadable(found, error) from error
    if not is_folder:
        raise UserError(
            f"config.data.manual_dir is {folder}, which is not a folder; name the folder with {title}'s files."
        )
    return found


def check_network(url: str, title: str) -> None:
    """Fail at once without a network, where TFDS would retry for minutes; `title` is the set's name in the error.

    Raises:
        UserError: if the server of `url` cannot be reached.
    """
    try:
        # S310: the addresses are those of the sets' own modules and of TFDS, not of a file or a user.
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=20).close()  # noqa: S310
    except urllib.error.HTTPError:
        return  # the server answered; some reject HEAD
    except OSError as error:
        raise UserError(
            f"{url} cannot be reached ({error}); name a folder with {title}'s files in config.data.manual_dir "
            "(of evaluate: by --manual-dir)."
        ) from error


def fingerprint(files: Mapping[str, tuple[AnyPath, ...]]) -> str:
    """A short hash of the splits and of the names and contents of their files.

    Raises:
        UserError: if a file cannot be read.
    """
    digest = hashlib.sha256()
    for split, paths in sorted(files.items()):
        for path in paths:
            try:
                with os_errors(path):
                    content = path.read_bytes()
            except OSError as error:
                raise unreadable(path, error) from error
            digest.update(f"{split} {path.name} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()[:12]


class _Prepared(MappedRecords[Mapping[str, Any]]):
    """The records of a prepared split; reading a damaged one raises a `UserError`, whenever that is."""

    def __init__(self, builder: Any, examples: Any) -> None:
        super().__init__(examples, _values)
        self._builder = builder

    def __getitems__(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        try:
            return super().__getitems__(indices)
        except IndexError:
            raise
        except Exception as error:  # of array_record, of protobuf or of the disk
            raise _damaged(self._builder, error) from error


def _damaged(builder: Any, error: Exception) -> UserError:
    """The error for a prepared set whose records cannot be read, with the first file that is damaged."""
    from array_record.python.array_record_module import ArrayRecordReader

    folder = as_path(builder.data_dir)
    found = folder
    for path in (path for split in builder.info.splits.values() for path in split.filepaths):
        try:
            reader = ArrayRecordReader(str(path))
            is_sound = all(reader.read_all())
            reader.close()
        except Exception:  # it has no class of its own
            is_sound = False
        if not is_sound:
            found = path
            break
    cause = str(error).partition("\n")[0][:_CAUSE_SHOWN]
    return UserError(
        f"{found} is missing, damaged or truncated ({type(error).__name__}: {cause}); delete the folder {folder} to "
        "prepare the set again."
    )


def check_content(files: Mapping[AnyPath, str], known: Mapping[str, str], title: str, origin: str) -> None:
    """Refuse files of another set, or altered ones.

    Args:
        files: path to the name that the file has in the set.
        known: name to the SHA-256 of the content, uncompressed; names without one are not checked.
        title: the set's name in the error.
        origin: where the right files are.

    Raises:
        UserError: naming the file that differs.
    """
    for path, name in files.items():
        if name in known and content_digest(path) != known[name]:
            raise UserError(
                f"{path} is not {name} of {title} (its SHA-256 differs); copy it from {origin}, or read files of your "
                "own with config.data.name=text."
            )


def _values(serialized: bytes) -> dict[str, Any]:
    """The features of a stored `tf.train.Example`; those without exactly one value as lists.

    TFDS's own decoding is ten times slower, and does nothing more for text and labels.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    record = {}
    for name, feature in tf_example_pb2.Example.FromString(serialized).features.feature.items():
        values = getattr(feature, feature.WhichOneof("kind")).value
        record[name] = values[0] if len(values) == 1 else list(values)
    if not record:  # what array_record reads beyond the end of a truncated file
        raise ValueError("an empty record")
    return record


def _builder(
    full_name: str, own: OwnSet | None, manual_dir: str, data_dir: str, wanted: Sequence[str], expected: str
) -> Any:
    import tensorflow_datasets as tfds

    name, _, chosen = full_name.partition("/")
    # TFDS registers its translation sets after others, some of which need TensorFlow and abort the registration.
    with contextlib.suppress(ImportError):
        importlib.import_module("tensorflow_datasets.translate")
    try:
        builder_configs = tfds.builder_cls(name).builder_configs
    except (ValueError, ImportError) as error:
        raise UserError(f"config.data.name is {full_name!r}, but must be {expected}.") from error
    if chosen and not builder_configs:
        raise UserError(f"config.data.name is {full_name!r}, but {name} has no configurations; drop the slash.")
    if builder_configs:
        candidates = [chosen] if chosen else list(wanted or builder_configs)
        chosen = next((candidate for candidate in candidates if candidate in builder_configs), "")
        if not chosen:
            raise UserError(
                f"{name} has only {', '.join(sorted(builder_configs))}, but not {' or '.join(candidates)}; "
                "name one of its configurations after a slash in config.data.name."
            )
    root = as_path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    if is_remote(root):  # array_record reads local files only
        raise UserError(
            f"config.data.data_dir is {root}, but prepared sets must be on this machine; name a local folder (the raw "
            "files in config.data.manual_dir may be in gs://)."
        )
    if manual_dir and own is not None:
        # TFDS prepares a set once per data folder, and would not notice that the raw files have changed.
        root /= f"manual-{fingerprint(own.local_files(manual_dir, chosen))}"
        data_dir = str(root)
    try:
        return tfds.builder(name, config=chosen or None, data_dir=data_dir or None, file_format="array_record")
    except ValueError as error:  # prepared there before, in TFDS's default format
        raise UserError(
            f"{name} under {root} was not prepared as array_record; delete that folder or name another "
            "in config.data.data_dir."
        ) from error


def _prepare(builder: Any, own: OwnSet | None, manual_dir: str) -> None:
    """Download and write the set unless that is done; TFDS moves it to its final folder only when complete."""
    import tensorflow_datasets as tfds

    if builder.is_prepared():
        return
    if not manual_dir:
        if own is not None:
            # TFDS would use an existing folder `downloads/manual` unasked; this one is sure not to exist.
            manual_dir = str(as_path(builder.data_dir) / "no-manual-dir")
        else:
            _check_network(builder)
    settings = tfds.download.DownloadConfig(manual_dir=manual_dir or None, try_download_gcs=False)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
            builder.download_and_prepare(download_config=settings, file_format="array_record")
    except UserError:
        raise
    except Exception as error:  # from the network, the disk, or the builder's own code
        if as_path(builder.data_dir).exists():  # another process was faster
            builder.info.read_from_directory(builder.data_dir)
            return
        cause = str(error).partition("\n")[0]
        raise UserError(
            f"{builder.info.full_name} could not be prepared ({type(error).__name__}: {cause}); check the network, "
            "or name a folder with its files in config.data.manual_dir."
        ) from error


def _check_network(builder: Any) -> None:
    """Fail at once without a network; one reachable server suffices, as others may be gone for good."""
    from tensorflow_datasets.core.download.resource import get_dl_fname

    addresses = {url: info for url, info in (builder.url_infos or {}).items() if url.startswith("http")}
    downloads = as_path(builder.data_dir_root) / "downloads"
    names = [get_dl_fname(url, info.checksum) for url, info in addresses.items()]
    if any((folder / name).exists() for folder in (downloads, downloads / builder.name) for name in names):
        return  # what is already downloaded may suffice
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
