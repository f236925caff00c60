"""Base of the methods that minimise a forget loss of their own beside a retain loss."""

import copy
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_modules.unlearning.core.aggregators import check_aggregator
from lit_modules.unlearning.core.arguments import GradientPairArguments, check_not_negative
from lit_modules.unlearning.core.causal_lm import Batch
from lit_modules.unlearning.core.gradient_pair import GradientPairUnlearning
from lit_modules.unlearning.core.gradients import GradientAggregator, PairStatistics, Weights, is_usable
from lit_modules.unlearning.core.losses import attended_logits, reference_kl, summed_nll, target_tokens
from lit_modules.unlearning.core.pretrained import model_hash
from lit_modules.utils.adapters import leaves_base, weights_swapped
from lit_modules.utils.arguments import Unpack
from lit_modules.utils.model_modes import evaluation_mode
from lit_modules.utils.training_state import check_finite


class ForgetRetainLoss(GradientPairUnlearning):
    """Minimise ``forget_weight * forget loss + retain_weight * retain loss``, or aggregate the two gradients.

    Without ``aggregator`` both gradients are added up in ``.grad``, so no buffer is needed and the two are not measured
    apart; a step logs ``train/norm``, the length of the sum. With ``aggregator`` the gradients of the two weighted
    losses are combined by its rule, and a step logs what :class:`~lit_modules.NGDiff` logs, where the loss to raise is
    the negative forget loss. Both log the forget loss as ``train/forget_objective``, the retain loss as
    ``train/retain_objective`` if it is no NLL, and ``train/forget_loss`` and ``train/retain_loss``, the mean token NLL,
    where the method computes it. With ``retain_weight`` 0 and no ``aggregator`` the retain rows are not touched.

    Subclasses write ``forget_objective`` and, if it is not a mean over target tokens, ``forget_count``. Where
    ``needs_network`` is true the frozen reference is the network with a new adapter off or a continued one as it was
    before training, else a copy that is made once, before training, and is no part of the checkpoint.

    Args:
        forget_weight: Factor of the forget loss, ``gamma``.
        retain_weight: Factor of the retain loss, ``alpha``.
        retain_term: The retain loss: the NLL per target token, or ``KL(p_ref || p_theta)`` per attended position,
            which without adapters holds a frozen copy of the model.
        aggregator: Rule that combines the two gradients, such as
            ``lit_modules.unlearning.core.aggregators.Normalised``; ``None`` adds them.
    """

    needs_network = False

    def __init__(
        self,
        model: str | PreTrainedModel,
        *,
        forget_weight: float = 1.0,
        retain_weight: float = 1.0,
        retain_term: Literal["nll", "kl"] = "nll",
        aggregator: GradientAggregator | None = None,
        **shared: Unpack[GradientPairArguments],
    ) -> None:
        super().__init__(model, **shared)
        check_not_negative(forget_weight=forget_weight, retain_weight=retain_weight)
        if retain_term not in ("nll", "kl"):
            raise ValueError(f"retain_term must be 'nll' or 'kl', got {retain_term!r}.")
        check_aggregator(aggregator)
        self.forget_weight = forget_weight
        self.retain_weight = retain_weight
        self.retain_term = retain_term
        self.aggregator = aggregator
        self._start: list[Tensor] = []  # of adapters which, switched off, would not give the reference
        self._frozen: list[nn.Module] = []  # a list keeps the copy out of the module tree and so of the checkpoint
        self._reference_hash: str | None = None
        self._moved = False
        self._nll_sums: dict[str, Tensor] = {}  # of a step, by task: nats and tokens

    def configure_model(self) -> None:
        """Load the weights once; keep what the reference needs before they change."""
        super().configure_model()
        if not self._fitting or self._reference_hash is not None or not self._needs_reference:
            return
        self._reference_hash = model_hash(self.model, str(self.trainer.precision), self._continued)
        self._keep_start()
        if self._needs_network and not self._adapted:
            self._frozen = [self._frozen_copy().requires_grad_(False).eval()]

    def on_fit_start(self) -> None:
        """Put the reference where the network is."""
        self._frozen = [network.to(self.device) for network in self._frozen]
        self._start = [tensor.to(self.device) for tensor in self._start]

    def unlearning_step(self, group: list[Batch]) -> dict[str, float]:
        """Write the direction into ``.grad``."""
        self._nll_sums = {}
        numbers = self._sum_step(group) if self.aggregator is None else super().unlearning_step(group)
        self._moved = True
        numbers["train/forget_objective"] = -numbers.pop("train/forget_loss")
        if not self._retains_nll and "train/retain_loss" in numbers:
            numbers["train/retain_objective"] = numbers.pop("train/retain_loss")
        if self._nll_sums:
            tasks = sorted(self._nll_sums)
            sums = self.trainer.strategy.reduce(torch.stack([self._nll_sums[task] for task in tasks]), reduce_op="sum")
            for task, (nll, tokens) in zip(tasks, sums.tolist(), strict=True):
                numbers[f"train/{task}_loss"] = nll / tokens
        return numbers

    def task_loss(self, batch: Batch, task: str) -> Tensor:
        """Return the sum of a task's loss: the negative forget loss, which is to rise, or the retain loss."""
        return -self.forget_objective(batch) if task == "forget" else self.retain_objective(batch)

    def task_weight(self, batch: Batch, task: str) -> Tensor:
        """Return what a task's sum is over."""
        return self.forget_count(batch) if task == "forget" else self.retain_count(batch)

    @abstractmethod
    def forget_objective(self, batch: Batch) -> Tensor:
        """Return the forget loss to minimise, summed over :meth:`forget_count`."""

    def forget_count(self, batch: Batch) -> Tensor:
        """Return what the forget loss is a mean over: by default the forget rows' target tokens."""
        return target_tokens(batch["forget"])

    def retain_objective(self, batch: Batch) -> Tensor:
        """Return the retain loss to minimise, summed over :meth:`retain_count`."""
        retain = batch["retain"]
        if self.retain_term == "nll":
            return summed_nll(self.network, retain)
        with self.reference_network() as reference:
            before = attended_logits(reference, retain)
        return reference_kl(before, attended_logits(self.network, retain)).sum()

    def retain_count(self, batch: Batch) -> Tensor:
        """Return what the retain loss is a mean over: target tokens, or attended positions for the KL."""
        retain = batch["retain"]
        count: Tensor = target_tokens(retain) if self.retain_term == "nll" else retain["attention_mask"].sum()
        return count

    def probe_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss that a learning rate is to lower, for ``callbacks.AdaptiveLR``.

        Returns:
            The summed retain NLL and its tokens; for a method without a retain term its own loss and its count.
        """
        if self.retain_weight or self.aggregator is not None:
            return super().probe_loss(batch)
        return self.forget_objective(batch), self.forget_count(batch)

    def loss_weights(self) -> tuple[float, float]:
        """Return the factors of the retain and of the forget loss in this step."""
        return self.retain_weight, self.forget_weight

    def weights(self, pair: PairStatistics) -> Weights:
        """Return the factors that ``aggregator`` gives to the gradients of the weighted losses."""
        assert self.aggregator is not None
        return self.aggregator.of_weighted(pair, *self.loss_weights())

    @contextmanager
    def reference_network(self) -> Iterator[nn.Module]:
        """Give the network as it was before unlearning, without gradient and in evaluation mode."""
        network = self.model if self._adapted else self._frozen[0]
        if self._start:
            reference: Any = weights_swapped(self.trainable_parameters(), self._start)
        else:
            reference = self.model.disable_adapter() if self._adapted else nullcontext()
        with torch.no_grad(), evaluation_mode(network), reference:
            yield network

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the model that is the reference."""
        super().on_save_checkpoint(checkpoint)
        if self._reference_hash is not None:
            checkpoint["lit_modules_reference"] = {"model": self._reference_hash}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with another reference."""
        super().on_load_checkpoint(checkpoint)
        if self._reference_hash is not None:
            self._keep_start()  # of an adapter that the checkpoint brought
        self._moved = True
        saved = checkpoint.get("lit_modules_reference", {}).get("model")
        if saved is not None and self._reference_hash not in (None, saved):
            raise ValueError(
                f"The checkpoint was written by a run whose reference is the model {saved[:12]}, and this run starts "
                f"from the model {str(self._reference_hash)[:12]}; give the model and the precision that the first "
                "run started from."
            )

    def record_nll(self, task: str, nll: Tensor, tokens: Tensor | int) -> None:
        """Add a summed NLL, and the tokens it is over, to what the step logs."""
        sums = torch.stack([nll.detach().double(), torch.as_tensor(tokens, device=nll.device).double()])
        self._nll_sums[task] = self._nll_sums[task] + sums if task in self._nll_sums else sums

    @property
    def _retains_nll(self) -> bool:
        return self.retain_term == "nll"

    @property
    def _needs_network(self) -> bool:
        return self.needs_network or self.retain_term == "kl"

    @property
    def _needs_reference(self) -> bool:
        return self._needs_network

    @property
    def _adapted(self) -> bool:
        return isinstance(self.model, PeftModel)

    def _keep_start(self) -> None:
        """Keep the weights of an adapter that belongs to the reference, or changes it even when it is off."""
        if (
            self._adapted
            and not self._start
            and (self._continued or not leaves_base(self.model.peft_config["default"]))
        ):
            self._start = [parameter.detach().clone() for parameter in self.trainable_parameters()]

    def _frozen_copy(self) -> nn.Module:
        return copy.deepcopy(self.model)  # type: ignore[no-any-return]

    def _sum_step(self, group: list[Batch]) -> dict[str, float]:
        """Write the gradient of the weighted sum into ``.grad``."""
        retain_weight, forget_weight = self.loss_weights()
        losses = {"forget": self.accumulate_gradient(group, "forget", -forget_weight)}
        if self.retain_weight:
            losses["retain"] = self.accumulate_gradient(group, "retain", retain_weight)
        *values, norm = self.to_floats(*losses.values(), self.gradient_norm())
        numbers = dict(zip(losses, values, strict=True))
        check_finite(self, numbers, self.row_names(group))
        logged = {f"train/{task}_loss": loss for task, loss in numbers.items()}
        return {**logged, "train/norm": norm, "skip": float(not is_usable(norm))}
