"""Summary at the end of a command: what was reached, where it lies, and what to run next."""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_modules.utils.run_folders import run_folder

NUMBERS = 8
"""Most numbers that are shown; the loggers have all."""


def print_summary(trainer: Trainer, command: str, args: Sequence[str], began: float) -> None:
    """Print a few lines, in colour on a terminal and plain in a file.

    Args:
        trainer: Trainer after the command.
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        args: Arguments that followed the command.
        began: ``time.time()`` at its start.
    """
    from rich.console import Console
    from rich.text import Text

    lines = summary(trainer, command, args, began)
    if not trainer.is_global_zero:  # all processes ask for the folder, which Lightning broadcasts
        return
    console = Console(soft_wrap=True)  # lines are not broken, so that paths and commands can be copied
    console.print(f"lit-modules {command}: done", style="bold green")
    for name, text in lines.items():
        console.print(Text.assemble((f"{name:8} ", "bold"), text))


def summary(trainer: Trainer, command: str, args: Sequence[str], began: float) -> dict[str, str]:
    """Return what each line says, by its name."""
    rows = {"time": f"{time.time() - began:.0f} s"}
    if command == "fit":
        rows["trained"] = f"{trainer.global_step} optimizer steps, {trainer.current_epoch} epochs"
        rows |= reached(trainer)
    folder = run_folder(trainer)
    rows["folder"] = _shown(folder)
    written = written_since(folder, began)
    if written:
        rows["written"] = ", ".join(written)
    savers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    word = ""
    for saver in savers:
        if (
            command == "fit"
            and saver.monitor is not None
            and saver.best_model_path
            and saver.best_model_score is not None
        ):
            score = f"{saver.monitor} {float(saver.best_model_score):.4g}"
            rows["best"], word = f"{_shown(Path(saver.best_model_path))} ({score})", "best"
    if command == "fit":
        if not word and any(saver.last_model_path or saver.best_model_path for saver in savers):
            word = "last"
        if word:
            rows["next"] = next_line("test", args, f"--ckpt_path {word}")
    elif command == "test":
        rows["next"] = next_line("sweep", args, "--seeds 3", leave_out="--ckpt_path")
    return rows


def reached(trainer: Trainer) -> dict[str, str]:
    """Return the last numbers of the validation, or of the training where there was none."""
    numbers = {name: float(value) for name, value in trainer.callback_metrics.items() if not name.endswith("_step")}
    validated = {name: value for name, value in numbers.items() if name.startswith("val/")}
    shown = dict(sorted((validated or numbers).items())[:NUMBERS])
    return {"reached": ", ".join(f"{name} {value:.4g}" for name, value in shown.items())} if shown else {}


def written_since(folder: Path, began: float) -> list[str]:
    """Return the names of files in a folder, not in folders in it, that were written since; without configurations."""
    names = [path for path in folder.glob("*") if path.is_file() and path.stat().st_mtime >= began - 1]
    return sorted(path.name for path in names if not path.name.startswith(("config", "events.out", "hparams")))


def next_line(command: str, args: Sequence[str], addition: str, leave_out: str = "--ckpt_path") -> str:
    """Return a command line with the same arguments, less an option and its value.

    Example:
        >>> next_line("test", ["-c", "pgd/digits.yaml", "--ckpt_path=last"], "--ckpt_path best")
        'lit-modules test -c pgd/digits.yaml --ckpt_path best'
    """
    kept, skip = [], False
    for word in args:
        if skip:
            skip = False
        elif word == leave_out:
            skip = True
        elif not word.startswith(f"{leave_out}="):
            kept.append(word)
    return f"lit-modules {command} {shlex.join(kept)} {addition}"


def _shown(path: Path) -> str:
    """Return a path relative to the working folder, if it lies below it."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)
