"""Options of a command, declared as a dataclass."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from lit_modules.cli.options import read_options
from lit_modules.utils.errors import UsageError


@dataclass
class Launch:
    """Launcher.

    Args:
        launcher: Launcher of the runs.
        workers: Runs at the same time.
    """

    launcher: Literal["process", "ray"] = "process"
    workers: int | None = None


@dataclass
class Study(Launch):
    """Study.

    Args:
        models: Models to study.
        over: Argument and its values.
        sizes: Sizes.
        dry_run: Run nothing.
    """

    models: list[str] = field(default_factory=list)
    over: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=lambda: [1])
    dry_run: bool = False


def read(*words: str, passes_on: bool = False) -> tuple[Study, list[str]]:
    return read_options(Study, words, "study", "Study models.\n\n  As written.", "example:\n  study", passes_on)


def test_lists_flags_and_hyphens() -> None:
    assert read() == (Study(), [])
    words = ["--over", "a=[1,2],3", "--over=b=2", "--dry-run", "--sizes", "1", "-2", "--models", "7b", "70b"]
    study = Study(models=["7b", "70b"], over=["a=[1,2],3", "b=2"], sizes=[1, -2], dry_run=True)
    assert read(*words) == (study, [])
    assert read("--sizes=[1, 2]", "--dry_run", "false")[0] == Study(sizes=[1, 2])


def test_other_options_are_passed_on_with_their_words() -> None:
    words = ["-c", "a.yaml", "--workers", "2", "stray", "--trainer.devices=[0]", "--model", "B"]
    study, rest = read(*words, passes_on=True)
    assert study == Study(workers=2)
    assert rest == ["-c", "a.yaml", "stray", "--trainer.devices=[0]", "--model", "B"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--sizes", "x"], r"sizes must be int, got 'x'\."),
        (["--szes", "1"], r"There is no option '--szes'; did you mean '--sizes'\?"),
        (["--workers"], r"--workers needs a value\."),
        (["--workers", "2", "stray"], r"There is no place for the argument 'stray'"),
        (["--launcher=raj"], r"launcher must be 'process' or 'ray', got 'raj'; did you mean 'ray'\?"),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        read(*words)


def test_help_has_inherited_options_and_lines_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help")
    text = capsys.readouterr().out
    assert "Study models.\n\n  As written." in text
    assert "Launcher of the runs. (type: Literal['process', 'ray'], default: process)" in " ".join(text.split())
    assert text.endswith("example:\n  study\n")
