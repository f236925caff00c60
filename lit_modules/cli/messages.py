"""Messages of libraries: noise is silenced, and those during the set-up wait, so that a mistake is the first line."""

import logging
import re
import warnings
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

from lit_modules.cli.errors import is_for_user

LOGGERS = ("lightning", "lightning.fabric", "lightning.pytorch", "transformers", "torch")

NOISE = (
    r"Tip: For seamless cloud logging",  # advertises a logger
    r"^TPU available: False",
    r"`tensorboardX` has been removed as a dependency",  # of the default logger, CSV
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # lightning 2.6 with torch 2.13
    r"is an Enum subclass and is now natively supported by torch\.compile",  # on import of torchao
    r"Ignoring clean_up_tokenization_spaces=True",  # of every saved BPE tokenizer
    r"The dirpath has changed from .* therefore `best_model_score`",  # a test writes beside the fit
)
"""Messages of libraries that a user cannot act on, as regular expressions."""


class Noise(logging.Filter):
    """Filter that drops the records of `NOISE`."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is worth saying."""
        message = record.getMessage()
        return not any(re.search(pattern, message) for pattern in NOISE)


def silence_noise() -> None:
    """Drop the log records and warnings of `NOISE`, now and later; a second call changes nothing."""
    for pattern in NOISE:
        warnings.filterwarnings("ignore", message=f".*{pattern.removeprefix('^')}")
    for handler in {handler for name in LOGGERS for handler in logging.getLogger(name).handlers}:
        if not any(isinstance(each, Noise) for each in handler.filters):
            handler.addFilter(Noise())


class SetupMessages(logging.Handler):
    """Hold back log records and warnings, from entry until ``end`` or exit.

    If the block ends with an error whose message is for the user, they are dropped: they would only hide it.

    Example:
        >>> with SetupMessages() as messages:
        ...     logging.getLogger("lightning.pytorch").warning("slow")
        ...     messages.end(say=False)
    """

    def __init__(self) -> None:
        super().__init__()
        self._held: list[Callable[[], object]] = []
        self._undo: list[Callable[[], object]] = []

    def __enter__(self) -> "SetupMessages":
        for logger in map(logging.getLogger, LOGGERS):
            self._undo.append(partial(vars(logger).update, handlers=logger.handlers, propagate=logger.propagate))
            logger.handlers, logger.propagate = [self], False
        self._undo.append(partial(setattr, warnings, "showwarning", warnings.showwarning))
        warnings.showwarning = self._hold_warning
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end(say=error is None or not is_for_user(error))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self._held.append(partial(logging.getLogger(record.name).handle, record))

    def end(self, say: bool = True) -> None:
        """Hold nothing back any longer."""
        calls = self._undo + (self._held if say else [])
        self._held, self._undo = [], []
        for call in calls:
            call()

    def _hold_warning(self, *arguments: Any, **more: Any) -> None:
        self._held.append(lambda: warnings.showwarning(*arguments, **more))


SETUP = SetupMessages()
"""The one of the command line."""
