"""The stages of a demonstration: commands that a user can type, run and shown."""

import json
from pathlib import Path
from typing import Any


def log_to(folder: Path) -> list[str]:
    """Send the logs of a stage to one folder."""
    settings = {"save_dir": str(folder.parent), "name": folder.name, "version": ""}
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": settings}
    return [f"--trainer.logger={json.dumps(logger)}", f"--trainer.default_root_dir={folder.parent}"]


def say_and_run(console: Any, args: list[str]) -> Any:
    """Print a command line and run it."""
    from lit_modules.cli import main as run

    console.print(
        "lit-modules " + " ".join(f"'{arg}'" if " " in arg else arg for arg in args), style="dim", markup=False
    )
    return run(args)
