"""Ways to combine two task gradients into one direction, for any pair of losses.

As in :mod:`lit_modules.unlearning.core.gradients`, ``retain`` is the gradient of the loss to lower, ``forget`` the
gradient of the loss to raise, and the direction is ``d = retain_weight * retain - forget_weight * forget``; a method
that minimises a forget loss of its own hands over the negative of that loss. So the two tasks of multi-task learning
are ``g1 = retain`` and ``g2 = -forget``. Each rule here needs no more than :class:`~.gradients.PairStatistics`: a
function gives the weights, an object of the same meaning is what a module takes as ``combine``.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal

from lit_modules.unlearning.core.gradients import PairStatistics, normalised_weights

Weights = tuple[float, float]


def pcgrad_weights(statistics: PairStatistics) -> Weights:
    """Return the weights of PCGrad: each gradient without its part against the other.

    If ``g1 . g2 < 0`` each ``g_i`` becomes ``g_i - (g_i . g_j / |g_j|^2) g_j`` with the original ``g_j``, and the two
    are added; else they are added as they are. No task's loss rises to first order.

    Example:
        >>> pcgrad_weights(PairStatistics(retain_norm=1.0, forget_norm=2.0, inner=1.0))
        (2.0, 1.25)
    """
    retain, forget = _usable(statistics)
    if not retain or not forget or not statistics.inner > 0:
        return retain, forget
    return 1 + statistics.inner / statistics.retain_norm**2, 1 + statistics.inner / statistics.forget_norm**2


def mgda_weights(statistics: PairStatistics) -> Weights:
    """Return the weights of MGDA: the shortest vector between the two gradients.

    ``t g1 + (1 - t) g2`` with ``t = clip((g2 - g1) . g2 / |g1 - g2|^2, 0, 1)``; then ``d . g_i >= |d|^2``. Where one
    gradient vanishes so does the direction, and where both are equal it is either.

    Example:
        >>> mgda_weights(PairStatistics(retain_norm=1.0, forget_norm=1.0, inner=0.0))
        (0.5, 0.5)
    """
    retain, forget = _usable(statistics)
    if not retain or not forget:
        return (0.0, 0.0) if statistics.retain_norm == 0 or statistics.forget_norm == 0 else (retain, forget)
    square, other, inner = statistics.retain_norm**2, statistics.forget_norm**2, -statistics.inner
    distance = square + other - 2 * inner
    if not distance > 0:
        return 1.0, 0.0
    share = min(1.0, max(0.0, (other - inner) / distance))
    return share, 1 - share


def imtl_g_weights(statistics: PairStatistics) -> Weights:
    """Return the weights of IMTL-G: the projections on both unit gradients are equal.

    For two tasks ``|g2| / (|g1| + |g2|)`` and ``|g1| / (|g1| + |g2|)``: the direction of NGDiff, of another length.

    Example:
        >>> imtl_g_weights(PairStatistics(retain_norm=1.0, forget_norm=3.0, inner=0.0))
        (0.75, 0.25)
    """
    retain, forget = _usable(statistics)
    if not retain or not forget:
        return retain, forget
    total = statistics.retain_norm + statistics.forget_norm
    return statistics.forget_norm / total, statistics.retain_norm / total


def projected_weights(statistics: PairStatistics, primary: Literal["forget", "retain"] = "forget") -> Weights:
    """Return the weights of one gradient plus the part of the other that is orthogonal to it.

    With ``p`` the primary gradient, ``d = p + s - (s . p / |p|^2) p``: whatever the secondary task wants, the primary
    loss falls as if it were alone, ``p . d = |p|^2``.

    Example:
        >>> projected_weights(PairStatistics(retain_norm=1.0, forget_norm=2.0, inner=1.0))
        (1.0, 1.25)
    """
    retain, forget = _usable(statistics)
    if not retain or not forget:
        return retain, forget
    # s . p / |p|^2 with g1 . g2 = -inner
    norm = statistics.forget_norm if primary == "forget" else statistics.retain_norm
    share = -statistics.inner / norm**2
    return (1.0, 1 - share) if primary == "forget" else (1 - share, 1.0)


def loss_normalised_weights(statistics: PairStatistics, eps: float = 1e-12) -> Weights:
    """Return ``(1 / |L_R|, 1 / |L_F|)``: the gradients of the logarithms of the losses.

    A loss below ``eps`` in size or not finite drops its term.

    Example:
        >>> numbers = PairStatistics(retain_norm=1.0, forget_norm=1.0, inner=0.0, retain_loss=2.0, forget_loss=4.0)
        >>> loss_normalised_weights(numbers)
        (0.5, 0.25)
    """
    usable = _usable(statistics)
    losses = abs(statistics.retain_loss), abs(statistics.forget_loss)
    retain, forget = (
        factor / loss if eps <= loss < math.inf else 0.0 for factor, loss in zip(usable, losses, strict=True)
    )
    return retain, forget


class GradientCombiner(ABC):
    """Combines a retain and a forget gradient into one direction; give it to a module as ``combine``."""

    def of_weighted(self, statistics: PairStatistics, retain_weight: float, forget_weight: float) -> Weights:
        """Return the factors for losses that have weights of their own, ``retain_weight * L_R`` and the like.

        Args:
            statistics: Norms, inner product and losses of the gradients without the weights.
            retain_weight: Factor of the retain loss.
            forget_weight: Factor of the forget loss.

        Returns:
            The factors of the gradients without the weights.

        Example:
            >>> IMTLG().of_weighted(PairStatistics(retain_norm=1.0, forget_norm=1.0, inner=0.0), 1.0, 3.0)
            (0.75, 0.75)
        """
        weighted = PairStatistics(
            retain_norm=retain_weight * statistics.retain_norm,
            forget_norm=forget_weight * statistics.forget_norm,
            inner=retain_weight * forget_weight * statistics.inner,
            retain_loss=retain_weight * statistics.retain_loss,
            forget_loss=forget_weight * statistics.forget_loss,
        )
        retain, forget = self.weights(weighted)
        return retain_weight * retain, forget_weight * forget

    @abstractmethod
    def weights(self, statistics: PairStatistics) -> Weights:
        """Return the factors of ``d = retain_weight * g_R - forget_weight * g_F``.

        Args:
            statistics: Norms, inner product and losses of the two gradients.

        Returns:
            The two factors; 0 drops a gradient, and two zeros leave the weights of the model as they are.
        """


class Linear(GradientCombiner):
    """A sum with fixed factors: ``2 (c g1 + (1 - c) g2)``.

    The default is the plain sum, so it changes nothing but that both gradients are measured and logged.

    Args:
        share: Share of the retain gradient, ``c``, in [0, 1].

    Raises:
        ValueError: If ``share`` is out of its range.
    """

    def __init__(self, share: float = 0.5) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share must lie in [0, 1], got {share}.")
        self.share = share

    def weights(self, statistics: PairStatistics) -> Weights:
        """Return the fixed factors, with 0 for a gradient that is not finite."""
        retain, forget = _usable(statistics)
        return 2 * self.share * retain, 2 * (1 - self.share) * forget


class Normalised(GradientCombiner):
    """The rule of NGDiff: ``g1 / |g1| + g2 / |g2|``.

    Args:
        eps: Smallest gradient norm that counts; below it, or when not finite, that task's term is dropped.

    Raises:
        ValueError: If ``eps`` is not positive.

    References:
        Bu et al., arXiv 2410.22086.
    """

    def __init__(self, eps: float = 1e-12) -> None:
        if not eps > 0:
            raise ValueError(f"eps must be positive, got {eps}.")
        self.eps = eps

    def weights(self, statistics: PairStatistics) -> Weights:
        """Return ``(1 / n_R, 1 / n_F)``."""
        return normalised_weights(statistics, self.eps)


class LossNormalised(GradientCombiner):
    """The rule of LossNorm: each gradient over its loss, ``g1 / |L1| + g2 / |L2|``.

    Args:
        eps: Smallest loss that counts; below it, or when not finite, that task's term is dropped.

    Raises:
        ValueError: If ``eps`` is not positive.

    References:
        A comparison of arXiv 2410.22086; its formula there is not checked.
    """

    def __init__(self, eps: float = 1e-12) -> None:
        if not eps > 0:
            raise ValueError(f"eps must be positive, got {eps}.")
        self.eps = eps

    def weights(self, statistics: PairStatistics) -> Weights:
        """Return ``(1 / |L_R|, 1 / |L_F|)``."""
        return loss_normalised_weights(statistics, self.eps)


class PCGrad(GradientCombiner):
    """Projecting conflicting gradients; see :func:`pcgrad_weights`.

    References:
        Yu et al., "Gradient surgery for multi-task learning", arXiv 2001.06782, algorithm 1.
    """

    def weights(self, statistics: PairStatistics) -> Weights:
        """Return the weights of PCGrad."""
        return pcgrad_weights(statistics)


class MGDA(GradientCombiner):
    """The shortest convex combination of both gradients; see :func:`mgda_weights`.

    References:
        Sener and Koltun, "Multi-task learning as multi-objective optimization", arXiv 1810.04650, algorithm 1.
    """

    def weights(self, statistics: PairStatistics) -> Weights:
        """Return the weights of MGDA."""
        return mgda_weights(statistics)


class IMTLG(GradientCombiner):
    """Equal projections on both unit gradients; see :func:`imtl_g_weights`.

    References:
        Liu et al., "Towards impartial multi-task learning", ICLR 2021, section 3.1.
    """

    def weights(self, statistics: PairStatistics) -> Weights:
        """Return the weights of IMTL-G."""
        return imtl_g_weights(statistics)


class Projected(GradientCombiner):
    """One task first, the other in what is orthogonal to it; see :func:`projected_weights`.

    In the manner of BLUR, which puts forgetting first; its further details are not reproduced.

    Args:
        primary: The task whose loss falls as if it were alone.

    Raises:
        ValueError: If ``primary`` is no task.

    References:
        Reisizadeh et al., "BLUR: A bi-level optimization approach for LLM unlearning", arXiv 2506.08164.
    """

    def __init__(self, primary: Literal["forget", "retain"] = "forget") -> None:
        if primary not in ("forget", "retain"):
            raise ValueError(f"primary must be 'forget' or 'retain', got {primary!r}.")
        self.primary: Literal["forget", "retain"] = primary

    def weights(self, statistics: PairStatistics) -> Weights:
        """Return 1 for the primary gradient and the weights that make the other orthogonal to it."""
        return projected_weights(statistics, self.primary)


def check_combiner(combine: object) -> None:
    """Check an argument ``combine``.

    Raises:
        TypeError: If it is neither a combiner nor ``None``.
    """
    if combine is not None and not isinstance(combine, GradientCombiner):
        raise TypeError(
            f"combine must be a GradientCombiner, such as Normalised(), or None, got {type(combine).__name__}."
        )


def _usable(statistics: PairStatistics) -> Weights:
    """Return 1 for each gradient that is neither zero nor broken, else 0."""
    retain, forget = (1.0 if 0 < norm < math.inf else 0.0 for norm in (statistics.retain_norm, statistics.forget_norm))
    return retain, forget
