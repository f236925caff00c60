"""The loop of attacks that look for the smallest perturbation, their restarts, and the last search."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from lit_modules.attacks.engine.base import Attack, AttackArguments, warn_zero_gradient
from lit_modules.attacks.engine.checks import check_count, check_positive
from lit_modules.attacks.engine.losses import logit_gap
from lit_modules.attacks.engine.norms import lp_norm, per_sample, random_in_ball
from lit_modules.attacks.engine.problem import Outcome, Problem
from lit_modules.utils.arguments import Unpack

START = {"linf": 0.3, "l2": 1.0, "l1": 5.0, "l0": 0.3}
_BEYOND = 1.001  # the last search aims this much beyond the boundary, so that rounding does not decide
State = dict[str, Tensor]


class Iterate(NamedTuple):
    """Where the samples stand, and what the model says there.

    Attributes:
        x: Iterates, ``(active, *)``.
        move: Iterates less the samples, ``(active, *)``.
        distance: Norm of the move, ``(active,)``.
        fooled: Which iterates fool the model, ``(active,)``.
        nearest: Distance of the nearest iterate that did, this one included, infinite before, ``(active,)``.
        value: Value of what the attack raises, ``(active,)``.
        gradient: Its gradient, ``(active, *)``.
    """

    x: Tensor
    move: Tensor
    distance: Tensor
    fooled: Tensor
    nearest: Tensor
    value: Tensor
    gradient: Tensor


class MinimalAttack(Attack):
    """Base of attacks that look for the smallest perturbation by steps with one pass each.

    The pass that gives the gradient also says whether the iterate fools the model; the nearest that does is kept.
    Restarts after the first begin at a random point. In an ensemble with a radius, a sample leaves as soon as its
    perturbation is within it.

    Args:
        norm: Norm of the perturbation to be small.
        steps: Number of steps.
        start_radius: Restarts after the first begin within half the smaller of this and the best distance; ``None``
            takes 0.3 (Linf, and Linf for L0), 1 (L2) or 5 (L1).
        search_steps: Forward passes of a last search between the sample and the best iterate.
        stop_radius: A sample leaves as soon as its perturbation is at most this; ``None`` looks for the smallest.
        arguments: Arguments of the base class, by name.

    Raises:
        ValueError: If an argument is outside its range.
    """

    minimal = True
    leaves_when_fooled = False

    def __init__(
        self,
        *,
        norm: str,
        steps: int,
        start_radius: float | None = None,
        search_steps: int = 0,
        stop_radius: float | None = None,
        **arguments: Unpack[AttackArguments],
    ) -> None:
        super().__init__(**arguments)
        check_count("steps", steps)
        check_count("search_steps", search_steps, least=0)
        for name, value in (("start_radius", start_radius), ("stop_radius", stop_radius)):
            if value is not None:
                check_positive(name, value)
        self.norm: str = norm
        self.steps = steps
        self.start_radius = start_radius
        self.search_steps = search_steps
        self.stop_radius = stop_radius

    @abstractmethod
    def look(self, part: Problem, x: Tensor, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, value and gradient of what the attack raises, from one pass."""

    @abstractmethod
    def step(self, part: Problem, at: Iterate, step: int, state: State) -> Tensor:
        """Return the next iterates, within the bounds.

        Args:
            part: Samples that are still under attack.
            at: Where they stand.
            step: Number of the step, from 0.
            state: What :meth:`state` gave, to be changed in place.
        """

    def state(self, problem: Problem) -> State:
        """Return what the steps carry along for each sample; each value is ``(batch, ...)``."""
        return {}

    def attack(self, problem: Problem) -> Outcome:
        """Run once, from the samples themselves."""
        return self.search(problem, None)

    def solve(self, problem: Problem, already: Tensor) -> Outcome:
        """Run once from the samples and then from random points, and keep the nearest."""
        adversarial, success = problem.x.clone(), already.clone()
        distance, stop = _infinite(problem), self.stop(problem)
        radius = torch.full_like(distance, START[self.norm] if self.start_radius is None else self.start_radius)
        if self.start_radius is None and problem.radius is not None and self.norm != "l0":
            radius = problem.radius.flatten()
        for restart in range(self.restarts):
            index = (~already if stop is None else ~already & (distance > stop)).nonzero()[:, 0]
            if not len(index):
                break
            part = problem.select(index)
            part.random = part.random.fork(restart)
            if restart:
                within = radius[index] / 2
                found = self.search(part, within if self.norm == "l0" else torch.minimum(distance[index] / 2, within))
            else:
                found = self.search(part, None)
            better = -found.score < distance[index]
            chosen = index[better]
            adversarial[chosen] = found.adversarial[better]
            success[chosen] = True
            distance[chosen] = -found.score[better]
        return Outcome(adversarial, success, -distance)

    def stop(self, problem: Problem) -> Tensor | None:
        """Return the distance within which a sample leaves, ``(batch,)``: the argument's, else the problem's radius."""
        if self.stop_radius is not None:
            return torch.full_like(problem.x.flatten(1)[:, 0], self.stop_radius)
        return None if problem.radius is None else problem.radius.flatten()

    def search(self, problem: Problem, radius: Tensor | None) -> Outcome:
        """Take the steps and the last search.

        Args:
            problem: Samples still classified as they should be.
            radius: Start at a random point within this of each sample, ``(batch,)``; ``None`` for the sample itself.
        """
        return self.refine(problem, *self.descend(problem, radius, self.state(problem)))

    def descend(self, problem: Problem, radius: Tensor | None, state: State) -> tuple[Tensor, Tensor]:
        """Take the steps; return the nearest samples that fool and their distances, infinite where there is none.

        Args:
            problem: Samples under attack; a sample may come several times, and all its versions leave together.
            radius: Radius of the random start, ``(batch,)``, or ``None``.
            state: What the steps carry along.
        """
        part, x, stop = problem, problem.x, self.stop(problem)
        if radius is not None:
            ball = "linf" if self.norm == "l0" else self.norm
            x = problem.clamp(x + random_in_ball(x, per_sample(radius, x), ball, problem.random))
        best, nearest = problem.x.clone(), _infinite(problem)
        place = torch.arange(len(problem), device=x.device)
        left = torch.zeros_like(problem.spent, dtype=torch.bool)  # in the whole batch
        for step in range(self.steps + 1):
            if step < self.steps:
                logits, value, gradient = self.look(part, x, state)
            else:
                with torch.no_grad():
                    logits = part.logits(x)
            fooled = part.fooled(logits)
            move = x - part.x
            distance = lp_norm(move, self.norm)
            better = (fooled & (distance < nearest[place])).nonzero()[:, 0]
            best[place[better]] = x[better]
            nearest[place[better]] = distance[better]
            if step == self.steps:
                break
            if step == 0:
                warn_zero_gradient(gradient)
            at = Iterate(x, move, distance, fooled, nearest[place], value.to(x.dtype), gradient)
            if stop is not None or self.leaves_when_fooled:
                done = fooled if self.leaves_when_fooled or stop is None else fooled & (distance <= stop)
                left[part.index[done]] = True
                stay = (~left[part.index]).nonzero()[:, 0]
                if not len(stay):
                    break
                if len(stay) < len(place):
                    place, part, at = place[stay], part.select(stay), Iterate(*(values[stay] for values in at))
                    state = {name: values[stay] for name, values in state.items()}
                    stop = None if stop is None else stop[stay]
            x = self.step(part, at, step, state)
        return best, nearest

    def refine(self, problem: Problem, best: Tensor, nearest: Tensor) -> Outcome:
        """Look between the samples and their adversarials for nearer ones, by false position on the logit gap."""
        found, stop = torch.isfinite(nearest), self.stop(problem)
        index = (found if stop is None else found & (nearest > stop)).nonzero()[:, 0]
        if not self.search_steps or not len(index):
            return Outcome(best, found, -nearest)
        part = problem.select(index)
        assert part.clean_logits is not None
        direction = best[index] - part.x
        with torch.no_grad():
            inner, outer = torch.zeros_like(nearest[index]), torch.ones_like(nearest[index])
            logits = part.logits(best[index])
            rival = part.clean_logits.argmax(1) if part.targeted else logits.argmax(1)
            ends = (rival, part.label) if part.targeted else (part.label, rival)
            inside = logit_gap(part.clean_logits, *ends).to(best.dtype)
            outside = logit_gap(logits, *ends).to(best.dtype)
            for _ in range(self.search_steps):
                share = (-inside / (outside - inside)).nan_to_num(0.5).clamp(0.05, 1)
                middle = torch.minimum((inner + (outer - inner) * share) * _BEYOND, outer)
                x = part.clamp(part.x + per_sample(middle, best) * direction)
                logits = part.logits(x)
                value = logit_gap(logits, *ends).to(best.dtype)
                fooled = part.fooled(logits)
                distance = lp_norm(x - part.x, self.norm)
                better = fooled & (distance < nearest[index])
                best[index[better]] = x[better]
                nearest[index[better]] = distance[better]
                inner, inside = torch.where(fooled, inner, middle), torch.where(fooled, inside, value)
                outer, outside = torch.where(fooled, middle, outer), torch.where(fooled, value, outside)
        return Outcome(best, found, -nearest)


def _infinite(problem: Problem) -> Tensor:
    """Return an infinite distance for each sample, ``(batch,)``."""
    return torch.full((len(problem),), float("inf"), dtype=problem.x.dtype, device=problem.x.device)
