"""Minimum-norm attacks on a Lagrangian: with an augmented one (ALMA), and as a game of two players (PDGD, PDPGD)."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from lit_modules.attacks.engine.checks import check_choice, check_count, check_positive, check_range
from lit_modules.attacks.engine.losses import dlr, margin
from lit_modules.attacks.engine.norms import DUAL, lp_norm, normalise, per_sample, project
from lit_modules.attacks.engine.state import AttackState, Carry
from lit_modules.attacks.minimum_norm import Iterate, MinimumNormArguments, MinimumNormAttack, OutsideStart
from lit_modules.utils.arguments import Unpack

_TINY = 1e-8  # added to the size of gradients
_RISE = 0.3  # by how much the logarithm of the norm's weight grows in a step before the boundary is first crossed


def scaled_margin(logits: Tensor, label: Tensor) -> Tensor:
    """Return the margin over the distance of the first to the third logit, ``(batch,)``; of two classes, the margin."""
    return margin(logits, label) if logits.shape[1] < 3 else dlr(logits, label)


def penalty_slope(constraint: Tensor, penalty: Tensor, multiplier: Tensor) -> Tensor:
    """Return the derivative of the penalty-Lagrangian function P2 by the constraint, ``(batch,)``.

    ``P2(c)`` is ``multiplier c + multiplier penalty c^2 + penalty^2 c^3 / 6`` for ``c >= 0``, where the constraint is
    broken, and ``multiplier c / (1 - penalty c)`` where it is met.

    References:
        Birgin, Castillo, Martinez, "Numerical comparison of augmented Lagrangian algorithms for nonconvex problems"
        (Computational Optimization and Applications 31, 2005).
    """
    broken = multiplier * (1 + 2 * penalty * constraint) + (penalty * constraint).square() / 2
    met = multiplier / (1 - penalty * constraint.clamp_max(0)).square()
    return torch.where(constraint >= 0, broken, met)


def shrink(move: Tensor, weight: Tensor, norm: str) -> Tensor:
    """Return the proximal point of ``weight ||.||``: the minimum of ``||z - move||^2 / 2 + weight ||z||`` over z.

    For ``l1`` the soft threshold, for ``l0`` the hard one, for ``l2`` the vector shortened, and for ``linf`` what is
    left after the projection on the L1 ball of radius ``weight``.

    Args:
        move: Points, ``(batch, *)``.
        weight: Weight, broadcastable; for ``l2`` and ``linf`` one per sample.
        norm: ``l0``, ``l1``, ``l2`` or ``linf``.
    """
    if norm == "l1":
        return move.sign() * (move.abs() - weight).clamp_min(0)
    if norm == "l0":
        return torch.where(move.square() > 2 * weight, move, 0.0)
    if norm == "l2":
        length = per_sample(lp_norm(move, "l2"), move).clamp_min(torch.finfo(move.dtype).tiny)
        return move * (1 - weight / length).clamp_min(0)
    return move - project(move, weight, "l1")


class ALMA(MinimumNormAttack):
    """Augmented Lagrangian attack: descent on the norm plus a penalty for being classified rightly.

    The constraint is the lead of the label over the largest other logit, over the distance of the first to the third
    logit; its penalty is :func:`penalty_slope`'s P2. After each step the multiplier follows the slope of the penalty,
    as an exponential average; every ``penalty_every`` steps in which no iterate fooled and the constraint fell by less
    than ``progress``, the penalty's factor grows. A step goes along the gradient over its root mean square of the last
    ones, with a momentum, and its size falls exponentially. A step costs one forward and one backward pass.

    As in the paper are the constraint, P2, and the updates of multiplier and factor. Of this implementation are: the
    way outside at first, see :class:`~lit_modules.attacks.minimum_norm.OutsideStart`, which ``start="sample"`` leaves
    out; L2 itself instead of its square; for L1 the soft threshold instead of the sign of the perturbation, whose steps
    never leave a value unchanged; a given size of the first step; and a shorter memory, ``average`` and ``momentum``,
    where the paper has 0.9 for both. The paper's further distances are not norms.

    Args:
        norm: Norm of the perturbation to be small: ``l1`` or ``l2``.
        steps: Number of steps.
        start: ``outside``, or ``sample`` to begin the descent at the sample.
        step_size: First change of a value in a step; ``None`` takes 0.3 (L1) or 0.5 (L2).
        final_share: Size of the last step over that of the first.
        multiplier: First multiplier; ``None`` takes 1 (L2) or 10 (L1).
        penalty: First factor of the penalty.
        penalty_growth: By how much the factor grows, at least 1.
        penalty_every: Steps between two looks at the constraint.
        progress: Share of the constraint that counts as progress if it falls below, between 0 and 1.
        average: Weight of the past in the multiplier's average, between 0 and 1.
        momentum: Weight of the past in the direction of a step, at least 0 and below 1.
        search_steps: Forward passes of a last search between the sample and the best iterate.

    References:
        Rony, Granger, Pedersoli, Ben Ayed, "Augmented Lagrangian adversarial attacks" (arXiv 2011.11857), section 3.
    """

    def __init__(
        self,
        *,
        norm: Literal["l1", "l2"] = "l2",
        steps: int = 100,
        start: Literal["outside", "sample"] = "outside",
        step_size: float | None = None,
        final_share: float = 0.01,
        multiplier: float | None = None,
        penalty: float = 1.0,
        penalty_growth: float = 1.2,
        penalty_every: int = 10,
        progress: float = 0.95,
        average: float = 0.8,
        momentum: float = 0.5,
        search_steps: int = 3,
        **shared: Unpack[MinimumNormArguments],
    ) -> None:
        super().__init__(norm=norm, steps=steps, search_steps=search_steps, **shared)
        check_choice("norm", norm, ("l1", "l2"))
        check_choice("start", start, ("outside", "sample"))
        check_range("(0, 1)", average=average)
        check_range("[0, 1)", momentum=momentum)
        first = {"l1": 0.3, "l2": 0.5}[norm] if step_size is None else step_size
        balance = {"l1": 10.0, "l2": 1.0}[norm] if multiplier is None else multiplier
        check_positive(step_size=first, multiplier=balance, penalty=penalty)
        check_range("(0, 1]", final_share=final_share)
        check_range("[1, inf)", penalty_growth=penalty_growth)
        check_range("(0, 1)", progress=progress)
        check_count(penalty_every=penalty_every)
        self.start = start
        self.step_size = first
        self.final_share = final_share
        self.multiplier = balance
        self.penalty = penalty
        self.penalty_growth = penalty_growth
        self.penalty_every = penalty_every
        self.progress = progress
        self.average = average
        self.momentum = momentum

    def initial_carry(self, state: AttackState) -> Carry:
        """Return multiplier, factor and past of the constraint, and the moments of the descent."""
        ones = torch.ones(len(state), dtype=state.x.dtype, device=state.x.device)
        return OutsideStart.initial_carry(state, self.start) | {
            "multiplier": ones * self.multiplier,
            "penalty": ones * self.penalty,
            "before": ones * float("inf"),
            "fooled": torch.zeros_like(ones, dtype=torch.bool),
            "square": torch.zeros_like(state.x),
            "momentum": torch.zeros_like(state.x),
        }

    def evaluate(self, active: AttackState, x: Tensor, carry: Carry) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, the negative constraint and its gradient."""
        return active.gradient(x, scaled_margin)

    def step(self, active: AttackState, at: Iterate, step: int, carry: Carry) -> Tensor:
        """Update multiplier and factor, and descend on the Lagrangian."""
        OutsideStart.turn(at, step, self.steps, carry)
        inside, constraint = ~carry["out"], -at.value
        slope = penalty_slope(constraint, carry["penalty"], carry["multiplier"])
        followed = carry["multiplier"].lerp(slope, 1 - self.average).clamp_(1e-6, 1e12)
        carry["multiplier"].copy_(torch.where(inside, followed, carry["multiplier"]))
        carry["fooled"] |= at.fooled
        if step % self.penalty_every == 0:
            slow = inside & ~carry["fooled"] & (constraint > self.progress * carry["before"])
            carry["penalty"] *= torch.where(slow, self.penalty_growth, 1.0)
            carry["before"].copy_(constraint)
            carry["fooled"].zero_()
        weight = penalty_slope(constraint, carry["penalty"], carry["multiplier"])
        gradient = -per_sample(weight, at.x) * at.gradient
        if self.norm == "l2":
            gradient += normalise(at.move, "l2")
        past = {"l1": 0.8, "l2": 0.9}[self.norm]
        carry["square"].mul_(past).addcmul_(gradient, gradient, value=1 - past)
        size = (carry["square"] / (1 - past ** (step + 1))).sqrt_().add_(_TINY)
        carry["momentum"].mul_(self.momentum).add_(gradient / size, alpha=1 - self.momentum)
        rate = self.step_size * self.final_share ** (step / self.steps)
        move = at.move - rate * carry["momentum"]
        if self.norm == "l1":
            move = shrink(move, rate / size, "l1")
        return OutsideStart.move(active, at, carry, active.clamp(active.x + move))


class PrimalDualArguments(MinimumNormArguments, total=False):
    """Arguments that PDGD and PDPGD share; see :class:`PrimalDualAttack`."""

    steps: int
    start: Literal["outside", "sample"]
    final_share: float
    weight: float
    dual_rate: float
    final_dual_share: float
    dual_average: float
    search_steps: int


class PrimalDualAttack(MinimumNormAttack):
    """Base of attacks that play a game on the Lagrangian of the smallest perturbation that fools.

    One player lowers ``weight ||x' - x|| - margin`` over the perturbation, by steps of Adam. The other one sets the
    norm's weight: its logarithm grows by ``dual_rate`` after an iterate that fools and falls by it otherwise. The first
    player sees an exponential average of the weight. Both rates fall exponentially. A step costs one forward and one
    backward pass.

    From the paper are the game, multiplicative updates of the weight by the sign of the margin, the weight's average,
    Adam for the perturbation, and, in :class:`PDPGD`, the proximal step in Adam's metric. Of this implementation are:

    - the way outside at first, see :class:`~lit_modules.attacks.minimum_norm.OutsideStart`; ``start="sample"`` leaves
      it out;
    - the gradient of the margin over its dual norm, so that a weight of 1 balances both terms, in place of that of
      ``softplus(-margin)``, whose length depends on the model;
    - one weight, of the norm, in place of a pair of weights that sum to 1;
    - a weight that grows faster until the boundary is crossed for the first time;
    - the defaults: moments of Adam of 0.5 and 0.9 in place of 0.9 and 0.999, an average of 0.5 in place of 0.9, a dual
      rate of 0.2 in place of 0.1, which falls exponentially and not linearly, and 100 steps;
    - the last search.

    Args:
        steps: Number of steps.
        start: ``outside``, or ``sample`` to begin the game at the sample.
        step_size: First step of Adam.
        final_share: Last step over the first.
        weight: First weight of the norm.
        dual_rate: First change of the logarithm of the weight.
        final_dual_share: Last change over the first.
        dual_average: Weight of the past in the average of the weight, at least 0 and below 1.
        search_steps: Forward passes of a last search between the sample and the best iterate.

    References:
        Matyasko, Chau, "PDPGD: primal-dual proximal gradient descent adversarial attack" (arXiv 2106.01538).
    """

    def __init__(
        self,
        *,
        norm: str,
        step_size: float,
        steps: int = 100,
        start: Literal["outside", "sample"] = "outside",
        final_share: float = 0.01,
        weight: float = 0.1,
        dual_rate: float = 0.2,
        final_dual_share: float = 0.1,
        dual_average: float = 0.5,
        search_steps: int = 3,
        **shared: Unpack[MinimumNormArguments],
    ) -> None:
        super().__init__(norm=norm, steps=steps, search_steps=search_steps, **shared)
        check_choice("start", start, ("outside", "sample"))
        check_positive(step_size=step_size, weight=weight, dual_rate=dual_rate)
        check_range("(0, 1]", final_share=final_share, final_dual_share=final_dual_share)
        check_range("[0, 1)", dual_average=dual_average)
        self.step_size = step_size
        self.start = start
        self.final_share = final_share
        self.weight = weight
        self.dual_rate = dual_rate
        self.final_dual_share = final_dual_share
        self.dual_average = dual_average

    @abstractmethod
    def descend_on(self, at: Iterate, weight: Tensor, rate: float, step: int, carry: Carry) -> Tensor:
        """Return the next perturbations for the norm's weight, ``(active, 1, ..., 1)``."""

    def initial_carry(self, state: AttackState) -> Carry:
        """Return the weight, its logarithm, and the moments of Adam."""
        ones = torch.ones(len(state), dtype=state.x.dtype, device=state.x.device)
        return OutsideStart.initial_carry(state, self.start) | {
            "logarithm": ones * math.log(self.weight),
            "weight": ones * self.weight,
            "crossed": torch.zeros_like(ones, dtype=torch.bool),
            "first": torch.zeros_like(state.x),
            "second": torch.zeros_like(state.x),
        }

    def evaluate(self, active: AttackState, x: Tensor, carry: Carry) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, margin and its gradient."""
        return active.gradient(x, margin)

    def step(self, active: AttackState, at: Iterate, step: int, carry: Carry) -> Tensor:
        """Let both players take their step."""
        OutsideStart.turn(at, step, self.steps, carry)
        inside, part = ~carry["out"], step / self.steps
        carry["crossed"] |= inside & ~at.fooled
        change = self.dual_rate * self.final_dual_share**part
        rise = torch.where(carry["crossed"] | (self.start == "sample"), change, max(_RISE, change))
        carry["logarithm"] += torch.where(at.fooled, rise, -change) * inside
        carry["weight"].mul_(self.dual_average).add_(carry["logarithm"].exp(), alpha=1 - self.dual_average)
        weight, rate = per_sample(carry["weight"], at.x), self.step_size * self.final_share**part
        move = self.descend_on(at, weight, rate, step, carry)
        return OutsideStart.move(active, at, carry, active.clamp(active.x + move))

    def adam(self, gradient: Tensor, step: int, carry: Carry) -> tuple[Tensor, Tensor]:
        """Return the average gradient and the root of the average square; the moments are changed in place."""
        carry["first"].lerp_(gradient, 0.5)
        carry["second"].mul_(0.9).addcmul_(gradient, gradient, value=0.1)
        size = (carry["second"] / (1 - 0.9 ** (step + 1))).sqrt_().add_(_TINY)
        return carry["first"] / (1 - 0.5 ** (step + 1)), size


class PDGD(PrimalDualAttack):
    """Primal-dual gradient descent: the smallest L2 perturbation; see :class:`PrimalDualAttack`.

    The norm has a gradient, so both terms are descended at once, as in the paper; here all values are divided by the
    mean size, and not each by its own, so that a step has the direction of the averaged gradient.

    Args:
        step_size: First step of Adam.

    References:
        Matyasko, Chau (arXiv 2106.01538), the attack for differentiable norms.
    """

    def __init__(self, *, step_size: float = 0.3, **shared: Unpack[PrimalDualArguments]) -> None:
        super().__init__(norm="l2", step_size=step_size, **shared)

    def descend_on(self, at: Iterate, weight: Tensor, rate: float, step: int, carry: Carry) -> Tensor:
        """Take a step of Adam on both terms, all values divided by one size."""
        gradient = weight * normalise(at.move, "l2") - normalise(at.gradient, "l2")
        average, size = self.adam(gradient, step, carry)
        return at.move - rate * average / per_sample(size.flatten(1).mean(1), at.x)


class PDPGD(PrimalDualAttack):
    """Primal-dual proximal gradient descent: the smallest perturbation in L0, L1, L2 or Linf.

    See :class:`PrimalDualAttack` for the game, and for what is the paper's and what is not. A step of Adam on the
    margin is followed by the proximal point of the weighted norm, :func:`shrink`. For L0 and L1 each value has a size
    of its own in both, as in the paper, and the proximal point is exact. For L2 and Linf all have the mean size, which
    makes it exact there, too; the paper keeps a size for each value and takes a few inner steps. For L0 the proximal
    point is the hard threshold; adv-lib recommends that of the L2/3 quasi-norm, which is not here.

    Args:
        norm: Norm of the perturbation to be small: ``l0``, ``l1``, ``l2`` or ``linf``.
        step_size: First step of Adam; ``None`` takes 0.3 (L1, L2) or 0.1 (L0, Linf).

    References:
        Matyasko, Chau (arXiv 2106.01538), the attack with proximal operators.
    """

    def __init__(
        self,
        *,
        norm: Literal["l0", "l1", "l2", "linf"] = "linf",
        step_size: float | None = None,
        **shared: Unpack[PrimalDualArguments],
    ) -> None:
        check_choice("norm", norm, ("l0", "l1", "l2", "linf"))
        if norm == "l0":  # a shorter perturbation of this direction changes as many values
            shared = {"search_steps": 0, **shared}
        first = {"l0": 0.1, "l1": 0.3, "l2": 0.3, "linf": 0.1}[norm] if step_size is None else step_size
        super().__init__(norm=norm, step_size=first, **shared)

    def descend_on(self, at: Iterate, weight: Tensor, rate: float, step: int, carry: Carry) -> Tensor:
        """Take a step of Adam on the margin, and shrink."""
        dual = "linf" if self.norm == "l0" else DUAL[self.norm]
        average, size = self.adam(-normalise(at.gradient, dual), step, carry)
        if self.norm in ("l2", "linf"):
            size = per_sample(size.flatten(1).mean(1), at.x)
        return shrink(at.move - rate * average / size, rate * weight / size, self.norm)
