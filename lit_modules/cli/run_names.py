"""Names of runs in Weights & Biases, so that the runs of a project can be told apart."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import WandbLogger

from lit_modules.cli.recipes import recipes_folder
from lit_modules.utils.arguments import import_class

_VARIABLES = {"name": "WANDB_NAME", "group": "WANDB_RUN_GROUP", "job_type": "WANDB_JOB_TYPE", "tags": "WANDB_TAGS"}
"""Variables of the environment by which a user gives what a logger's argument gives."""


def name_wandb_runs(config: Namespace, stage: str) -> None:
    """Give the loggers of Weights & Biases in a configuration what the user did not give.

    A run is called ``<method>-<data>-<seed>``. Its group is the recipe, such as ``ngdiff/lume``, without one
    ``<method>-<data>``; its job type the command; its tag the family of the method, such as ``unlearning``.
    """
    loggers = config["trainer"]["logger"]
    entries = [entry for entry in (loggers if isinstance(loggers, list) else [loggers]) if _is_wandb(entry)]
    if not entries:
        return
    paths = [str(config[part]["class_path"]) for part in ("model", "data") if config.get(part) is not None]
    names = [path.rpartition(".")[2] for path in paths]
    seed = config["seed_everything"]
    values = {
        "name": "-".join(names if isinstance(seed, bool) else [*names, str(seed)]),
        "group": _recipe(config.get("config") or []) or "-".join(names),
        "job_type": stage,
        "tags": [_family(paths[0])],
    }
    for entry in entries:
        for key, value in values.items():
            if entry.init_args.get(key) is None and _VARIABLES[key] not in os.environ:
                entry.init_args[key] = value


def _is_wandb(entry: Any) -> bool:
    return isinstance(entry, Namespace) and issubclass(import_class(str(entry["class_path"])), WandbLogger)


def _family(path: str) -> str:
    """Return the family of a method of ours, or the package of another."""
    package, _, inner = str(import_class(path).__module__).partition(".")
    return inner.partition(".")[0] if package == "lit_modules" else package


def _recipe(files: Iterable[Any]) -> str:
    """Return the name of the first recipe among configuration files: shipped ones with their folder."""
    for file in filter(None, files):  # null stands for text
        path = Path(str(file)).resolve()
        if path.is_relative_to(recipes_folder()) and not path.parent.name.startswith("_"):
            return f"{path.parent.name}/{path.stem}"
        if not path.is_relative_to(recipes_folder()) and not path.stem.startswith("config"):  # as a run writes it
            return path.stem
    return ""
