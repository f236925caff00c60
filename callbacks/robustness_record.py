"""Record of a test under attack: file, table and picture, on disk and in the loggers."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image

from lit_modules.utils.run_folders import run_folder

from ._files import check_filename, check_methods, pixels_of, write_new


class RobustnessRecord(Callback):
    """Write the results of a test under attack: ``robustness.json``, a Markdown table, and a picture.

    Asks of the module ``results()``, its record of the last test, ready for JSON; ``results_table()``, the same as
    Markdown text; ``results_rows()``, the rows of that table as texts, titles first; and ``draw_results(path)``, which
    draws samples and their adversarial ones into a PNG file. The table goes as ``test/robustness`` to loggers with
    ``log_table`` and the picture as ``test/examples`` to loggers with ``log_image``, as W&B's has both; those whose
    experiment has ``add_text`` and ``add_image``, as TensorBoard's has, get them there.

    An existing record with another content is kept: the new one is then ``robustness-1.json`` with ``robustness-1.md``
    and ``robustness-1.png``, and so on. Only the first process writes.

    Args:
        folder: Folder to write to; by default that of the run.
        filename: Name of the record.

    Raises:
        ValueError: If ``filename`` is not a plain name that ends in ``.json``.
    """

    def __init__(self, folder: str | None = None, filename: str = "robustness.json") -> None:
        check_filename(filename, ".json")
        self.folder = folder
        self.filename = filename

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that a module that is tested has what is asked for."""
        if stage == "test":
            check_methods(self, pl_module, "results", "results_table", "results_rows", "draw_results")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the three files, and send table and picture to the loggers."""
        folder = Path(self.folder) if self.folder else run_folder(trainer)
        if not trainer.is_global_zero:
            return
        module: Any = pl_module
        text = json.dumps(module.results(), indent=2, ensure_ascii=False) + "\n"
        path = write_new(folder / self.filename, text)
        path.with_suffix(".md").write_text(module.results_table(), encoding="utf-8")
        module.draw_results(path.with_suffix(".png"))
        self._log(trainer, module, path)
        rank_zero_info(f"The results are in {path}, with a table and a picture beside it.")

    def _log(self, trainer: Trainer, module: Any, path: Path) -> None:
        titles, *rows = module.results_rows()
        picture = str(path.with_suffix(".png"))
        for logger in trainer.loggers:
            board: Any = getattr(logger, "experiment", None)
            if hasattr(logger, "log_table"):
                logger.log_table("test/robustness", columns=[titles[0] or "attack", *titles[1:]], data=rows)
            elif hasattr(board, "add_text"):
                board.add_text("test/robustness", module.results_table(), trainer.global_step)
            if hasattr(logger, "log_image"):
                logger.log_image("test/examples", [picture])
            elif hasattr(board, "add_image"):
                with Image.open(picture) as image:
                    board.add_image("test/examples", pixels_of(image), trainer.global_step)
