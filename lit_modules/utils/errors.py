"""Error of wrong usage, which the command line shows without a traceback, and the short form of any error."""


class UsageError(ValueError):
    """A command line or a configuration file says something that cannot be understood."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class where it has none.

    Example:
        >>> first_line(KeyError())
        'KeyError'
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
