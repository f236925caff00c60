"""The checkpoint that ``--ckpt_path`` means: a file, or the last or best one of a run."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from lit_modules.utils.checkpoints import METADATA, check_shards, open_checkpoint
from lit_modules.utils.errors import UsageError
from lit_modules.utils.resuming import INTERRUPTED

SUFFIX = ".ckpt"


def find_checkpoint(name: str, command: str, trainer: Trainer, model: str | None = None, run: str | None = None) -> str:
    """Return the file that ``--ckpt_path`` means, after a look into it.

    ``last`` and ``best`` are those of ``run``, by default of the newest run of the same model below the folder of the
    trainer's logger or checkpoints; Lightning alone would find them only in the process that wrote them.

    Args:
        name: ``last``, ``best``, ``hpc``, or a file.
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        trainer: The trainer, which knows where runs lie.
        model: Class path of the model; runs of another one are passed over.
        run: Folder of the run.

    Raises:
        FileNotFoundError: If there is no such file.
        UsageError: If there is no such run, or the run has no such checkpoint.
        ValueError: If it is no checkpoint, or cannot be used.
    """
    connector: Any = trainer._checkpoint_connector
    path: str | Path
    if name in ("last", "best"):
        last = _last_of_run(trainer, model, run)
        path = last if name == "last" else _best_beside(last)
        rank_zero_info(f"The {name} checkpoint is {path}.")
    elif name == "hpc":
        if connector._hpc_resume_path is None:
            raise UsageError(f"There is no hpc_ckpt_*{SUFFIX} of a requeued run in {trainer.default_root_dir}.")
        path = Path(connector._hpc_resume_path)
    elif name == "registry" or name.startswith("registry:"):
        raise UsageError(f"A model registry cannot be read, got {name!r}; download the file and give its path.")
    elif "://" in name and not name.startswith(("http://", "https://")):
        return name  # a bucket, which Lightning reads, and with weights_only
    else:
        path = name
    if (Path(path) / METADATA).exists():  # the shards of a distributed strategy
        check_shards(path)
        return str(path)
    content = open_checkpoint(path)
    if command == "fit" and "optimizer_states" not in content:
        raise ValueError(f"{path} holds weights alone, and no training can go on from it; give one with all states.")
    return str(path)


@contextmanager
def loading(trainer: Trainer) -> Iterator[None]:
    """Name the checkpoint in the error of weights that do not fit the module."""
    try:
        yield
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        if trainer.ckpt_path is None or not lines or not lines[0].startswith("Error(s) in loading state_dict"):
            raise
        reason = " ".join(line.strip() for line in lines[1:3])[:300]
        raise ValueError(
            f"{trainer.ckpt_path} does not fit the model of this run: {reason} Give the arguments that the model was "
            "trained with, or another checkpoint."
        ) from None


@contextmanager
def raised_as_interrupt() -> Iterator[None]:
    """Raise Ctrl-C as ``KeyboardInterrupt``, where Lightning leaves the process by ``SystemExit``."""
    try:
        yield
    except SystemExit as error:
        if error.code == INTERRUPTED or isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


def _last_of_run(trainer: Trainer, model: str | None, run: str | None) -> Path:
    """Return the newest ``last.ckpt`` of a run, or of all runs of a model."""
    folders = list(_run_folders(trainer)) if run is None else [Path(run)]
    if run is not None and not folders[0].is_dir():
        raise UsageError(f"There is no folder {run}; --run takes the folder of a run.")
    paths = {
        path
        for folder in folders
        for pattern in ("last*", "checkpoints/last*", "*/checkpoints/last*")[: 2 if run is not None else 3]
        for path in folder.glob(pattern + SUFFIX)
    }
    fitting = [path for path in paths if model is None or _model_of(path) in (None, model)]
    if not fitting:
        where = " and ".join(map(str, folders))
        other = f" of {model}; those there are of {_model_of(next(iter(paths)))}" if paths else ""
        raise UsageError(
            f"There is no last{SUFFIX} in {where}{other}. Give the folder of a run as --run, or a file as --ckpt_path."
        )
    return max(fitting, key=lambda path: path.stat().st_mtime_ns)


def _run_folders(trainer: Trainer) -> Iterable[Path]:
    """Yield the folders below which the runs of a trainer lie."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
            yield Path(callback.dirpath)
    for logger in trainer.loggers[:1]:  # Lightning puts checkpoints beside the logs of the first
        yield Path(logger.save_dir or trainer.default_root_dir) / str(logger.name)
    if not trainer.loggers:
        yield Path(trainer.default_root_dir)


def _best_beside(last: Path) -> Path:
    """Return the checkpoint that scored best in the run of a last one."""
    states = open_checkpoint(last).get("callbacks", {}).values()
    best = [state for state in states if isinstance(state, dict) and state.get("monitor") is not None]
    paths = [Path(state["best_model_path"]) for state in best if state.get("best_model_path")]
    if not paths:
        raise UsageError(
            f"The run of {last} kept no best checkpoint: no ModelCheckpoint with a monitor has saved one. Give "
            "--ckpt_path last, or a file."
        )
    moved = last.with_name(paths[0].name)  # the folder of the run may have another name than then
    return moved if moved.exists() else paths[0]


def _model_of(path: Path) -> str | None:
    """Return the class path of the model whose run wrote a checkpoint, if its configuration lies there."""
    for folder in (path.parent, path.parent.parent):
        if (folder / "config.yaml").is_file():
            config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
            return str((config.get("model") or {}).get("class_path"))
    return None
