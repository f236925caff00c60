"""The elastic-net attack."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_modules.attacks.carlini_wagner import PenaltyArguments, PenaltyAttack
from lit_modules.attacks.engine.norms import lp_norm, per_sample
from lit_modules.attacks.engine.state import AttackState, Carry
from lit_modules.utils.arguments import Unpack


class ElasticNet(PenaltyAttack):
    """Elastic-net attack (EAD): least ``||d||^2 + beta ||d||_1`` with which the perturbation ``d`` fools the model.

    Each step moves against the gradient of ``||x' - x||^2 + c max(confidence - lead, 0)``, shrinks the change of every
    coordinate by ``beta``, clips to the bounds, and goes on in the direction of the last move (FISTA). The step falls
    as ``sqrt(1 - step / steps)``; the weight c is found as in :class:`CarliniWagner`. The model is evaluated at the
    extrapolated point alone, moved into the bounds, and that is the point kept when it fools: one forward pass a step
    instead of the two of the authors' code.

    The threshold is ``beta`` at any step size, as in the paper, so small steps weigh the L1 norm more than ``beta``
    does. For a least L1 norm, take ``decision="l1"`` and a ``beta`` of 0.1.

    AdverTorch has it since 0.2, not in v0.1, with ``num_classes``; the other defaults are its own.

    Args:
        beta: Weight of the L1 norm, and the threshold of a step in units of the samples.
        decision: Which adversarial sample is kept: ``en`` for the least elastic-net distance, ``l1`` for the least L1
            norm.
        abort_early: End a round of a sample whose loss has fallen by less than a ten-thousandth in a tenth of the
            steps.

    Raises:
        ValueError: If an argument is outside its range.

    References:
        Chen, Sharma, Zhang, Yi, Hsieh, "EAD: elastic-net attacks to deep neural networks via adversarial examples"
        (arXiv 1709.04114), algorithm 1.
    """

    norm = "l1"

    def __init__(
        self,
        *,
        beta: float = 0.01,
        decision: Literal["en", "l1"] = "en",
        abort_early: bool = False,
        **shared: Unpack[PenaltyArguments],
    ) -> None:
        super().__init__(abort_early=abort_early, **shared)
        if not 0 <= beta < float("inf"):
            raise ValueError(f"beta must be finite and at least 0, got {beta!r}.")
        if decision not in ("en", "l1"):
            raise ValueError(f"decision must be 'en' or 'l1', got {decision!r}.")
        self.beta = beta
        self.decision = decision

    def begin(self, state: AttackState) -> Carry:
        """Return the sample as last iterate and as the point to ask about."""
        return {"last": state.x.clone(), "point": state.x.clone()}

    def point(self, state: AttackState, carry: Carry) -> Tensor:
        """Return the extrapolated point within the bounds."""
        return state.clamp(carry["point"])

    def distances(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the elastic-net distance, and that of the decision rule."""
        l1 = lp_norm(delta, "l1")
        elastic = lp_norm(delta, "l2").square_() + self.beta * l1
        return elastic, elastic if self.decision == "en" else l1

    def update(self, state: AttackState, carry: Carry, x: Tensor, gradient: Tensor, count: Tensor) -> None:
        """Take a step of FISTA."""
        taken = per_sample(count, x).to(x.dtype)
        gradient += 2 * (x - state.x)
        delta = x - state.x - self.step_size * (1 - taken / self.steps).sqrt() * gradient
        shrunk = state.clamp(state.x + torch.nn.functional.softshrink(delta, self.beta))
        carry["point"] = shrunk + taken / (taken + 3) * (shrunk - carry["last"])
        carry["last"] = shrunk
