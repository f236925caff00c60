"""Minimum-norm attacks by gradient steps: their base, DDN and FMN."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_modules.attacks.engine.base import Attack, AttackArguments, warn_zero_gradient
from lit_modules.attacks.engine.checks import check_choice, check_count, check_positive, check_range
from lit_modules.attacks.engine.losses import Loss, LossName, logit_gap, margin, resolve_loss
from lit_modules.attacks.engine.norms import (
    DUAL,
    few_steepest,
    lp_norm,
    normalise,
    per_sample,
    project,
    project_l1_box,
    random_in_ball,
    steepest,
)
from lit_modules.attacks.engine.state import AttackState, Carry, Outcome
from lit_modules.utils.arguments import Unpack

START = {"linf": 0.3, "l2": 1.0, "l1": 5.0, "l0": 0.3}
_OUT = 0.3  # most of the steps that go outside
_SHRINK = 0.3  # share by which the ball shrinks on the way back from outside
_OF_RADIUS = 0.5  # length of the first step, of the radius
_FEW = 0.2  # largest change of a value in a step of the L0 search
_BEYOND = 1.001  # the last search aims this much beyond the boundary, so that rounding does not decide


class Iterate(NamedTuple):
    """Iterates of a minimum-norm attack and the model's answer to them.

    Attributes:
        x: Iterates, ``(active, *)``.
        move: Iterates less the samples, ``(active, *)``.
        distance: Norm of the move, ``(active,)``.
        fooled: Which iterates fool the model, ``(active,)``.
        nearest: Distance of the nearest iterate that did, this one included, infinite before, ``(active,)``.
        value: Objective, ``(active,)``.
        gradient: Gradient of the objective, ``(active, *)``.
    """

    x: Tensor
    move: Tensor
    distance: Tensor
    fooled: Tensor
    nearest: Tensor
    value: Tensor
    gradient: Tensor


class MinimumNormArguments(AttackArguments, total=False):
    """Arguments that the minimum-norm attacks by gradient steps share; see :class:`MinimumNormAttack`."""

    start_radius: float | None
    stop_radius: float | None


class MinimumNormAttack(Attack):
    """Base of attacks that look for the smallest perturbation by steps with one pass each.

    The pass that gives the gradient also says whether the iterate fools the model; the nearest that does is kept.
    Restarts after the first begin at a random point. In an ensemble with a radius, a sample leaves as soon as its
    perturbation is within it.

    Args:
        norm: Norm of the perturbation to be small.
        steps: Number of steps.
        search_steps: Forward passes of a last search between the sample and the best iterate.
        start_radius: Restarts after the first begin within half the smaller of this and the best distance; ``None``
            takes 0.3 (Linf, and Linf for L0), 1 (L2) or 5 (L1).
        stop_radius: A sample leaves as soon as its perturbation is at most this; ``None`` looks for the smallest.
    """

    minimum_norm = True
    leaves_when_fooled = False

    def __init__(
        self,
        *,
        norm: str,
        steps: int,
        search_steps: int,
        start_radius: float | None = None,
        stop_radius: float | None = None,
        **shared: Unpack[AttackArguments],
    ) -> None:
        super().__init__(**shared)
        check_count(steps=steps)
        check_count(least=0, search_steps=search_steps)
        radii = {"start_radius": start_radius, "stop_radius": stop_radius}
        check_positive(**{name: radius for name, radius in radii.items() if radius is not None})
        self.norm: str = norm
        self.steps = steps
        self.search_steps = search_steps
        self.start_radius = start_radius
        self.stop_radius = stop_radius

    @abstractmethod
    def evaluate(self, active: AttackState, x: Tensor, carry: Carry) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, objective and its gradient, from one pass."""

    @abstractmethod
    def step(self, active: AttackState, at: Iterate, step: int, carry: Carry) -> Tensor:
        """Return the next iterates, within the bounds; ``carry`` is changed in place."""

    def initial_carry(self, state: AttackState) -> Carry:
        """Return the values of each sample that the steps carry along."""
        return {}

    def attack(self, state: AttackState) -> Outcome:
        """Run once, from the samples themselves."""
        return self.search(state, None)

    def solve(self, state: AttackState, already: Tensor) -> Outcome:
        """Run once from the samples and then from random points, and keep the nearest."""
        adversarial, success = state.x.clone(), already.clone()
        distance, stop = _infinite(state), self.stop(state)
        radius = torch.full_like(distance, START[self.norm] if self.start_radius is None else self.start_radius)
        if self.start_radius is None and state.eps is not None and self.norm != "l0":
            radius = state.radius.flatten()
        for restart in range(self.restarts):
            index = (~already if stop is None else ~already & (distance > stop)).nonzero()[:, 0]
            if not len(index):
                break
            active = state.select(index)
            active.random = active.random.fork(restart)
            within = radius[index] / 2 if restart else None
            if within is not None and self.norm != "l0":
                within = torch.minimum(distance[index] / 2, within)
            outcome = self.search(active, within)
            better = -outcome.score < distance[index]
            chosen = index[better]
            adversarial[chosen] = outcome.adversarial[better]
            success[chosen] = True
            distance[chosen] = -outcome.score[better]
        return Outcome(adversarial, success, -distance)

    def stop(self, state: AttackState) -> Tensor | None:
        """Return the distance within which a sample leaves, ``(batch,)``: ``stop_radius`` or that of an ensemble."""
        if self.stop_radius is not None:
            return torch.full_like(state.x.flatten(1)[:, 0], self.stop_radius)
        return None if state.eps is None else state.eps.flatten()

    def search(self, state: AttackState, radius: Tensor | None) -> Outcome:
        """Take the steps, from a random point within ``radius`` of each sample if it is given, and the last search."""
        return self.refine(state, *self.descend(state, radius, self.initial_carry(state)))

    def descend(self, state: AttackState, radius: Tensor | None, carry: Carry) -> tuple[Tensor, Tensor]:
        """Take the steps; return the nearest samples that fool and their distances, infinite where there is none.

        A sample may come several times; all its versions leave together.
        """
        active, x, stop = state, state.x, self.stop(state)
        if radius is not None:
            ball = "linf" if self.norm == "l0" else self.norm
            x = state.clamp(x + random_in_ball(x, per_sample(radius, x), ball, state.random))
        best, nearest = state.x.clone(), _infinite(state)
        positions = state.positions()
        left = torch.zeros_like(state.num_queries, dtype=torch.bool)  # in the whole batch
        for step in range(self.steps + 1):
            if step < self.steps:
                logits, value, gradient = self.evaluate(active, x, carry)
            else:
                with torch.no_grad():
                    logits = active.logits(x)
            fooled = active.fooled(logits)
            move = x - active.x
            distance = lp_norm(move, self.norm)
            better = (fooled & (distance < nearest[positions])).nonzero()[:, 0]
            best[positions[better]] = x[better]
            nearest[positions[better]] = distance[better]
            if step == self.steps:
                break
            if step == 0:
                warn_zero_gradient(gradient)
            at = Iterate(x, move, distance, fooled, nearest[positions], value.to(x.dtype), gradient)
            if stop is not None or self.leaves_when_fooled:
                done = fooled if self.leaves_when_fooled or stop is None else fooled & (distance <= stop)
                left[active.index[done]] = True
                stay = (~left[active.index]).nonzero()[:, 0]
                if not len(stay):
                    break
                if len(stay) < len(positions):
                    positions, active = positions[stay], active.select(stay)
                    at = Iterate(*(values[stay] for values in at))
                    carry = {name: values[stay] for name, values in carry.items()}
                    stop = None if stop is None else stop[stay]
            x = self.step(active, at, step, carry)
        return best, nearest

    def refine(self, state: AttackState, best: Tensor, nearest: Tensor) -> Outcome:
        """Look between the samples and their adversarials for nearer ones, by false position on the logit gap."""
        success, stop = torch.isfinite(nearest), self.stop(state)
        index = (success if stop is None else success & (nearest > stop)).nonzero()[:, 0]
        if not self.search_steps or not len(index):
            return Outcome(best, success, -nearest)
        active = state.select(index)
        direction = best[index] - active.x
        with torch.no_grad():
            inner, outer = torch.zeros_like(nearest[index]), torch.ones_like(nearest[index])
            logits = active.logits(best[index])
            rival = active.clean_logits.argmax(1) if active.targeted else logits.argmax(1)
            ends = (rival, active.label) if active.targeted else (active.label, rival)
            inside = logit_gap(active.clean_logits, *ends).to(best.dtype)
            outside = logit_gap(logits, *ends).to(best.dtype)
            for _ in range(self.search_steps):
                share = (-inside / (outside - inside)).nan_to_num(0.5).clamp(0.05, 1)
                middle = torch.minimum((inner + (outer - inner) * share) * _BEYOND, outer)
                x = active.clamp(active.x + per_sample(middle, best) * direction)
                logits = active.logits(x)
                value = logit_gap(logits, *ends).to(best.dtype)
                fooled = active.fooled(logits)
                distance = lp_norm(x - active.x, self.norm)
                better = fooled & (distance < nearest[index])
                best[index[better]] = x[better]
                nearest[index[better]] = distance[better]
                inner, inside = torch.where(fooled, inner, middle), torch.where(fooled, inside, value)
                outer, outside = torch.where(fooled, middle, outer), torch.where(fooled, value, outside)
        return Outcome(best, success, -nearest)


class OutsideStart:
    """Way off a plateau of the loss: steps along the sign of the gradient, far beyond the boundary.

    Around samples of an adversarially trained model the loss is nearly flat for small perturbations in L2, L1 or L0,
    while signs, which move all values at once, cross the boundary soon. A sample goes out until it has been fooled for
    as many steps as it took, at most for three tenths of the attack's steps; then the attack proper begins there. A
    step is as long as the way to the linearised boundary, grows by a half until the sample is fooled, and is never more
    than a tenth of the width of the bounds, or 0.1 without bounds.
    """

    @staticmethod
    def initial_carry(state: AttackState, start: Literal["outside", "sample"] = "outside") -> Carry:
        """Return when each sample was first fooled, not yet; which still go out, all or none; and the step."""
        met = torch.full_like(state.x.flatten(1)[:, 0], float("inf"))
        out = torch.full_like(met, start == "outside", dtype=torch.bool)
        return {"met": met, "out": out, "stride": torch.ones_like(met)}

    @staticmethod
    def turn(at: Iterate, step: int, steps: int, carry: Carry) -> Tensor:
        """Return which samples have just turned, ``(active,)``; ``carry`` is changed in place."""
        if not bool(carry["out"].any()):
            return carry["out"]
        if step == 0:
            slope = lp_norm(at.gradient, "l1").clamp_min(torch.finfo(at.x.dtype).tiny)
            carry["stride"].copy_((at.value.abs() / slope).clamp_max(1.0))
        else:
            carry["stride"] *= torch.where(carry["met"].isinf(), 1.5, 1.0)
        carry["met"].masked_fill_(at.fooled & carry["met"].isinf(), float(step))
        going = carry["out"] & (step < 2 * carry["met"] + 1) & (step < _OUT * steps)
        turned = carry["out"] & ~going
        carry["out"].copy_(going)
        return turned

    @staticmethod
    def move(active: AttackState, at: Iterate, carry: Carry, inside: Tensor) -> Tensor:
        """Return the next iterates: those of the attack proper, and further out for the samples that still go out."""
        if not bool(carry["out"].any()):
            return inside
        sign = at.gradient.sign()
        flat = ~sign.flatten(1).any(1)
        if bool(flat.any()):
            drawn = active.random.fork(1).sign(*sign.shape[1:]).to(sign.dtype)
            sign = torch.where(per_sample(flat, sign), drawn, sign)
        width = torch.ones_like(sign)
        if active.lower is not None and active.upper is not None:
            width = (active.upper - active.lower).expand_as(sign)
            width = torch.where(width.isfinite(), width, 1.0)
        length = torch.minimum(per_sample(carry["stride"], sign), 0.1 * width)
        return torch.where(per_sample(carry["out"], at.x), active.clamp(at.x + length * sign), inside)


def _infinite(state: AttackState) -> Tensor:
    """Return an infinite distance for each sample, ``(batch,)``."""
    return torch.full((len(state),), float("inf"), dtype=state.x.dtype, device=state.x.device)


class DDN(MinimumNormAttack):
    """Decoupled direction and norm attack: the smallest L2 perturbation.

    Each step moves along the unit gradient, with a length that falls from 1 to 0.01 along a cosine, and puts the
    perturbation back on a sphere; the sphere shrinks by ``gamma`` after an iterate that fools the model and grows by it
    otherwise. The nearest iterate that fools is kept. A step costs one forward and one backward pass. The gradient
    leads to a likely class, not always to the nearest one.

    The defaults are those of AdverTorch 0.2 but for its ``levels=256``.

    Args:
        steps: Number of steps.
        gamma: Share by which the radius changes, between 0 and 1.
        init_norm: First radius, in units of the samples.
        levels: Round iterates to this many equally spaced values between the bounds, as 256 for 8-bit images; ``None``
            for no rounding.
        loss: ``cross_entropy``, ``margin``, ``dlr``, ``soft_margin``, or a callable giving one value per sample.
        search_steps: Forward passes of a last search between the sample and the best iterate; there is none with
            ``levels``.

    Raises:
        ValueError: If an argument is outside its range, or ``levels`` is given without bounds.

    References:
        Rony et al., "Decoupling direction and norm for efficient gradient-based L2 adversarial attacks and defenses"
        (arXiv 1811.09600), algorithm 1.
    """

    def __init__(
        self,
        *,
        steps: int = 100,
        gamma: float = 0.05,
        init_norm: float = 1.0,
        levels: int | None = None,
        loss: LossName | Loss = "cross_entropy",
        search_steps: int = 3,
        **shared: Unpack[MinimumNormArguments],
    ) -> None:
        super().__init__(norm="l2", steps=steps, search_steps=search_steps if levels is None else 0, **shared)
        check_range("(0, 1)", gamma=gamma)
        check_positive(init_norm=init_norm)
        if levels is not None:
            check_count(least=2, levels=levels)
            if self.bounds is None:
                raise ValueError("levels divide the range between the bounds; pass bounds=, or levels=None.")
        self.gamma = gamma
        self.init_norm = init_norm
        self.levels = levels
        self.loss = loss
        self._loss = resolve_loss(loss)

    def initial_carry(self, state: AttackState) -> Carry:
        """Return the radius of each sample's sphere."""
        return {"radius": torch.full((len(state),), self.init_norm, dtype=state.x.dtype, device=state.x.device)}

    def evaluate(self, active: AttackState, x: Tensor, carry: Carry) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, loss and its gradient."""
        return active.gradient(x, self._loss)

    def step(self, active: AttackState, at: Iterate, step: int, carry: Carry) -> Tensor:
        """Move along the unit gradient and rescale to the new radius."""
        rate = 0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2
        radius = carry["radius"].mul_(torch.where(at.fooled, 1 - self.gamma, 1 + self.gamma))
        moved = normalise(at.gradient, "l2").mul_(rate).add_(at.move)
        length = lp_norm(moved, "l2").clamp_min(torch.finfo(moved.dtype).tiny)
        return self.quantise(active, active.clamp(moved.mul_(per_sample(radius / length, moved)).add_(active.x)))

    def quantise(self, active: AttackState, x: Tensor) -> Tensor:
        """Round to the levels."""
        if self.levels is None:
            return x
        assert active.lower is not None
        assert active.upper is not None
        width = (active.upper - active.lower) / (self.levels - 1)
        return active.clamp(active.lower + ((x - active.lower) / width).round_() * width)


class FMN(MinimumNormAttack):
    """Fast minimum-norm attack: the smallest perturbation by projected steps in a ball that follows success.

    Each step raises the margin and projects into a ball, whose radius shrinks by ``gamma`` after an iterate that fools,
    at least to the nearest so far, and grows by it otherwise. Steps and ``gamma`` fall along a cosine. A step costs one
    forward and one backward pass.

    With ``start="sample"`` the attack is that of the paper: it starts at the sample, a step goes along the gradient of
    unit L2 norm, and before a sample is first fooled the radius grows by the distance of the linearised boundary. There
    the first radius is the iterate's own norm plus the linearised distance. Where the bounds cut the iterate short of
    its ball, that stays below the boundary for ever; here the distance is added to the ball's radius, and half of
    ``gamma`` goes on top.

    Where the loss is flat around the samples, as on adversarially trained models, these steps do not get out of the
    plateau. So by default the sample first goes far outside, see :class:`OutsideStart`; then the ball shrinks by three
    tenths a step until an iterate no longer fools. The steps are the steepest of the norm, as long as half the radius:
    signs (Linf), the gradient (L2), or signs of the largest entries that have room within the bounds, a third as many
    as the values changed so far (L1). For L0 the first half of the steps looks for the smallest L1 norm; then a step of
    0.2 along the gradient over its largest entry is followed by the choice of the values that have changed most, one
    fewer than the best so far.

    Args:
        norm: Norm of the perturbation to be small: ``l0``, ``l1``, ``l2`` or ``linf``; ``l0`` counts values of the
            sample.
        steps: Number of steps.
        start: ``outside``, or ``sample`` for the published algorithm.
        step_size: With ``start="sample"``, L2 length of the first step, in units of the samples.
        final_step_size: L2 length of the last; ``None`` takes a hundredth of the first.
        gamma: First share by which the radius changes, between 0 and 1.
        final_gamma: Last share.

    References:
        Pintor et al., "Fast minimum-norm adversarial attacks through adaptive norm constraints" (arXiv 2102.12827),
        algorithm 1.
    """

    def __init__(
        self,
        *,
        norm: Literal["l0", "l1", "l2", "linf"] = "l2",
        steps: int = 100,
        start: Literal["outside", "sample"] = "outside",
        step_size: float = 1.0,
        final_step_size: float | None = None,
        gamma: float = 0.05,
        final_gamma: float = 0.001,
        **shared: Unpack[MinimumNormArguments],
    ) -> None:
        super().__init__(norm=norm, steps=steps, search_steps=0, **shared)
        check_choice("norm", norm, ("l0", "l1", "l2", "linf"))
        check_choice("start", start, ("outside", "sample"))
        check_positive(step_size=step_size)
        if final_step_size is not None:
            check_positive(final_step_size=final_step_size)
        check_range("(0, 1)", gamma=gamma, final_gamma=final_gamma)
        self.start = start
        self.step_size = step_size
        self.final_step_size = final_step_size
        self.gamma = gamma
        self.final_gamma = final_gamma

    def initial_carry(self, state: AttackState) -> Carry:
        """Return the radius of each sample's ball: one coordinate for L0, none yet for the other norms."""
        sparse = self.norm == "l0" and self.start == "sample"
        radius = torch.full((len(state),), 1.0 if sparse else float("inf"), dtype=state.x.dtype, device=state.x.device)
        if self.start == "sample":
            return {"radius": radius}
        carry = OutsideStart.initial_carry(state) | {"radius": radius, "crossed": torch.zeros_like(state.label).bool()}
        return carry | ({"best": state.x.clone()} if self.norm == "l0" else {})

    def evaluate(self, active: AttackState, x: Tensor, carry: Carry) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, margin and its gradient."""
        return active.gradient(x, margin)

    def step(self, active: AttackState, at: Iterate, step: int, carry: Carry) -> Tensor:
        """Set the radius, move, project into the ball and the bounds."""
        if self.start == "outside":
            return self._step_from_outside(active, at, step, carry)
        fall = (1 + math.cos(math.pi * step / self.steps)) / 2
        gamma = self.final_gamma + (self.gamma - self.final_gamma) * fall
        final = self.step_size / 100 if self.final_step_size is None else self.final_step_size
        rate = final + (self.step_size - final) * fall
        radius = self._radius(at, carry["radius"], gamma)
        carry["radius"].copy_(radius)
        moved = normalise(at.gradient, "l2").mul_(rate).add_(at.move)
        return active.clamp(active.x + self._project(active, moved, radius))

    def _step_from_outside(self, active: AttackState, at: Iterate, step: int, carry: Carry) -> Tensor:
        norm, radius, steps = self.norm, carry["radius"], self.steps
        if norm == "l0":
            nearer = at.fooled & (at.distance <= at.nearest)
            carry["best"][nearer] = at.x[nearer]
            norm, steps = "l1", max(1, self.steps // 2)
            if step >= steps:
                return self._step_on_few(active, at, carry, first=step == steps)
        turned = OutsideStart.turn(at, step, self.steps, carry)
        distance = at.distance if norm == self.norm else lp_norm(at.move, norm)
        radius.copy_(torch.where(turned, distance, radius))
        carry["crossed"] |= ~at.fooled & ~carry["out"]
        fall = (1 + math.cos(math.pi * step / steps)) / 2
        gamma = torch.where(carry["crossed"], self.final_gamma + (self.gamma - self.final_gamma) * fall, _SHRINK)
        smaller = radius * (1 - gamma)
        smaller = smaller if norm != self.norm else torch.minimum(smaller, at.nearest)
        radius.copy_(torch.where(at.fooled, smaller, radius * (1 + gamma)))
        if norm == "l1":
            direction = few_steepest(at.gradient, at.move, active.movable(at.x, at.gradient))
        else:
            direction = steepest(at.gradient, norm)
        length = (_OF_RADIUS * (0.01 + 0.99 * fall) * radius).clamp_max(1e30)
        moved = at.move + per_sample(length, at.x) * direction
        limit = per_sample(radius.clamp_max(1e30), moved)
        moved = project_l1_box(moved, limit, *active.room()) if norm == "l1" else project(moved, limit, norm)
        return OutsideStart.move(active, at, carry, active.clamp(active.x + moved))

    def _step_on_few(self, active: AttackState, at: Iterate, carry: Carry, first: bool) -> Tensor:
        """Move along the gradient and keep the values that have changed most; begin at the best iterate."""
        radius, nearest = carry["radius"], at.nearest
        fewer = torch.where(at.fooled, nearest - 1, torch.minimum(radius + 1, nearest - 1))
        known = torch.where(torch.isfinite(nearest), nearest, at.distance)
        radius.copy_((known - 1 if first else fewer).clamp_min(1))
        begin = carry["best"] if first else at.x
        begin = torch.where(per_sample(torch.isfinite(nearest), at.x), begin, at.x)
        tiny = torch.finfo(at.x.dtype).tiny
        step = _FEW * at.gradient / per_sample(lp_norm(at.gradient, "linf"), at.x).clamp_min(tiny)
        return active.x + self._project(active, active.clamp(begin + step) - active.x, radius)

    def _radius(self, at: Iterate, radius: Tensor, gamma: float) -> Tensor:
        """Return the new radius of each sample."""
        smaller, larger = radius * (1 - gamma), radius * (1 + gamma)
        if self.norm == "l0":
            smaller = torch.minimum(smaller.floor(), radius - 1).clamp_min(0)
            larger = torch.maximum(larger.floor(), radius + 1)
        else:
            slope = lp_norm(at.gradient, DUAL[self.norm]).clamp_min(torch.finfo(radius.dtype).tiny)
            here = torch.where(torch.isfinite(radius), torch.maximum(radius, at.distance), at.distance)
            linear = (here + at.value.abs() / slope) * (1 + gamma / 2)
            larger = torch.where(torch.isfinite(at.nearest), larger, linear)
        return torch.where(at.fooled, torch.minimum(smaller, at.nearest), larger)

    def _project(self, active: AttackState, move: Tensor, radius: Tensor) -> Tensor:
        """Return the nearest point of the balls."""
        if self.norm == "l0":
            flat = move.flatten(1)
            order = flat.abs().argsort(dim=1, descending=True)
            inside = torch.arange(flat.shape[1], device=move.device) < radius[:, None]
            return torch.zeros_like(flat).scatter_(1, order, flat.gather(1, order) * inside).view_as(move)
        limit = per_sample(radius.clamp_max(1e30), move)
        if self.norm != "l1":
            return project(move, limit, self.norm)
        return project_l1_box(move, limit, *active.room())
