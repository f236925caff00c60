"""Record of predictions: JSON lines and pictures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_modules.utils.run_folders import is_dev_run, run_folder

from ._files import log_rows, picture


class PredictionRecord(Callback):
    """Write the answers of ``predict``, a line of JSON for each row, and pictures as PNG files.

    Asks of ``predict_step`` a list or tensor with something for each row of the batch, or a mapping of these; one alone
    is written as ``prediction``. Floats in [0, 1] of shape ``(batch, 3, height, width)`` or ``(batch, n, 3, height,
    width)`` are pictures; the line has their paths. Numbers that are not finite are ``null``.

    The lines go to ``predictions.jsonl`` in the folder of the run, the pictures to ``predictions`` beside it. What is
    there is kept: a second prediction writes ``predictions-1``. Lines are written as they come, to a name that ends in
    ``.part`` until the prediction has ended. With several processes each has files of its own, with its number in the
    name. ``fast_dev_run`` writes nothing. ``lit-modules predict`` has this callback always. Loggers with ``log_table``
    and ``log_image``, as W&B's, get the first rows of the first process and their pictures.

    Args:
        folder: Folder to write to; by default that of the run.
        table_rows: Most rows to send, 0 for none.

    Raises:
        TypeError: In a prediction, if ``predict_step`` returns something else.
        ValueError: If ``table_rows`` is negative.
    """

    def __init__(self, folder: str | None = None, table_rows: int = 200) -> None:
        if table_rows < 0:
            raise ValueError(f"table_rows must not be negative, got {table_rows}.")
        self.folder = folder
        self.table_rows = table_rows
        self._sent: list[dict[str, Any]] = []
        self._pictures: list[Path] = []
        self._path: Path | None = None
        self._file: TextIO | None = None
        self._rows = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the file."""
        folder = Path(self.folder) if self.folder else run_folder(trainer)
        if is_dev_run(trainer):
            return
        folder.mkdir(parents=True, exist_ok=True)
        stem = "predictions" if trainer.world_size == 1 else f"predictions-rank{trainer.global_rank}"
        path, number = folder / f"{stem}.jsonl", 0
        while any(each.exists() for each in (path, path.with_suffix(""), _part(path))):
            number += 1
            path = folder / f"{stem}-{number}.jsonl"
        self._path, self._file, self._rows = path, _part(path).open("w", encoding="utf-8"), 0
        self._sent, self._pictures = [], []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the rows of a batch."""
        if self._file is None or self._path is None:
            return
        columns = outputs if isinstance(outputs, Mapping) else {"prediction": outputs}
        wrong = [name for name, value in columns.items() if not isinstance(value, Tensor | list | tuple)]
        sizes = set() if wrong else {len(value) for value in columns.values()}
        if len(sizes) != 1:
            got = f"{wrong[0]} of type {type(columns[wrong[0]]).__name__}" if wrong else f"{sorted(sizes)} rows"
            raise TypeError(
                f"PredictionRecord asks {type(pl_module).__name__}.predict_step for lists or tensors with a value for "
                f"each row, by name, got {got}."
            )
        for index in range(sizes.pop()):
            row = {name: self._plain(value[index], name) for name, value in columns.items()}
            line = json.dumps(row, ensure_ascii=False, default=str)
            self._file.write(line + "\n")
            if self._rows < self.table_rows:
                self._sent.append(json.loads(line))
            self._rows += 1
        self._file.flush()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the file its name; send the first rows."""
        if self._path is not None and self._file is not None:
            self._close()
            _part(self._path).replace(self._path)
            rank_zero_info(f"The predictions are in {self._path}.")
            self._send(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep the lines so far."""
        self._close()

    def _send(self, trainer: Trainer) -> None:
        if not self._sent or not trainer.is_global_zero:
            return
        # the columns of a table are of one type, so lists go as JSON
        log_rows(trainer, "predict/predictions", [{name: _cell(v) for name, v in row.items()} for row in self._sent])
        for logger in trainer.loggers:
            if hasattr(logger, "log_image") and self._pictures:
                captions = [path.name for path in self._pictures]
                logger.log_image("predict/pictures", [str(path) for path in self._pictures], caption=captions)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    def _plain(self, value: Any, name: str) -> Any:
        """Return a row's value as JSON takes it; write pictures, and return their paths."""
        if isinstance(value, Tensor) and value.ndim in (3, 4) and value.shape[-3] == 3 and value.is_floating_point():
            if value.ndim == 4:
                return [self._picture(image, f"{name}-{number}") for number, image in enumerate(value)]
            return self._picture(value, name)
        if isinstance(value, Tensor):
            value = value.tolist()
        if isinstance(value, float):
            return value if torch.tensor(value).isfinite() else None
        return [self._plain(each, name) for each in value] if isinstance(value, list | tuple) else value

    def _picture(self, image: Tensor, name: str) -> str:
        assert self._path is not None
        folder = self._path.with_suffix("")
        folder.mkdir(exist_ok=True)
        path = folder / f"{self._rows:05d}-{name}.png"
        pixels = image.detach().float().cpu().nan_to_num(0, 0, 0).clamp(0, 1)
        picture((pixels * 255).round().to(torch.uint8)).save(path)
        if self._rows < self.table_rows:
            self._pictures.append(path)
        return f"{folder.name}/{path.name}"


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")
