"""Files and tables of callbacks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor

from lit_modules.utils.files import write_whole


def picture(pixels: Tensor) -> Image.Image:
    """Return 8-bit numbers, ``(3, height, width)``, as a picture."""
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def pixels_of(image: Image.Image) -> Tensor:
    """Return a picture as 8-bit numbers, ``(3, height, width)``."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def write_new(path: Path, text: str) -> Path:
    """Write a file in one step, keep what is there, and return the file that holds the content.

    If the file exists with another content, the first free of ``<stem>-1<suffix>``, ``<stem>-2<suffix>``, ... is
    written.
    """
    content, target, number = text.encode(), path, 0
    while target.exists():
        if target.is_file() and target.read_bytes() == content:
            return target
        number += 1
        target = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return write_whole(target, content)


def check_filename(filename: str, suffix: str = "") -> None:
    """Raise a ``ValueError`` unless a file's name is a plain one, with the suffix."""
    if filename in ("", "..") or Path(filename).name != filename or not filename.endswith(suffix):
        ending = f" that ends in {suffix}" if suffix else ""
        raise ValueError(f"filename must be a name without folders{ending}, got {filename!r}.")


def check_methods(callback: object, pl_module: LightningModule, *names: str) -> None:
    """Raise a ``TypeError`` that names a method which the callback calls and the module lacks."""
    for name in names:
        if not callable(getattr(pl_module, name, None)):  # of any module, also one that is not ours
            raise TypeError(
                f"{type(callback).__name__} asks for {type(pl_module).__name__}.{name}(), which is missing."
            )


def log_rows(trainer: Trainer, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Send rows as a table to each logger that takes tables."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    data = [[row.get(column) for column in columns] for row in rows]
    for logger in trainer.loggers:
        if hasattr(logger, "log_table"):
            logger.log_table(name, columns=columns, data=data)
