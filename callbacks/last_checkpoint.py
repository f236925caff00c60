"""Checkpoint of the last state of a run."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException


class LastCheckpoint(ModelCheckpoint):
    """Keep the state of a run in ``last.ckpt``: of each epoch, and of the step at which a signal or error stopped it.

    The command line adds it to every run with checkpoints; ``fit --ckpt_path last`` resumes from it. Lightning's own
    ``ModelCheckpoint(save_on_exception=True)`` would write over the best checkpoint, and one with ``save_top_k=0``
    writes nothing before the end. A state is not written over once a weight is not finite, nor, where several processes
    train, for an error, which the others do not share.

    Args:
        dirpath: Folder of the file; by default the folder of the run.
        every_n_train_steps: Optimizer steps between two states; ``None`` writes one after each epoch.
    """

    def __init__(self, dirpath: str | None = None, every_n_train_steps: int | None = None) -> None:
        super().__init__(
            dirpath=dirpath,
            filename=self.CHECKPOINT_NAME_LAST,
            every_n_train_steps=every_n_train_steps,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self._training = False

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: a resumed run writes its own file."""
        return {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch, at the step that is written already."""
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = trainer.global_step
        self._training = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the state that the training has come to."""
        training, self._training = self._training, False
        if not training or trainer.state.fn != TrainerFn.FITTING or self._should_skip_saving_checkpoint(trainer):
            return
        if trainer.world_size > 1 and not isinstance(exception, KeyboardInterrupt | SIGTERMException):
            return
        if not all(bool(weight.isfinite().all()) for weight in pl_module.parameters() if weight.requires_grad):
            return
        path = self.format_checkpoint_name(self._monitor_candidates(trainer))
        self.best_model_path = path
        self._save_checkpoint(trainer, path)
        rank_zero_info(f"The state of step {trainer.global_step} is in {path}; --ckpt_path last resumes from it.")
