"""What the commands read and write. Of several processes the first writes, and the others are silent."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from transformer_jax.errors import UserError
from transformer_jax.files import write_atomically
from transformer_jax.paths import as_path


def texts_to_read(arguments: Sequence[str]) -> list[str]:
    """The texts given as arguments or, without any, the lines of standard input.

    Raises:
        UserError: if one is not UTF-8.
    """
    from transformer_jax.data.text import decode_lines

    if arguments:
        return [checked_argument(text) for text in arguments]
    return decode_lines(sys.stdin.buffer.read(), "<stdin>")


def checked_argument(text: str) -> str:
    """The argument.

    Raises:
        UserError: if it is not UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # bytes that are not UTF-8 reach Python as lone surrogates
        raise UserError(f"The argument {text!r} is not UTF-8; mend it, or set the terminal to UTF-8.") from error
    return text


def write(text: str, path: str | None = None) -> None:
    """Write UTF-8, whatever the locale, to standard output or, whole or not at all, to a file.

    Raises:
        UserError: if the file can't be written.
    """
    from transformer_jax import processes

    if not processes.is_first():
        return
    content = text.encode("utf-8")
    if path is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    try:
        write_atomically(as_path(path), content)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another file.") from error


def write_report(report: Mapping[str, object]) -> None:
    """Write one JSON object, null in place of what JSON has no word for."""
    write(json.dumps(_finite(report), ensure_ascii=False, allow_nan=False) + "\n")


def progress(message: str) -> None:
    """Tell a person, on standard error."""
    from transformer_jax import processes

    if processes.is_first():
        print(f"transformer-jax: {message}", file=sys.stderr, flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
