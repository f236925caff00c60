"""What is held back while a run is set up, and when it is said."""

import contextlib
import logging
import warnings

import pytest

from lit_modules.cli.messages import LOGGERS, SetupMessages, silence_noise
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


@pytest.mark.parametrize(
    ("error", "lines"), [(None, 3), (UsageError("There is no key 'a'."), 0), (ZeroDivisionError(), 3)]
)
def test_said_at_the_end_unless_an_error_is_for_the_user(error: Exception | None, lines: int, said: list[str]) -> None:
    with contextlib.suppress(UsageError, ZeroDivisionError), SetupMessages():
        say_something()
        if error is not None:
            raise error
    assert len(said) == lines


@pytest.mark.parametrize(
    "noise",
    [
        "\N{ELECTRIC LIGHT BULB} Tip: For seamless cloud logging and experiment tracking, try installing litlogger",
        "TPU available: False, using: 0 TPU cores",
        "Starting from v1.9.0, `tensorboardX` has been removed as a dependency of the `lightning.pytorch` package",
        "`isinstance(treespec, LeafSpec)` is deprecated, use `isinstance(treespec, TreeSpec)` instead.",
        "<enum 'KernelPreference'> is an Enum subclass and is now natively supported by torch.compile as a value type.",
        "Ignoring clean_up_tokenization_spaces=True for BPE tokenizer TokenizersBackend.",
        "The dirpath has changed from 'a' to 'b', therefore `best_model_score`, `kth_value` won't be reloaded.",
    ],
)
def test_noise_is_silenced_and_all_else_is_said(noise: str, said: list[str]) -> None:
    with warnings.catch_warnings():
        silence_noise()
        silence_noise()
        for name in ("lightning.pytorch.utilities.rank_zero", "transformers.tokenization", "torch.utils._pytree"):
            logging.getLogger(name).warning(noise)
        warnings.warn(noise, UserWarning, stacklevel=1)
        assert said == []
        say_something()
    assert said == ["first", "second", "third"]
