"""RMU, representation misdirection for unlearning."""

import re
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_modules.unlearning.core.arguments import WeightedArguments, check_positive
from lit_modules.unlearning.core.causal_lm import Batch
from lit_modules.unlearning.core.forget_retain import ForgetRetainLoss
from lit_modules.unlearning.core.hidden_states import hidden_states, lower_blocks, parameters_behind
from lit_modules.unlearning.core.losses import IGNORED
from lit_modules.utils.arguments import Unpack
from lit_modules.utils.random_state import preserved_random_state


def rmu_loss(hidden: Tensor, target: Tensor) -> Tensor:
    """Return the squared distance of each position's hidden state to its target, averaged over the hidden size.

    Example:
        >>> rmu_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([0.0, 0.0]))
        tensor([2.5000])
    """
    return (hidden - target).square().mean(-1)


class RMU(ForgetRetainLoss):
    r"""Unlearn by steering the hidden states of the forget rows to a fixed random direction.

    The forget loss is ``|h_l - c u|^2`` and the retain loss ``|h_l - h_l,ref|^2``, each a mean over the hidden size and
    over the rows' scored tokens, or over rows of each row's mean, with ``h_l`` the output of block ``l`` and ``u`` a
    random vector of length 1 with entries of one sign. Only the blocks up to ``l`` are run, and only what the losses
    reach is trained; what lies above stays frozen and is no part of the checkpoint.

    The reference is the network with its adapters off, else a frozen copy of the lower blocks that is made once and is
    no part of the checkpoint. No NLL is computed, so neither ``train/forget_loss`` nor ``train/retain_loss`` is logged,
    and ``callbacks.ForgetStopping`` has nothing to watch. The defaults are those of the reference framework; the
    authors use a ``coefficient`` of 6.5 or 20 and a ``retain_weight`` of 100 to 1200 with ``train_only`` the
    down-projections of three blocks. Batch and further arguments are those of
    :class:`~lit_modules.unlearning.core.forget_retain.ForgetRetainLoss`.

    Args:
        layer: Number of the block, ``l``, from 0.
        coefficient: Length of the target, ``c``.
        train_only: Regular expressions of the names of the parameters to train, such as
            ``layers\.(5|6|7)\.mlp\.down_proj``; ``None`` trains all that the losses reach.
        direction_seed: Seed of the direction ``u``.
        average: Whether a long row weighs more: ``"tokens"`` takes one mean over all scored tokens, ``"rows"`` the mean
            over rows of each row's mean. The reference framework's loss is the latter where all rows are equally long;
            else it is the mean of the rows' sums times the mean of one over their lengths.

    Raises:
        ValueError: If a number is out of its range, the model has no block ``layer``, or no parameter is left to train.

    References:
        Li et al., "The WMDP benchmark: Measuring and reducing malicious use with unlearning", arXiv 2403.03218.
    """

    needs_network = True
    fixed_arguments = ("compile", "retain_term")

    def __init__(
        self,
        model: str | PreTrainedModel,
        *,
        layer: int = 7,
        coefficient: float = 2.0,
        train_only: tuple[str, ...] | None = None,
        direction_seed: int = 0,
        average: Literal["tokens", "rows"] = "tokens",
        **shared: Unpack[WeightedArguments],
    ) -> None:
        super().__init__(model, compile=False, retain_term="nll", **shared)  # type: ignore[misc]  # parts of it run
        if layer < 0:
            raise ValueError(f"layer must not be negative, got {layer}.")
        check_positive(coefficient=coefficient)
        if average not in ("tokens", "rows"):
            raise ValueError(f"average must be 'tokens' or 'rows', got {average!r}.")
        self.layer = layer
        self.coefficient = coefficient
        self.train_only = train_only
        self.direction_seed = direction_seed
        self.average = average

    def forget_objective(self, batch: Batch) -> Tensor:
        """Return the squared distance to the target, summed over scored tokens, or over rows."""
        hidden = hidden_states(self.model, self.layer, batch["forget"])
        direction = torch.rand(hidden.shape[-1], generator=torch.Generator().manual_seed(self.direction_seed))
        target = (self.coefficient * direction / direction.norm()).to(hidden)
        return self._summed(rmu_loss(hidden, target), batch["forget"])

    def retain_objective(self, batch: Batch) -> Tensor:
        """Return the squared distance to the reference, summed over scored tokens, or over rows."""
        with self.reference_network() as reference:
            before = hidden_states(reference, self.layer, batch["retain"])
        hidden = hidden_states(self.model, self.layer, batch["retain"])
        return self._summed(rmu_loss(hidden, before), batch["retain"])

    def task_weight(self, batch: Batch, task: str) -> Tensor:
        """Return the number of scored tokens of a task, or of the rows that have some."""
        scored = batch[task]["labels"].ne(IGNORED)
        count: Tensor = scored.sum() if self.average == "tokens" else scored.any(1).sum()
        return count

    def _summed(self, losses: Tensor, task: Batch) -> Tensor:
        if self.average == "tokens":
            return losses.sum()
        scored: Tensor = task["labels"].ne(IGNORED)
        return (losses / scored.sum(1)[scored.nonzero()[:, 0]]).sum()

    @property
    def _retains_nll(self) -> bool:
        return False

    def _build_network(self) -> None:
        super()._build_network()
        # what the losses do not reach has no gradient, which data parallel training takes for an error
        with preserved_random_state():
            reached = parameters_behind(self.model, self.layer)
        for name, parameter in self.model.named_parameters():
            wanted = self.train_only is None or any(re.search(pattern, name) for pattern in self.train_only)
            parameter.requires_grad_(parameter.requires_grad and wanted and id(parameter) in reached)
        if not self.trainable_parameters():
            raise ValueError(
                f"No parameter up to block {self.layer} is left to train with train_only={self.train_only}; a name is "
                f" {next(iter(self.model.named_parameters()))[0]!r}."
            )
        self.strict_loading = all(parameter.requires_grad for parameter in self.model.parameters())

    def _frozen_copy(self) -> nn.Module:
        with lower_blocks(self.model, self.layer):
            return super()._frozen_copy()
