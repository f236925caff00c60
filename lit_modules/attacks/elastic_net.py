"""The elastic-net attack."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_modules.attacks.carlini_wagner import PenaltyAttack
from lit_modules.attacks.engine.base import AttackArguments
from lit_modules.attacks.engine.norms import lp_norm, per_sample
from lit_modules.attacks.engine.problem import Problem
from lit_modules.utils.arguments import Unpack


class ElasticNet(PenaltyAttack):
    """Elastic-net attack (EAD): least ``||d||^2 + beta ||d||_1`` with which the perturbation ``d`` fools the model.

    Each step moves against the gradient of ``||x' - x||^2 + c max(confidence - lead, 0)``, shrinks the change of every
    coordinate by ``beta``, clips to the bounds, and goes on in the direction of the last move (FISTA). The weight c is
    found as in :class:`CarliniWagner`. The model is asked at the extrapolated point alone, moved into the bounds, and
    that is the point kept when it fools: one forward pass a step instead of the two of the authors' code.

    The threshold is ``beta`` at any step size, as in the paper, so small steps weigh the L1 norm more than ``beta``
    does. For a least L1 norm, take ``decision="l1"`` and a ``beta`` of 0.1.

    AdverTorch has it since 0.2, not in v0.1, with ``num_classes``; the other defaults are its own.

    Args:
        beta: Weight of the L1 norm, and the threshold of a step in units of the samples.
        decision: Which adversarial sample is kept: ``en`` for the least elastic-net distance, ``l1`` for the least L1
            norm.
        confidence: Least lead in logits of an adversarial sample.
        step_size: First step; it falls as ``sqrt(1 - step / steps)``.
        search_steps: Rounds of the search over c.
        steps: Most steps of a round; one forward and one backward pass each.
        initial_const: First c.
        abort_early: End a round of a sample whose loss has fallen by less than a ten-thousandth in a tenth of the
            steps.
        arguments: Arguments of :class:`Attack`, by name.

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
        confidence: float = 0.0,
        step_size: float = 0.01,
        search_steps: int = 9,
        steps: int = 1000,
        initial_const: float = 1e-3,
        abort_early: bool = False,
        **arguments: Unpack[AttackArguments],
    ) -> None:
        super().__init__(
            confidence=confidence,
            step_size=step_size,
            search_steps=search_steps,
            steps=steps,
            initial_const=initial_const,
            abort_early=abort_early,
            **arguments,
        )
        if not 0 <= beta < float("inf"):
            raise ValueError(f"beta must be finite and at least 0, got {beta!r}.")
        if decision not in ("en", "l1"):
            raise ValueError(f"decision must be 'en' or 'l1', got {decision!r}.")
        self.beta = beta
        self.decision = decision

    def begin(self, problem: Problem) -> dict[str, Tensor]:
        """Return the sample as last iterate and as the point to ask about."""
        return {"last": problem.x.clone(), "point": problem.x.clone()}

    def point(self, problem: Problem, state: dict[str, Tensor]) -> Tensor:
        """Return the extrapolated point within the bounds."""
        return problem.clamp(state["point"])

    def distances(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the elastic-net distance, and that of the decision rule."""
        l1 = lp_norm(delta, "l1")
        elastic = lp_norm(delta, "l2").square_() + self.beta * l1
        return elastic, elastic if self.decision == "en" else l1

    def update(self, problem: Problem, state: dict[str, Tensor], x: Tensor, gradient: Tensor, count: Tensor) -> None:
        """Take a step of FISTA."""
        taken = per_sample(count, x).to(x.dtype)
        gradient += 2 * (x - problem.x)
        delta = x - problem.x - self.step_size * (1 - taken / self.steps).sqrt() * gradient
        shrunk = problem.clamp(problem.x + torch.nn.functional.softshrink(delta, self.beta))
        state["point"] = shrunk + taken / (taken + 3) * (shrunk - state["last"])
        state["last"] = shrunk
