"""What our own TFDS builders share: files from a folder of a person's own, or from the network."""

import hashlib
import urllib.error
import urllib.request
from collections.abc import Mapping

from transformer_jax.errors import UserError
from transformer_jax.paths import AnyPath, as_path, os_errors


def checked_folder(folder: str | AnyPath, title: str) -> AnyPath:
    """The folder of `config.data.manual_dir`.

    Raises:
        UserError: if there is no such folder; `title` is what its message calls the set.
    """
    found = as_path(folder)
    try:
        with os_errors(found):
            is_folder = found.is_dir()
    except OSError as error:
        raise _unreadable(found, error) from error
    if not is_folder:
        raise UserError(f"config.data.manual_dir is {folder}, which is no folder; name the one with {title}'s files.")
    return found


def find_file(folder: AnyPath, name: str) -> AnyPath | None:
    """The file `name` of a folder, gzip (with `.gz` after its name) or plain; None if there is neither.

    Raises:
        UserError: if that cannot be told, as the folder may not be read.
    """
    for path in (folder / f"{name}.gz", folder / name):
        try:
            with os_errors(path):
                is_file = path.is_file()
        except OSError as error:
            raise _unreadable(path, error) from error
        if is_file:
            return path
    return None


def fingerprint(files: Mapping[str, tuple[AnyPath, ...]]) -> str:
    """A short name for what files hold, by split: other splits or other text, another name.

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
                raise _unreadable(path, error) from error
            digest.update(f"{split} {path.name} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()[:12]


def check_network(url: str, title: str) -> None:
    """Fail at once without a network: TFDS would try again for many minutes.

    Raises:
        UserError: if the server of `url` cannot be reached; `title` is what its message calls the set.
    """
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=20).close()
    except urllib.error.HTTPError:
        return  # the server answers; not every one knows HEAD
    except OSError as error:
        raise UserError(
            f"{url} cannot be reached ({error}); name a folder with {title}'s files in config.data.manual_dir."
        ) from error


def _unreadable(path: AnyPath, error: OSError) -> UserError:
    return UserError(f"{path} cannot be read ({error.strerror}); make it readable or name another folder.")
