"""Plain mathematics of two task gradients, on sequences of tensors.

A gradient is a sequence of tensors, one per trainable parameter, taken as one concatenated vector. ``None`` stands for
a parameter that the task does not reach, which is a zero gradient. ``retain`` is the gradient of the loss to lower,
``forget`` the gradient of the loss to raise. A direction ``d`` is what an optimizer receives as the gradient: the
update is ``theta <- theta - lr * d``.

Every combination of two gradients here is ``d = retain_weight * retain - forget_weight * forget``, where the two
weights depend on the gradients only through the numbers of :class:`PairStatistics`. So one pass over the gradients
gives the numbers, plain arithmetic gives the weights, and a second pass writes the direction in place.

The tensors may be shards (``DTensor``, as FSDP2 makes them): sums are then taken over the shards of all processes, by
one all-reduce of a scalar or two, and the rest is local.

References:
    Bu et al., "Unlearning as multi-task optimization: A normalized gradient difference approach with an adaptive
    learning rate", arXiv 2410.22086.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

Gradient = Sequence[Tensor | None]
Weights = tuple[float, float]
"""Factors of the retain and of the forget gradient; 0 drops a gradient."""


@dataclass(frozen=True)
class PairStatistics:
    """The Gram matrix of a retain and a forget gradient, and their losses.

    Args:
        retain_norm: Global L2 norm of the retain gradient, ``n_R``.
        forget_norm: Global L2 norm of the forget gradient, ``n_F``.
        inner: Inner product of the two gradients.
        retain_loss: Loss behind the retain gradient, if known.
        forget_loss: Loss behind the forget gradient, if known.
    """

    retain_norm: float
    forget_norm: float
    inner: float
    retain_loss: float = field(default=math.nan, repr=False, compare=False)
    forget_loss: float = field(default=math.nan, repr=False, compare=False)

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the gradients, in [-1, 1]; NaN if one of them vanishes or is not finite."""
        product = self.retain_norm * self.forget_norm
        if not 0 < product < math.inf:
            return math.nan
        return max(-1.0, min(1.0, self.inner / product))

    def descent(self, retain_weight: float, forget_weight: float) -> tuple[float, float]:
        """Return ``g_R . d`` and ``g_F . d`` of ``d = retain_weight * g_R - forget_weight * g_F``.

        A term of weight 0 does not take part, so a gradient that was dropped because it is not finite leaves the
        other's product finite.
        """
        retain = (retain_weight * self.retain_norm**2 if retain_weight else 0.0) - (
            forget_weight * self.inner if forget_weight else 0.0
        )
        forget = (retain_weight * self.inner if retain_weight else 0.0) - (
            forget_weight * self.forget_norm**2 if forget_weight else 0.0
        )
        return retain, forget


class GradientAggregator(ABC):
    """Combine a retain and a forget gradient into one direction; give it to a module as ``aggregator``.

    The rules are in :mod:`lit_modules.unlearning.core.aggregators`.
    """

    @abstractmethod
    def weights(self, pair: PairStatistics) -> Weights:
        """Return the factors of ``d = retain_weight * g_R - forget_weight * g_F`` for a pair.

        0 drops a gradient, and two zeros leave the weights of the model as they are.
        """

    def of_weighted(self, pair: PairStatistics, retain_weight: float, forget_weight: float) -> Weights:
        """Return the factors of a pair's gradients for losses with weights of their own, ``retain_weight * L_R``.

        Example:
            >>> from lit_modules.unlearning.core.aggregators import IMTLG
            >>> IMTLG().of_weighted(PairStatistics(retain_norm=1.0, forget_norm=1.0, inner=0.0), 1.0, 3.0)
            (0.75, 0.75)
        """
        weighted = PairStatistics(
            retain_norm=retain_weight * pair.retain_norm,
            forget_norm=forget_weight * pair.forget_norm,
            inner=retain_weight * forget_weight * pair.inner,
            retain_loss=retain_weight * pair.retain_loss,
            forget_loss=forget_weight * pair.forget_loss,
        )
        retain, forget = self.weights(weighted)
        return retain_weight * retain, forget_weight * forget


def inverse(number: float, eps: float = 1e-12) -> float:
    """Return ``1 / number`` to divide a gradient by its norm or loss; 0 if that is below ``eps`` or not finite.

    Example:
        >>> inverse(5.0), inverse(0.0)
        (0.2, 0.0)
    """
    return 1 / number if eps <= number < math.inf else 0.0


def is_usable(number: float) -> bool:
    """Return whether a gradient of this norm is neither zero nor broken."""
    return 0 < number < math.inf


def global_norm(gradient: Gradient) -> Tensor:
    """Return the L2 norm of a gradient over all its tensors, a float64 scalar on the device of the first one.

    Norms of short pieces are taken in at least float32 and combined in float64: the float32 norm of one long tensor is
    off by whole per cents on a CPU, which adds its squares one by one.

    Example:
        >>> global_norm([torch.tensor([3.0]), None, torch.tensor([[4.0]])]).item()
        5.0
    """
    group = _shard_group(gradient)
    norm = _norm(_own_part(gradient, group))
    return norm if group is None else _sum_over(group, norm.square()).sqrt()


def norm_and_product(first: Gradient, second: Gradient) -> tuple[Tensor, Tensor]:
    """Return the norm of a gradient and its inner product with another, of sharded gradients by one all-reduce.

    The second one has the shapes of the first; a tensor on another device or of another dtype is converted. Both
    results are float64 scalars on the device of the first tensor.

    Example:
        >>> [each.item() for each in norm_and_product([torch.tensor([3.0, 4.0])], [torch.tensor([0.0, 2.0])])]
        [5.0, 8.0]
    """
    group = _shard_group(first)
    own, other = _own_part(first, group), _own_part(second, group)
    norm, product = _norm(own), _inner_product(own, other)
    if group is None:
        return norm, product
    square, total = _sum_over(group, torch.stack([norm.square(), product])).unbind()
    return square.sqrt(), total


@torch.no_grad()
def combine_(retain: Gradient, forget: Gradient, retain_weight: float, forget_weight: float) -> list[Tensor | None]:
    """Overwrite the retain gradient with ``retain_weight * retain - forget_weight * forget``, and return it.

    A term of weight 0 is left out instead of being multiplied, so a gradient that is not finite can be dropped. The
    forget gradient is left as it is; a tensor of it on another device or of another dtype is converted one at a time.
    The direction has a new tensor where ``retain`` has ``None`` and ``forget`` has not.

    Example:
        >>> combine_([torch.tensor([3.0, 4.0])], [torch.tensor([0.0, 2.0])], 1 / 5, 1 / 2)
        [tensor([ 0.6000, -0.2000])]
    """
    direction: list[Tensor | None] = []
    for r, f in zip(retain, forget, strict=True):
        if r is not None:
            own = local(r)
            if retain_weight:
                own.mul_(retain_weight)
            else:
                own.zero_()
            if f is not None and forget_weight:
                own.add_(local(f).to(own.device, own.dtype), alpha=-forget_weight)
        elif f is not None and forget_weight:
            r = f * -forget_weight
        direction.append(r)
    return direction


def add_(total: Tensor, term: Tensor | None) -> Tensor:
    """Add a tensor, which may lie on another device or be of another dtype, to a total in place; return the total."""
    if term is not None:
        own = local(total)
        own.add_(local(term).to(own.device, own.dtype))
    return total


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds, sharing its memory; a plain tensor is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _norm(gradient: Gradient) -> Tensor:
    norms = [torch.linalg.vector_norm(part) for tensor in gradient if tensor is not None for part in _parts(tensor)]
    norm: Tensor = torch.linalg.vector_norm(_stacked(norms))
    return norm


def _inner_product(first: Gradient, second: Gradient) -> Tensor:
    products = [
        torch.dot(left, right)
        for a, b in zip(first, second, strict=True)
        if a is not None and b is not None
        for left, right in zip(_parts(a), _parts(b.to(a.device, a.dtype)), strict=True)
    ]
    return _stacked(products).sum()


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Cut a tensor into flat pieces of at least float32; a GPU adds as a tree, so there the pieces may be long."""
    flat = tensor.reshape(-1)
    flat = flat if flat.dtype == torch.float64 else flat.float()
    return torch.split(flat, 2**16 if flat.device.type == "cpu" else 2**24)


def _stacked(scalars: list[Tensor]) -> Tensor:
    if not scalars:
        return torch.zeros((), dtype=torch.float64)
    device = scalars[0].device
    return torch.stack([scalar.to(device) for scalar in scalars]).double()


def _shard_group(tensors: Gradient) -> dist.ProcessGroup | None:
    """Return the processes that together hold the sharded tensors; ``None`` if none is sharded.

    Raises:
        ValueError: If tensors are sharded over different processes, or over more than one dimension of a mesh.
    """
    groups: dict[str, dist.ProcessGroup] = {}
    for tensor in tensors:
        if not isinstance(tensor, DTensor):
            continue
        dimensions = [i for i, placement in enumerate(tensor.placements) if not isinstance(placement, Replicate)]
        if len(dimensions) > 1 or not all(isinstance(tensor.placements[i], Shard) for i in dimensions):
            raise ValueError(
                "Norms are taken of tensors that are sharded over one dimension of a mesh, as FSDP2 does, got the "
                f"placements {tensor.placements}; leave tensor parallelism out."
            )
        for dimension in dimensions:
            group = tensor.device_mesh.get_group(dimension)
            groups[group.group_name] = group
    if len(groups) > 1:
        raise ValueError(f"All tensors must be sharded over the same processes, got {len(groups)} groups of them.")
    return next(iter(groups.values()), None)


def _own_part(tensors: Gradient, group: dist.ProcessGroup | None) -> list[Tensor | None]:
    """Return this process's share of a sum over a group: its shards, and on the first rank the whole tensors."""
    first = group is None or dist.get_rank(group) == 0
    return [None if t is None or not (first or _is_sharded(t)) else local(t) for t in tensors]


def _is_sharded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor) and not all(isinstance(placement, Replicate) for placement in tensor.placements)


def _sum_over(group: dist.ProcessGroup, values: Tensor) -> Tensor:
    dist.all_reduce(values, group=group)
    return values
