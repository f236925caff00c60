"""Where callbacks write, and how they keep what is there."""

import os
import tempfile
from pathlib import Path

from lightning.pytorch import Trainer


def run_folder(trainer: Trainer) -> Path:
    """Return the folder of the run: the first logger's own, else the trainer's ``default_root_dir``.

    Every process must call it, and every process gets the folder of the first.
    """
    folder = trainer.default_root_dir
    if trainer.loggers and not trainer.fast_dev_run:
        logger = trainer.loggers[0]
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        # a logger without log_dir, such as W&B's, shares its save_dir among runs: a folder as ModelCheckpoint makes it
        own = os.path.join(logger.save_dir or folder, str(logger.name), version)
        folder = getattr(logger, "log_dir", None) or own
    return Path(trainer.strategy.broadcast(folder))


def write_new(path: Path, text: str) -> Path:
    """Write a file in one step and keep what is there.

    If the file exists with another content, the first free of ``<stem>-1<suffix>``, ``<stem>-2<suffix>``, ... is
    written.

    Args:
        path: File to write; its folder is made.
        text: Content.

    Returns:
        The file that holds the content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="", dir=path.parent, delete=False) as file:
        file.write(text)
    written, target, number = Path(file.name), path, 0
    try:
        written.chmod(0o666 & ~_umask())
        while True:
            try:
                os.link(written, target)  # unlike a rename, fails if the file is there
                return target
            except FileExistsError:
                if target.is_file() and target.read_bytes() == text.encode():
                    return target
            number += 1
            target = path.with_name(f"{path.stem}-{number}{path.suffix}")
    finally:
        written.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
