"""Opening checkpoints: one sentence for what is wrong, nothing hostile is run, and `last` and `best` are found."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_modules.cli import main
from lit_modules.cli.run_checkpoints import raised_as_interrupt
from lit_modules.networks.part_recogniser import load_recogniser
from lit_modules.studies.runs import last_checkpoint
from lit_modules.synthia.backbones.kandinsky3_weights import read_weights
from lit_modules.utils.checkpoints import DamagedFile, check_shards, open_checkpoint
from lit_modules.utils.errors import UsageError

GOOD = {"state_dict": {"weight": torch.zeros(200)}, "pytorch-lightning_version": "2.6.0"}


class Hostile:
    """An object whose loading writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


BROKEN: dict[str, tuple[Any, str]] = {
    "empty.ckpt": (b"", "is empty"),
    "cut.ckpt": ("half", "is damaged or not a file of torch"),
    "text.ckpt": (b"version https://git-lfs.github.com/spec/v1\n", "is not a file of torch"),
    "list.ckpt": ([1, 2], "is no checkpoint of Lightning: it holds a list"),
    "weights.ckpt": (GOOD["state_dict"], "is no checkpoint of Lightning: it holds a dict of weight"),
    "old.ckpt": (
        GOOD | {"pytorch-lightning_version": "1.9.5"},
        r"was written by Lightning 1\.9\.5, and 2\S+ is installed",
    ),
}
"""Files that are no checkpoints, and what is said of each."""


def test_each_broken_file_is_named_with_the_reason_and_the_way_out(tmp_path: Path) -> None:
    torch.save(GOOD, tmp_path / "good.ckpt")
    whole = (tmp_path / "good.ckpt").read_bytes()
    for name, (content, reason) in BROKEN.items():
        content = whole[: len(whole) // 2] if content == "half" else content
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name} {reason}.*(; use|; give)") as raised:
            open_checkpoint(tmp_path / name)
        assert "\n" not in str(raised.value)
        assert isinstance(raised.value, DamagedFile) == isinstance(content, bytes)
    with pytest.raises(FileNotFoundError, match=r"no file \S+none.ckpt; \S+ holds cut.ckpt, empty.ckpt, good.ckpt"):
        open_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(ValueError, match="is a folder; give a file in it"):
        open_checkpoint(tmp_path)
    assert open_checkpoint(tmp_path / "good.ckpt")["state_dict"]["weight"].shape == (200,)


@pytest.mark.parametrize("legacy", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_hostile_file_runs_nothing_wherever_it_is_opened(legacy: bool, ngdiff: list[str], tmp_path: Path) -> None:
    mark, folder = tmp_path / "mark", tmp_path / "point" / "fit" / "checkpoints"
    folder.mkdir(parents=True)
    path = folder / "last.ckpt"
    content = GOOD | {"optimizer_states": Hostile(mark), "hyper_parameters": Hostile(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    refused = pytest.raises(ValueError, match=r"last.ckpt holds an object of \S+mkdir, whose loading could run code")
    for opened in (
        lambda: open_checkpoint(path),
        lambda: last_checkpoint(tmp_path / "point"),
        lambda: load_recogniser(path),
        lambda: read_weights(str(path)),
    ):
        with refused:
            opened()
    for command, name in (("fit", str(path)), ("validate", "last"), ("test", str(path)), ("predict", "last")):
        with refused:
            main([command, *ngdiff, f"--ckpt_path={name}", f"--run={tmp_path / 'point' / 'fit'}"])
    with pytest.raises(ValueError, match="is an address; download"):
        main(["test", *ngdiff, "--ckpt_path=http://localhost:9/last.ckpt"])
    assert not mark.exists()


def test_shards_are_looked_at_before_torch_unpickles_their_metadata(ngdiff: list[str], tmp_path: Path) -> None:
    weights = {"weight": torch.zeros(2, dtype=torch.bfloat16), "list": [1, {"a": 2}]}
    dcp.save(weights, checkpoint_id=tmp_path / "good", no_dist=True)
    check_shards(tmp_path / "good")
    folder, mark = tmp_path / "point" / "bad.ckpt", tmp_path / "mark"
    folder.mkdir(parents=True)
    (folder / ".metadata").write_bytes(pickle.dumps(Hostile(mark)))
    with pytest.raises(ValueError, match=r"\.metadata holds an object of \S+mkdir, whose loading could run code"):
        main(["test", *ngdiff, f"--ckpt_path={folder}"])
    with pytest.raises(ValueError, match="whose loading could run code"):
        last_checkpoint(tmp_path / "point")
    (folder / ".metadata").write_bytes(b"ctorch.distributed.checkpoint.filesystem\nos.mkdir\n(Vmark\ntR.")
    with pytest.raises(ValueError, match=r"filesystem.os.mkdir, whose loading could run code"):
        check_shards(folder)
    (folder / ".metadata").write_bytes(b"")
    with pytest.raises(DamagedFile, match=r"\.metadata is damaged"):
        check_shards(folder)
    assert not mark.exists()


def fit(ngdiff: list[str], *more: str) -> Any:
    return main(["fit", *ngdiff, "--model.optimizer=SGD", "--model.optimizer.lr=0.1", "--trainer.max_epochs=1", *more])


def test_last_is_found_in_a_fresh_process_and_never_untrained_weights(ngdiff: list[str], tmp_path: Path) -> None:
    test = ["test", *ngdiff, "--ckpt_path=last"]
    for command in ("test", "fit"):
        with pytest.raises(UsageError, match=r"no last.ckpt in \S+lightning_logs\. Give the folder of a run as --run"):
            main([command, *ngdiff, "--ckpt_path=last"])
    first = fit(ngdiff)
    path = Path(first.trainer.log_dir) / "checkpoints" / "last.ckpt"
    assert path.is_file()
    tested: Any = main(test)
    pairs = zip(first.model.model.parameters(), tested.model.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    second = fit(ngdiff, "--model.optimizer.lr=0.2")
    tested = main(test)
    assert tested.trainer.ckpt_path == str(Path(second.trainer.log_dir) / "checkpoints" / "last.ckpt")
    tested = main([*test, f"--run={first.trainer.log_dir}"])
    assert tested.trainer.ckpt_path == str(path)
    resumed = fit(ngdiff, "--ckpt_path=last", f"--run={first.trainer.log_dir}", "--trainer.max_epochs=2")
    assert resumed.trainer.global_step == 2 * first.trainer.global_step
    with pytest.raises(UsageError, match=r"no last.ckpt in \S+ of lit_modules.NPO; those there are of lit_modules.NGD"):
        main(["test", *["--model=NPO" if arg == "--model=NGDiff" else arg for arg in ngdiff], "--ckpt_path=last"])
    with pytest.raises(UsageError, match="kept no best checkpoint"):
        main(["test", *ngdiff, "--ckpt_path=best"])
    with pytest.raises(UsageError, match="There is no folder nowhere"):
        main([*test, "--run=nowhere"])


@pytest.mark.slow
def test_best_is_found_in_a_fresh_process(ngdiff: list[str]) -> None:
    keep = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val/forget_loss"]
    keep += ["--trainer.callbacks.filename=best"]
    cli = fit(ngdiff, *keep)
    names = sorted(path.name for path in (Path(cli.trainer.log_dir) / "checkpoints").iterdir())
    assert names == ["best.ckpt", "last.ckpt"]
    tested: Any = main(["test", *ngdiff, "--ckpt_path=best"])
    assert tested.trainer.ckpt_path == str(Path(cli.trainer.log_dir) / "checkpoints" / "best.ckpt")


def test_other_names_of_lightning_are_decided(ngdiff: list[str]) -> None:
    with pytest.raises(UsageError, match="no hpc_ckpt_"):
        main(["fit", *ngdiff, "--ckpt_path=hpc"])
    with pytest.raises(UsageError, match="A model registry cannot be read"):
        main(["test", *ngdiff, "--ckpt_path=registry:someone/model"])


@pytest.mark.slow
def test_a_checkpoint_that_does_not_serve_is_named(ngdiff: list[str], tmp_path: Path) -> None:
    cli = fit(ngdiff)
    path = Path(cli.trainer.log_dir) / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    state = {name: value[:1] for name, value in content["state_dict"].items()}
    torch.save(content | {"state_dict": state}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other.ckpt does not fit the model of this run: size mismatch"):
        main(["test", *ngdiff, f"--ckpt_path={tmp_path / 'other.ckpt'}"])
    del content["optimizer_states"]
    torch.save(content, tmp_path / "light.ckpt")
    with pytest.raises(ValueError, match=r"light.ckpt holds weights alone, and no training can go on from it"):
        main(["fit", *ngdiff, f"--ckpt_path={tmp_path / 'light.ckpt'}"])


def test_ctrl_c_is_raised_as_such_and_a_kill_is_not() -> None:
    left = SystemExit(1)
    left.__context__ = KeyboardInterrupt()  # as Lightning leaves a process
    with pytest.raises(KeyboardInterrupt), raised_as_interrupt():
        raise left
    for code, kind in ((130, KeyboardInterrupt), (143, SystemExit)):
        stopped = SIGTERMException()
        stopped.code = code
        with pytest.raises(kind), raised_as_interrupt():
            raise stopped


def test_files_of_torch_are_opened_in_one_place(repository: Path) -> None:
    packages = ("lit_modules", "datamodules", "callbacks")
    files = [path for package in packages for path in (repository / package).rglob("*.py")]
    opening = [path for path in files if "torch.load(" in path.read_text(encoding="utf-8")]
    assert [path.relative_to(repository).as_posix() for path in opening] == ["lit_modules/utils/checkpoints.py"]
