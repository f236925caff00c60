"""NGDiff, the normalised gradient difference."""

import warnings
from statistics import fmean

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_modules.unlearning.core.arguments import GradientPairArguments
from lit_modules.unlearning.core.causal_lm import Batch
from lit_modules.unlearning.core.gradient_pair import GradientPairUnlearning
from lit_modules.unlearning.core.gradients import PairStatistics, Weights, add_, global_norm, inverse
from lit_modules.unlearning.core.losses import summed_nll, target_tokens
from lit_modules.utils.arguments import Unpack
from lit_modules.utils.training_state import check_finite

ROLES = ("forget", "retain")


def normalised_weights(pair: PairStatistics, eps: float = 1e-12) -> Weights:
    """Return the factors of NGDiff's direction, ``d = g_R / ||g_R|| - g_F / ||g_F||``.

    A gradient whose norm is below ``eps`` or not finite is dropped, never divided by ``eps``.

    Example:
        >>> normalised_weights(PairStatistics(retain_norm=5.0, forget_norm=0.0, inner=0.0))
        (0.2, 0.0)
    """
    return inverse(pair.retain_norm, eps), inverse(pair.forget_norm, eps)


class NGDiff(GradientPairUnlearning):
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

    The norm of ``d`` is at most 2, with more tasks their number, so a smaller ``clip_norm`` shortens it. Further
    arguments are those of :class:`~lit_modules.unlearning.core.gradient_pair.GradientPairUnlearning`.

    Args:
        eps: Smallest gradient norm that counts; below it, or when not finite, that task's term is dropped.

    Raises:
        ValueError: If a number is out of its range.

    References:
        Bu et al., "Unlearning as multi-task optimization: A normalized gradient difference approach with an adaptive
        learning rate", arXiv 2410.22086.
    """

    shardable = True

    def __init__(
        self, model: str | PreTrainedModel, *, eps: float = 1e-12, **shared: Unpack[GradientPairArguments]
    ) -> None:
        super().__init__(model, **shared)
        if not eps > 0:
            raise ValueError(f"eps must be positive, got {eps}.")
        if self.clip_norm is not None and self.clip_norm < 2:
            warnings.warn(
                f"clip_norm={self.clip_norm} shortens the direction of NGDiff, whose norm sqrt(2 - 2 cos) is at most "
                "2; leave clip_norm out, or give 2 or more.",
                stacklevel=2,
            )
        self.eps = eps

    def weights(self, pair: PairStatistics) -> Weights:
        """Return ``(1 / ||g_R||, 1 / ||g_F||)``, with 0 for a gradient that vanishes or is not finite."""
        return normalised_weights(pair, self.eps)

    def unlearning_step(self, group: list[Batch]) -> dict[str, float]:
        """Write the normalised difference, or the sum over more tasks, into ``.grad``."""
        two = list(roles(group[0])) == list(ROLES)
        return super().unlearning_step(group) if two else self._sum_over_tasks(group)

    def check_batch(self, batch: Batch) -> None:
        """Check that a training batch holds a task to forget and one to retain, and the tasks of its group."""
        tasks = roles(batch) if isinstance(batch, dict) else {}
        if not tasks or set(ROLES) <= batch.keys():
            super().check_batch(batch)
        elif len(tasks) < len(batch) or set(tasks.values()) != set(ROLES):
            raise ValueError(
                'NGDiff trains on batches {"forget": task, "retain": task}, or of tasks of both roles whose names '
                f"begin with forget_ or retain_, got {sorted(batch)}."
            )
        if self._group and roles(self._group[0]) != tasks:
            raise ValueError(
                f"The {self.accumulate} batches of a step must hold the same tasks, got {list(roles(self._group[0]))} "
                f"and {list(tasks)}."
            )

    def probe_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the summed retain NLL, over all retain tasks, and its number of target tokens."""
        tasks = [batch[name] for name, role in roles(batch).items() if role == "retain"]
        nll = torch.stack([summed_nll(self.network, task) for task in tasks]).sum()
        return nll, torch.stack([target_tokens(task) for task in tasks]).sum()

    def _sum_over_tasks(self, group: list[Batch]) -> dict[str, float]:
        """Write ``sum_retain g / ||g|| - sum_forget g / ||g||`` into ``.grad``, one gradient after another."""
        direction: list[Tensor | None] = [None] * len(self.trainable_parameters())
        losses: dict[str, float] = {}
        numbers: dict[str, float] = {}
        weights, tasks = [], roles(group[0])
        for task, role in tasks.items():
            loss = self.accumulate_gradient(group, task)
            gradient = self.take_gradient()
            losses[task], norm = self.to_floats(loss, global_norm(gradient))
            check_finite(self, {task: losses[task]}, self.row_names(group, [task]))
            numbers |= {f"train/{task}_loss": losses[task], f"train/{task}_norm": norm}
            weights.append(inverse(norm, self.eps) * (1 if role == "retain" else -1))
            for index, tensor in enumerate(gradient):
                gradient[index] = None  # freed as soon as it is added
                if tensor is not None and weights[-1]:
                    (term,), total = self.buffered([tensor.mul_(weights[-1])]), direction[index]
                    direction[index] = term if total is None else add_(total, term)
        self.write_gradient(direction)
        for name in ROLES:
            numbers[f"train/{name}_loss"] = fmean(losses[task] for task, role in tasks.items() if role == name)
        return {**numbers, "train/direction_norm": self.gradient_norm().item(), "skip": float(not any(weights))}


def roles(batch: Batch) -> dict[str, str]:
    """Return the role of each task of a batch, in the order in which a step takes them.

    Example:
        >>> roles({"retain": {}, "forget_task1": {}, "idk": {}})
        {'forget_task1': 'forget', 'retain': 'retain'}
    """
    return {name: role for name in sorted(batch) for role in ROLES if name == role or name.startswith(f"{role}_")}
