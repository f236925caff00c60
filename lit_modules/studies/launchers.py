"""Launcher of the runs of a study: fresh processes on this machine, or tasks of Ray."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, Literal, Protocol

from lit_modules.utils.errors import UsageError

LOG = "log.txt"
"""Log in the folder of a run."""
PROCESS_LOG = "process.txt"
"""Log of a process that several runs share, in the folder of the first."""
RESULTS = "results.json"
"""File in the folder of a run, written last: the run has finished if it exists."""
PATIENCE = 5.0
"""Seconds that a stopped process has to end by itself."""


@dataclass(frozen=True)
class Task:
    """Program for a fresh Python process.

    Args:
        name: Name of the task, unique among those launched together.
        arguments: Arguments of the interpreter, such as ``("-m", "package.module", "folder")``.
        log: File to which standard output and standard error are added.
    """

    name: str
    arguments: tuple[str, ...]
    log: Path


@dataclass(frozen=True)
class Outcome:
    """End of a task.

    Args:
        name: Name of the task.
        exit_code: Exit code of its process, 0 on success; minus the number of the signal that stopped it.
        error: Message of the launcher on a process that never ran or was lost.
    """

    name: str
    exit_code: int
    error: str = ""


class Launcher(Protocol):
    """Runs independent tasks and yields the outcome of each as it ends; closing the generator stops the others."""

    def run(self, tasks: Sequence[Task]) -> Generator[Outcome, None, None]: ...  # noqa: D102


class ProcessLauncher:
    """Run each task in a fresh process of this machine.

    A process sees the import path and the environment of this one. Several workers share the cores, by
    ``OMP_NUM_THREADS`` unless it is set, and the GPUs: take ``RayLauncher`` to give each task its own.

    Args:
        workers: Processes at the same time, at least 1.

    Raises:
        ValueError: If ``workers`` is less than 1.
    """

    def __init__(self, workers: int = 1) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}.")
        self.workers = workers

    def run(self, tasks: Sequence[Task]) -> Generator[Outcome, None, None]:
        """Start the tasks in their order, ``workers`` at a time."""
        environment = dict(os.environ)
        if self.workers > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.workers)))
        stop = Event()
        with ThreadPoolExecutor(self.workers) as pool:
            run = partial(_run, folder=os.getcwd(), path=import_path(), environment=environment, stop=stop)
            futures = [pool.submit(run, task) for task in tasks]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                stop.set()


class RayLauncher:
    """Run each task as a task of Ray, which finds the machine and the GPUs that it asks for.

    Without an address Ray is started within this process, on this machine alone, and ends with the study; it then
    sends no usage report unless ``RAY_USAGE_STATS_ENABLED`` says so. The machines of a cluster must share this
    one's working folder and have this package installed. Ray repeats a task whose machine was lost; a run of a sweep
    then goes on from its last checkpoint.

    Args:
        address: Address of a running cluster, ``"auto"`` for the one that this machine belongs to, or ``None``.
        num_cpus: Cores of each task, and its number of threads.
        num_gpus: GPUs of each task; 0.5 lets two tasks share one.

    Raises:
        ModuleNotFoundError: If Ray is not installed.
        ValueError: If a number is negative, or no core is asked for.

    References:
        Moritz et al., "Ray: A Distributed Framework for Emerging AI Applications", arXiv 1712.05889.
    """

    def __init__(self, address: str | None = None, num_cpus: float = 1, num_gpus: float = 0) -> None:
        if num_cpus <= 0:
            raise ValueError(f"num_cpus must be positive, got {num_cpus:g}.")
        if num_gpus < 0:
            raise ValueError(f"num_gpus must be 0 or more, got {num_gpus:g}.")
        try:
            import ray  # noqa: F401
        except ModuleNotFoundError:
            message = 'The launcher ray needs Ray, which is not installed: pip install "lit-modules[ray]".'
            raise ModuleNotFoundError(message, name="ray") from None
        self.address = address
        self.num_cpus = num_cpus
        self.num_gpus = num_gpus

    def run(self, tasks: Sequence[Task]) -> Generator[Outcome, None, None]:
        """Hand the tasks to Ray."""
        import ray

        started = not ray.is_initialized()
        if started:
            self._connect(ray)
        pending: dict[Any, Task] = {}
        try:
            if self.address is None:
                self._check(ray)
            function = ray.remote(num_cpus=self.num_cpus, num_gpus=self.num_gpus)(_run)
            pending = {function.remote(task, os.getcwd(), import_path()): task for task in tasks}
            while pending:
                (reference,), _ = ray.wait(list(pending))
                task = pending.pop(reference)
                try:
                    outcome = ray.get(reference)
                except ray.exceptions.RayError as error:
                    outcome = Outcome(task.name, 1, _last_line(error))
                yield outcome
        finally:
            for reference in pending:
                ray.cancel(reference)
            if pending:
                ray.wait(list(pending), num_returns=len(pending), timeout=2 * PATIENCE)
            if started:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(address="local", include_dashboard=False, **settings)
            return
        try:
            host, colon, port = self.address.rpartition("://")[2].rpartition(":")
            if colon and port.isdigit():  # Ray itself would try for many minutes
                socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            ray.init(address=self.address, **settings)
        except (OSError, OverflowError, ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConnectionError(
                f"No Ray cluster answers at {self.address!r} ({reason}); `ray start --head` starts one, and without "
                "an address Ray runs on this machine alone."
            ) from None

    def _check(self, ray: Any) -> None:
        resources = ray.cluster_resources()
        for name, number in (("CPU", self.num_cpus), ("GPU", self.num_gpus)):
            available = resources.get(name, 0)
            if number > available:
                raise ValueError(
                    f"num_{name.lower()}s must be at most {available:g}, what this machine has, got {number:g}; "
                    "an address names a larger cluster."
                )


@dataclass
class LauncherOptions:
    """Launcher of the runs.

    Args:
        launcher: Launcher of the runs, each in a fresh process: process on this machine, ray as tasks of Ray.
        workers: process: runs at the same time; 1 by default.
        address: ray: a running cluster, or auto; by default Ray starts on this machine alone.
        num_cpus: ray: cores of each run; 1 by default.
        num_gpus: ray: GPUs of each run; 0 by default.
    """

    launcher: Literal["process", "ray"] = "process"
    workers: int | None = None
    address: str | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None

    def use_all_cores(self, trainer: Mapping[str, Any] | None) -> None:
        """Let as many processes run as there are cores, unless told otherwise, where the trainer is one of the CPU."""
        if self.launcher == "process" and self.workers is None:
            self.workers = (os.cpu_count() or 1) if (trainer or {}).get("accelerator") == "cpu" else 1

    def make_launcher(self) -> Launcher:
        """Return the launcher."""
        owners = {"workers": "process", "address": "ray", "num_cpus": "ray", "num_gpus": "ray"}
        values = {name: getattr(self, name) for name in owners if getattr(self, name) is not None}
        for name in values:
            if owners[name] != self.launcher:
                raise UsageError(f"--{name} belongs to --launcher {owners[name]}.")
        try:
            return ProcessLauncher(**values) if self.launcher == "process" else RayLauncher(**values)
        except (ValueError, ModuleNotFoundError) as error:
            raise UsageError(str(error)) from None


def launch(
    launcher: Launcher, program: Sequence[str], runs: Sequence[Path], total: int, together: int = 1
) -> dict[str, str]:
    """Run a program in the folders of runs, with a bar of the runs.

    Args:
        launcher: Launcher of the processes.
        program: Arguments of the interpreter, before the folders of the runs of a process.
        runs: Folders of the runs. A run has finished if its folder holds ``results.json``; its own log is ``log.txt``
            there.
        total: Number of runs that the bar counts, those that had finished before among them.
        together: Runs that share a process, one after another.

    Returns:
        The reason of each failure, by the name of the run's folder.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    if not runs:
        return {}
    groups = [runs[start : start + together] for start in range(0, len(runs), together)]
    folders = {group[0].name: group for group in groups}
    logs = {name: group[0] / (LOG if len(group) == 1 else PROCESS_LOG) for name, group in folders.items()}
    tasks = [Task(name, (*program, *map(str, group)), logs[name]) for name, group in folders.items()]
    failures: dict[str, str] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress, closing(launcher.run(tasks)) as outcomes:
        bar = progress.add_task("runs", total=total, completed=total - len(runs))
        for outcome in outcomes:
            group = folders[outcome.name]
            for run in group:
                if not (run / RESULTS).exists() or (outcome.exit_code and len(group) == 1):
                    log = run / LOG if (run / LOG).exists() else logs[outcome.name]
                    failures[run.name] = failure_reason(outcome, log)
            progress.update(bar, advance=len(group), description=f"runs ({len(failures)} failed)" if failures else None)
    return failures


def failure_reason(outcome: Outcome, log: Path) -> str:
    """Return the reason of a failure: the launcher's message, the signal, or the last line of the log."""
    if outcome.error:
        return outcome.error
    if outcome.exit_code < 0:
        return f"stopped by signal {-outcome.exit_code} ({signal.strsignal(-outcome.exit_code)})"
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return text.strip().split("\n")[-1].strip().removeprefix("error: ") or f"exit code {outcome.exit_code}"


def import_path() -> tuple[str, ...]:
    """Return the folders of ``sys.path`` that a fresh interpreter would not have by itself.

    These are the folders outside the Python installation: that of the project, or the working folder.
    """
    homes = {Path(home).resolve() for home in (sys.prefix, sys.base_prefix)}
    paths = [Path(entry).resolve() for entry in sys.path if entry]
    return tuple(dict.fromkeys(str(path) for path in paths if path.is_dir() and not homes & {path, *path.parents}))


def _run(
    task: Task,
    folder: str,
    path: Sequence[str],
    environment: Mapping[str, str] | None = None,
    stop: Event | None = None,
) -> Outcome:
    """Run a task to its end, in a thread or in a worker of Ray, which has set the threads and the GPUs."""
    if stop is not None and stop.is_set():
        return Outcome(task.name, -signal.SIGTERM)
    with _started(task, folder, path, environment=os.environ if environment is None else environment) as process:
        while process.poll() is None and not (stop is not None and stop.is_set()):
            time.sleep(0.05)  # Ray cancels a task between two statements, not within a wait
    return Outcome(task.name, process.returncode)


@contextmanager
def _started(
    task: Task, folder: str, path: Sequence[str], environment: Mapping[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """Start the process of a task; at the end of the block it and its children are asked to end, then forced."""
    inherited = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    python_path = os.pathsep.join(dict.fromkeys([*path, *inherited]))
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("ab") as log:
        process = subprocess.Popen(
            # -P: the working folder is importable only if it is so here
            [sys.executable, "-P", *task.arguments],
            cwd=folder,
            env={**environment, "PYTHONPATH": python_path, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        try:
            _signal(process, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
        finally:
            _signal(process, signal.SIGKILL)
            process.wait()


def _signal(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
