"""Folder of a run of a trainer."""

import os
from pathlib import Path

from lightning.pytorch import Trainer


def is_dev_run(trainer: Trainer) -> bool:
    """Return whether the trainer has ``fast_dev_run``, which it is given without a declared type."""
    return bool(getattr(trainer, "fast_dev_run", False))


def run_folder(trainer: Trainer) -> Path:
    """Return the folder of the run: the first logger's own, else the trainer's ``default_root_dir``.

    Every process must call it, and every process gets the folder of the first.
    """
    folder = trainer.default_root_dir
    if trainer.loggers and not is_dev_run(trainer):
        logger = trainer.loggers[0]
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        # a logger without log_dir, such as W&B's, shares its save_dir among runs: a folder as ModelCheckpoint makes it
        own = os.path.join(logger.save_dir or folder, str(logger.name), version)
        folder = getattr(logger, "log_dir", None) or own
    return Path(trainer.strategy.broadcast(folder))
