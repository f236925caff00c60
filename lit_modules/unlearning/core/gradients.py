"""Plain mathematics of two task gradients, on sequences of tensors.

A gradient is a sequence of tensors, one per trainable parameter, taken as one concatenated vector. ``None`` stands for
a parameter that the task does not reach, which is a zero gradient. ``retain`` is the gradient of the loss to lower,
``forget`` the gradient of the loss to raise. A direction ``d`` is what an optimizer receives as the gradient: the
update is ``theta <- theta - lr * d``.

Every combination of two gradients here is ``d = retain_weight * retain - forget_weight * forget``, where the two
weights depend on the gradients only through the three numbers of :class:`PairStatistics`. So one pass over the
gradients gives the numbers, plain arithmetic gives the weights, and a second pass writes the direction in place.

The tensors may be shards (``DTensor``, as FSDP2 makes them): sums are then taken over the shards of all processes, by
one all-reduce of a scalar or two, and the rest is local.

References:
    Bu et al., "Unlearning as multi-task optimization: A normalized gradient difference approach with an adaptive
    learning rate", arXiv 2410.22086.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_modules.unlearning.core.sharding import local, own_part, shard_group, sum_over

Gradient = Sequence[Tensor | None]


@dataclass(frozen=True)
class PairStatistics:
    """The Gram matrix of a retain and a forget gradient.

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


def global_norm(gradient: Gradient) -> Tensor:
    """Return the L2 norm of a gradient over all its tensors.

    Norms of short pieces are taken in at least float32 and combined in float64: the float32 norm of one long tensor is
    off by whole per cents on a CPU, which adds its squares one by one.

    Args:
        gradient: Tensors of any shape, dtype and device.

    Returns:
        Scalar of dtype float64 on the device of the first tensor; 0 for a gradient without tensors.

    Example:
        >>> global_norm([torch.tensor([3.0]), None, torch.tensor([[4.0]])]).item()
        5.0
    """
    group = shard_group(gradient)
    norm = _norm(own_part(gradient, group))
    return norm if group is None else sum_over(group, norm.square()).sqrt()


def inner_product(first: Gradient, second: Gradient) -> Tensor:
    """Return the inner product of two gradients.

    Products of short pieces are summed in at least float32 and combined in float64. A tensor of ``second`` that lies on
    another device or has another dtype is converted one at a time.

    Args:
        first: Tensors of any shape, dtype and device.
        second: As many tensors of the same shapes.

    Returns:
        Scalar of dtype float64 on the device of the first tensor.

    Raises:
        ValueError: If the two have different lengths.

    Example:
        >>> inner_product([torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 4.0])]).item()
        11.0
    """
    _same_length(first, second)
    group = shard_group(first)
    return sum_over(group, _product(own_part(first, group), own_part(second, group)))


def norm_and_product(first: Gradient, second: Gradient) -> tuple[Tensor, Tensor]:
    """Return ``global_norm(first)`` and ``inner_product(first, second)``, of sharded gradients by one all-reduce.

    Example:
        >>> [each.item() for each in norm_and_product([torch.tensor([3.0, 4.0])], [torch.tensor([0.0, 2.0])])]
        [5.0, 8.0]
    """
    _same_length(first, second)
    group = shard_group(first)
    own, other = own_part(first, group), own_part(second, group)
    norm, product = _norm(own), _product(own, other)
    if group is None:
        return norm, product
    square, total = sum_over(group, torch.stack([norm.square(), product])).unbind()
    return square.sqrt(), total


def pair_statistics(retain: Gradient, forget: Gradient) -> PairStatistics:
    """Measure the norms and the inner product of two gradients.

    Example:
        >>> pair_statistics([torch.tensor([3.0, 4.0])], [torch.tensor([0.0, 2.0])])
        PairStatistics(retain_norm=5.0, forget_norm=2.0, inner=8.0)
    """
    _same_length(retain, forget)
    norm, product = norm_and_product(retain, forget)
    return PairStatistics(norm.item(), global_norm(forget).item(), product.item())


def normalised_weights(statistics: PairStatistics, eps: float = 1e-12) -> tuple[float, float]:
    """Return the weights of NGDiff, ``(1 / n_R, 1 / n_F)``.

    A gradient whose norm is below ``eps`` or not finite is dropped: its weight is 0, and it is never divided by
    ``eps``.

    Example:
        >>> normalised_weights(PairStatistics(retain_norm=5.0, forget_norm=0.0, inner=0.0))
        (0.2, 0.0)
    """
    return normalised_weight(statistics.retain_norm, eps), normalised_weight(statistics.forget_norm, eps)


def normalised_weight(norm: float, eps: float = 1e-12) -> float:
    """Return ``1 / norm``, and 0 for a norm that is below ``eps`` or not finite."""
    return 1 / norm if eps <= norm < math.inf else 0.0


@torch.no_grad()
def combine_(
    retain: Sequence[Tensor | None], forget: Gradient, retain_weight: float, forget_weight: float
) -> list[Tensor | None]:
    """Overwrite the retain gradient with ``retain_weight * retain - forget_weight * forget``.

    A term of weight 0 is left out instead of being multiplied, so a gradient that is not finite can be dropped. The
    forget gradient is left as it is; a tensor of it on another device or of another dtype is converted one at a time.

    Args:
        retain: Tensors to overwrite.
        forget: As many tensors of the same shapes.
        retain_weight: Factor of the retain gradient.
        forget_weight: Factor of the forget gradient.

    Returns:
        The direction: the tensors of ``retain``, and a new tensor where ``retain`` has ``None`` and ``forget`` has not.

    Example:
        >>> combine_([torch.tensor([3.0, 4.0])], [torch.tensor([0.0, 2.0])], 1 / 5, 1 / 2)
        [tensor([ 0.6000, -0.2000])]
    """
    _same_length(retain, forget)
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


def normalised_difference(retain: Gradient, forget: Gradient, eps: float = 1e-12) -> list[Tensor | None]:
    """Return ``g_R / ||g_R|| - g_F / ||g_F||``, the direction of NGDiff.

    The norms are taken over all tensors of a gradient (one number per task). For any two gradients the direction is one
    of descent for the retain loss and of ascent for the forget loss: ``g_R . d = n_R (1 - cos)`` and
    ``g_F . d = -n_F (1 - cos)``.

    Args:
        retain: Gradient of the loss to lower; left as it is.
        forget: Gradient of the loss to raise; as many tensors of the same shapes.
        eps: Smallest norm that counts; a gradient below it, or not finite, is dropped.

    Returns:
        New tensors, one per parameter.

    Example:
        >>> normalised_difference([torch.tensor([1.0, 0.0])], [torch.tensor([0.0, 5.0])])
        [tensor([ 1., -1.])]

    References:
        arXiv 2410.22086, the update of NGDiff.
    """
    weights = normalised_weights(pair_statistics(retain, forget), eps)
    return combine_([None if tensor is None else tensor.clone() for tensor in retain], forget, *weights)


@torch.no_grad()
def normalised_sum(lower: Sequence[Gradient], higher: Sequence[Gradient], eps: float = 1e-12) -> list[Tensor | None]:
    """Return ``sum_i g_i / ||g_i||`` over the losses to lower, less the same sum over the losses to raise.

    The direction of NGDiff for any number of tasks, of norm at most their number; with one of each it is
    :func:`normalised_difference`. What holds for two tasks holds for the sum only: ``d`` is one of descent for
    ``sum_lower L_i / n_i - sum_higher L_i / n_i`` with the norms held fixed, and a single task may lose.

    Args:
        lower: Gradients of the losses to lower; left as they are.
        higher: Gradients of the losses to raise.
        eps: Smallest norm that counts; a gradient below it, or not finite, is dropped.

    Returns:
        New tensors, one per parameter; ``None`` where no task reaches it.

    Example:
        >>> normalised_sum([[torch.tensor([3.0, 0.0])], [torch.tensor([0.0, 2.0])]], [[torch.tensor([-5.0, 0.0])]])
        [tensor([2., 1.])]
    """
    total: list[Tensor | None] = []
    for sign, gradients in ((1.0, lower), (-1.0, higher)):
        for gradient in gradients:
            weight = sign * normalised_weight(global_norm(gradient).item(), eps)
            if weight:
                scaled = [None if tensor is None else tensor * weight for tensor in gradient]
                total = add_(total, scaled) if total else scaled
    return total


@torch.no_grad()
def add_(total: Sequence[Tensor | None], gradient: Gradient) -> list[Tensor | None]:
    """Add a gradient to another in place; return it, with the gradient's own tensors where it had ``None``.

    Example:
        >>> add_([torch.tensor([1.0]), None], [torch.tensor([2.0]), torch.tensor([3.0])])
        [tensor([3.]), tensor([3.])]
    """
    _same_length(total, gradient)
    for a, b in zip(total, gradient, strict=True):
        if a is not None and b is not None:
            local(a).add_(local(b).to(local(a).device, a.dtype))
    return [b if a is None else a for a, b in zip(total, gradient, strict=True)]


def _norm(gradient: Gradient) -> Tensor:
    norms = [torch.linalg.vector_norm(part) for tensor in gradient if tensor is not None for part in _parts(tensor)]
    norm: Tensor = torch.linalg.vector_norm(_stacked(norms))
    return norm


def _product(first: Gradient, second: Gradient) -> Tensor:
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


def _same_length(first: Gradient, second: Gradient) -> None:
    if len(first) != len(second):
        raise ValueError(f"Both gradients must have as many tensors, got {len(first)} and {len(second)}.")
