"""What is held back while a run is set up, and when it is said."""

import logging
import warnings

import pytest

from lit_modules.cli.messages import LOGGERS, SetupMessages
from lit_modules.utils.errors import UsageError


def say_something() -> None:
    logging.getLogger("lightning.pytorch.trainer").warning("first")
    warnings.warn("second", UserWarning, stacklevel=1)
    logging.getLogger("transformers").warning("third")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reaches the user, in order."""
    lines: list[str] = []

    class Screen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    screen = Screen()
    for name in LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "handlers", [screen])
        monkeypatch.setattr(logging.getLogger(name), "propagate", False)
    monkeypatch.setattr(warnings, "showwarning", lambda message, *more: lines.append(str(message)))
    return lines


def test_said_at_the_start_in_order(said: list[str]) -> None:
    before = [(logging.getLogger(name).handlers, logging.getLogger(name).propagate) for name in LOGGERS]
    with SetupMessages() as messages:
        say_something()
        assert said == []
        messages.end()
        assert said == ["first", "second", "third"]
        logging.getLogger("lightning.pytorch").warning("fourth")
        assert said[3:] == ["fourth"]
    assert len(said) == 4
    assert [(logging.getLogger(name).handlers, logging.getLogger(name).propagate) for name in LOGGERS] == before


def test_said_at_the_end_without_a_start(said: list[str]) -> None:
    with SetupMessages():
        say_something()
    assert len(said) == 3


def fail(error: Exception) -> None:
    with SetupMessages():
        say_something()
        raise error


def test_dropped_before_an_error_for_the_user(said: list[str]) -> None:
    with pytest.raises(UsageError, match="no key"):
        fail(UsageError("There is no key 'a'."))
    assert said == []


def test_said_before_a_defect(said: list[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())
    assert len(said) == 3
