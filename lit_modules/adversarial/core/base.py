"""Bases of the adversarial training modules: robust validation and test, and a step on a loss of attacked samples."""

import hashlib
import math
import os
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lit_modules.adversarial.core.defaults import pgd_like
from lit_modules.adversarial.core.evaluation import RobustEvaluation, check_width, name_attacks
from lit_modules.adversarial.core.report import markdown, plot_examples, table_rows
from lit_modules.attacks.engine.base import Attack
from lit_modules.attacks.engine.checks import check_bounds, check_classes
from lit_modules.attacks.pgd import LinfPGD
from lit_modules.metrics.robustness import RobustAccuracy
from lit_modules.utils.arguments import Unpack
from lit_modules.utils.classifiers import take_logits
from lit_modules.utils.model_modes import release_modes
from lit_modules.utils.precision import check_precision
from lit_modules.utils.progress import shown
from lit_modules.utils.random_state import random_state, set_random_state
from lit_modules.utils.resuming import bring

Batch = dict[str, Tensor]
INJECTED = (
    "classifier",
    "attack",
    "reference",
    "guard_attack",
    "validation_attack",
    "test_attacks",
    "optimizer",
    "scheduler",
)
"""Arguments that hparams leave out: objects, which do not load safely."""


class AdversarialArguments(TypedDict, total=False):
    """Arguments that every adversarial method takes by name; see :class:`AdversarialTraining`."""

    validation_attack: Attack | None
    test_attacks: dict[str, Attack] | list[Attack] | None
    evaluation_folder: str | None
    scheduler: LRSchedulerCallable | None
    scheduler_interval: Literal["step", "epoch"]
    seed: int


class AdversarialTraining(LightningModule):
    """Train a classifier, and validate and test it under attacks; the base of the adversarial training modules.

    A batch is ``{"image", "label"}``: ``image`` float in [0, 1], ``(batch, channel, height, width)``, and ``label``
    int64 ``(batch,)``; evaluation batches also have ``index``, int64 ``(batch,)``, the place of each sample in its
    split. Normalisation belongs inside the classifier.

    The module called with images gives logits. ``predict`` gives for each batch a dict of ``prediction``, the class
    ``(batch,)``, and ``probability``, ``(batch, classes)``, with ``index`` where the batch has it; a batch of images
    alone will do.

    ``validate`` logs ``val/accuracy`` and ``val/robust_accuracy``, the accuracy under ``validation_attack``; select
    checkpoints by the second. ``test`` runs every one of ``test_attacks`` on every sample that is classified correctly,
    audits each perturbation in float64, logs ``test/accuracy``, ``test/robust_accuracy`` (worst case over the attacks)
    and ``test/robust_accuracy/<name>``, and leaves its record in :meth:`results`. Finished samples are kept on
    disk, so a test that is broken off goes on where it was; the progress bar shows the robust accuracy so far. Tried on
    one device and with DDP.

    Args:
        classifier: Gives logits ``(batch, classes)`` for images in [0, 1], or an object with ``logits``; see
            ``lit_modules.networks`` for those of transformers, torchvision, timm and torch.export.
        reference: Attack whose norm, radius and bounds the default attacks of validation and test take.
        validation_attack: Attack of the validation; by default PGD of 20 steps of a quarter of the radius, in the norm
            and radius of the training's attack.
        test_attacks: Attacks of the test, by name or as a list; by default PGD of 100 steps in that norm and radius.
        evaluation_folder: Folder for the records of finished test samples; by default ``evaluation`` in the trainer's
            ``default_root_dir``.
        optimizer: Builds the optimizer from the trainable parameters.
        scheduler: Builds the learning-rate scheduler from the optimizer.
        scheduler_interval: Whether the scheduler moves after each optimizer step or after each epoch.
        seed: Seed of the attack's random numbers in training.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        classifier: nn.Module,
        reference: Attack,
        *,
        optimizer: OptimizerCallable,
        validation_attack: Attack | None = None,
        test_attacks: dict[str, Attack] | list[Attack] | None = None,
        evaluation_folder: str | None = None,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["step", "epoch"] = "step",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=INJECTED)
        if scheduler_interval not in ("step", "epoch"):
            raise ValueError(f"scheduler_interval must be 'step' or 'epoch', got {scheduler_interval!r}.")
        if validation_attack is not None and validation_attack.targeted:
            raise ValueError(f"validation_attack must be untargeted, as test_attacks; got {validation_attack!r}.")
        release_modes(classifier)
        self.classifier = classifier
        self.validation_attack = validation_attack or pgd_like(reference, 20, 0.25, "validation_attack")
        if test_attacks is None:
            test_attacks = {"pgd": pgd_like(reference, 100, 0.025, "test_attacks")}
        self.test_attacks = name_attacks(test_attacks)
        self.evaluation_folder = evaluation_folder
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.scheduler_interval = scheduler_interval
        self.seed = seed
        self.validation_accuracy = RobustAccuracy()
        self.validation_robust_accuracy = RobustAccuracy()
        self._evaluation: RobustEvaluation | None = None
        self._rng_state: dict[str, Any] | None = None

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the trainer's datamodule; ``None`` without one that says it."""
        # a user's own datamodule need not have the attribute
        number: int | None = getattr(getattr(self._trainer, "datamodule", None), "num_classes", None)
        return number

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of images."""
        return take_logits(self.classifier(image))

    def configure_callbacks(self) -> list[Any]:
        """Bring what lets a run stop and go on at any batch."""
        return bring(self.trainer)

    def setup(self, stage: str) -> None:
        """Check that the weights stay in float32, in which the attacks work."""
        check_precision(self)

    def on_train_start(self) -> None:
        """Give a resumed run the random state that it was stopped with."""
        if self._rng_state is not None:
            set_random_state(self._rng_state)
            self._rng_state = None

    def log_training(self, loss: Tensor, logits: dict[str, Tensor], labels: Tensor) -> None:
        """Log the loss, and the accuracy of each of the logits."""
        self.log("train/loss", loss, prog_bar=True, batch_size=len(labels))
        for name, answer in logits.items():
            check_width(answer, self.num_classes)
            right = (answer.detach().argmax(1) == labels).float().mean()
            self.log(f"train/{name}", right, prog_bar=True, batch_size=len(labels))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Classify the batch as it is and under the validation attack."""
        images, labels = self.unpack(batch)
        index = batch.get("index")
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            # tensors made in inference mode could not take part in the attack's gradients
            images, labels = images.clone(), labels.clone()
            check_bounds(self.validation_attack.bounds, images)
            logits = self(images)
            check_classes(labels, logits.shape[1])
            check_width(logits, self.num_classes)
            answer = logits.argmax(1)
            right = answer == labels
            if bool(right.any()):
                result = self.validation_attack.run(self.classifier, images[right], labels[right])
                right[right.clone()] = ~result.success
        self.validation_accuracy.update(answer, labels, index)
        self.validation_robust_accuracy.update(torch.where(right, labels, -1), labels, index)

    def on_validation_epoch_end(self) -> None:
        """Log both accuracies."""
        for name, metric in (
            ("val/accuracy", self.validation_accuracy),
            ("val/robust_accuracy", self.validation_robust_accuracy),
        ):
            value = metric.compute()["accuracy"].float()
            metric.reset()
            self.log(name, value, prog_bar=True, sync_dist=True)

    def on_test_start(self) -> None:
        """Find what an earlier test of these weights has finished."""
        folder = self.evaluation_folder or os.path.join(self.trainer.default_root_dir, "evaluation")
        keep = not getattr(self.trainer, "fast_dev_run", False)
        self._evaluation = RobustEvaluation(
            self.classifier, self.test_attacks, Path(folder) if keep else None, self.num_classes
        )
        for name, run in self._evaluation.runs.items():
            if len(run):
                rank_zero_info(f"The test goes on: {len(run)} samples under {name!r} are finished in {run.folder}.")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Run every attack on the samples of the batch that are not finished."""
        images, labels = self.unpack(batch, index=True)
        assert self._evaluation is not None
        with shown(self.trainer):
            self._evaluation.update(images, labels, batch["index"])
        so_far = self._evaluation.robust_accuracy()
        self.log("robust", so_far, prog_bar=True, logger=False, on_step=True, on_epoch=False, batch_size=len(labels))

    def predict_step(self, batch: Any, batch_idx: int) -> Batch:
        """Classify the images of a batch.

        Args:
            batch: Dict with ``image``, or images alone, or images with something after them.
            batch_idx: Number of the batch.

        Returns:
            ``prediction``, ``probability``, and the batch's ``index`` if it has one.

        Raises:
            ValueError: If the batch holds no images.
        """
        named = isinstance(batch, dict)
        images = batch.get("image") if named else batch[0] if isinstance(batch, list | tuple) else batch
        if not isinstance(images, Tensor):
            got = sorted(batch) if named else type(images).__name__
            raise ValueError(f"{type(self).__name__} predicts for batches with the key image, got {got}.")
        probability = self(images).float().softmax(1)
        known = {"index": batch["index"]} if named and "index" in batch else {}
        return {**known, "prediction": probability.argmax(1), "probability": probability}

    def on_test_epoch_end(self) -> None:
        """Gather the samples of all processes and log the accuracies."""
        assert self._evaluation is not None
        record = self._evaluation.finish()
        self.log("test/accuracy", record["clean"]["accuracy"])
        if record["worst_case"] is not None:
            self.log("test/robust_accuracy", record["worst_case"]["robust_accuracy"])
        for name, numbers in record["attacks"].items():
            self.log(f"test/robust_accuracy/{name}", numbers["robust_accuracy"])

    def results(self) -> dict[str, Any]:
        """Return the record of the last test, ready for JSON; see ``lit_modules.adversarial.core.report.summarise``.

        Raises:
            RuntimeError: If there was no test.
        """
        if self._evaluation is None or self._evaluation.record is None:
            raise RuntimeError("There are no results before a test is finished.")
        return self._evaluation.record

    def results_table(self) -> str:
        """Return the record of the last test as a Markdown table."""
        return markdown(self.results())

    def results_rows(self) -> list[list[str]]:
        """Return the rows of that table, the first of them its titles."""
        return table_rows(self.results())

    def draw_results(self, path: str | Path) -> None:
        """Draw samples of the last test beside their adversarial ones, as a PNG file."""
        self.results()  # refuses a module that was not tested
        assert self._evaluation is not None
        plot_examples(self._evaluation.examples, path)

    def save_pretrained(self, folder: str) -> None:
        """Write the classifier, and a model card.

        One of transformers (:class:`~lit_modules.networks.TransformersClassifier`) is written as a folder that
        transformers load, with its image processor; the weights of any other are ``model.safetensors``, which
        ``safetensors.torch.load_model`` puts into a classifier that was built alike.
        """
        from lit_modules.adversarial.core.saving import save_classifier

        save_classifier(self, folder)

    def configure_optimizers(self) -> Any:
        """Build the optimizer of the trainable parameters, and the scheduler if there is one."""
        parameters = [parameter for parameter in self.classifier.parameters() if parameter.requires_grad]
        try:
            optimizer = self.optimizer(parameters)
        except ValueError as error:
            raise ValueError(f"The optimizer of {type(self).__name__} refuses its arguments: {error}.") from error
        for group in optimizer.param_groups:
            if not 0 <= float(group["lr"]) < math.inf:
                raise ValueError(f"The learning rate must be finite and not negative, got {float(group['lr'])}.")
        scheduler = self.build_scheduler(optimizer)
        if scheduler is None:
            return optimizer
        config: dict[str, Any] = {"scheduler": scheduler, "interval": self.scheduler_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            config["monitor"] = "val/robust_accuracy"
        return {"optimizer": optimizer, "lr_scheduler": config}

    def build_scheduler(self, optimizer: Any) -> Any:
        """Return the scheduler of the optimizer, or ``None``."""
        return None if self.scheduler is None else self.scheduler(optimizer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a resumed run needs to go on as if nothing had happened."""
        checkpoint["lit_modules_method"] = type(self).__name__
        checkpoint["lit_modules_rng"] = random_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume the training of another method."""
        method = checkpoint.get("lit_modules_method")
        fitting = self._trainer is not None and self._trainer.state.fn == "fit"
        if fitting and method != type(self).__name__:
            raise ValueError(
                f"The checkpoint was written by {method or 'another module'}, and this run trains "
                f"{type(self).__name__}; a run resumes only its own method. To start from its weights, load them into "
                "the classifier."
            )
        if fitting:
            self._rng_state = checkpoint.get("lit_modules_rng")

    def unpack(self, batch: Any, index: bool = False) -> tuple[Tensor, Tensor]:
        """Return images and labels of a batch.

        Args:
            batch: Batch of the datamodule.
            index: Whether the batch must name its samples.

        Raises:
            ValueError: If something is missing.
        """
        need = ["image", "label", *(["index"] if index else [])]
        if not isinstance(batch, dict) or not set(need) <= batch.keys():
            got = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
            raise ValueError(f"{type(self).__name__} takes batches with the keys {', '.join(need)}, got {got}.")
        return batch["image"], batch["label"]


class LossTraining(AdversarialTraining, ABC):
    """Train on a loss of each batch and the samples that an attack finds for it; the base of most methods.

    The adversarial samples are found in evaluation mode, without gradients of the parameters and in float32, with
    random numbers that depend on ``seed``, on the step and on the sample alone; so a resumed run, and one on several
    processes, meets the same ones. The step then follows in training mode. A batch that holds ``adversarial`` is not
    attacked again; ``callbacks.AdversarialWeightPerturbation`` makes use of this.

    Args:
        classifier: See :class:`AdversarialTraining`.
        attack: Finds the adversarial samples; ``None`` trains on clean samples.
        optimizer: Builds the optimizer from the trainable parameters.
        shared: Arguments of :class:`AdversarialTraining`, by name.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        classifier: nn.Module,
        attack: Attack | None,
        optimizer: OptimizerCallable,
        **shared: Unpack[AdversarialArguments],
    ) -> None:
        if attack is not None and attack.targeted:
            raise ValueError(f"attack must be untargeted, as it is given the true labels; got {attack!r}.")
        keep = getattr(attack, "keep", "last")  # other attacks than PGD have none
        if keep != "last":
            warnings.warn(
                f"attack.keep={keep!r} leaves fooled samples early, so {type(self).__name__} trains on weaker ones; "
                "its paper takes the last iterate, keep='last'.",
                stacklevel=3,
            )
        super().__init__(classifier, attack or LinfPGD(eps=8 / 255), optimizer=optimizer, **shared)
        self.attack = attack

    @abstractmethod
    def objective(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch of :meth:`adversarial_batch`, and logits by the name of their accuracy."""

    def adversarial_batch(self, batch: Batch) -> Batch:
        """Return the batch with the samples that the attack finds, in ``adversarial``."""
        images, labels = self.unpack(batch)
        if self.attack is None:
            return batch
        return batch | {"adversarial": self.attack(self.classifier, images, labels, seed=self.step_seed())}

    def adversarial_loss(self, batch: Batch) -> Tensor:
        """Return the training loss of a batch that :meth:`adversarial_batch` made, a scalar."""
        return self.objective(batch)[0]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Attack the batch and return its loss."""
        labels = self.unpack(batch)[1]
        loss, logits = self.objective(batch if "adversarial" in batch else self.adversarial_batch(batch))
        self.log_training(loss.detach(), logits, labels)
        return loss

    def step_seed(self) -> int:
        """Return the seed of the attack in this optimizer step."""
        text = f"{self.seed}/{self.global_step}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")
