"""File of the numbers of a test or of a validation."""

import json
import math
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_modules.utils.run_folders import run_folder

from ._files import check_filename, check_methods, write_new

_VALIDATION = "validation.json"


class ResultRecord(Callback):
    """Write the results of a test, and the numbers that a validation logged, as JSON.

    After ``test`` the file holds ``results()`` of the module, its record of the last test, ready for JSON; a module
    without ``results`` is refused at ``setup``. After ``validate`` the numbers that the module logged go to
    ``validation.json``, by name, ``null`` for what is not finite; ``ForgetStopping`` reads its level from such a file.
    A validation that is part of ``fit``, or that logs nothing, writes nothing. An existing file with another content
    is kept: the record then goes to ``results-1.json`` and so on. Only the first process writes.

    Args:
        folder: Folder to write to; by default that of the run.
        filename: Name of the file with the results of a test.

    Raises:
        ValueError: If ``filename`` is not a plain name.
    """

    def __init__(self, folder: str | None = None, filename: str = "results.json") -> None:
        check_filename(filename)
        self.folder = folder
        self.filename = filename

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that a module that is tested has results."""
        if stage == "test":
            check_methods(self, pl_module, "results")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the numbers of a validation that is not part of training."""
        if trainer.state.fn == "validate" and trainer.callback_metrics:
            values = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
            numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}
            self._write(trainer, _VALIDATION, numbers)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the record of the test."""
        module: Any = pl_module
        self._write(trainer, self.filename, module.results())

    def _write(self, trainer: Trainer, filename: str, record: dict[str, Any]) -> None:
        folder = Path(self.folder) if self.folder else run_folder(trainer)
        if not trainer.is_global_zero:
            return
        path = write_new(folder / filename, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        rank_zero_info(f"The results are in {path}.")
