"""Run of a study in its own folder: fit, then test; ``python -m lit_modules.studies.runs FOLDER ...``."""

import json
import math
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_modules.cli.lightning_cli import ProjectCLI
from lit_modules.cli.public import know_public
from lit_modules.studies.launchers import LOG, RESULTS
from lit_modules.utils.checkpoints import UnsafeFile, check_shards, open_checkpoint
from lit_modules.utils.files import write_whole

METRICS = "sweep_metrics"
"""Key of a checkpoint that holds the numbers logged when it was saved."""
RUN = "run.json"
"""File in the folder of a run that says what to run."""

CLI = TypeVar("CLI", bound="RunCLI")


class KeepMetrics(Callback):
    """Write the numbers last logged into each checkpoint, so that they are known of the one that is chosen."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the numbers to the checkpoint."""
        checkpoint[METRICS] = finite(trainer.callback_metrics)


class RunCLI(ProjectCLI):
    """Command line of a run, which writes into the folder of the run, into a subfolder for each stage.

    Loggers with a ``save_dir`` write there. Checkpoints without a ``dirpath`` lie in ``fit/checkpoints``, the same for
    a resumed run, so that the best one is known of both parts.
    """

    folder: ClassVar[Path] = Path()

    def before_instantiate_classes(self) -> None:
        """Send all files to the folder of the run."""
        super().before_instantiate_classes()
        stage = self.config["subcommand"]
        trainer = self.config[stage].trainer
        trainer.default_root_dir = str(self.folder / stage)
        for logger in trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]:
            arguments = getattr(logger, "init_args", None)  # a logger may be None, or true
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


def start(cli: type[CLI], folder: Path, arguments: list[str]) -> CLI:
    """Print and run a command line in the folder of a run."""
    if _is_first_process():
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} lit-modules {shlex.join(arguments)}", flush=True)
    cli.folder = folder
    finished = cli.start(arguments)
    assert isinstance(finished, cli)
    return finished


def train(cli: type[CLI], folder: Path, arguments: list[str]) -> tuple[CLI, Path | None]:
    """Run ``fit``, from the last checkpoint in the folder if there is one."""
    checkpoint = last_checkpoint(folder)
    resume = [f"--ckpt_path={checkpoint}"] if checkpoint else []
    return start(cli, folder, ["fit", *arguments, *resume]), checkpoint


def fit_and_test(folder: Path) -> dict[str, Any]:
    """Train, and test the chosen checkpoint; a finished stage is not run again.

    The checkpoint is the best one of the first ``ModelCheckpoint`` with a ``monitor``; without such, the last one that
    any ``ModelCheckpoint`` wrote; without any, the state at the end of the training.
    """
    run = read_json(folder / RUN)
    record = folder / "fit.json"
    fitted = read_json(record) if record.exists() else _fit(folder, run["arguments"])
    metrics = dict(fitted["metrics"])
    if run["test"]:
        tested = start(RunCLI, folder, ["test", *run["arguments"], f"--ckpt_path={folder / fitted['checkpoint']}"])
        metrics |= finite(tested.trainer.callback_metrics)
    results = {**fitted, "values": run["values"], "metrics": metrics}
    if _is_first_process():
        write_json(folder / RESULTS, results)
    return results


def _fit(folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Return the content of ``fit.json``: the chosen checkpoint, relative to the folder, and its numbers."""
    cli, resumed = train(RunCLI, folder, arguments)
    trainer = cli.trainer
    path = chosen_checkpoint(trainer)
    if path is None:
        path = folder / "fit" / "end.ckpt"
        trainer.save_checkpoint(path)
    numbers = open_checkpoint(path).get(METRICS) if path.is_file() else finite(trainer.callback_metrics)
    record = {
        "checkpoint": os.path.relpath(path, folder),
        "steps": trainer.global_step,
        "resumed": os.path.relpath(resumed, folder) if resumed else None,
        "metrics": numbers or {},
    }
    if trainer.is_global_zero:
        write_json(folder / "fit.json", record)
    return record


def chosen_checkpoint(trainer: Trainer) -> Path | None:
    """Return the checkpoint that a training stands for; see :func:`fit_and_test`."""
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    best = [callback.best_model_path for callback in callbacks if callback.monitor is not None]
    last = [path for callback in callbacks for path in (callback.last_model_path, callback.best_model_path)]
    return next((Path(path) for path in [*best, *last] if path and Path(path).exists()), None)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint from which a training can resume; skips what a kill left unreadable."""
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


def finite(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Return numbers ready for JSON, ``None`` for what is not finite."""
    values = {name: float(value) for name, value in metrics.items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def write_json(path: Path, record: Any) -> None:
    """Write a record whole."""
    write_whole(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Return a record."""
    return json.loads(path.read_text(encoding="utf-8"))


def succeeds(run: Callable[[Path], object], folder: Path) -> bool:
    """Run something in a folder, and print a traceback and a last line with the reason if it fails."""
    try:
        run(folder)
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        print(f"error: {type(error).__name__}: {lines[0] if lines else 'no message'}", file=sys.stderr)
        return False
    return True


def run_each(run: Callable[[Path], object], folders: Sequence[str]) -> int:
    """Run something in folders, each with a log of its own; return 1 if one failed, which does not stop the next.

    A run that has finished meanwhile is skipped. If the process that started this one is gone, the run under way is
    the last one: whoever resumes the study has started others for the rest.
    """
    parent = os.getppid()
    know_public()
    failed = 0
    for folder in map(Path, folders):
        if os.getppid() != parent:
            return 1
        if (folder / RESULTS).exists():
            continue
        with (folder / LOG).open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
            try:
                failed |= not succeeds(run, folder)
            finally:
                _end_loggers()
    return int(failed)


def _end_loggers() -> None:
    """End a run of Weights & Biases, which the next one in this process would continue."""
    wandb: Any = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()


def main(args: list[str]) -> int:
    """Run the run in a folder; return 0, or 1 if it failed, whose reason is then the last line printed.

    Of several folders each has its log; see :func:`run_each`.
    """
    if len(args) > 1:
        return run_each(fit_and_test, args)
    know_public()
    return 0 if succeeds(fit_and_test, Path(args[0])) else 1


def _is_first_process() -> bool:
    """Return whether this is the process that the study started, not one that Lightning added for another device."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
