"""One point of a sweep, in a process of its own: ``python -m lit_modules.studies.sweep.point FOLDER``."""

import json
import math
import os
import shlex
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_modules.cli.lightning_cli import ProjectCLI
from lit_modules.cli.public import load_public
from lit_modules.studies.sweep.grid import write_json
from lit_modules.utils.checkpoints import UnsafeFile, check_shards, open_checkpoint

METRICS = "sweep_metrics"
"""Key of a checkpoint that holds the numbers logged when it was saved."""


class KeepMetrics(Callback):
    """Write the numbers last logged into each checkpoint, so that they are known of the one that is chosen."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the numbers to the checkpoint."""
        checkpoint[METRICS] = plain(trainer.callback_metrics)


class PointCLI(ProjectCLI):
    """The command line of a point: what it writes lies in the folder of the point, a folder for each stage.

    Loggers with a ``save_dir`` write there. Checkpoints without a ``dirpath`` lie in ``fit/checkpoints``, the same for
    a run that goes on, so that the best one is known of both parts.
    """

    folder: ClassVar[Path] = Path()

    def before_instantiate_classes(self) -> None:
        """Send what is written to the folder of the point."""
        super().before_instantiate_classes()
        stage = self.config["subcommand"]
        trainer = self.config[stage].trainer
        trainer.default_root_dir = str(self.folder / stage)
        loggers = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
        for logger in loggers:
            arguments = getattr(logger, "init_args", None)
            if arguments is not None and "save_dir" in arguments:
                arguments.save_dir = str(self.folder / stage)
        callbacks = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
        bars = [callback for callback in callbacks if "ProgressBar" in str(getattr(callback, "class_path", ""))]
        if trainer.enable_progress_bar is None and not bars:
            trainer.enable_progress_bar = False  # a log is no terminal

    def before_fit(self) -> None:
        """Give checkpoints their folder and their numbers."""
        self.before_test()
        trainer: Any = self.trainer  # which declares no callbacks
        trainer.callbacks.insert(0, KeepMetrics())

    def before_test(self) -> None:
        """Give checkpoints their folder."""
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str((self.folder / "fit" / "checkpoints").absolute())


def run_point(folder: Path) -> dict[str, Any]:
    """Train, and test the checkpoint that was chosen; a stage that is done is not run again.

    The checkpoint is the best one of the first ``ModelCheckpoint`` with a ``monitor``; without such, the last one that
    any ``ModelCheckpoint`` wrote; without any, the state at the end of the training.

    Args:
        folder: Folder of the point; ``point.json`` in it has ``arguments`` and ``test``.

    Returns:
        What ``results.json`` holds: the values, the numbers logged, the checkpoint.
    """
    point = json.loads((folder / "point.json").read_text(encoding="utf-8"))
    load_public()
    PointCLI.folder = folder
    record = folder / "fit.json"
    fitted = json.loads(record.read_text(encoding="utf-8")) if record.exists() else fit(folder, point["arguments"])
    metrics = dict(fitted["metrics"])
    if point["test"]:
        metrics |= _test(point["arguments"], folder / fitted["checkpoint"])
    results = {**fitted, "values": point["values"], "metrics": metrics}
    if _first_process():
        write_json(folder / "results.json", results)
    return results


def fit(folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Train, from the last checkpoint in the folder if there is one.

    Returns:
        What ``fit.json`` holds: the chosen checkpoint, relative to the folder, and its numbers.
    """
    cli, start = train(folder, arguments)
    trainer = cli.trainer
    path = chosen_checkpoint(trainer)
    if path is None:
        path = folder / "fit" / "end.ckpt"
        trainer.save_checkpoint(path)
    numbers = open_checkpoint(path).get(METRICS) if path.is_file() else plain(trainer.callback_metrics)
    record = {
        "checkpoint": os.path.relpath(path, folder),
        "steps": trainer.global_step,
        "resumed": os.path.relpath(start, folder) if start else None,
        "metrics": numbers or {},
    }
    if trainer.is_global_zero:
        write_json(folder / "fit.json", record)
    return record


def train(folder: Path, arguments: list[str], point: type["PointCLI"] | None = None) -> tuple[ProjectCLI, Path | None]:
    """Run ``fit``, from the last checkpoint in the folder if there is one.

    Args:
        folder: Folder of the point.
        arguments: Arguments of ``fit``.
        point: Command line of the point; by default :class:`PointCLI`.

    Returns:
        The finished command line, and the checkpoint that it went on from.
    """
    start = last_checkpoint(folder)
    arguments = ["fit", *arguments, *([f"--ckpt_path={start}"] if start else [])]
    say(arguments)
    return (point or PointCLI).start(arguments), start


def chosen_checkpoint(trainer: Trainer) -> Path | None:
    """Return the checkpoint that a training stands for; see ``run_point``."""
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    best = [callback.best_model_path for callback in callbacks if callback.monitor is not None]
    last = [path for callback in callbacks for path in (callback.last_model_path, callback.best_model_path)]
    return next((Path(path) for path in [*best, *last] if path and Path(path).exists()), None)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint from which a training can go on; passes over what a kill left unreadable.

    Raises:
        UnsafeFile: If one holds more than tensors and plain values, which is not loaded.
    """
    for path in sorted(folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            if path.is_dir():
                check_shards(path)
                return path
            content = open_checkpoint(path)
        except UnsafeFile:
            raise
        except ValueError as error:
            print(f"{path} cannot be read and is passed over: {error}")
            continue
        if "optimizer_states" in content:
            return path
    return None


def plain(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Return numbers ready for JSON, ``None`` for what is not finite."""
    values = {name: float(value) for name, value in metrics.items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def main(args: list[str]) -> int:
    """Run the point in a folder.

    Args:
        args: The folder.

    Returns:
        0, or 1 if it failed; the last line printed then says why.
    """
    try:
        run_point(Path(args[0]))
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        print(f"error: {type(error).__name__}: {lines[0] if lines else 'no message'}", file=sys.stderr)
        return 1
    return 0


def _test(arguments: list[str], checkpoint: Path) -> dict[str, float | None]:
    arguments = ["test", *arguments, f"--ckpt_path={checkpoint}"]
    say(arguments)
    return plain(PointCLI.start(arguments).trainer.callback_metrics)


def say(arguments: list[str]) -> None:
    """Print the command line of a stage and when it began."""
    if _first_process():
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} lit-modules {shlex.join(arguments)}", flush=True)


def _first_process() -> bool:
    """Return whether this is the process that the sweep started, not one that Lightning added for another device."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
