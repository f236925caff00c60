"""The loop of attacks that raise a loss within a radius, and the best iterate that it keeps."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from lit_modules.attacks.engine.base import Attack, AttackArguments, warn_zero_gradient
from lit_modules.attacks.engine.checks import Radius, check_count
from lit_modules.attacks.engine.losses import Loss, LossName, resolve_loss
from lit_modules.attacks.engine.norms import random_in_ball
from lit_modules.attacks.engine.oracle import Model
from lit_modules.attacks.engine.problem import Outcome, Problem
from lit_modules.utils.arguments import Unpack

Keep = Literal["first", "best", "last"]


class BestSoFar:
    """Keeps, for each sample, the first iterate that fools, else the one with the largest objective.

    Args:
        problem: All samples of the run.
        loss: Gives the clean samples their value, so that only a larger one replaces them; ``None`` lets any.
    """

    def __init__(self, problem: Problem, loss: Loss | None = None) -> None:
        self.adversarial = problem.x.clone()
        self.success = torch.zeros(len(problem), dtype=torch.bool, device=problem.x.device)
        self.score = torch.full((len(problem),), float("-inf"), dtype=problem.x.dtype, device=problem.x.device)
        if loss is not None and problem.clean_logits is not None:
            self.score = problem.objective(problem.clean_logits, loss).to(problem.x.dtype)

    def offer(self, place: Tensor, x: Tensor, objective: Tensor, fooled: Tensor) -> None:
        """Take the iterates that are better than what is kept.

        Args:
            place: Places of the iterates' samples in the run, ``(active,)``.
            x: Iterates, ``(active, *)``.
            objective: What the attack raises, ``(active,)``.
            fooled: Whether the model is fooled, ``(active,)``.
        """
        success, score = self.success[place], self.score[place]
        better = (fooled & ~success) | ((fooled == success) & (objective > score))
        place = place[better]
        self.adversarial[place] = x[better].to(self.adversarial.dtype)
        self.success[place] = fooled[better]
        self.score[place] = objective[better].to(self.score.dtype)

    def outcome(self) -> Outcome:
        """Return what is kept."""
        return Outcome(self.adversarial, self.success, self.score)


class FixedRadiusAttack(Attack):
    """Base of attacks that raise a loss within a radius by a fixed number of gradient steps.

    Args:
        eps: Radius in units of the samples, a number or one per sample.
        steps: Number of steps.
        random_start: Start at a random point of the ball instead of the sample.
        loss: ``cross_entropy``, ``margin``, ``dlr``, ``soft_margin``, or a callable giving one value per sample.
        keep: ``first``: a sample leaves with the first iterate that fools the model, and otherwise with the iterate of
            the largest loss. ``best``: all steps, then the iterate of the largest loss among those that fool, else
            among all. ``last``: all steps and the last iterate. Called with it, the attack moves misclassified samples
            too and costs exactly ``steps`` passes, what adversarial training asks for; :meth:`run`, which tells
            successes, leaves them as they are.
        passes: Passes whose gradients are averaged (EOT), for a model that answers at random.
        arguments: Arguments of the base class, by name: targeted, bounds, restarts, seed, precision, model_mode.
    """

    def __init__(
        self,
        *,
        eps: Radius,
        steps: int,
        random_start: bool,
        loss: LossName | Loss,
        keep: Keep,
        passes: int = 1,
        **arguments: Unpack[AttackArguments],
    ) -> None:
        super().__init__(**arguments)
        check_count("steps", steps)
        check_count("passes", passes)
        if keep not in ("first", "best", "last"):
            raise ValueError(f"keep must be 'first', 'best' or 'last', got {keep!r}.")
        self.eps = self.checked_eps(eps)
        self.steps = steps
        self.random_start = random_start
        self.loss = loss
        self.keep = keep
        self.passes = passes
        self._loss = resolve_loss(loss)

    def __call__(
        self, model: Model, x: Tensor, y: Tensor | None = None, *, seed: int | torch.Generator | None = None
    ) -> Tensor:
        """Return adversarial samples; see the base class.

        With ``keep="last"`` and one restart nothing but the steps is computed, for misclassified samples too.
        """
        if self.keep != "last" or self.restarts > 1 or not len(x):
            return super().__call__(model, x, y, seed=seed)
        with self.session(model):
            problem = self.problem(model, x, y, seed, clean=False)
            return problem.returned(self.iterate(problem), x)

    def attack(self, problem: Problem) -> Outcome:
        """Take the steps; see ``keep``."""
        if self.keep == "last":
            x = self.iterate(problem)
            with torch.no_grad():
                logits = problem.logits(x)
            return Outcome(x, problem.fooled(logits), problem.objective(logits, self._loss))
        best, part = BestSoFar(problem, self._loss), problem
        place = torch.arange(len(problem), device=problem.x.device)
        x, state = self.start(part), self.state(part)
        for step in range(self.steps + 1):
            final = step == self.steps
            if final:
                with torch.no_grad():
                    logits = part.logits(x)
                    objective = part.objective(logits, self._loss)
            else:
                logits, objective, gradient = part.gradient(x, self._loss, self.passes)
            fooled = part.fooled(logits)
            best.offer(place, x, objective, fooled)
            if final:
                break
            if step == 0:
                warn_zero_gradient(gradient)
            if self.keep == "first" and bool(fooled.any()):
                stay = (~fooled).nonzero()[:, 0]
                if not len(stay):
                    break
                place, part, x, gradient = place[stay], part.select(stay), x[stay], gradient[stay]
                state = {name: values[stay] for name, values in state.items()}
            x = self.step(part, x, gradient, step, state)
        return best.outcome()

    def iterate(self, problem: Problem) -> Tensor:
        """Take all steps with all samples and return where they end."""
        x, state = self.start(problem), self.state(problem)
        for step in range(self.steps):
            _, _, gradient = problem.gradient(x, self._loss, self.passes)
            if step == 0:
                warn_zero_gradient(gradient)
            x = self.step(problem, x, gradient, step, state)
        return x

    def start(self, problem: Problem) -> Tensor:
        """Return the first iterate: the sample, or a random point of its ball moved into the bounds."""
        if not self.random_start:
            return problem.x
        assert problem.radius is not None
        assert self.norm is not None
        return problem.clamp(problem.x + random_in_ball(problem.x, problem.radius, self.norm, problem.random))

    def state(self, problem: Problem) -> dict[str, Tensor]:
        """Return what the steps carry along for each sample, as a momentum; each value is ``(batch, ...)``."""
        return {}

    @abstractmethod
    def step(self, problem: Problem, x: Tensor, gradient: Tensor, step: int, state: dict[str, Tensor]) -> Tensor:
        """Return the next iterate, within radius and bounds.

        Args:
            problem: Samples that are still under attack.
            x: Their iterates, ``(active, *)``.
            gradient: Gradient of the objective, which the attack raises.
            step: Number of the step, from 0.
            state: What :meth:`state` gave, to be changed in place.
        """
