"""Runs of a comparison in one process: ``python -m lit_modules.studies.compare.point FOLDER ...``."""

import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, ClassVar

import yaml

from lit_modules.cli.public import load_public
from lit_modules.studies.compare.counts import CountSpending
from lit_modules.studies.points import LOG, RESULTS
from lit_modules.studies.sweep.grid import write_json
from lit_modules.studies.sweep.point import PointCLI, plain, say, train
from lit_modules.utils.files import write_whole

RECORD = "point.json"
"""File of a run's folder that says what to do: ``config``, ``train``, ``test``, ``count`` and ``values``."""


class RunCLI(PointCLI):
    """The command line of a run, whose spending is counted."""

    spending: ClassVar[CountSpending | None] = None

    def before_fit(self) -> None:
        """Add the callback that counts."""
        super().before_fit()
        if self.spending is not None:
            trainer: Any = self.trainer  # which declares no callbacks
            trainer.callbacks.append(self.spending)


def run(folder: Path) -> dict[str, Any]:
    """Do what the record in a folder says: train, test what was trained, or test alone.

    Args:
        folder: Folder of the run; ``point.json`` in it is its record.

    Returns:
        What ``results.json`` holds: the record's values, the numbers logged, what was spent, and the seconds it took.
    """
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    config = write_whole(folder / "config.yaml", yaml.safe_dump(record["config"], sort_keys=False))
    arguments = ["-c", str(config)]
    RunCLI.folder = folder
    RunCLI.spending = CountSpending(record["config"]["trainer"]["max_steps"]) if record["count"] else None
    began = time.monotonic()
    metrics: dict[str, Any] = {}
    counts: dict[str, Any] | None = None
    if record["train"]:
        cli, _ = train(folder, arguments, RunCLI)
        metrics = {name: value for name, value in plain(cli.trainer.callback_metrics).items()}
        counts = RunCLI.spending.record(cli.trainer) if RunCLI.spending is not None else None
    trained = time.monotonic()
    if record["train"] and record["test"]:
        cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
        metrics |= plain(cli.trainer.callback_metrics)
    elif record["test"]:
        say(["test", *arguments])
        metrics |= plain(RunCLI.start(["test", *arguments]).trainer.callback_metrics)
    seconds = {"train": round(trained - began, 2), "test": round(time.monotonic() - trained, 2)}
    results = {"values": record["values"], "metrics": metrics, "counts": counts, "seconds": seconds}
    write_json(folder / RESULTS, results)
    return results


def main(args: Sequence[str]) -> int:
    """Run what the folders say, each with a log of its own; a run that fails does not keep the next from running.

    A run that has finished meanwhile is passed over. If the process that started this one is gone, the run under way is
    the last one: whoever goes on with the comparison has started others for the rest.

    Args:
        args: Folders of runs.

    Returns:
        0, or 1 if one failed; the last line of its log then says why.
    """
    parent = os.getppid()
    load_public()
    failed = 0
    for folder in map(Path, args):
        if os.getppid() != parent:
            return 1
        if (folder / RESULTS).exists():
            continue
        with (folder / LOG).open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
            try:
                run(folder)
            except Exception as error:
                failed = 1
                traceback.print_exc()
                lines = str(error).strip().splitlines()
                print(f"error: {type(error).__name__}: {lines[0] if lines else 'no message'}", file=sys.stderr)
            finally:
                _end_loggers()
    return failed


def _end_loggers() -> None:
    """End a run of Weights & Biases, which the next one in this process would go on with."""
    wandb: Any = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
