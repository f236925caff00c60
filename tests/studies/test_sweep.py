"""Sweeps: what is refused, what a point runs, going on, table and figure, processes and Ray."""

import csv
import json
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml

from lit_modules.studies.arguments import ArgumentReader, resolve
from lit_modules.studies.runs import last_checkpoint
from lit_modules.studies.sweep.command import main
from lit_modules.studies.sweep.grid import read_axis
from lit_modules.utils.errors import UsageError
from tests.studies.here import HereLauncher

EXAMPLE = "tests.studies.sweep_example"
RECIPE = {
    "model": {"class_path": f"{EXAMPLE}.Level"},
    "data": {
        "class_path": f"{EXAMPLE}.Numbers",
        "init_args": {"variant": {"class_path": f"{EXAMPLE}.Shift", "init_args": {"size": 3.0}}},
    },
    "trainer": {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "enable_model_summary": False},
}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a recipe in the working folder, which is empty but for it."""
    monkeypatch.chdir(tmp_path)
    Path("level.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    return "level.yaml"


def results(name: str, folder: str = "out") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(folder, name, "results.json").read_text(encoding="utf-8"))
    return content


def metrics(name: str, folder: str = "out") -> dict[str, float]:
    numbers: dict[str, float] = results(name, folder)["metrics"]
    return numbers


MISTAKES = [
    ("", r"A sweep needs what to sweep: add --over NAME=VALUE,VALUE,\.\.\. or --seeds N\."),
    ("--over model.rate", r"--over must be NAME=VALUE,VALUE,\.\.\., got 'model\.rate'\."),
    ("--over model.rate=1,[2", r"values with commas between, as in a YAML list, got '1,\[2'\."),
    ("--over model.rate=1,2,1.0", r"model\.rate must have distinct values, got '1' 2 times\."),
    ("--over model.rate=1,2 --over model.init_args.rate=3", r"must be swept once"),
    ("--over model.rate=1,2 --model.rate=3", r"model\.rate must be swept or given, not both"),
    ("--over seed_everything=1,2 --seeds 2", r"seed_everything must be swept once, got it 2"),
    ("--seeds 0", r"--seeds must be at least 1, got 0\."),
    ("--seeds 2 --trainer.default_root_dir=x", r"default_root_dir is not for a sweep: each point has its own folder"),
    ("--over modle.rate=1,2", r"There is no argument 'modle'; did you mean 'model'\?"),
    ("--over model.rte=1,2", r"Level of model has no argument 'rte'; did you mean 'rate'\?"),
    ("--over data.variant.siez=1,2", r"Shift of data\.variant has no argument 'siez'; did you mean 'size'\?"),
    ("--over data.variant=Shift,Bare --over data.variant.size=1,2", r"Bare of data\.variant has no argument 'size'"),
    (
        "--data.variant=null --over data.variant.size=1,2",
        r"data\.variant is null, so it has no argument 'size': name its class first, --data\.variant=CLASS\.",
    ),
    ("--over trainer.max_epoch=1,2", r"did you mean 'trainer\.max_epochs'\?"),
    ("--over data.variant.size=1,abc", r"data\.variant\.size must be float, got 'abc'\."),
    ("--seeds 2 --model.rte=1", r"Level has no argument 'rte'; did you mean 'rate'\?"),
    ("--seeds 2 stray", r"There is no place for the argument 'stray'"),
    ("--seeds 2 -c levl.yaml", r"There is no configuration file 'levl\.yaml'"),
    (
        "--seeds 2 --trainer.callbacks+=ModelCheckpoint --trainer.callbacks.dirpath=kept",
        r"ModelCheckpoint would write every run to 'kept': leave its dirpath out, or let it begin with \{folder\}",
    ),
    ("--seeds 2 --launcher ray --workers 2", r"--workers belongs to --launcher proc"),
    ("--seeds 2 --workers 0", r"workers must be at least 1, got 0\."),
    ("--seeds 2 --points-per-process 0", r"--points_per_process must be at least 1, got 0\."),
]


@pytest.mark.parametrize(("line", "sentence"), MISTAKES)
def test_mistakes_are_refused_before_anything_runs(line: str, sentence: str, recipe: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        main(["-c", recipe, "--folder", "out", *line.split()])
    assert not Path("out").exists()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ArgumentReader:
    path = tmp_path_factory.mktemp("recipe") / "level.yaml"
    path.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    return ArgumentReader(["-c", str(path)])


@pytest.mark.parametrize(
    ("axis", "full", "expected"),
    [
        ("data.variant.size=inf", "data.init_args.variant.init_args.size", float("inf")),
        ("data.init_args.variant.init_args.limit=null", "data.init_args.variant.init_args.limit", None),
        ("data.variant=null", "data.init_args.variant", None),
        ("model.obstacle='1'", "model.init_args.obstacle", "1"),
        ("trainer.limit_val_batches=0.5", "trainer.limit_val_batches", 0.5),
        ("trainer.devices=[0, 1]", "trainer.devices", [0, 1]),
    ],
)
def test_values_arrive(axis: str, full: str, expected: object, reader: ArgumentReader) -> None:
    read = read_axis(axis)
    arguments = reader.run({read.key: read.values[0]}, Path("out"))
    for stage in ("fit", "test"):
        config = reader.read(arguments, stage)
        assert resolve(read.key, config) == full
        assert config[full] == expected
    siblings = reader.read(arguments)["data.init_args.variant"]
    assert siblings is None or set(siblings.init_args.as_dict()) == {"size", "limit"}


def test_classes_are_values(reader: ArgumentReader) -> None:
    axis = read_axis(f"data.variant=Bare,{{class_path: {EXAMPLE}.Shift, init_args: {{size: .inf, limit: null}}}}")
    assert len(axis.values) == 2
    configs = [reader.read(reader.run({axis.key: value}, Path("out"))) for value in axis.values]
    assert configs[0].data.init_args.variant.class_path == f"{EXAMPLE}.Bare"
    assert configs[1].data.init_args.variant.init_args.as_dict() == {"size": float("inf"), "limit": None}


class CountingReader(ArgumentReader):
    """Counts what it reads."""

    def __init__(self, arguments: list[str]) -> None:
        super().__init__(arguments)
        self.count = 0

    def read(self, arguments: Sequence[str], stage: str = "fit") -> Any:
        self.count += 1
        return super().read(arguments, stage)


def test_points_that_differ_by_the_seed_are_read_once(recipe: str) -> None:
    counting = CountingReader(["-c", recipe, "--trainer.default_root_dir={folder}"])
    arguments = [
        counting.run({"seed_everything": seed, "data.variant.size": size}, Path(f"{seed},{size}"))
        for size in (1, 2)
        for seed in range(3)
    ]
    assert counting.count == 2
    start = ["-c", recipe, "--trainer.default_root_dir=2,1", "--seed_everything=2", "--data.variant.size=1"]
    assert arguments[2] == start
    assert [counting.read(line).seed_everything for line in arguments] == [0, 1, 2, 0, 1, 2]
    with pytest.raises(UsageError, match="seed_everything must be"):
        counting.run({"seed_everything": "abc", "data.variant.size": 1}, Path("abc"))


def test_the_folder_of_the_point_is_filled_in(recipe: str) -> None:
    reader = ArgumentReader(
        ["-c", recipe, "--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.dirpath={folder}/kept"]
    )
    config = reader.read(reader.run({"model.rate": 1}, Path("out", "rate=1")))
    assert config.trainer.callbacks[0].init_args.dirpath == "out/rate=1/kept"


def test_sweep_goes_on_and_grows(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["-c", recipe, "--over", "data.variant.size=1,inf", "--model.noise", "1", "--folder", "out"]
    launcher = HereLauncher()
    for seeds, seed in (("1", 0), ("2", 1)):
        launcher.names = []
        assert main([*line, "--seeds", seeds], launcher) == 0
        assert launcher.names == [f"size={size},seed_everything={seed}" for size in ("1", "inf")]
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "out"
    assert any("test/data_level" in text for text in printed)
    noise = []
    for seed in (0, 1):
        found = metrics(f"size=1,seed_everything={seed}")
        assert found["test/data_level"] == 1.0
        assert found["test/level"] == found["val/level"]
        noise.append(found["test/level"] - 8.0)  # eight steps of one
    assert noise[0] != noise[1]
    assert metrics("size=inf,seed_everything=0")["test/data_level"] is None  # not finite

    with Path("out/table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["size"] for row in rows] == ["1", "inf"]
    assert [row["runs"] for row in rows] == ["2", "2"]
    assert float(rows[0]["test/level"]) == pytest.approx(8.0 + sum(noise) / 2)
    assert float(rows[0]["test/level std"]) == pytest.approx(abs(noise[0] - noise[1]) / 2**0.5)
    assert rows[1]["test/data_level"] == "nan"
    table = Path("out/table.md").read_text(encoding="utf-8")
    assert table.startswith("| size | runs | test/data_level | test/level | val/level |\n")
    assert "| 1 | 2 | 1 +- 0 | " in table
    assert Path("out/figure.png").read_bytes().startswith(b"\x89PNG")

    launcher.names = []
    line += ["--seeds", "2"]
    for other, sentence in (
        ([*line, "--seeds", "1"], r"a sweep with seed_everything=.*, got seed_everything=.*: values may be added, not"),
        (line[:-2], r"out holds a sweep with axes=.*, got axes=\[.data\.variant\.size.\]; take another"),
        ([*line, "--model.rate=2"], r"a sweep with arguments=\[.*\], got arguments=.*rate=2.\]; take"),
        ([*line, "--folder", "."], r"\. holds something that is no sweep; take another folder\."),
        ([*line, "--metrics", "test/lvel"], r"no number 'test/lvel' for --metrics; did you mean"),
        ([*line, "--no-test"], r"out holds a sweep with no_test=false, got no_test=true; take another"),
    ):
        with pytest.raises(UsageError, match=sentence):
            main(other, launcher)
    assert launcher.names == []
    Path(recipe).write_text(yaml.safe_dump({**RECIPE, "seed_everything": 5}), encoding="utf-8")
    with pytest.raises(UsageError, match=r"out holds a sweep with another content of files\.level\.yaml; take another"):
        main(line, launcher)


def test_a_point_writes_into_its_folder_and_tests_its_best_checkpoint(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = "{class_path: ModelCheckpoint, init_args: {monitor: val/level, mode: min, save_last: true}}"
    logger = "{class_path: CSVLogger, init_args: {save_dir: logs, name: ''}}"
    line = ["-c", recipe, "--seeds", "1", f"--trainer.callbacks+={keep}", f"--trainer.logger={logger}"]
    folders = []
    for more in ([], ["--model.rate=2", "--no-test", "--metrics", "val/*"]):
        assert main([*line, *more], HereLauncher()) == 0
        folders.append(capsys.readouterr().out.splitlines()[-1])
    assert len(set(folders)) == 2
    assert all(folder.startswith("runs/sweep-level-") for folder in folders)
    found = metrics("seed_everything=0", folders[0])
    assert found["test/level"] == found["val/level"] == 4.0  # after the first of two epochs
    assert str(results("seed_everything=0", folders[0])["checkpoint"]).startswith("fit/checkpoints/epoch=0")
    assert metrics("seed_everything=0", folders[1]) == {"val/level": 8.0}
    assert not Path(folders[1], "seed_everything=0", "test").exists()
    for stage in ("fit", "test"):
        assert Path(folders[0], "seed_everything=0", stage, "version_0", "metrics.csv").exists()
    assert sorted(path.name for path in Path().iterdir()) == ["level.yaml", "runs"]


@pytest.mark.parametrize(
    "option", ["--trainer.enable_checkpointing=false", pytest.param("--trainer.fast_dev_run=1", marks=pytest.mark.slow)]
)
def test_without_checkpoints_the_end_is_tested(option: str, recipe: str) -> None:
    assert main(["-c", recipe, "--seeds", "1", "--folder", "out", option], HereLauncher()) == 0
    found = results("seed_everything=0")
    assert found["checkpoint"] == "fit/end.ckpt"
    assert metrics("seed_everything=0")["test/level"] == found["steps"]


def test_failed_point_is_told_and_goes_on_from_its_checkpoint(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("rock").touch()
    line = ["-c", recipe, "--folder", "out", "--over", "model.obstacle=rock,air", "--metrics", "test/level"]
    assert main(line, HereLauncher()) == 1
    printed = capsys.readouterr().out.splitlines()
    log = "out/obstacle=rock/log.txt"
    assert printed[-2:] == [f"failed: obstacle=rock: RuntimeError: The obstacle stood in the way. (log: {log})", "out"]
    assert "Traceback" in Path(log).read_text(encoding="utf-8")
    assert "| rock | 0 of 1 | - | - | - |" in Path("out/table.md").read_text(encoding="utf-8")
    assert metrics("obstacle=air")["test/level"] == 8.0

    Path("rock").unlink()
    again = HereLauncher()
    assert main(line, again) == 0
    assert again.names == ["obstacle=rock"]
    assert results("obstacle=rock")["resumed"] == "fit/checkpoints/last.ckpt"
    assert results("obstacle=rock")["steps"] == 8
    assert metrics("obstacle=rock") == metrics("obstacle=air")

    before = results("obstacle=air")  # a point that was stopped before its test is not trained again
    for name in ("results.json", "log.txt"):
        Path("out/obstacle=air", name).unlink()
    assert main(line, HereLauncher()) == 0
    assert results("obstacle=air") == before
    assert "lit-modules fit" not in Path("out/obstacle=air/log.txt").read_text(encoding="utf-8")


def test_points_that_share_a_process_find_the_same(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("rock").touch()
    line = ["-c", recipe, "--over", "model.obstacle=air,rock,sea", "--model.noise=1"]
    assert main([*line, "--folder", "alone"], HereLauncher()) == 1
    capsys.readouterr()
    launcher = HereLauncher()
    assert main([*line, "--folder", "out", "--points-per-process", "2"], launcher) == 1
    assert launcher.names == ["obstacle=air", "obstacle=rock", "obstacle=sea"]
    assert Path("out/obstacle=air/process.txt").exists()
    assert not Path("out/obstacle=rock/process.txt").exists()
    printed = capsys.readouterr().out.splitlines()
    log = "out/obstacle=rock/log.txt"
    assert printed[-2:] == [f"failed: obstacle=rock: RuntimeError: The obstacle stood in the way. (log: {log})", "out"]
    for name in ("air", "sea"):
        assert metrics(f"obstacle={name}") == metrics(f"obstacle={name}", "alone")
        log = Path("out", f"obstacle={name}", "log.txt").read_text(encoding="utf-8")
        assert log.count("lit-modules fit") == log.count("lit-modules test") == 1


def test_checkpoints_that_cannot_be_resumed_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert last_checkpoint(tmp_path) is None
    weights = {"state_dict": {}, "pytorch-lightning_version": lightning.__version__}
    contents = {"good": weights | {"optimizer_states": []}, "weights": weights, "bare": {"state_dict": {}}}
    for age, (name, content) in enumerate(contents.items()):
        torch.save(content, tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (age, age))
    (tmp_path / "broken.ckpt").write_bytes(b"half")
    assert last_checkpoint(tmp_path) == tmp_path / "good.ckpt"
    assert "broken.ckpt cannot be read and is passed over" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_interrupted_sweep_goes_on(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        while not list(Path("out").rglob("*.ckpt")) and not over.wait(0.1):
            pass
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    line = ["-c", recipe, "--folder", "out", "--over", "model.pause=0.3", "--trainer.max_epochs=3"]
    over = threading.Event()
    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    assert main(line) == 130
    over.set()
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == ["Interrupted; the same command with --folder out resumes.", "out"]
    assert not Path("out/pause=0.3/fit.json").exists()

    assert main(line, HereLauncher()) == 0
    assert results("pause=0.3")["resumed"] == "fit/checkpoints/last.ckpt"
    assert metrics("pause=0.3") == {"val/level": 12.0, "test/level": 12.0, "test/data_level": 3.0}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [["--workers", "2"], ["--launcher", "ray", "--num-cpus", "1"]], ids=["2", "ray"])
def test_fresh_processes_and_ray_find_the_same(
    launcher: list[str], recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "ray" in launcher:
        pytest.importorskip("ray")
    line = ["-c", recipe, "--folder", "out", "--over", "data.variant.size=1,2", "--model.noise=1"]
    assert main([*line, *launcher]) == 0
    assert [metrics(f"size={size}")["test/data_level"] for size in (1, 2)] == [1.0, 2.0]
    assert capsys.readouterr().out.splitlines()[-1] == "out"
    assert main([*line, "--folder", "here"], HereLauncher()) == 0
    for size in (1, 2):
        assert metrics(f"size={size}") == metrics(f"size={size}", "here")
