"""Folder of a trained model that other libraries load."""

import inspect
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_modules.utils.run_folders import is_dev_run, run_folder


class SavePretrained(Callback):
    """Save the weights at the end of training as a folder that transformers or peft loads, the tokenizer beside them.

    Asks of the module ``save_pretrained(folder)``, and to merge, ``save_pretrained(folder, merge=True)``; a module that
    has ``check_save_pretrained`` is asked with the same arguments before training whether it can. The tokenizer
    is the ``tokenizer`` of the datamodule, else of the module; without one a warning says so. Only the first process
    writes; under ``ModelParallelStrategy``, where all of them gather the weights, all call the module, which is to let
    the first one write. A run with ``fast_dev_run`` saves nothing, as Lightning saves no checkpoint then.

    Args:
        folder: Folder to write to, whose files of the same names are replaced; by default ``pretrained`` in the folder
            of the run.
        merge: Whether the module is to merge its adapters into the weights; otherwise it saves adapters alone.
    """

    def __init__(self, folder: str | None = None, merge: bool = False) -> None:
        self.folder = folder
        self.merge = merge

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the module can be saved."""
        name = type(pl_module).__name__
        save = getattr(pl_module, "save_pretrained", None)
        if not callable(save):
            raise TypeError(f"SavePretrained asks for {name}.save_pretrained(folder), which is missing.")
        if self.merge and "merge" not in inspect.signature(save).parameters:
            raise TypeError(f"SavePretrained(merge=True) asks {name}.save_pretrained for an argument merge.")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the module check, now that its weights are there, that it will be able to save."""
        check = getattr(pl_module, "check_save_pretrained", None)
        if check is not None and not is_dev_run(trainer):
            check(str(self._folder(trainer)), **({"merge": True} if self.merge else {}))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save weights and tokenizer."""
        if is_dev_run(trainer):
            return
        folder = self._folder(trainer)
        module: Any = pl_module
        sharded = isinstance(trainer.strategy, ModelParallelStrategy)  # weights that all processes gather
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
        if trainer.is_global_zero or sharded:
            module.save_pretrained(str(folder), **({"merge": True} if self.merge else {}))
        if not trainer.is_global_zero:
            return
        try:
            tokenizer = _tokenizer(trainer, pl_module)
        except (OSError, ValueError) as error:  # the weights are saved: what they lack is told, not fatal
            rank_zero_warn(f"The model in {folder} has no tokenizer beside it: {error}")
        else:
            tokenizer.save_pretrained(str(folder))
        rank_zero_info(f"The model is in {folder}.")

    def _folder(self, trainer: Trainer) -> Path:
        return Path(self.folder) if self.folder else run_folder(trainer) / "pretrained"


def _tokenizer(trainer: Trainer, pl_module: LightningModule) -> Any:
    tokenizer = getattr(getattr(trainer, "datamodule", None), "tokenizer", None)
    if tokenizer is None and inspect.getattr_static(pl_module, "tokenizer", None) is not None:
        tokenizer = pl_module.tokenizer
    if not hasattr(tokenizer, "save_pretrained"):
        raise ValueError("neither the datamodule nor the module has one.")
    return tokenizer
