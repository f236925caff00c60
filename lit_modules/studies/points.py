"""What the commands share that run many points: options of the launcher, a bar, why a point failed."""

import argparse
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from lit_modules.studies.launchers import Launcher, Outcome, ProcessLauncher, RayLauncher, Task
from lit_modules.utils.errors import UsageError

LOG = "log.txt"
RESULTS = "results.json"
"""File of a point's folder whose presence says that the point has finished."""


def add_launcher_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what runs the points; :func:`make_launcher` reads them."""
    parser.add_argument(
        "--launcher", choices=("process", "ray"), default="process", help="what runs the points (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="process: points at the same time (default: 1)")
    parser.add_argument("--address", help="ray: a running cluster, or auto (default: Ray on this machine alone)")
    parser.add_argument("--num-cpus", type=float, metavar="N", help="ray: cores of each point (default: 1)")
    parser.add_argument("--num-gpus", type=float, metavar="N", help="ray: GPUs of each point (default: 0)")


def make_launcher(options: argparse.Namespace) -> Launcher:
    """Return the launcher that the options ask for.

    Raises:
        UsageError: If an option belongs to another launcher or is out of its range, or Ray is not installed.
    """
    ours = {"process": ["workers"], "ray": ["address", "num_cpus", "num_gpus"]}
    for name, owned in ours.items():
        for option in owned:
            if name != options.launcher and getattr(options, option) is not None:
                raise UsageError(f"--{option.replace('_', '-')} belongs to --launcher {name}.")
    given = {key: getattr(options, key) for key in ours[options.launcher] if getattr(options, key) is not None}
    try:
        return ProcessLauncher(**given) if options.launcher == "process" else RayLauncher(**given)
    except (ValueError, ModuleNotFoundError) as error:
        raise UsageError(str(error)) from None


def run_points(
    launcher: Launcher, tasks: Sequence[Task], folders: Mapping[str, Sequence[Path]], total: int
) -> dict[str, str]:
    """Run tasks of one or more points each, with a bar of the points.

    Args:
        launcher: What runs the tasks.
        tasks: The tasks.
        folders: Folders of the points of each task, by the name of the task. A point has finished if its folder holds
            ``results.json``; its own log is ``log.txt`` there.
        total: Number of points that the bar counts, those that had finished before among them.

    Returns:
        Why each point that failed did, by the name of its folder.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    failed: dict[str, str] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    missing = sum(len(folders[task.name]) for task in tasks)
    logs = {task.name: task.log for task in tasks}
    with Progress(*columns) as progress, closing(launcher.run(tasks)) as outcomes:
        bar = progress.add_task("points", total=total, completed=total - missing)
        for outcome in outcomes:
            points = folders[outcome.name]
            for point in points:
                finished = (point / RESULTS).exists()
                if finished and not (outcome.exit_code and len(points) == 1):
                    continue
                own = point / LOG
                failed[point.name] = failure_reason(outcome, own if own.exists() else logs[outcome.name])
                progress.update(bar, description=f"points ({len(failed)} failed)")
            progress.advance(bar, len(points))
    return failed


def failure_reason(outcome: Outcome, log: Path) -> str:
    """Return why a task failed: what its launcher says, the signal that stopped it, or the last line of its log."""
    if outcome.error:
        return outcome.error
    if outcome.exit_code < 0:
        return f"stopped by signal {-outcome.exit_code} ({signal.strsignal(-outcome.exit_code)})"
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    said = [line.strip() for line in lines if line.strip()]
    return said[-1].removeprefix("error: ") if said else f"exit code {outcome.exit_code}"


@contextmanager
def stoppable() -> Iterator[None]:
    """Let a polite kill and a closed terminal stop the points as Ctrl-C does."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
