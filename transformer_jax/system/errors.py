"""The exception for mistakes of the user."""


class UserError(Exception):
    """A mistake in a path, config, file or text, reported in one sentence.

    The message names the file, line or field and the remedy. Command-line programs print it without a traceback and
    exit with status 2.
    """
