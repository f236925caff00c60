"""LossNorm, the difference of gradients over their losses."""

from transformers import PreTrainedModel

from lit_modules.unlearning.core.arguments import GradientPairArguments
from lit_modules.unlearning.core.gradient_pair import GradientPairUnlearning
from lit_modules.unlearning.core.gradients import PairStatistics, Weights, inverse, is_usable
from lit_modules.utils.arguments import Unpack


def loss_normalised_weights(pair: PairStatistics, eps: float = 1e-12) -> Weights:
    """Return the factors of ``d = g_R / |L_R| - g_F / |L_F|``.

    A loss below ``eps`` in size or not finite drops its term, and so does a gradient that vanishes or is not finite.

    Example:
        >>> pair = PairStatistics(retain_norm=1.0, forget_norm=1.0, inner=0.0, retain_loss=2.0, forget_loss=4.0)
        >>> loss_normalised_weights(pair)
        (0.5, 0.25)
    """
    retain = inverse(abs(pair.retain_loss), eps) if is_usable(pair.retain_norm) else 0.0
    forget = inverse(abs(pair.forget_loss), eps) if is_usable(pair.forget_norm) else 0.0
    return retain, forget


class LossNorm(GradientPairUnlearning):
    """Unlearn along the difference of two gradients, each over its loss.

    Each step moves by ``d = g_R / L_R - g_F / L_F``, the gradient of ``log L_R - log L_F``, with the mean NLL per
    target token of the retain and of the forget rows. Like NGDiff it does not depend on the scale of the losses; unlike
    it, a step may raise the retain loss: ``g_R . d`` is negative whenever ``n_F cos / L_F > n_R / L_R``.

    Batch, logged names and strategies are those of :class:`~lit_modules.NGDiff`.

    Args:
        eps: Smallest loss in nats that counts; below it, or when not finite, that task's term is dropped.

    References:
        A comparison of Bu et al., arXiv 2410.22086; named there, its formula not checked against the text.
    """

    shardable = True

    def __init__(
        self, model: str | PreTrainedModel, *, eps: float = 1e-12, **shared: Unpack[GradientPairArguments]
    ) -> None:
        super().__init__(model, **shared)
        if not eps > 0:
            raise ValueError(f"eps must be positive, got {eps}.")
        self.eps = eps

    def weights(self, pair: PairStatistics) -> Weights:
        """Return ``(1 / L_R, 1 / L_F)``, with 0 for a loss that vanishes."""
        return loss_normalised_weights(pair, self.eps)
