"""Bases of the unlearning methods: manual optimization over groups of batches, and pairs of gradients."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_modules.unlearning.core.arguments import CausalLMArguments, UnlearningArguments
from lit_modules.unlearning.core.causal_lm import Batch, CausalLM
from lit_modules.unlearning.core.gradients import PairStatistics, Weights, combine_, global_norm, norm_and_product
from lit_modules.unlearning.core.losses import summed_nll, target_tokens
from lit_modules.utils.arguments import Unpack
from lit_modules.utils.training_state import check_finite


class Unlearning(CausalLM, ABC):
    """Take one optimizer step per group of ``accumulate`` batches; the base of the unlearning modules.

    A batch is ``{"forget": task, "retain": task}``; a task maps ``input_ids``, ``attention_mask`` and ``labels`` to
    integers of shape ``(batch, tokens)`` (a label of -100 is not scored), and may name its rows in ``id``. A task's
    loss is the mean negative log-likelihood per target token over the whole group and over all ranks, so the same rows
    give the same step however they are cut. Optimization is manual, because a step combines two gradients; tried on
    one device and with DDP, and where ``shardable`` says so with ``ModelParallelStrategy``.

    Subclasses write ``unlearning_step``, which leaves the direction in ``.grad``.

    Args:
        accumulate: Batches per optimizer step; an incomplete last group of an epoch still makes a step.
        clip_norm: Largest norm of the direction; ``None`` leaves it alone.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        *,
        accumulate: int = 1,
        clip_norm: float | None = None,
        **shared: Unpack[CausalLMArguments],
    ) -> None:
        super().__init__(model, **shared)
        if accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, got {accumulate}.")
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, got {clip_norm}.")
        self.automatic_optimization = False
        self.accumulate = accumulate
        self.clip_norm = clip_norm
        self._group: list[Batch] = []

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect a group of batches and take one optimizer step with it."""
        self.check_batch(batch)
        for task in batch.values():
            if isinstance(task, dict):
                self.check_rows(task)
        group = [*self._group, batch]
        if len(group) < self.accumulate and not self.trainer.is_last_batch:
            self._group = group
            return
        numbers = self.unlearning_step(group)
        optimizer: Any = self.optimizers()
        if self.clip_norm is not None:
            self.clip_gradients(optimizer, self.clip_norm, "norm")
        if numbers.pop("skip", 0.0):
            self.print(
                f"Step {self.global_step}: all gradients vanish or are not finite; the weights stay as they are."
            )
        else:
            optimizer.step()
        numbers["train/lr"] = float(optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        self._group = []  # only now, as a step that breaks off is made again
        scheduler: Any = self.lr_schedulers()
        if scheduler is not None:
            scheduler.step()
        names: list[str] = [name for name in ("train/forget_loss", "train/retain_loss") if name in numbers]
        self.log_dict({name: numbers.pop(name) for name in names}, prog_bar=True)
        self.log_dict(numbers)

    def check_batch(self, batch: Batch) -> None:
        """Raise a ``ValueError`` unless a training batch holds what a step needs."""
        if not isinstance(batch, dict) or not {"forget", "retain"} <= batch.keys():
            content = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
            raise ValueError(
                f'{type(self).__name__} trains on batches {{"forget": task, "retain": task}}, got {content}.'
            )

    @abstractmethod
    def unlearning_step(self, group: list[Batch]) -> dict[str, float]:
        """Leave the direction of one step in ``.grad`` and return the numbers to log.

        ``group`` holds the batches of one optimizer step on this rank; a true ``skip`` among the numbers leaves the
        weights as they are.
        """

    def probe_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss that the learning rate is to lower, for ``callbacks.AdaptiveLR``: the retain NLL.

        The forget loss is to be raised and has no bound, so no rate minimises it.

        Returns:
            Sum over the batch's target tokens in nats, and their number.
        """
        return summed_nll(self.network, batch["retain"]), target_tokens(batch["retain"])

    def task_loss(self, batch: Batch, task: str) -> Tensor:
        """Return a task's loss, summed over a batch: the NLL of its target tokens in nats."""
        return summed_nll(self.network, batch[task])

    def task_weight(self, batch: Batch, task: str) -> Tensor:
        """Return what the sum of :meth:`task_loss` is over: the number of target tokens, a scalar."""
        return target_tokens(batch[task])

    def accumulate_gradient(self, group: list[Batch], task: str, scale: float = 1.0) -> Tensor:
        """Add the gradient of a task's mean loss over the group and all ranks to ``.grad``.

        Args:
            group: The batches of one optimizer step on this rank.
            task: Name of the task in the batches, such as ``"forget"``.
            scale: Factor of the gradient.

        Returns:
            The mean loss, by default the NLL per target token in nats; a scalar equal on all ranks, without the factor.
        """
        strategy = self.trainer.strategy
        counts = torch.stack([self.task_weight(batch, task) for batch in group]).sum()
        tokens = strategy.reduce(counts.double(), reduce_op="sum")
        total = torch.zeros((), dtype=torch.float64, device=counts.device)
        block = getattr(strategy, "block_backward_sync", nullcontext)  # of strategies that sum over processes
        for number, batch in enumerate(group, start=1):
            with nullcontext() if number == len(group) else block():
                loss = self.task_loss(batch, task)
                # data parallel training averages gradients over ranks; the world size turns that into their sum
                self.manual_backward(loss * (scale * self.trainer.world_size / tokens).to(loss.dtype))
            total += loss.detach().double()
        return strategy.reduce(total, reduce_op="sum") / tokens

    def take_gradient(self) -> list[Tensor | None]:
        """Return the gradient of the trainable parameters, and clear it there."""
        parameters = self.trainable_parameters()
        gradient = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        return gradient

    def gradient_norm(self) -> Tensor:
        """Return the global norm of what is in ``.grad``, a scalar of dtype float64."""
        return global_norm([parameter.grad for parameter in self.trainable_parameters()])

    def to_floats(self, *scalars: Tensor) -> list[float]:
        """Return scalars as numbers, by one transfer from the device."""
        return [float(n) for n in torch.stack([each.to(self.device, torch.float64) for each in scalars]).tolist()]

    @staticmethod
    def row_names(group: list[Batch], tasks: Sequence[str] = ("forget", "retain")) -> dict[str, list[str]]:
        """Return the ids of a group's rows by task."""
        return {task: [name for batch in group for name in batch[task].get("id", [])] for task in tasks}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the batches of a group that is not complete."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lit_modules_group"] = self._group

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up a group that was not complete."""
        super().on_load_checkpoint(checkpoint)
        group = checkpoint.get("lit_modules_group", [])
        self._group = [self.transfer_batch_to_device(batch, self.device, 0) for batch in group]

    def on_fit_end(self) -> None:
        """Forget a group that a stopped run left incomplete."""
        self.forget_batches()

    def forget_batches(self) -> None:
        """Forget the batches and gradients of a step that was not made, so that the next training is free of them."""
        self._group = []
        self.zero_grad()

    def _check_trainer(self) -> None:
        trainer, name = self.trainer, type(self).__name__
        for option, value, default, own in (
            ("accumulate_grad_batches", trainer.accumulate_grad_batches, 1, "accumulate"),
            ("gradient_clip_val", trainer.gradient_clip_val, None, "clip_norm"),
        ):
            if value != default:
                raise ValueError(
                    f"Trainer({option}={value}) has no effect on {name}, which optimizes by itself; give "
                    f"{name}({own}={value}) instead."
                )


class GradientPairUnlearning(Unlearning):
    """Combine a forget and a retain gradient, each taken over the whole group; the base of two-task methods.

    Subclasses write ``weights``. The forget gradient waits in a buffer while the retain gradient is computed: this is
    the one extra copy of the trainable gradients that a method which needs both cannot avoid.

    Args:
        buffer: Where the forget gradient waits for the retain gradient: as it is, in half the memory, or on the CPU.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        *,
        buffer: Literal["device", "bfloat16", "cpu"] = "device",
        **shared: Unpack[UnlearningArguments],
    ) -> None:
        super().__init__(model, **shared)
        if buffer not in ("device", "bfloat16", "cpu"):
            raise ValueError(f"buffer must be 'device', 'bfloat16' or 'cpu', got {buffer!r}.")
        self.buffer = buffer

    @abstractmethod
    def weights(self, pair: PairStatistics) -> Weights:
        """Return the factors of the direction ``d = retain_weight * g_R - forget_weight * g_F`` for a pair."""

    def unlearning_step(self, group: list[Batch]) -> dict[str, float]:
        """Write the weighted difference of the two gradients into ``.grad``."""
        forget_loss = self.accumulate_gradient(group, "forget")
        forget = self.take_gradient()
        forget_norm = global_norm(forget)
        forget = self.buffered(forget)
        retain_loss = self.accumulate_gradient(group, "retain")
        parameters = self.trainable_parameters()
        retain = [parameter.grad for parameter in parameters]
        numbers = self.to_floats(forget_loss, retain_loss, forget_norm, *norm_and_product(retain, forget))
        pair = PairStatistics(
            forget_loss=numbers[0],
            retain_loss=numbers[1],
            forget_norm=numbers[2],
            retain_norm=numbers[3],
            inner=numbers[4],
        )
        check_finite(self, {"forget": pair.forget_loss, "retain": pair.retain_loss}, self.row_names(group))
        retain_weight, forget_weight = self.weights(pair)
        self.write_gradient(combine_(retain, forget, retain_weight, forget_weight))
        retain_descent, forget_descent = pair.descent(retain_weight, forget_weight)
        return {
            "train/forget_loss": pair.forget_loss,
            "train/retain_loss": pair.retain_loss,
            "train/forget_norm": pair.forget_norm,
            "train/retain_norm": pair.retain_norm,
            "train/cosine": pair.cosine,
            "train/retain_descent": retain_descent,
            "train/forget_descent": forget_descent,
            "skip": float(not retain_weight and not forget_weight),
        }

    def write_gradient(self, direction: list[Tensor | None]) -> None:
        """Leave a direction in ``.grad``; the list is emptied on the way."""
        for index, parameter in enumerate(self.trainable_parameters()):
            tensor, direction[index] = direction[index], None
            parameter.grad = None if tensor is None else tensor.to(parameter.device, parameter.dtype)

    def buffered(self, gradient: list[Tensor | None]) -> list[Tensor | None]:
        """Return a gradient as it is to wait for the next one."""
        if self.buffer == "device":
            # gradients that are views of DDP's buckets would be overwritten by the second backward pass
            view = getattr(self.trainer.strategy.model, "gradient_as_bucket_view", False)
            return [tensor.clone() if view and tensor is not None else tensor for tensor in gradient]
        target: dict[str, Any] = {"dtype": torch.bfloat16} if self.buffer == "bfloat16" else {"device": "cpu"}
        return [None if tensor is None else tensor.to(**target) for tensor in gradient]
