"""The record of a test under attack, as a file, a table and a picture."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from ._files import run_folder, write_new

_ASKED = ("results", "results_table", "draw_results")


class RobustnessRecord(Callback):
    """Write what a test under attack found: ``robustness.json``, a Markdown table, and a picture.

    Asks of the module ``results()``, its record of the last test, ready for JSON; ``results_table()``, the same as
    Markdown text; and ``draw_results(path)``, which draws samples and their adversarial ones into a PNG file. An
    existing record with another content is kept: the new one is then ``robustness-1.json`` with ``robustness-1.md``
    and ``robustness-1.png``, and so on. Only the first process writes.

    Args:
        folder: Folder to write to; by default that of the run.
        filename: Name of the record.

    Raises:
        ValueError: If ``filename`` is not a plain name that ends in ``.json``.
    """

    def __init__(self, folder: str | None = None, filename: str = "robustness.json") -> None:
        if Path(filename).name != filename or Path(filename).suffix != ".json":
            raise ValueError(f"filename must be a name without folders that ends in .json, got {filename!r}.")
        self.folder = folder
        self.filename = filename

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that a module that is tested has what is asked for."""
        for name in _ASKED:
            if stage == "test" and not callable(getattr(pl_module, name, None)):
                raise TypeError(f"RobustnessRecord asks for {type(pl_module).__name__}.{name}(), which is missing.")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the three files."""
        folder = Path(self.folder) if self.folder else run_folder(trainer)
        if not trainer.is_global_zero:
            return
        module: Any = pl_module
        text = json.dumps(module.results(), indent=2, ensure_ascii=False) + "\n"
        path = write_new(folder / self.filename, text)
        path.with_suffix(".md").write_text(module.results_table(), encoding="utf-8")
        module.draw_results(path.with_suffix(".png"))
        rank_zero_info(f"The results are in {path}, with a table and a picture beside it.")
