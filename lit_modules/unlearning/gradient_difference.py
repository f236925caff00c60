"""GDiff, the difference of two gradients with fixed weights."""

from transformers import PreTrainedModel

from lit_modules.unlearning.core.aggregators import check_aggregator
from lit_modules.unlearning.core.arguments import GradientPairArguments, check_not_negative
from lit_modules.unlearning.core.gradient_pair import GradientPairUnlearning
from lit_modules.unlearning.core.gradients import GradientAggregator, PairStatistics, Weights
from lit_modules.utils.arguments import Unpack


class GradientDifference(GradientPairUnlearning):
    """Unlearn along a weighted difference of the retain and the forget gradient.

    Each step moves by ``d = retain_weight * g_R - forget_weight * g_F``, the gradient of
    ``retain_weight * NLL(retain) - forget_weight * NLL(forget)``. As the forget loss grows so does its gradient, which
    then dominates: ``g_R . d`` is negative, and the step raises the retain loss, whenever
    ``forget_weight * n_F * cos > retain_weight * n_R``. An ``aggregator`` replaces the sum: ``PCGrad``, ``MGDA``,
    ``IMTLG`` or ``Projected`` of ``lit_modules.unlearning.core.aggregators`` joins the gradients of the two weighted
    losses, and ``Normalised`` makes this NGDiff.

    Batch, logged names and strategies are those of :class:`~lit_modules.NGDiff`.

    Args:
        retain_weight: Factor of the retain loss, ``alpha``.
        forget_weight: Factor of the forget loss, ``gamma``.
        aggregator: Rule that combines the gradients of the two weighted losses, such as
            ``lit_modules.unlearning.core.aggregators.PCGrad``; ``None`` takes their difference.

    References:
        Liu et al., "Continual learning and private unlearning", arXiv 2203.12817; the baseline of arXiv 2410.22086.
    """

    shardable = True

    def __init__(
        self,
        model: str | PreTrainedModel,
        *,
        retain_weight: float = 1.0,
        forget_weight: float = 1.0,
        aggregator: GradientAggregator | None = None,
        **shared: Unpack[GradientPairArguments],
    ) -> None:
        super().__init__(model, **shared)
        check_not_negative(retain_weight=retain_weight, forget_weight=forget_weight)
        check_aggregator(aggregator)
        self.aggregator = aggregator
        self.retain_weight = retain_weight
        self.forget_weight = forget_weight

    def weights(self, pair: PairStatistics) -> Weights:
        """Return the two fixed weights, or what ``aggregator`` makes of them."""
        if self.aggregator is None:
            return self.retain_weight, self.forget_weight
        return self.aggregator.of_weighted(pair, self.retain_weight, self.forget_weight)
