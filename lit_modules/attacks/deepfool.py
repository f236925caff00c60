"""DeepFool: straight to the nearest linearised boundary, step by step until the model is fooled."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_modules.attacks.engine.checks import check_count
from lit_modules.attacks.engine.losses import margin
from lit_modules.attacks.engine.minimum_norm import (
    DUAL,
    Iterate,
    MinimumNormArguments,
    MinimumNormAttack,
    likely_others,
    nearest_plane,
)
from lit_modules.attacks.engine.norms import check_norm, lp_norm, per_sample, steepest
from lit_modules.attacks.engine.state import AttackState, Carry
from lit_modules.utils.arguments import Unpack

_FURTHER = 0.01  # of the distance so far


class DeepFool(MinimumNormAttack):
    """DeepFool: a small perturbation by steps to the nearest linearised boundary.

    One forward pass and one backward pass over all classes considered give a step; samples leave when they are fooled.
    A last search takes back most of the overshoot.

    DeepFool came after AdverTorch v0.1; the 0.2 releases have Linf only, capped at eps 0.1, all classes, and ignore
    ``targeted``. Here a targeted attack goes to the boundary between the target and the largest other logit.

    Args:
        norm: Norm of the perturbation to be small: ``l2`` or ``linf``.
        steps: Largest number of steps.
        classes: How many of the most likely classes are considered, the sample's own included; ``None`` for all.
        overshoot: Part by which the perturbation passes the linearised boundary, at least 0.
        search_steps: Forward passes of a last search between the sample and the result; 0 leaves the overshoot in.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(4, 3)
        >>> bool(DeepFool(bounds=None).run(model, torch.rand(2, 4)).success.all())
        True

    References:
        Moosavi-Dezfooli, Fawzi, Frossard, "DeepFool: a simple and accurate method to fool deep neural networks" (arXiv
        1511.04599), algorithm 2 and section 3.3.
    """

    leaves_when_fooled = True

    def __init__(
        self,
        *,
        norm: Literal["l2", "linf"] = "l2",
        steps: int = 50,
        classes: int | None = 10,
        overshoot: float = 0.02,
        search_steps: int = 2,
        **shared: Unpack[MinimumNormArguments],
    ) -> None:
        super().__init__(norm=norm, steps=steps, search_steps=search_steps, **shared)
        check_norm(norm, ("l2", "linf"))
        if classes is not None:
            check_count("classes", classes, least=2)
        if not overshoot >= 0:
            raise ValueError(f"overshoot must be at least 0, got {overshoot!r}.")
        self.classes = classes
        self.overshoot = overshoot

    def initial_carry(self, state: AttackState) -> Carry:
        """Return the classes considered, and the sum of the moves."""
        count = None if self.classes is None else self.classes - 1
        others = {} if state.targeted else {"others": likely_others(state, count)}
        return others | {"total": torch.zeros_like(state.x)}

    def evaluate(self, active: AttackState, x: Tensor, carry: Carry) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, and the difference of logits whose linear model has the nearest zero."""
        if active.targeted:
            return active.gradient(x, margin)
        return nearest_plane(active, x, carry["others"], self.norm)

    def step(self, active: AttackState, at: Iterate, step: int, carry: Carry) -> Tensor:
        """Add the move to the plane to the sum, and pass the boundary by the overshoot.

        The bounds cut the result, not the sum. As that may keep the result short of the boundary for ever, each move is
        a little longer than the way to the plane.
        """
        total = carry["total"]
        if not step:
            total += at.move  # of a random start
        length = lp_norm(at.gradient, DUAL[self.norm]).clamp_min(torch.finfo(total.dtype).tiny)
        way = (at.value.abs() / length).clamp_max(1e30) + _FURTHER * at.distance
        total += per_sample(way, total) * steepest(at.gradient, self.norm)
        return active.clamp(active.x + (1 + self.overshoot) * total)
