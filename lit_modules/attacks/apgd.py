"""Auto-PGD: projected gradient descent with momentum that chooses its own step size, and its targeted form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lit_modules.attacks.engine.base import Attack, AttackArguments, warn_zero_gradient
from lit_modules.attacks.engine.checks import Radius, check_count
from lit_modules.attacks.engine.fixed_radius import BestSoFar
from lit_modules.attacks.engine.losses import Loss, LossName, resolve_loss, targeted_dlr
from lit_modules.attacks.engine.norms import (
    check_norm,
    lp_norm,
    normalise,
    per_sample,
    project,
    project_l1_box,
    steepest,
)
from lit_modules.attacks.engine.problem import Outcome, Problem
from lit_modules.utils.arguments import Unpack

LossAt = Callable[[Tensor], Loss]
_STAGES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # radius in units of eps, share of the steps


class APGD(Attack):
    """Auto-PGD in the Linf, L2 or L1 ball.

    The step begins at twice the radius and is halved, with a return to the best iterate, where a stretch of steps did
    not raise the loss often enough. In L1 the steps are sparse, the sparsity follows that of the best iterate, and the
    search begins in balls of three and two times the radius. With ``cross_entropy`` this is APGD-CE, with ``dlr``
    APGD-DLR. A fooled sample leaves at once.

    Args:
        norm: ``linf``, ``l2`` or ``l1``.
        eps: Radius in units of the samples, a number or one per sample.
        steps: Number of steps.
        loss: ``cross_entropy``, ``margin``, ``dlr``, ``soft_margin``, or a callable giving one value per sample.
        rho: Share of steps that must raise the loss for the step size to stay.
        larger_eps: In L1, begin in larger balls.
        keep: ``first``: a sample leaves once fooled; ``best``: it takes all steps and the largest loss is returned.
        passes: Passes whose gradients are averaged (EOT).
        arguments: Arguments of :class:`Attack`, by name.

    Raises:
        ValueError: If an argument is outside its range.

    References:
        Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks"
        (arXiv 2003.01690), algorithm 1; "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers"
        (arXiv 2103.01208), algorithm 1, for L1.
    """

    def __init__(
        self,
        *,
        norm: Literal["linf", "l2", "l1"] = "linf",
        eps: Radius = 0.3,
        steps: int = 100,
        loss: LossName | Loss = "cross_entropy",
        rho: float = 0.75,
        larger_eps: bool = True,
        keep: Literal["first", "best"] = "first",
        passes: int = 1,
        **arguments: Unpack[AttackArguments],
    ) -> None:
        super().__init__(**arguments)
        check_norm(norm, ("linf", "l2", "l1"))
        check_count("steps", steps)
        check_count("passes", passes)
        if not 0 <= rho <= 1:
            raise ValueError(f"rho must be from 0 to 1, got {rho}.")
        if keep not in ("first", "best"):
            raise ValueError(f"keep must be 'first' or 'best', got {keep!r}.")
        self.norm = norm
        self.eps = self.checked_eps(eps)
        self.steps = steps
        self.loss = loss
        self.rho = rho
        self.larger_eps = larger_eps
        self.keep = keep
        self.passes = passes
        self._loss = resolve_loss(loss)

    def attack(self, problem: Problem) -> Outcome:
        """Raise the loss from one random start."""
        return self.ascend(problem, lambda place: self._loss)

    def ascend(self, problem: Problem, loss: LossAt) -> Outcome:
        """Raise a loss from one random start.

        Args:
            problem: Samples to attack.
            loss: Gives the loss of the samples at some places of the problem.
        """
        assert problem.radius is not None
        if self.norm != "l1":
            start = problem.clamp(problem.x + self._start(problem))
            return self._momentum_steps(problem, start, loss)
        x = problem.x + problem.random.normal(*problem.x.shape[1:]).to(problem.x.dtype)
        stages = _STAGES if self.larger_eps and self.steps > 3 else ((1.0, 1.0),)
        outcome, taken, widest = None, 0, problem.radius
        for number, (factor, share) in enumerate(stages):
            steps = self.steps - taken if number == len(stages) - 1 else max(1, int(share * self.steps))
            taken += steps
            problem.radius = widest * factor
            x = self._project_l1(problem, x)
            outcome = self._sparse_steps(problem, x, loss, steps, first=number == 0, last=factor == 1)
            x = outcome.adversarial
        problem.radius = widest
        assert outcome is not None
        return outcome

    def _start(self, problem: Problem) -> Tensor:
        """Return a random perturbation whose norm is the radius."""
        shape = problem.x.shape[1:]
        noise = problem.random.uniform(*shape) * 2 - 1 if self.norm == "linf" else problem.random.normal(*shape)
        assert self.norm is not None
        assert problem.radius is not None
        return project(problem.radius * normalise(noise.to(problem.x.dtype), self.norm), problem.radius, self.norm)

    def _momentum_steps(self, problem: Problem, x: Tensor, loss: LossAt) -> Outcome:
        """Algorithm 1 of arXiv 2003.01690."""
        assert self.norm is not None
        assert problem.radius is not None
        found, part = BestSoFar(problem, loss(self._all(problem))), problem
        place = self._all(problem)
        stretch, shortest, shortening = (max(1, int(share * self.steps)) for share in (0.22, 0.06, 0.03))
        since = 0  # steps since the last checkpoint
        state = {
            "x": x,
            "before": x,
            "size": 2 * problem.radius.expand(len(problem), *problem.radius.shape[1:]),
            "rises": torch.zeros(len(problem), device=x.device),
            "halved": torch.ones(len(problem), dtype=torch.bool, device=x.device),
        }
        for step in range(self.steps + 1):
            objective, fooled = self._evaluate(part, state, loss(place), last=step == self.steps)
            if step == 0:
                warn_zero_gradient(state["gradient"])
                best = {"loss": objective, "best": state["x"], "best_gradient": state["gradient"], "checked": objective}
                state |= best | {"previous": objective}
            else:
                state["rises"] += objective > state["previous"]
                state["previous"] = objective
                self._keep_best(state, objective)
            found.offer(place[fooled], state["x"][fooled], objective[fooled], fooled[fooled])
            if step == self.steps:
                break
            if self.keep == "first" and bool(fooled.any()):
                stay = (~fooled).nonzero()[:, 0]
                if not len(stay):
                    return found.outcome()
                place, part = place[stay], part.select(stay)
                state = {name: values[stay] for name, values in state.items()}
            if step and since == stretch:
                stuck = state["rises"] <= self.rho * stretch
                stuck |= ~state["halved"] & (state["checked"] >= state["loss"])
                state["halved"], state["checked"] = stuck, state["loss"]
                wide = per_sample(stuck, part.x)
                state["size"] = torch.where(wide, state["size"] / 2, state["size"])
                state["x"] = torch.where(wide, state["best"], state["x"])
                state["gradient"] = torch.where(wide, state["best_gradient"], state["gradient"])
                state["rises"] = torch.zeros_like(state["rises"])
                since, stretch = 0, max(stretch - shortening, shortest)
            share = 0.75 if step else 1.0
            x = state["x"]
            moved = self._project(part, x + state["size"] * steepest(state["gradient"], self.norm))
            mixed = x + share * (moved - x) + (1 - share) * (x - state["before"])
            state["before"], state["x"] = x, self._project(part, mixed)
            since += 1
        found.offer(place, state["best"], state["loss"], torch.zeros_like(place, dtype=torch.bool))
        return found.outcome()

    def _sparse_steps(
        self, problem: Problem, x: Tensor, loss: LossAt, steps: int, *, first: bool, last: bool
    ) -> Outcome:
        """Algorithm 1 of arXiv 2103.01208, within one radius; only in the last one success counts."""
        assert problem.radius is not None
        found, part = BestSoFar(problem), problem
        place = torch.arange(len(problem), device=x.device)
        size = problem.x[0].numel()
        stretch, since = max(1, int(0.04 * steps)), 0
        support = lp_norm(x - problem.x, "l0")
        state = {
            "x": x,
            "size": problem.radius.expand(len(problem), *problem.radius.shape[1:]).clone(),
            "share": torch.full_like(support, 0.2) if first else support / size / 1.5,
            "support": torch.full_like(support, size) if first else support,
        }
        for step in range(steps + 1):
            objective, fooled = self._evaluate(part, state, loss(place), last=step == steps)
            if step == 0:
                if first:
                    warn_zero_gradient(state["gradient"])
                state |= {"loss": objective, "best": state["x"], "best_gradient": state["gradient"]}
            else:
                self._keep_best(state, objective)
            if last:
                found.offer(place[fooled], state["x"][fooled], objective[fooled], fooled[fooled])
            if step == steps:
                break
            if last and self.keep == "first" and bool(fooled.any()):
                stay = (~fooled).nonzero()[:, 0]
                if not len(stay):
                    return found.outcome()
                place, part = place[stay], part.select(stay)
                state = {name: values[stay] for name, values in state.items()}
            assert part.radius is not None
            if step and since == stretch:
                support = lp_norm(state["best"] - part.x, "l0")
                sparser = support / state["support"].clamp_min(1) < 0.95
                wide = per_sample(sparser, part.x)
                state["share"], state["support"] = support / size / 1.5, support
                state["size"] = torch.where(wide, part.radius, (state["size"] / 1.5).clamp_min(part.radius / 10))
                state["x"] = torch.where(wide, state["best"], state["x"])
                state["gradient"] = torch.where(wide, state["best_gradient"], state["gradient"])
                since = 0
            gradient = state["gradient"].flatten(1)
            rank = ((1 - state["share"]) * size).long().clamp(0, size - 1)
            floor = gradient.abs().sort(dim=1).values.gather(1, rank[:, None])
            sparse = torch.where(gradient.abs() >= floor, gradient.sign(), 0.0).view_as(part.x)
            state["x"] = self._project_l1(part, state["x"] + state["size"] * normalise(sparse, "l1"))
            since += 1
        found.offer(place, state["best"], state["loss"], torch.zeros_like(place, dtype=torch.bool))
        return found.outcome()

    @staticmethod
    def _all(problem: Problem) -> Tensor:
        """Return the places of all samples."""
        return torch.arange(len(problem), device=problem.x.device)

    def _evaluate(self, part: Problem, state: dict[str, Tensor], loss: Loss, *, last: bool) -> tuple[Tensor, Tensor]:
        """Return objective and success of the iterates, and renew the gradient unless these are the last ones."""
        if not last:
            logits, objective, state["gradient"] = part.gradient(state["x"], loss, self.passes)
            return objective, part.fooled(logits)
        with torch.no_grad():
            logits = part.logits(state["x"])
            return part.objective(logits, loss), part.fooled(logits)

    @staticmethod
    def _keep_best(state: dict[str, Tensor], objective: Tensor) -> None:
        """Remember iterates with a larger loss than before."""
        better = objective > state["loss"]
        wide = per_sample(better, state["x"])
        state["loss"] = torch.where(better, objective, state["loss"])
        state["best"] = torch.where(wide, state["x"], state["best"])
        state["best_gradient"] = torch.where(wide, state["gradient"], state["best_gradient"])

    def _project(self, part: Problem, x: Tensor) -> Tensor:
        """Return the point in ball and bounds."""
        assert part.radius is not None
        if self.norm == "linf":
            return part.clamp(torch.minimum(torch.maximum(x, part.x - part.radius), part.x + part.radius))
        return part.clamp(part.x + project(part.clamp(x) - part.x, part.radius, "l2"))

    @staticmethod
    def _project_l1(part: Problem, x: Tensor) -> Tensor:
        """Return the nearest point of ball and bounds."""
        assert part.radius is not None
        lower = None if part.lower is None else part.lower - part.x
        upper = None if part.upper is None else part.upper - part.x
        return part.clamp(part.x + project_l1_box(x - part.x, part.radius, lower, upper))


class APGDT(APGD):
    """Targeted Auto-PGD (APGD-T): one run of the targeted DLR loss for each of the most likely other classes.

    The sample counts as fooled with any wrong answer, and then leaves; the later targets are tried on what is left.

    Args:
        norm: ``linf``, ``l2`` or ``l1``.
        eps: Radius in units of the samples, a number or one per sample.
        steps: Number of steps for each target.
        targets: Number of classes tried, the most likely first; at most one less than there are.
        rho: Share of steps that must raise the loss for the step size to stay.
        larger_eps: In L1, begin in larger balls.
        passes: Passes whose gradients are averaged (EOT).
        arguments: Arguments of :class:`Attack`, by name; ``targeted`` is refused, as the targets are its own.

    Raises:
        ValueError: If an argument is outside its range, or the model has fewer than 4 classes.

    References:
        Croce, Hein (arXiv 2003.01690), section 4.2 and eq. 7.
    """

    def __init__(
        self,
        *,
        norm: Literal["linf", "l2", "l1"] = "linf",
        eps: Radius = 0.3,
        steps: int = 100,
        targets: int = 9,
        rho: float = 0.75,
        larger_eps: bool = True,
        passes: int = 1,
        **arguments: Unpack[AttackArguments],
    ) -> None:
        super().__init__(norm=norm, eps=eps, steps=steps, rho=rho, larger_eps=larger_eps, passes=passes, **arguments)
        check_count("targets", targets)
        if self.targeted:
            raise ValueError("APGDT chooses its targets itself; for a target of yours use APGD(targeted=True).")
        self.targets = targets

    def attack(self, problem: Problem) -> Outcome:
        """Try the targets in turn."""
        return try_targets(problem, self.targets, self._toward)

    def _toward(self, part: Problem, target: Tensor) -> Outcome:
        return self.ascend(part, lambda place: lambda logits, label: targeted_dlr(logits, label, target[place]))


def try_targets(problem: Problem, targets: int, attack: Callable[[Problem, Tensor], Outcome]) -> Outcome:
    """Attack toward the most likely other classes in turn, each time the samples that are left.

    Args:
        problem: Samples to attack, with their clean logits.
        targets: Number of classes to try.
        attack: Attacks samples toward a class each, ``(batch,)``.
    """
    assert problem.clean_logits is not None
    others = problem.clean_logits.scatter(1, problem.label[:, None], float("-inf")).argsort(1, descending=True)
    found = BestSoFar(problem)
    for number in range(min(targets, others.shape[1] - 1)):
        place = (~found.success).nonzero()[:, 0]
        if not len(place):
            break
        part = problem.select(place)
        part.random = part.random.fork(number)
        outcome = attack(part, others[place, number])
        found.offer(place, outcome.adversarial, outcome.score, outcome.success)
    return found.outcome()
