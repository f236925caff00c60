"""File and table of the answers of a test."""

import json
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden

from lit_modules.utils.run_folders import run_folder

from ._files import check_filename, log_rows, write_new


class GenerationLog(Callback):
    """Write every answer of a test, a JSON object per line, and send a table to each logger that takes tables.

    Asks of the module that ``test_step`` returns a dictionary of lists, one entry per row, with ``generation`` and
    ``id`` among them and ``split`` if ids repeat between splits; other outputs are passed over, and a test
    without any such row warns. The rows of all processes are brought together, each ``(split, id)`` once and in this
    order. An existing file with another content is kept: the rows then go to ``generations-1.jsonl`` and so on. Only
    the first process writes.

    Args:
        folder: Folder to write to; by default that of the run.
        filename: Name of the file.
        table_rows: Most rows of the table, spread evenly over all; ``None`` sends all, 0 no table.

    Raises:
        ValueError: If ``filename`` is not a plain name or ``table_rows`` is negative.
    """

    def __init__(
        self, folder: str | None = None, filename: str = "generations.jsonl", table_rows: int | None = 200
    ) -> None:
        check_filename(filename)
        if table_rows is not None and table_rows < 0:
            raise ValueError(f"table_rows must not be negative, got {table_rows}.")
        self.folder = folder
        self.filename = filename
        self.table_rows = table_rows
        self._rows: list[dict[str, Any]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the module has a test step."""
        if stage == "test" and not is_overridden("test_step", pl_module, LightningModule):
            raise TypeError(f"GenerationLog asks for {type(pl_module).__name__}.test_step(), which is missing.")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the rows of an earlier test."""
        self._rows = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the answers of a batch."""
        if not isinstance(outputs, dict) or "generation" not in outputs:
            return
        if "id" not in outputs:
            raise ValueError(f"GenerationLog asks for 'id' beside 'generation', got {', '.join(outputs)}.")
        columns = {name: values for name, values in outputs.items() if isinstance(values, list)}
        self._rows += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file and send the table."""
        folder = Path(self.folder) if self.folder else run_folder(trainer)
        parts: list[Any] = [self._rows]
        if dist.is_initialized():
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, self._rows)
        self._rows = []
        unique = {(str(row.get("split", "")), str(row["id"])): row for part in parts for row in part}
        rows = [unique[key] for key in sorted(unique)]
        if not rows:
            rank_zero_warn(
                f"GenerationLog writes nothing: no output of {type(pl_module).__name__}.test_step had 'generation'.",
                category=UserWarning,
            )
        if not rows or not trainer.is_global_zero:
            return
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path = write_new(folder / self.filename, lines)
        rank_zero_info(f"The {len(rows)} generations are in {path}.")
        count = len(rows) if self.table_rows is None else min(self.table_rows, len(rows))
        if count:
            log_rows(trainer, "test/generations", [rows[index * len(rows) // count] for index in range(count)])
