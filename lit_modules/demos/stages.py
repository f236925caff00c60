"""Stages of a demonstration: commands that a user can type, run and shown; what the folder holds is not done again."""

import json
import logging
import shlex
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any


class Demo:
    """Folder, console and clock of a demonstration.

    Args:
        folder: Folder of the run; it is made.
    """

    def __init__(self, folder: Path) -> None:
        from rich.console import Console

        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.console = folder, Console()
        self._began = time.monotonic()

    def run(self, *args: str, logs: Path | None = None) -> Any:
        """Print a command line of lit-modules and run it; one that is longer than a line is shortened.

        ``commands.sh`` in the folder has all of them whole.

        Args:
            args: Arguments.
            logs: Folder of its logs; ``None`` for a command without a trainer.
        """
        from lit_modules.cli import main

        line = list(args)
        if logs is not None:
            settings = {"save_dir": str(logs.parent), "name": logs.name, "version": ""}
            logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": settings}
            line += [f"--trainer.logger={json.dumps(logger)}", f"--trainer.default_root_dir={logs.parent}"]
        whole = shlex.join(["lit-modules", *line])
        with (self.folder / "commands.sh").open("a", encoding="utf-8") as file:
            file.write(f"{whole}\n")
        begin = shlex.join(["lit-modules", *takewhile(lambda arg: not arg.startswith("--"), line)])
        shown = whole if len(whole) <= self.console.width else f"{begin} ... (whole in commands.sh)"
        self.console.print(shown, style="dim", markup=False, no_wrap=True, overflow="ellipsis")
        return main(line)

    def finish(self, files: str) -> None:
        """Print the time, and where the results are."""
        self.console.print(f"{time.monotonic() - self._began:.0f} s. {files}")
        print(self.folder)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning and transformers in many small runs."""
    from transformers.utils import logging as transformers_logging

    bars: Any = transformers_logging
    shown, level = bars.is_progress_bar_enabled(), logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)
        bars.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        if shown:
            bars.enable_progress_bar()
