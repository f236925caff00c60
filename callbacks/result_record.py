"""The numbers of a test as a file."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from callbacks._files import run_folder, write_new


class ResultRecord(Callback):
    """Write what a test found as JSON.

    Asks of the module ``results()``, which returns the record of the last test, ready for JSON. An existing file with
    another content is kept: the record then goes to ``results-1.json`` and so on. Only the first process writes.

    Args:
        folder: Folder to write to; by default that of the run.
        filename: Name of the file.

    Raises:
        ValueError: If ``filename`` is not a plain name.
    """

    def __init__(self, folder: str | None = None, filename: str = "results.json") -> None:
        if not filename or Path(filename).name != filename:
            raise ValueError(f"filename must be a name without folders, got {filename!r}.")
        self.folder = folder
        self.filename = filename

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the module has results."""
        if not callable(getattr(pl_module, "results", None)):
            raise TypeError(f"ResultRecord asks for {type(pl_module).__name__}.results(), which is missing.")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the record."""
        folder = Path(self.folder) if self.folder else run_folder(trainer)
        if not trainer.is_global_zero:
            return
        module: Any = pl_module
        path = write_new(folder / self.filename, json.dumps(module.results(), indent=2, ensure_ascii=False) + "\n")
        rank_zero_info(f"The results are in {path}.")
