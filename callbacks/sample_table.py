"""Table of a language model's answers while it trains."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lit_modules.utils.run_folders import is_dev_run

from ._files import check_methods, log_rows


class SampleTable(Callback):
    """Log the model's answers to fixed prompts after each validation.

    Asks of the module ``generate(prompt, max_new_tokens) -> answer``, both strings, and of a logger ``log_table``, as
    W&B's has it. Every process answers, so that sharded models can; the first logs.

    Args:
        prompts: Prompts to answer.
        max_new_tokens: Longest answer, in tokens.

    Raises:
        ValueError: If there is no prompt or ``max_new_tokens`` is not positive.
    """

    def __init__(self, prompts: tuple[str, ...], max_new_tokens: int = 64) -> None:
        if not prompts:
            raise ValueError("prompts must hold at least one prompt.")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
        self.prompts = prompts
        self.max_new_tokens = max_new_tokens

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the module answers and a logger listens."""
        check_methods(self, pl_module, "generate")
        if not any(hasattr(logger, "log_table") for logger in trainer.loggers) and not is_dev_run(trainer):
            rank_zero_warn("SampleTable logs nothing: no logger of the trainer has log_table, as that of W&B does.")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send one table to each logger that takes tables."""
        if trainer.sanity_checking or not any(hasattr(logger, "log_table") for logger in trainer.loggers):
            return
        module: Any = pl_module
        rows = [{"prompt": prompt, "answer": module.generate(prompt, self.max_new_tokens)} for prompt in self.prompts]
        if trainer.is_global_zero:
            log_rows(trainer, "val/samples", rows)
