"""What everything stands on: the user error, files, the runtime, and cooperating processes."""

import importlib.metadata


class UserError(Exception):
    """A mistake in a path, config, file or text, reported in one sentence.

    The message names the file, line or field and the remedy. Command-line programs print it without a traceback and
    exit with status 2.
    """


def package_version() -> str:
    """The release that is installed, for what it writes."""
    try:
        return importlib.metadata.version("transformer-jax")
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        return "unknown"
