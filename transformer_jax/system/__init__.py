"""What everything stands on: the user error, files, the runtime, and cooperating processes."""


class UserError(Exception):
    """A mistake in a path, config, file or text, reported in one sentence.

    The message names the file, line or field and the remedy. Command-line programs print it without a traceback and
    exit with status 2.
    """
