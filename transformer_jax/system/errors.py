"""The one exception for mistakes that a person can make and mend."""


class UserError(Exception):
    """A mistake in a path, config, file or text, told in one sentence.

    The message names the file, line or field and says what to do. Command-line entry points
    print it without a traceback and exit with status 2.
    """
