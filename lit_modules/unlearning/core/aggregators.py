"""Aggregators: rules that combine two task gradients into one direction, for any pair of losses.

As in :mod:`lit_modules.unlearning.core.gradients`, ``retain`` is the gradient of the loss to lower, ``forget`` the
gradient of the loss to raise, and the direction is ``d = retain_weight * retain - forget_weight * forget``; a method
that minimises a forget loss of its own hands over the negative of that loss. So the two tasks of multi-task learning
are ``g1 = retain`` and ``g2 = -forget``. A rule needs no more than :class:`~.gradients.PairStatistics`.
"""

from typing import Literal

from lit_modules.unlearning.core.gradients import GradientAggregator, PairStatistics, Weights, is_usable
from lit_modules.unlearning.loss_norm import loss_normalised_weights
from lit_modules.unlearning.ngdiff import normalised_weights


class LinearScalarisation(GradientAggregator):
    """A sum with fixed factors: ``2 (c g1 + (1 - c) g2)``.

    The default is the plain sum, so it changes nothing but that both gradients are measured and logged.

    Args:
        share: Share of the retain gradient, ``c``, in [0, 1].
    """

    def __init__(self, share: float = 0.5) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share must lie in [0, 1], got {share}.")
        self.share = share

    def weights(self, pair: PairStatistics) -> Weights:
        """Return the fixed factors, with 0 for a gradient that is not finite."""
        retain, forget = _usable(pair)
        return 2 * self.share * retain, 2 * (1 - self.share) * forget


class Normalised(GradientAggregator):
    """The rule of :class:`~lit_modules.NGDiff`: ``g1 / |g1| + g2 / |g2|``.

    Args:
        eps: Smallest gradient norm that counts; below it, or when not finite, that task's term is dropped.

    References:
        Bu et al., arXiv 2410.22086.
    """

    def __init__(self, eps: float = 1e-12) -> None:
        if not eps > 0:
            raise ValueError(f"eps must be positive, got {eps}.")
        self.eps = eps

    def weights(self, pair: PairStatistics) -> Weights:
        """Return ``(1 / n_R, 1 / n_F)``."""
        return normalised_weights(pair, self.eps)


class LossNormalised(GradientAggregator):
    """The rule of :class:`~lit_modules.LossNorm`: each gradient over its loss, ``g1 / |L1| + g2 / |L2|``.

    Args:
        eps: Smallest loss that counts; below it, or when not finite, that task's term is dropped.

    References:
        A comparison of arXiv 2410.22086; its formula there is not checked.
    """

    def __init__(self, eps: float = 1e-12) -> None:
        if not eps > 0:
            raise ValueError(f"eps must be positive, got {eps}.")
        self.eps = eps

    def weights(self, pair: PairStatistics) -> Weights:
        """Return ``(1 / |L_R|, 1 / |L_F|)``."""
        return loss_normalised_weights(pair, self.eps)


class PCGrad(GradientAggregator):
    """Projection of conflicting gradients: each without its part against the other.

    If ``g1 . g2 < 0`` each ``g_i`` becomes ``g_i - (g_i . g_j / |g_j|^2) g_j`` with the original ``g_j``, and the two
    are added; else they are added as they are. No task's loss rises to first order.

    Example:
        >>> PCGrad().weights(PairStatistics(retain_norm=1.0, forget_norm=2.0, inner=1.0))
        (2.0, 1.25)

    References:
        Yu et al., "Gradient surgery for multi-task learning", arXiv 2001.06782, algorithm 1.
    """

    def weights(self, pair: PairStatistics) -> Weights:
        """Return the weights of PCGrad."""
        if not all(_usable(pair)) or not pair.inner > 0:
            return _usable(pair)
        return 1 + pair.inner / pair.retain_norm**2, 1 + pair.inner / pair.forget_norm**2


class MGDA(GradientAggregator):
    """Shortest vector between the two gradients.

    ``t g1 + (1 - t) g2`` with ``t = clip((g2 - g1) . g2 / |g1 - g2|^2, 0, 1)``; then ``d . g_i >= |d|^2``. Where one
    gradient vanishes so does the direction, and where both are equal it is either.

    Example:
        >>> MGDA().weights(PairStatistics(retain_norm=1.0, forget_norm=1.0, inner=0.0))
        (0.5, 0.5)

    References:
        Sener and Koltun, "Multi-task learning as multi-objective optimization", arXiv 1810.04650, algorithm 1.
    """

    def weights(self, pair: PairStatistics) -> Weights:
        """Return the weights of MGDA."""
        if not all(_usable(pair)):
            return (0.0, 0.0) if pair.retain_norm == 0 or pair.forget_norm == 0 else _usable(pair)
        square, other, inner = pair.retain_norm**2, pair.forget_norm**2, -pair.inner
        distance = square + other - 2 * inner
        if not distance > 0:
            return 1.0, 0.0
        share = min(1.0, max(0.0, (other - inner) / distance))
        return share, 1 - share


class IMTLG(GradientAggregator):
    """Equal projections on both unit gradients.

    For two tasks the weights are ``|g2| / (|g1| + |g2|)`` and ``|g1| / (|g1| + |g2|)``: the direction of NGDiff, of
    another length.

    Example:
        >>> IMTLG().weights(PairStatistics(retain_norm=1.0, forget_norm=3.0, inner=0.0))
        (0.75, 0.25)

    References:
        Liu et al., "Towards impartial multi-task learning", ICLR 2021, section 3.1.
    """

    def weights(self, pair: PairStatistics) -> Weights:
        """Return the weights of IMTL-G."""
        if not all(_usable(pair)):
            return _usable(pair)
        total = pair.retain_norm + pair.forget_norm
        return pair.forget_norm / total, pair.retain_norm / total


class Projected(GradientAggregator):
    """One task first, and of the other the part that is orthogonal to it.

    With ``p`` the primary gradient and ``s`` the other, ``d = p + s - (s . p / |p|^2) p``: whatever the secondary task
    wants, the primary loss falls as if it were alone, ``p . d = |p|^2``. In the manner of BLUR, which puts forgetting
    first; its further details are not reproduced.

    Args:
        primary: The task whose loss falls as if it were alone.

    Example:
        >>> Projected().weights(PairStatistics(retain_norm=1.0, forget_norm=2.0, inner=1.0))
        (1.0, 1.25)

    References:
        Reisizadeh et al., "BLUR: A bi-level optimization approach for LLM unlearning", arXiv 2506.08164.
    """

    def __init__(self, primary: Literal["forget", "retain"] = "forget") -> None:
        if primary not in ("forget", "retain"):
            raise ValueError(f"primary must be 'forget' or 'retain', got {primary!r}.")
        self.primary: Literal["forget", "retain"] = primary

    def weights(self, pair: PairStatistics) -> Weights:
        """Return 1 for the primary gradient and the weight that makes the sum orthogonal to it."""
        if not all(_usable(pair)):
            return _usable(pair)
        # s . p / |p|^2 with g1 . g2 = -inner
        if self.primary == "forget":
            return 1.0, 1 + pair.inner / pair.forget_norm**2
        return 1 + pair.inner / pair.retain_norm**2, 1.0


def check_aggregator(aggregator: object) -> None:
    """Raise a ``TypeError`` unless an argument ``aggregator`` is one, or ``None``."""
    if aggregator is not None and not isinstance(aggregator, GradientAggregator):
        raise TypeError(
            f"aggregator must be a GradientAggregator, such as Normalised(), or None, got {type(aggregator).__name__}."
        )


def _usable(pair: PairStatistics) -> Weights:
    """Return 1 for each gradient that is neither zero nor broken, else 0."""
    return float(is_usable(pair.retain_norm)), float(is_usable(pair.forget_norm))
