"""NGDiff, the normalised gradient difference."""

import warnings
from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from peft import PeftConfig
from torch import Tensor
from torchmetrics import Metric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_modules.unlearning.core.base import TwoTaskUnlearning
from lit_modules.unlearning.core.causal_lm import Batch, default_optimizer
from lit_modules.unlearning.core.gradients import (
    PairStatistics,
    add_,
    global_norm,
    normalised_weight,
    normalised_weights,
)
from lit_modules.unlearning.core.losses import summed_nll, target_tokens
from lit_modules.utils.training_state import check_finite

ROLES = ("forget", "retain")


class NGDiff(TwoTaskUnlearning):
    """Unlearn along the difference of two normalised gradients.

    Each step moves by the retain gradient over its norm, less the forget gradient over its norm:
    ``d = g_R / ||g_R|| - g_F / ||g_F||``. The norms are global (one number per task), taken in float32 once per
    optimizer step, after accumulation and after averaging over ranks. To first order such a step never raises the
    retain loss and never lowers the forget loss, whatever the two gradients are. No reference model is needed.

    A batch is ``{"forget": task, "retain": task}``; a task maps ``input_ids``, ``attention_mask`` and ``labels`` to
    integers of shape ``(batch, tokens)``; a label of -100 is not scored. Each step logs ``train/forget_loss``,
    ``train/retain_loss`` (nats per target token), ``train/forget_norm``, ``train/retain_norm``, ``train/cosine``,
    ``train/retain_descent`` (``g_R . d``, never negative), ``train/forget_descent`` (``g_F . d``, never positive) and
    ``train/lr``. Tried on one device, with DDP, and with weights sharded by FSDP2 under
    ``ModelParallelStrategy(data_parallel_size=N, tensor_parallel_size=1)``, where a norm is one all-reduce of a scalar
    and the combination is local; of the latter on two CPU processes with gloo, not on GPUs.

    A batch may also hold more tasks, as ``datamodules.LUME(by_task=True)`` gives them: each entry whose name is
    ``forget`` or ``retain``, or begins with ``forget_`` or ``retain_``, is a task, its role the beginning of its name.
    Then ``d = sum_retain g / ||g|| - sum_forget g / ||g||``, a gradient and a norm for each task. The sum is written as
    the gradients come, so the memory is that of two tasks. No single task is promised to gain, as the tasks of a role
    may be in conflict; a step logs ``train/<task>_loss`` and ``train/<task>_norm`` of each task, ``train/forget_loss``
    and ``train/retain_loss``, the means over the tasks of a role, and ``train/direction_norm``, at most their number.

    Args:
        model: Causal language model, or the name or folder to load it from.
        tokenizer: Tokenizer for generation, or its name or folder; by default the datamodule's, else the model's.
        peft_config: Adapters to train instead of the model's own weights, such as ``peft.LoraConfig``.
        dtype: Type in which named weights are loaded.
        gradient_checkpointing: Whether to recompute activations in the backward pass, to save memory.
        compile: Whether training steps run the network through ``torch.compile``.
        accumulate: Batches per optimizer step; the gradients are normalised once per step.
        clip_norm: Largest norm of the combined gradient; ``None`` leaves it alone. The norm is at most 2, with more
            tasks their number.
        eps: Smallest gradient norm that counts; below it, or when not finite, that task's term is dropped.
        buffer: Where the forget gradient, or the sum over the tasks so far, waits for the next gradient: as it is, in
            half the memory, or on the CPU.
        metric: Turns test answers into numbers, such as ``lit_modules.metrics.LUMEScore``.
        max_new_tokens: Longest generated answer, in tokens.
        optimizer: Builds the optimizer from the trainable parameters.
        scheduler: Builds the learning-rate scheduler from the optimizer; it moves once per optimizer step.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> from lit_modules.networks import small_llama
        >>> module = NGDiff(small_llama(vocab_size=64, hidden_size=16, num_layers=1, num_heads=2))
        >>> module.automatic_optimization
        False

    References:
        Bu et al., "Unlearning as multi-task optimization: A normalized gradient difference approach with an adaptive
        learning rate", arXiv 2410.22086.
    """

    shardable = True

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
        eps: float = 1e-12,
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
            buffer,
            metric,
            max_new_tokens,
            optimizer,
            scheduler,
        )
        if not eps > 0:
            raise ValueError(f"eps must be positive, got {eps}.")
        if clip_norm is not None and clip_norm < 2:
            warnings.warn(
                f"clip_norm={clip_norm} shortens the direction of NGDiff, whose norm sqrt(2 - 2 cos) is at most 2; "
                "leave clip_norm out, or give 2 or more.",
                stacklevel=2,
            )
        self.save_hyperparameters(ignore=self._injected(model, tokenizer))
        self.eps = eps

    def check_batch(self, batch: Batch) -> None:
        """Check that a training batch holds a task to forget and one to retain, and the tasks of its group.

        Raises:
            ValueError: If it does not; names what it holds.
        """
        if not isinstance(batch, dict) or not any(role(name) for name in batch) or set(ROLES) <= batch.keys():
            super().check_batch(batch)
        elif not all(role(name) for name in batch) or len({role(name) for name in batch}) < len(ROLES):
            raise ValueError(
                'NGDiff trains on batches {"forget": task, "retain": task}, or of tasks of both roles whose names '
                f"begin with forget_ or retain_, got {sorted(batch)}."
            )
        if self._group and tasks_of(self._group[0]) != tasks_of(batch):
            raise ValueError(
                f"The {self.accumulate} batches of a step must hold the same tasks, got {tasks_of(self._group[0])} and "
                f"{tasks_of(batch)}."
            )

    def unlearning_step(self, group: list[Batch]) -> dict[str, float]:
        """Write the normalised difference, or the sum over more tasks, into ``.grad``."""
        tasks = tasks_of(group[0])
        return super().unlearning_step(group) if tasks == list(ROLES) else self._many_tasks(group, tasks)

    def probe_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the summed retain NLL, over all retain tasks, and its number of target tokens."""
        tasks = [batch[name] for name in tasks_of(batch) if role(name) == "retain"]
        parts = [(summed_nll(self.network, task), target_tokens(task)) for task in tasks]
        nll, tokens = (torch.stack(column).sum() for column in zip(*parts, strict=True))
        return nll, tokens

    def weights(self, statistics: PairStatistics) -> tuple[float, float]:
        """Return ``(1 / n_R, 1 / n_F)``, with 0 for a gradient that vanishes or is not finite."""
        return normalised_weights(statistics, self.eps)

    def _many_tasks(self, group: list[Batch], tasks: list[str]) -> dict[str, float]:
        """Write the signed sum of the normalised gradients of all tasks into ``.grad``, one gradient after another."""
        parameters = self.trainable_parameters()
        direction: list[Tensor | None] = [None] * len(parameters)
        losses: dict[str, float] = {}
        numbers: dict[str, float] = {}
        used = 0
        for task in tasks:
            loss = self.accumulate_gradient(group, task)
            gradient = [parameter.grad for parameter in parameters]
            for parameter in parameters:
                parameter.grad = None
            packed = torch.stack([x.to(self.device, torch.float64) for x in (loss, global_norm(gradient))]).tolist()
            losses[task], norm = packed
            check_finite(self, {task: losses[task]}, self.row_names(group, [task]))
            numbers[f"train/{task}_loss"], numbers[f"train/{task}_norm"] = losses[task], norm
            weight = (1 if role(task) == "retain" else -1) * normalised_weight(norm, self.eps)
            if weight:
                used += 1
                for place, tensor in enumerate(gradient):
                    gradient[place] = None  # freed as soon as it is added
                    if tensor is not None:
                        direction[place] = add_([direction[place]], self._buffered([tensor.mul_(weight)]))[0]
        for place, parameter in enumerate(parameters):
            tensor, direction[place] = direction[place], None
            parameter.grad = None if tensor is None else tensor.to(parameter.device, parameter.dtype)
        length = global_norm([parameter.grad for parameter in parameters])
        for name in ROLES:
            of_role = [loss for task, loss in losses.items() if role(task) == name]
            numbers[f"train/{name}_loss"] = sum(of_role) / len(of_role)
        return {**numbers, "train/direction_norm": length.item(), "skip": float(not used)}


def role(name: str) -> str | None:
    """Return whether a task of this name is to ``"forget"`` or to ``"retain"``; ``None`` if its name says neither.

    Example:
        >>> role("forget_task1"), role("retain"), role("idk")
        ('forget', 'retain', None)
    """
    return next((each for each in ROLES if name == each or name.startswith(f"{each}_")), None)


def tasks_of(batch: Batch) -> list[str]:
    """Return the names in a batch that are those of tasks, in the order in which a step takes them."""
    return sorted(name for name in batch if role(name))
