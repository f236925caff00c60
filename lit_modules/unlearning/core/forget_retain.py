"""What the methods share that minimise a forget objective of their own beside a retain objective."""

import math
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torchmetrics import Metric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_modules.unlearning.core.aggregators import GradientCombiner, check_combiner
from lit_modules.unlearning.core.base import TwoTaskUnlearning
from lit_modules.unlearning.core.causal_lm import Batch
from lit_modules.unlearning.core.gradients import PairStatistics, global_norm
from lit_modules.unlearning.core.losses import summed_nll, target_tokens
from lit_modules.unlearning.core.objectives import attended_logits, reference_kl
from lit_modules.unlearning.core.reference import frozen_copy, model_hash, with_weights, without_adapter
from lit_modules.utils.adapters import leaves_base
from lit_modules.utils.training_state import check_finite

RetainTerm = Literal["nll", "kl"]


class TwoObjectives(TwoTaskUnlearning):
    """Minimise ``forget_weight * forget objective + retain_weight * retain objective``, or combine the two gradients.

    Without ``combine`` both gradients are added up in ``.grad``, so no buffer is needed and the two are not measured
    apart; a step logs ``train/norm``, the length of the sum. With ``combine`` the gradients of the two weighted
    objectives are combined by its rule, and a step logs what :class:`~lit_modules.NGDiff` logs, where the loss to
    raise is the negative forget objective. Both log ``train/forget_objective``, ``train/retain_objective`` if it is no
    NLL, and ``train/forget_loss`` and ``train/retain_loss``, the mean token NLL, where the method computes it. With
    ``retain_weight`` 0 and no ``combine`` the retain rows are not touched.

    Subclasses write ``forget_objective`` and, if it is not a mean over target tokens, ``forget_count``. Where
    ``needs_network`` is true the frozen reference is the network with a new adapter off or a continued one as it was
    before training, else a copy that is made once, before training, and is no part of the checkpoint.

    Args:
        forget_weight: Factor of the forget objective, ``gamma``.
        retain_weight: Factor of the retain objective, ``alpha``.
        retain_term: The retain objective: the NLL per target token, or ``KL(p_ref || p_theta)`` per attended position.
        combine: Rule that combines the two gradients; ``None`` adds them.

    Raises:
        ValueError: If a number is out of its range.
    """

    needs_network = False

    def __init__(
        self,
        model: str | PreTrainedModel,
        tokenizer: str | PreTrainedTokenizerBase | None,
        peft_config: PeftConfig | None,
        dtype: Literal["float32", "bfloat16"],
        gradient_checkpointing: bool,
        compile: bool,
        accumulate: int,
        clip_norm: float | None,
        forget_weight: float,
        retain_weight: float,
        retain_term: RetainTerm,
        combine: GradientCombiner | None,
        buffer: Literal["device", "bfloat16", "cpu"],
        metric: Metric | None,
        max_new_tokens: int,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None,
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
            buffer,
            metric,
            max_new_tokens,
            optimizer,
            scheduler,
        )
        for name, weight in (("forget_weight", forget_weight), ("retain_weight", retain_weight)):
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {weight}.")
        if retain_term not in ("nll", "kl"):
            raise ValueError(f"retain_term must be 'nll' or 'kl', got {retain_term!r}.")
        check_combiner(combine)
        self.forget_weight = forget_weight
        self.retain_weight = retain_weight
        self.retain_term = retain_term
        self.combine = combine
        self._start: list[Tensor] = []  # of adapters which, switched off, would not give the reference
        self._frozen: list[nn.Module] = []  # a list keeps the copy out of the module tree and so of the checkpoint
        self._reference_hash: str | None = None
        self._moved = False
        self._notes: dict[str, list[Tensor]] = {}

    def configure_model(self) -> None:
        """Load the weights once; keep what the reference needs before they change."""
        super().configure_model()
        fitting = self._trainer is not None and self._trainer.state.fn == "fit"
        if not fitting or self._reference_hash is not None or not self._needs_reference:
            return
        self._reference_hash = model_hash(self.model, str(self.trainer.precision), self._continued)
        self._keep_start()
        if self._needs_network and not self._adapted:
            self._frozen = [self._freeze()]

    def on_fit_start(self) -> None:
        """Put the reference where the network is."""
        self._frozen = [network.to(self.device) for network in self._frozen]
        self._start = [tensor.to(self.device) for tensor in self._start]

    def unlearning_step(self, group: list[Batch]) -> dict[str, float]:
        """Write the direction into ``.grad``."""
        self._notes = {}
        numbers = self._sum_step(group) if self.combine is None else super().unlearning_step(group)
        self._moved = True
        numbers["train/forget_objective"] = -numbers.pop("train/forget_loss")
        if not self._retains_nll and "train/retain_loss" in numbers:
            numbers["train/retain_objective"] = numbers.pop("train/retain_loss")
        if self._notes:
            tasks = sorted(self._notes)
            sums = torch.stack([self._notes[task][0] for task in tasks])
            for task, (nll, tokens) in zip(
                tasks, self.trainer.strategy.reduce(sums, reduce_op="sum").tolist(), strict=True
            ):
                numbers[f"train/{task}_loss"] = nll / tokens
        return numbers

    def task_loss(self, batch: Batch, task: str) -> Tensor:
        """Return the sum of a task's loss: the negative forget objective, which is to rise, or the retain objective."""
        return -self.forget_objective(batch) if task == "forget" else self.retain_objective(batch)

    def task_weight(self, batch: Batch, task: str) -> Tensor:
        """Return what a task's sum is over."""
        return self.forget_count(batch) if task == "forget" else self.retain_count(batch)

    @abstractmethod
    def forget_objective(self, batch: Batch) -> Tensor:
        """Return the forget objective to minimise, summed over :meth:`forget_count`."""

    def forget_count(self, batch: Batch) -> Tensor:
        """Return what the forget objective is a mean over: by default the forget rows' target tokens."""
        return target_tokens(batch["forget"])

    def retain_objective(self, batch: Batch) -> Tensor:
        """Return the retain objective to minimise, summed over :meth:`retain_count`."""
        retain = batch["retain"]
        if self.retain_term == "nll":
            return summed_nll(self.network, retain)
        with self.reference_network() as reference:
            before = attended_logits(reference, retain)
        return reference_kl(before, attended_logits(self.network, retain)).sum()

    def retain_count(self, batch: Batch) -> Tensor:
        """Return what the retain objective is a mean over: target tokens, or attended positions for the KL."""
        retain = batch["retain"]
        count: Tensor = target_tokens(retain) if self.retain_term == "nll" else retain["attention_mask"].sum()
        return count

    def probe_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss that a learning rate is to lower, for ``callbacks.AdaptiveLR``.

        Returns:
            The summed retain NLL and its tokens; for a method without a retain term its own objective and its count.
        """
        if self.retain_weight or self.combine is not None:
            return super().probe_loss(batch)
        return self.forget_objective(batch), self.forget_count(batch)

    def loss_weights(self) -> tuple[float, float]:
        """Return the factors of the retain and of the forget objective in this step."""
        return self.retain_weight, self.forget_weight

    def weights(self, statistics: PairStatistics) -> tuple[float, float]:
        """Return the factors that ``combine`` gives to the gradients of the weighted objectives."""
        assert self.combine is not None
        return self.combine.of_weighted(statistics, *self.loss_weights())

    @contextmanager
    def reference_network(self) -> Iterator[nn.Module]:
        """Give the network as it was before unlearning, without gradient and in evaluation mode."""
        if self._start:
            with with_weights(self.model, self.trainable_parameters(), self._start) as network:
                yield network
            return
        if self._adapted:
            with without_adapter(self.model) as network:
                yield network
            return
        with torch.no_grad():
            yield self._frozen[0]

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

    def note_nll(self, task: str, nll: Tensor, tokens: Tensor | int) -> None:
        """Keep a summed NLL for the log."""
        values = torch.stack([nll.detach().double(), torch.as_tensor(tokens, device=nll.device).double()])
        self._notes[task] = [self._notes[task][0] + values] if task in self._notes else [values]

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

    def _freeze(self) -> nn.Module:
        return frozen_copy(self.model)

    def _hyperparameters_left_out(self, model: Any, tokenizer: Any) -> list[str]:
        return [*self._injected(model, tokenizer), "combine"]

    def _sum_step(self, group: list[Batch]) -> dict[str, float]:
        """Write the gradient of the weighted sum into ``.grad``."""
        retain_weight, forget_weight = self.loss_weights()
        found = {"forget": self.accumulate_gradient(group, "forget", -forget_weight)}
        if self.retain_weight:
            found["retain"] = self.accumulate_gradient(group, "retain", retain_weight)
        norm = global_norm([parameter.grad for parameter in self.trainable_parameters()])
        packed = torch.stack([value.to(self.device, torch.float64) for value in [*found.values(), norm]]).tolist()
        losses = dict(zip(found, packed, strict=False))
        check_finite(self, losses, self.row_names(group))
        numbers = {f"train/{task}_loss": loss for task, loss in losses.items()}
        return {**numbers, "train/norm": packed[-1], "skip": float(not 0 < packed[-1] < math.inf)}
