"""PDU, primal-dual unlearning: flat logits on the forget rows under a bound on the retain loss."""

from typing import Any, Literal

from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from lit_modules.unlearning.core.arguments import WeightedArguments, check_not_negative
from lit_modules.unlearning.core.causal_lm import Batch
from lit_modules.unlearning.core.forget_retain import ForgetRetainLoss
from lit_modules.unlearning.core.losses import IGNORED, at_least_float32, logits_of
from lit_modules.utils.arguments import Unpack


def logit_margin_loss(logits: Tensor) -> Tensor:
    """Return ``(max - mean)^2`` of the logits ``(..., vocabulary)`` of each position, 0 for a uniform distribution.

    Example:
        >>> import torch
        >>> logit_margin_loss(torch.tensor([[3.0, 0.0, 0.0]]))
        tensor([4.])
    """
    return (logits.max(-1).values - logits.mean(-1)) ** 2


class PDU(ForgetRetainLoss):
    """Unlearn by flattening the forget rows' logits, under a bound on the retain loss that dual ascent enforces.

    The forget loss is ``(max logit - mean logit)^2`` at the positions that predict the forget rows' target tokens, or
    at all, averaged over these. The Lagrangian adds ``lambda (NLL(retain) - level)``; after ``warm_up_epochs`` each
    step sets ``lambda <- max(0, lambda + dual_step (NLL(retain) - level))`` from its own retain rows. ``lambda`` begins
    at ``retain_weight``, stands in the checkpoint and is logged as ``train/dual``.

    The level is ``(1 + tolerance)`` times the retain NLL before unlearning, here that of the first step's rows, unless
    it is given. Batch, logged names and further arguments are those of
    :class:`~lit_modules.unlearning.core.forget_retain.ForgetRetainLoss`.

    Args:
        retain_level: Bound on the retain NLL in nats per target token; ``None`` takes it from the first step.
        tolerance: Share by which the retain NLL may rise above that of the first step; used without a ``retain_level``.
            The paper leaves it to the user; 0.1 is a choice of this module.
        dual_step: Step size of the dual ascent.
        positions: Where logits are to be flat: ``"targets"``, or ``"all"`` as in the reference code, prompts and
            padding included, so that the loss depends on how wide a batch is padded.
        warm_up_epochs: Epochs before the dual variable moves.

    References:
        Entesari et al., "Constrained entropic unlearning: A primal-dual framework for large language models", arXiv
        2506.05314.
    """

    fixed_arguments = ("retain_term",)

    def __init__(
        self,
        model: str | PreTrainedModel,
        *,
        retain_level: float | None = None,
        tolerance: float = 0.1,
        dual_step: float = 1.0,
        positions: Literal["targets", "all"] = "targets",
        warm_up_epochs: int = 5,
        **shared: Unpack[WeightedArguments],
    ) -> None:
        super().__init__(model, retain_term="nll", **shared)
        if retain_level is not None:
            check_not_negative(retain_level=retain_level)
        check_not_negative(tolerance=tolerance, dual_step=dual_step)
        if positions not in ("targets", "all"):
            raise ValueError(f"positions must be 'targets' or 'all', got {positions!r}.")
        if warm_up_epochs < 0:
            raise ValueError(f"warm_up_epochs must not be negative, got {warm_up_epochs}.")
        if not self.retain_weight > 0:
            raise ValueError(
                f"retain_weight, where the dual variable begins, must be positive, got {self.retain_weight}."
            )
        self.tolerance = tolerance
        self.dual_step = dual_step
        self.positions = positions
        self.warm_up_epochs = warm_up_epochs
        self.level = retain_level
        self.dual = self.retain_weight

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
        """Return the dual variable and the factor of the forget loss."""
        return self.dual, self.forget_weight

    def forget_objective(self, batch: Batch) -> Tensor:
        """Return the margin loss, summed over the positions."""
        task = batch["forget"]
        labels = task["labels"][:, 1:]
        scored = labels.ne(IGNORED)
        logits = logits_of(self.network, task)
        predicting = at_least_float32(logits[:, :-1][scored])
        nll = cross_entropy(predicting.detach(), labels[scored], reduction="sum")
        self.record_nll("forget", nll, len(predicting))
        return logit_margin_loss(predicting if self.positions == "targets" else at_least_float32(logits)).sum()

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
