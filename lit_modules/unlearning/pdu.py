"""PDU, primal-dual unlearning: flat logits on the forget rows under a bound on the retain loss."""

import math
from typing import Any, Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from peft import PeftConfig
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_modules.unlearning.core.aggregators import GradientCombiner
from lit_modules.unlearning.core.causal_lm import Batch, default_optimizer
from lit_modules.unlearning.core.forget_retain import TwoObjectives
from lit_modules.unlearning.core.losses import IGNORED
from lit_modules.unlearning.core.objectives import every_logit, logit_margin_loss, scored_logits


class PDU(TwoObjectives):
    """Unlearn by flattening the forget rows' logits, under a bound on the retain loss that dual ascent enforces.

    The forget objective is ``(max logit - mean logit)^2`` at the positions that predict the forget rows' target tokens,
    or at all, averaged over these. The Lagrangian adds ``lambda (NLL(retain) - level)``; after ``warm_up_epochs`` each
    step sets ``lambda <- max(0, lambda + dual_step (NLL(retain) - level))`` from its own retain rows. ``lambda`` begins
    at ``retain_weight``, stands in the checkpoint and is logged as ``train/dual``.

    The level is ``(1 + tolerance)`` times the retain NLL before unlearning, here that of the first step's rows, unless
    it is given. Batch and logged names are those of :class:`~lit_modules.NGDiff`, and ``train/forget_objective``; see
    :class:`~lit_modules.unlearning.core.forget_retain.TwoObjectives`.

    Args:
        model: Causal language model, or the name or folder to load it from.
        tokenizer: Tokenizer for generation, or its name or folder; by default the datamodule's, else the model's.
        peft_config: Adapters to train instead of the model's own weights, such as ``peft.LoraConfig``.
        dtype: Type in which named weights are loaded.
        gradient_checkpointing: Whether to recompute activations in the backward pass, to save memory.
        compile: Whether training steps run the network through ``torch.compile``.
        accumulate: Batches per optimizer step.
        clip_norm: Largest norm of the direction; ``None`` leaves it alone.
        retain_level: Bound on the retain NLL in nats per target token; ``None`` takes it from the first step.
        tolerance: Share by which the retain NLL may rise above that of the first step; used without a ``retain_level``.
            The paper leaves it to the user; 0.1 is a choice of this module.
        dual_step: Step size of the dual ascent.
        positions: Where logits are to be flat: ``"targets"``, or ``"all"`` as in the reference code, prompts and
            padding included, so that the loss depends on how wide a batch is padded.
        warm_up_epochs: Epochs before the dual variable moves.
        forget_weight: Factor of the forget objective, ``gamma``.
        retain_weight: Factor of the retain objective, ``alpha``.
        combine: Rule that combines the two gradients, such as ``lit_modules.unlearning.core.aggregators.Normalised``;
            ``None`` adds them.
        buffer: With ``combine``, where the forget gradient waits: as it is, in half the memory, or on the CPU.
        metric: Turns test answers into numbers, such as ``lit_modules.metrics.LUMEScore``.
        max_new_tokens: Longest generated answer, in tokens.
        optimizer: Builds the optimizer from the trainable parameters.
        scheduler: Builds the learning-rate scheduler from the optimizer; it moves once per optimizer step.

    Raises:
        ValueError: If a number is out of its range.

    References:
        Entesari et al., "Constrained entropic unlearning: A primal-dual framework for large language models", arXiv
        2506.05314.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        gradient_checkpointing: bool = False,
        compile: bool = False,
        accumulate: int = 1,
        clip_norm: float | None = None,
        retain_level: float | None = None,
        tolerance: float = 0.1,
        dual_step: float = 1.0,
        positions: Literal["targets", "all"] = "targets",
        warm_up_epochs: int = 5,
        forget_weight: float = 1.0,
        retain_weight: float = 1.0,
        combine: GradientCombiner | None = None,
        buffer: Literal["device", "bfloat16", "cpu"] = "device",
        metric: Metric | None = None,
        max_new_tokens: int = 256,
        optimizer: OptimizerCallable = default_optimizer,
        scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(
            model,
            tokenizer,
            peft_config,
            dtype,
            gradient_checkpointing,
            compile,
            accumulate,
            clip_norm,
            forget_weight,
            retain_weight,
            "nll",
            combine,
            buffer,
            metric,
            max_new_tokens,
            optimizer,
            scheduler,
        )
        if retain_level is not None and not 0 <= retain_level < math.inf:
            raise ValueError(f"retain_level must be finite and not negative, got {retain_level}.")
        if not 0 <= tolerance < math.inf:
            raise ValueError(f"tolerance must be finite and not negative, got {tolerance}.")
        if not 0 <= dual_step < math.inf:
            raise ValueError(f"dual_step must be finite and not negative, got {dual_step}.")
        if positions not in ("targets", "all"):
            raise ValueError(f"positions must be 'targets' or 'all', got {positions!r}.")
        if warm_up_epochs < 0:
            raise ValueError(f"warm_up_epochs must not be negative, got {warm_up_epochs}.")
        if not retain_weight > 0:
            raise ValueError(f"retain_weight, where the dual variable begins, must be positive, got {retain_weight}.")
        self.save_hyperparameters(ignore=self._hyperparameters_left_out(model, tokenizer))
        self.tolerance = tolerance
        self.dual_step = dual_step
        self.positions = positions
        self.warm_up_epochs = warm_up_epochs
        self.level = retain_level
        self.dual = retain_weight

    def unlearning_step(self, group: list[Batch]) -> dict[str, float]:
        """Write the direction into ``.grad`` and move the dual variable."""
        numbers = super().unlearning_step(group)
        retain_loss = numbers["train/retain_loss"]
        if self.level is None:
            self.level = (1 + self.tolerance) * retain_loss
        if self.current_epoch >= self.warm_up_epochs:
            self.dual = max(0.0, self.dual + self.dual_step * (retain_loss - self.level))
        return {**numbers, "train/dual": self.dual}

    def loss_weights(self) -> tuple[float, float]:
        """Return the dual variable and the factor of the forget objective."""
        return self.dual, self.forget_weight

    def forget_objective(self, batch: Batch) -> Tensor:
        """Return the margin loss, summed over the positions."""
        task = batch["forget"]
        if self.positions == "targets":
            chosen, labels, _ = scored_logits(self.network, task)
            margins = logit_margin_loss(chosen)
        else:
            logits = every_logit(self.network, task)
            scored = task["labels"][:, 1:].ne(IGNORED)
            chosen, labels = logits[:, :-1][scored], task["labels"][:, 1:][scored]
            margins = logit_margin_loss(logits)
        self.note_nll("forget", cross_entropy(chosen.detach(), labels, reduction="sum"), len(labels))
        return margins.sum()

    def forget_count(self, batch: Batch) -> Tensor:
        """Return the number of the positions."""
        labels: Tensor = batch["forget"]["labels"]
        return super().forget_count(batch) if self.positions == "targets" else labels.new_tensor(labels.numel())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the dual variable and the level."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lit_modules_dual"] = {"dual": self.dual, "level": self.level}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the dual variable and the level."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get("lit_modules_dual")
        if saved is not None:
            self.dual, self.level = saved["dual"], saved["level"]
