"""Error of wrong usage, which the command line shows without a traceback."""


class UsageError(ValueError):
    """A command line or a configuration file says something that cannot be understood."""
