"""Where the points of a sweep run: in fresh processes on this machine, or as tasks of Ray."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

PATIENCE = 5.0
"""Seconds that a stopped process has to end by itself."""


@dataclass(frozen=True)
class Task:
    """What runs in a fresh Python process.

    Args:
        name: Name of the task, unique among those given together.
        arguments: Arguments of the interpreter, such as ``("-m", "package.module", "folder")``.
        log: File to which standard output and standard error are added.
    """

    name: str
    arguments: tuple[str, ...]
    log: Path


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Args:
        name: Name of the task.
        exit_code: Exit code of its process, 0 if it ended well; minus the number of the signal that stopped it.
        seconds: Seconds that it ran.
        error: What a launcher has to say about a process that never ran or was lost.
    """

    name: str
    exit_code: int
    seconds: float
    error: str = ""


class Launcher(Protocol):
    """Runs tasks; the only way in which a sweep knows its machine."""

    def run(self, tasks: Sequence[Task]) -> Generator[Outcome, None, None]:
        """Run the tasks.

        Closing the generator stops what still runs.

        Args:
            tasks: Tasks that need nothing from each other.

        Yields:
            The outcome of each task, in the order in which they end.
        """
        ...


class ProcessLauncher:
    """Run each task in a fresh process of this machine, one after another.

    A process sees the import path and the environment of this one. With several workers each has its share of the
    cores as ``OMP_NUM_THREADS``, unless the variable is set. Workers share the GPUs: take ``RayLauncher`` to give each
    task its own.

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
        """Run the tasks in the order given, ``workers`` at a time."""
        environment = dict(os.environ)
        if self.workers > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.workers)))
        waiting, running = deque(tasks), dict[subprocess.Popen[bytes], tuple[Task, float]]()
        try:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    task = waiting.popleft()
                    running[_start(task, os.getcwd(), import_path(), environment)] = (task, time.monotonic())
                ended = [process for process in running if process.poll() is not None]
                for process in ended:
                    task, began = running.pop(process)
                    yield Outcome(task.name, process.returncode, time.monotonic() - began)
                if not ended:
                    time.sleep(0.05)
        finally:
            _stop(running)


class RayLauncher:
    """Run each task as a task of Ray, which chooses when and where from the cores and GPUs that each asks for.

    Without an address Ray is started within this process, on this machine alone, and ends with the sweep; it then
    sends no usage report unless ``RAY_USAGE_STATS_ENABLED`` says so. With an address the tasks run on that cluster,
    whose machines must share this one's working folder and have this package installed. Ray repeats a task whose
    machine was lost; a sweep's point then goes on from its last checkpoint.

    Args:
        address: Address of a running cluster, ``"auto"`` for the one that this machine belongs to, or ``None``.
        num_cpus: Cores of each task; it becomes its number of threads.
        num_gpus: GPUs of each task; 0.5 lets two tasks share one.

    Raises:
        ModuleNotFoundError: If Ray is not installed.
        ValueError: If a number is negative, or no core is asked for.

    References:
        Moritz et al., Ray: A Distributed Framework for Emerging AI Applications, arXiv 1712.05889.
    """

    def __init__(self, address: str | None = None, num_cpus: float = 1, num_gpus: float = 0) -> None:
        if num_cpus <= 0:
            raise ValueError(f"num_cpus must be positive, got {num_cpus:g}.")
        if num_gpus < 0:
            raise ValueError(f"num_gpus must be 0 or more, got {num_gpus:g}.")
        try:
            import_module("ray")
        except ModuleNotFoundError as error:
            if error.name != "ray":
                raise
            message = 'The launcher ray needs Ray, which is not installed: pip install "lit-modules[ray]".'
            raise ModuleNotFoundError(message, name="ray") from None
        self.address = address
        self.num_cpus = num_cpus
        self.num_gpus = num_gpus

    def run(self, tasks: Sequence[Task]) -> Generator[Outcome, None, None]:
        """Hand the tasks to Ray.

        Raises:
            ValueError: If this machine lacks the cores or GPUs that a task asks for.
            ConnectionError: If no cluster answers at the address.
        """
        ray: Any = import_module("ray")
        started = not ray.is_initialized()
        if started:
            self._connect(ray)
        pending: dict[Any, tuple[Task, float]] = {}
        try:
            if self.address is None:
                self._check(ray.cluster_resources())
            function = ray.remote(num_cpus=self.num_cpus, num_gpus=self.num_gpus)(_run_task)
            for task in tasks:
                pending[function.remote(task, os.getcwd(), import_path())] = (task, time.monotonic())
            while pending:
                for reference in ray.wait(list(pending), num_returns=1)[0]:
                    task, began = pending.pop(reference)
                    try:
                        outcome = ray.get(reference)
                    except ray.exceptions.RayError as error:
                        lines = str(error).strip().splitlines() or [type(error).__name__]
                        outcome = Outcome(task.name, 1, time.monotonic() - began, lines[-1].strip())
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

    def _check(self, resources: dict[str, float]) -> None:
        for name, wanted in (("CPU", self.num_cpus), ("GPU", self.num_gpus)):
            there = resources.get(name, 0)
            if wanted > there:
                raise ValueError(
                    f"num_{name.lower()}s must be at most {there:g}, what this machine has, got {wanted:g}; "
                    "an address names a larger cluster."
                )


def import_path() -> tuple[str, ...]:
    """Return the folders of ``sys.path`` that a fresh interpreter would not have by itself.

    These are the folders outside the Python installation: that of the project, or the working folder.
    """
    homes = {Path(home).resolve() for home in (sys.prefix, sys.base_prefix)}
    paths = [Path(entry).resolve() for entry in sys.path if entry]
    return tuple(dict.fromkeys(str(path) for path in paths if path.is_dir() and not homes & {path, *path.parents}))


def _start(
    task: Task, folder: str, path: Sequence[str], environment: dict[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    """Start the process of a task, in a session of its own so that it and its children can be stopped together."""
    environment = dict(os.environ if environment is None else environment)
    given = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*path, *given]))
    environment["PYTHONUNBUFFERED"] = "1"
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("ab") as log:
        return subprocess.Popen(
            # -P: the working folder is importable only if it is so here
            [sys.executable, "-P", *task.arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _stop(processes: Collection["subprocess.Popen[bytes]"]) -> None:
    """Stop processes and their children: ask first, then force."""
    try:
        for process in processes:
            _signal(process, signal.SIGTERM)
        until = time.monotonic() + PATIENCE
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
    finally:
        for process in processes:
            _signal(process, signal.SIGKILL)
            process.wait()


def _signal(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _run_task(task: Task, folder: str, path: tuple[str, ...]) -> Outcome:
    """Run a task within a worker of Ray, which has set the threads and the GPUs."""
    began = time.monotonic()
    process = _start(task, folder, path)
    try:
        while process.poll() is None:
            time.sleep(0.1)  # Ray cancels a task between two statements, not within a wait
    finally:
        _stop([process])
    return Outcome(task.name, process.returncode, time.monotonic() - began)
