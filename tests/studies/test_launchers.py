"""Launchers: outcomes, logs, environment, and that nothing survives a stop."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_modules.studies.launchers import Launcher, ProcessLauncher, RayLauncher, Task, import_path

WRITE_AND_SLEEP = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1] + ".part", "w").write(f"{os.getpid()} {child.pid}")
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(60)
"""


def task(folder: Path, name: str, code: str, *arguments: str) -> Task:
    return Task(name, ("-c", code, *arguments), folder / name / "log.txt")


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def all_end(processes: list[int]) -> bool:
    """Wait a little: a process that is killed ends a moment later, and no child of this one can be waited for."""
    until = time.monotonic() + 20
    while any(map(is_alive, processes)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(is_alive, processes))


def stop_while_it_runs(launcher: Launcher, folder: Path) -> list[int]:
    """Close a launcher whose second task has started; return the ids of its processes."""
    started = folder / "started"
    tasks = [task(folder, "short", "pass"), task(folder, "long", WRITE_AND_SLEEP, str(started))]
    outcomes = launcher.run(tasks)
    assert next(outcomes).name == "short"
    if isinstance(launcher, ProcessLauncher) and launcher.workers == 1:
        # one after another: the long task starts when the next outcome is asked for
        import threading

        threading.Thread(target=_interrupt_when, args=(started,), daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            next(outcomes)
    else:
        _wait_for(started)
        outcomes.close()
    return [int(word) for word in started.read_text().split()]


def _wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"{path} was not written"
        time.sleep(0.05)


def _interrupt_when(path: Path) -> None:
    _wait_for(path)
    os.kill(os.getpid(), signal.SIGINT)


# Processes


def test_outcomes_logs_and_order(tmp_path: Path) -> None:
    tasks = [
        task(tmp_path, "good", "import sys; print('said'); print('wrong', file=sys.stderr)"),
        task(tmp_path, "bad", "raise SystemExit(3)"),
        task(tmp_path, "killed", "import os; os.kill(os.getpid(), 9)"),
    ]
    outcomes = list(ProcessLauncher().run(tasks))
    assert [(outcome.name, outcome.exit_code) for outcome in outcomes] == [("good", 0), ("bad", 3), ("killed", -9)]
    assert sorted((tmp_path / "good" / "log.txt").read_text().splitlines()) == ["said", "wrong"]


def test_a_log_is_added_to(tmp_path: Path) -> None:
    for number in range(2):
        list(ProcessLauncher().run([task(tmp_path, "a", f"print({number})")]))
    assert (tmp_path / "a" / "log.txt").read_text() == "0\n1\n"


def test_workers_run_at_the_same_time(tmp_path: Path) -> None:
    meet = """
import pathlib, sys, time
pathlib.Path(sys.argv[1]).touch()
until = time.monotonic() + 30
while not pathlib.Path(sys.argv[2]).exists():
    assert time.monotonic() < until
    time.sleep(0.02)
"""
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    tasks = [task(tmp_path, "a", meet, one, two), task(tmp_path, "b", meet, two, one)]
    assert [outcome.exit_code for outcome in ProcessLauncher(workers=2).run(tasks)] == [0, 0]


def test_workers_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = "import os; print(os.environ.get('OMP_NUM_THREADS'))"
    for workers, said in ((1, "None"), (1000, "1")):
        list(ProcessLauncher(workers).run([task(tmp_path, str(workers), code)]))
        assert (tmp_path / str(workers) / "log.txt").read_text() == f"{said}\n"


def test_the_import_path_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "only_here.py").write_text("print('found')\n")
    monkeypatch.syspath_prepend(tmp_path / "own")
    assert str(tmp_path / "own") in import_path()
    assert not any(path.startswith(sys.prefix) for path in import_path())
    list(ProcessLauncher().run([task(tmp_path, "a", "import only_here")]))
    assert (tmp_path / "a" / "log.txt").read_text() == "found\n"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_ends_the_processes_and_their_children(tmp_path: Path, workers: int) -> None:
    processes = stop_while_it_runs(ProcessLauncher(workers), tmp_path)
    assert len(processes) == 2
    assert all_end(processes)


def test_absurd_numbers_of_workers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"workers must be at least 1, got 0\."):
        ProcessLauncher(workers=0)


# Ray


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_ray_says_that_no_cluster_answers(address: str, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    assert not ray.is_initialized()
    sentence = f"No Ray cluster answers at '{address}' .*; `ray start --head` starts one, and without an address"
    with pytest.raises(ConnectionError, match=sentence):
        next(RayLauncher(address=address).run([task(tmp_path, "a", "pass")]))


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


@pytest.mark.usefixtures("ray")
def test_ray_outcomes_and_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "only_here.py").write_text("print('found')\n")
    monkeypatch.syspath_prepend(tmp_path)
    tasks = [
        task(tmp_path, "good", "import os, only_here; print(os.getcwd(), os.environ['OMP_NUM_THREADS'])"),
        task(tmp_path, "bad", "raise SystemExit(3)"),
    ]
    outcomes = {outcome.name: outcome.exit_code for outcome in RayLauncher().run(tasks)}
    assert outcomes == {"good": 0, "bad": 3}
    assert (tmp_path / "good" / "log.txt").read_text() == f"found\n{tmp_path} 1\n"


@pytest.mark.usefixtures("ray")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_ray_stop_ends_the_processes_and_their_children(tmp_path: Path) -> None:
    processes = stop_while_it_runs(RayLauncher(), tmp_path)
    assert all_end(processes)


@pytest.mark.usefixtures("ray")
def test_ray_says_what_a_lost_task_was(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = next(RayLauncher().run([Task("a", ("-c", "pass"), tmp_path / "file" / "log.txt")]))
    assert outcome.exit_code == 1
    assert "file" in outcome.error


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_gpus": 1000}, r"num_gpus must be at most \d+, what this machine has, got 1000; an address names"),
        ({"num_cpus": 2}, r"num_cpus must be at most 1, what this machine has, got 2; an address names"),
    ],
)
def test_ray_refuses_what_the_machine_lacks(arguments: dict[str, float], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        next(RayLauncher(**arguments).run([task(tmp_path, "a", "pass")]))  # type: ignore[arg-type]


def test_ray_refuses_absurd_numbers() -> None:
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match=r"num_cpus must be positive, got 0\."):
        RayLauncher(num_cpus=0)
    with pytest.raises(ValueError, match=r"num_gpus must be 0 or more, got -1\."):
        RayLauncher(num_gpus=-1)


def test_missing_ray_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "lit-modules\[ray\]"'):
        RayLauncher()
