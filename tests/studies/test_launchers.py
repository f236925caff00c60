"""Launchers: outcomes, logs, environment, and that nothing survives a stop."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_modules.studies.launchers import Launcher, LauncherOptions, ProcessLauncher, RayLauncher, Task, import_path
from lit_modules.utils.errors import UsageError

WRITE_AND_SLEEP = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1] + ".part", "w").write(f"{os.getpid()} {child.pid}")
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(60)
"""
MEET = """
import pathlib, sys, time
pathlib.Path(sys.argv[1]).touch()
until = time.monotonic() + 30
while not pathlib.Path(sys.argv[2]).exists():
    assert time.monotonic() < until
    time.sleep(0.02)
"""


def task(folder: Path, name: str, code: str, *arguments: str) -> Task:
    return Task(name, ("-c", code, *arguments), folder / name / "log.txt")


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"{path} was not written"
        time.sleep(0.05)


def check_that_a_stop_ends_all(launcher: Launcher, folder: Path) -> None:
    """Interrupt a launcher while its second task runs, and wait a moment for its processes to end."""
    started = folder / "started"
    outcomes = launcher.run([task(folder, "short", "pass"), task(folder, "long", WRITE_AND_SLEEP, str(started))])
    assert next(outcomes).name == "short"
    if isinstance(launcher, ProcessLauncher):

        def interrupt() -> None:
            wait_for(started)
            os.kill(os.getpid(), signal.SIGINT)

        def wait_for_the_interrupt() -> None:  # which may come before the wait
            threading.Thread(target=interrupt, daemon=True).start()
            next(outcomes)

        with pytest.raises(KeyboardInterrupt):
            wait_for_the_interrupt()
        outcomes.close()
    else:
        wait_for(started)
        outcomes.close()
    processes = [int(word) for word in started.read_text().split()]
    assert len(processes) == 2
    until = time.monotonic() + 20
    while any(map(is_alive, processes)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(is_alive, processes))


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")


def test_outcomes_logs_order_and_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "only_here.py").write_text("print('found')\n")
    monkeypatch.syspath_prepend(tmp_path / "own")
    assert str(tmp_path / "own") in import_path()
    assert not any(Path(path).is_relative_to(sys.prefix) for path in import_path())
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "log.txt").write_text("before\n")
    tasks = [
        task(tmp_path, "good", "import sys, only_here; print('wrong', file=sys.stderr)"),
        task(tmp_path, "bad", "raise SystemExit(3)"),
        task(tmp_path, "killed", "import os; os.kill(os.getpid(), 9)"),
    ]
    outcomes = list(ProcessLauncher().run(tasks))
    assert [(outcome.name, outcome.exit_code) for outcome in outcomes] == [("good", 0), ("bad", 3), ("killed", -9)]
    lines = (tmp_path / "good" / "log.txt").read_text().splitlines()
    assert lines[0] == "before"
    assert sorted(lines[1:]) == ["found", "wrong"]


def test_workers_run_at_the_same_time_and_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    tasks = [task(tmp_path, "a", MEET, one, two), task(tmp_path, "b", MEET, two, one)]
    assert [outcome.exit_code for outcome in ProcessLauncher(workers=2).run(tasks)] == [0, 0]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = "import os; print(os.environ.get('OMP_NUM_THREADS'))"
    for workers, threads in ((1, "None"), (1000, "1")):
        list(ProcessLauncher(workers).run([task(tmp_path, str(workers), code)]))
        assert (tmp_path / str(workers) / "log.txt").read_text() == f"{threads}\n"


@needs_proc
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_ends_the_processes_and_their_children(tmp_path: Path, workers: int) -> None:
    check_that_a_stop_ends_all(ProcessLauncher(workers), tmp_path)


def test_missing_ray_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r'pip install "lit-modules\[ray\]"'):
        LauncherOptions("ray").make_launcher()


def test_ray_refuses_absurd_numbers() -> None:
    pytest.importorskip("ray")
    with pytest.raises(UsageError, match=r"num_cpus must be positive, got 0\."):
        LauncherOptions("ray", num_cpus=0).make_launcher()


@pytest.mark.slow
def test_ray_says_that_no_cluster_answers(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    sentence = "No Ray cluster answers at 'ray://127.0.0.1:1' .*; `ray start --head` starts one, and without an address"
    with pytest.raises(ConnectionError, match=sentence):
        next(RayLauncher(address="ray://127.0.0.1:1").run([task(tmp_path, "a", "pass")]))


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray on one core of this machine, for all tests; the launcher uses a Ray that runs."""
    ray = pytest.importorskip("ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()
    signal.signal(signal.SIGTERM, handler)  # Ray leaves its own, which ends the process


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_ray_outcomes_logs_and_lost_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "only_here.py").write_text("print('found')\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "file").touch()
    tasks = [
        task(tmp_path, "good", "import os, only_here; print(os.getcwd(), os.environ['OMP_NUM_THREADS'])"),
        task(tmp_path, "bad", "raise SystemExit(3)"),
        Task("lost", ("-c", "pass"), tmp_path / "file" / "log.txt"),
    ]
    outcomes = {outcome.name: outcome for outcome in RayLauncher().run(tasks)}
    assert {name: outcome.exit_code for name, outcome in outcomes.items()} == {"good": 0, "bad": 3, "lost": 1}
    assert (tmp_path / "good" / "log.txt").read_text() == f"found\n{tmp_path} 1\n"
    assert "file" in outcomes["lost"].error


@needs_proc
@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_ray_stop_ends_the_processes_and_their_children(tmp_path: Path) -> None:
    check_that_a_stop_ends_all(RayLauncher(), tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_ray_refuses_what_the_machine_lacks(tmp_path: Path) -> None:
    sentence = r"num_gpus must be at most \d+, what this machine has, got 1000; an address names"
    with pytest.raises(ValueError, match=sentence):
        next(RayLauncher(num_gpus=1000).run([task(tmp_path, "a", "pass")]))
