"""Exact resumption of a training that stopped at any step, where Lightning alone does not resume it."""

import signal
import threading
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.evaluation_loop import RestartStage as ValidationStage
from lightning.pytorch.loops.training_epoch_loop import RestartStage as BatchStage
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

INTERRUPTED, TERMINATED = 128 + int(signal.SIGINT), 128 + int(signal.SIGTERM)
"""Exit codes of a process that Ctrl-C or a polite kill has stopped."""


def stepping_batches(trainer: Trainer) -> int | float:
    """Return ``trainer.estimated_stepping_batches``, for use in ``configure_optimizers``.

    The trainer's own property sets up the training loader before the state of a resumed run is restored, and the loader
    then never gets its place (Lightning #20550); here it is set up again.

    Args:
        trainer: Trainer of a run that begins.

    Returns:
        Number of optimizer steps; infinite if the training has no end.
    """
    loop: Any = trainer.fit_loop
    early = loop._combined_loader is None
    steps = trainer.estimated_stepping_batches
    if early and loop._combined_loader is not None and trainer.ckpt_path is not None:
        loop._data_fetcher.teardown()
        loop._data_fetcher = loop._combined_loader = None
    return steps


@runtime_checkable
class KeepsBatches(Protocol):
    """Module or callback that keeps batches for a step to come, which a training that breaks off leaves behind."""

    def forget_batches(self) -> None:
        """Give the batches up; the checkpoint of an exception is written already."""


class ExactResume(Callback):
    """Let a run stop between two batches, and go on exactly there.

    Lightning resumes from the middle of an epoch, but not so from these checkpoints, which this callback mends when the
    training starts: written after the last batch of an epoch, the validation and the end of that epoch would be left
    out, and the next epoch would begin again when it is stopped in turn; written during a validation, the validation
    would go through a part of its data only; written when a batch had broken off, that batch would be counted.

    A batch that broke off comes again, with the weights as they were; what its forward pass has changed already, such
    as running statistics and the random state, stays changed.

    The first Ctrl-C lets the batch end, so that weights, optimizer and data agree; a second one, or one in a
    validation, stops at once. A run that was stopped by a signal exits with 128 and the signal's number.

    After an exception the batches that modules and callbacks keep for a step to come are given up
    (:class:`KeepsBatches`). The modules and datamodules of this project, and its command line, bring the callback with
    them; give it to a ``Trainer`` whose module and data are of other origin. It has no state.
    """

    def __init__(self) -> None:
        self._handler: Any = None  # of Ctrl-C, as long as this callback has one of its own
        self._interrupted = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mend the place of a resumed run, and take over Ctrl-C."""
        _mend_progress(trainer)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        # behind those that save, so that a checkpoint of an exception has what is given up after it
        trainer.callbacks = [*(each for each in callbacks if each is not self), self]  # type: ignore[attr-defined]
        self._interrupted = False
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._handler = lambda *_: self._interrupt(trainer)
            signal.signal(signal.SIGINT, self._handler)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the next epoch begin as usual, also after one of which there was nothing left to train or validate."""
        trainer.fit_loop.epoch_loop.restarting = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give Ctrl-C back."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give Ctrl-C back, the exit code that belongs to a signal, and what was kept of a step that was not made."""
        self._release()
        for keeper in (pl_module, *trainer.callbacks):  # type: ignore[attr-defined]
            if isinstance(keeper, KeepsBatches):
                keeper.forget_batches()
        if isinstance(exception, SIGTERMException):
            exception.code = INTERRUPTED if self._interrupted else TERMINATED

    def _interrupt(self, trainer: Trainer) -> None:
        if self._interrupted or not trainer.training:
            raise KeyboardInterrupt
        self._interrupted = True
        rank_zero_info("\nInterrupted: the run stops after this batch; Ctrl-C again stops it at once.")
        connector: Any = trainer._signal_connector
        connector.received_sigterm = True  # which the loops look at after each batch, on all processes alike

    def _release(self) -> None:
        if self._handler is not None and signal.getsignal(signal.SIGINT) is self._handler:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._handler = None


def batch_under_way(trainer: Trainer) -> bool:
    """Return whether a training batch was handed out that is not trained yet."""
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return bool(batches.ready > batches.processed)


def bring(trainer: Trainer) -> list[Callback]:
    """Return :class:`ExactResume` in a list, an empty one if the trainer has it."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [] if any(isinstance(callback, ExactResume) for callback in callbacks) else [ExactResume()]


def _mend_progress(trainer: Trainer) -> None:
    """Correct what Lightning has made of the progress that a checkpoint holds; does nothing in a new run."""
    epochs: Any = trainer.fit_loop
    batches: Any = epochs.epoch_loop
    validation: Any = batches.val_loop
    if not epochs.restarted_mid_epoch:
        return
    progress, total = batches.batch_progress.current, batches.batch_progress.total
    if progress.ready > progress.processed:  # the batch broke off: it is not counted, and comes again
        batches.batch_progress.is_last_batch = False
        if not batches._should_accumulate():
            batches._batches_that_stepped -= 1  # added again when the loop restarts
        total.reset_on_restart()
    elif batches.restarted_on_train_batch_end:
        last = batches.batch_progress.is_last_batch
        if last:  # Lightning counts the epoch as ended and passes over its last hooks
            for counts in (epochs.epoch_progress.current, epochs.epoch_progress.total):
                counts.processed = counts.completed = counts.started - 1
        due = batches._should_check_val_fx(epochs._data_fetcher)  # asks for the number of the epoch
        if last or due:  # and over the validation after the batch
            batches.batch_progress.increment_completed()
            batches._restart_stage = BatchStage.RESTARTED_ON_LAST
        if due:
            validation._restart_stage = ValidationStage.RESTARTED_MID_EVALUATION
        elif last:
            validation._has_run = True
            batches._batches_that_stepped += 1
    if validation.batch_progress.total.ready > validation.batch_progress.total.completed:
        validation._restart_stage = ValidationStage.RESTARTED_MID_EVALUATION
    if validation.restarted_mid_evaluation:  # its loader begins anew, and so does its count
        validation.batch_progress.reset()
