"""GenAttack: a population of perturbations that inherit, mutate and compete."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_modules.attacks.engine.base import Attack, AttackArguments
from lit_modules.attacks.engine.checks import Radius, check_count, check_positive
from lit_modules.attacks.engine.estimators import ask, best_version, chunks, into_ball
from lit_modules.attacks.engine.fixed_radius import BestSoFar
from lit_modules.attacks.engine.losses import Loss, LossName, resolve_loss
from lit_modules.attacks.engine.norms import check_norm
from lit_modules.attacks.engine.problem import Outcome, Problem
from lit_modules.utils.arguments import Unpack


class GenAttack(Attack):
    """Evolve a population of perturbed samples in the ball, without gradients of the model.

    In each generation the best member stays. The others are children of two members, drawn with probabilities
    ``softmax(loss / temperature)``: each coordinate comes from one parent with its share of the two probabilities, and
    a part ``mutation_rate`` of the coordinates then moves at random by up to ``mutation_range`` of the radius. Both
    fall by the factor ``decay`` in each generation without a better best member, down to their least values. A sample
    leaves with the first generation that fools the model.

    The paper's loss, the target's log-probability less the others', is the margin of logits up to a soft maximum.
    AdverTorch (0.2, not in v0.1) asks for eps and for a model that gives probabilities, and has the other defaults that
    stand here.

    Args:
        norm: ``linf`` or ``l2``.
        eps: Radius in units of the samples, a number or one per sample.
        steps: Number of generations after the first.
        population: Members; a generation costs one forward pass less than that.
        temperature: Temperature of the choice of parents, in units of the loss.
        mutation_range: Largest mutation at the start, as part of the radius, above 0 and up to 1. In L2 the mutation's
            expected length if all coordinates mutate.
        mutation_rate: Part of the coordinates that mutate at the start, above 0 and up to 1.
        least_range: Least mutation range.
        least_rate: Least mutation rate.
        decay: Factor of range and rate for each generation without progress, above 0 and up to 1.
        loss: ``margin``, ``cross_entropy``, ``dlr``, or a callable giving one value per sample.
        max_batch: Most points of one forward pass, if the batch is smaller; changes memory and speed, no result.
        arguments: Arguments of :class:`Attack`, by name.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> attack = GenAttack(norm="linf", eps=0.1, steps=3, population=6)
        >>> bool((attack(model, torch.full((2, 4), 0.5)) - 0.5).abs().max() <= 0.1 + 1e-6)
        True

    References:
        Alzantot et al., "GenAttack: practical black-box attacks with gradient-free optimization" (arXiv 1805.11090),
        algorithm 1.
    """

    def __init__(
        self,
        *,
        norm: Literal["linf", "l2"] = "linf",
        eps: Radius = 0.3,
        steps: int = 40,
        population: int = 100,
        temperature: float = 0.1,
        mutation_range: float = 0.4,
        mutation_rate: float = 0.5,
        least_range: float = 0.15,
        least_rate: float = 0.1,
        decay: float = 0.9,
        loss: LossName | Loss = "margin",
        max_batch: int = 256,
        **arguments: Unpack[AttackArguments],
    ) -> None:
        super().__init__(**arguments)
        check_norm(norm, ("linf", "l2"))
        check_count("steps", steps)
        check_count("population", population, least=2)
        check_count("max_batch", max_batch)
        check_positive("temperature", temperature)
        shares = {
            "mutation_range": mutation_range,
            "mutation_rate": mutation_rate,
            "least_range": least_range,
            "least_rate": least_rate,
            "decay": decay,
        }
        for name, share in shares.items():
            if not 0 < share <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {share}.")
        self.norm = norm
        self.eps = self.checked_eps(eps)
        self.steps = steps
        self.population = population
        self.temperature = temperature
        self.mutation_range = mutation_range
        self.mutation_rate = mutation_rate
        self.least_range = least_range
        self.least_rate = least_rate
        self.decay = decay
        self.loss = loss
        self.max_batch = max_batch
        self._loss = resolve_loss(loss)

    def attack(self, problem: Problem) -> Outcome:
        """Evolve the samples that are not fooled yet."""
        best, part = BestSoFar(problem), problem
        place = torch.arange(len(problem), device=problem.x.device)
        members = self.first(part)
        losses, fooled = self.ask(part, members)
        stalled = torch.zeros(len(problem), dtype=problem.x.dtype, device=problem.x.device)
        for generation in range(self.steps + 1):
            elite, top, found = best_version(members, losses, fooled)
            best.offer(place, elite, top, found)
            stay = (~found).nonzero()[:, 0]
            if generation == self.steps or not len(stay):
                break
            if len(stay) < len(place):
                place, part, stalled = place[stay], part.select(stay), stalled[stay]
                members, losses, elite, top = members[:, stay], losses[:, stay], elite[stay], top[stay]
            children = self.children(part, members, losses, stalled)
            losses, fooled = self.ask(part, children)
            stalled = stalled + (losses.amax(0) <= top)
            members = torch.cat([elite[None], children])
            losses = torch.cat([top[None], losses])
            fooled = torch.cat([torch.zeros_like(fooled[:1]), fooled])
        return best.outcome()

    def first(self, problem: Problem) -> Tensor:
        """Draw the first generation uniformly from the ball, ``(population, batch, *)``."""
        assert problem.radius is not None
        shape = problem.x.shape[1:]
        if self.norm == "linf":
            offset = problem.random.uniform(self.population, *shape) * 2 - 1
        else:
            offset = problem.random.normal(self.population, *shape).flatten(2)
            length = problem.random.uniform(self.population, 1) ** (1 / shape.numel())
            offset = torch.nn.functional.normalize(offset, dim=2).mul_(length).reshape(-1, self.population, *shape)
        return self.move(problem, problem.x + offset.transpose(0, 1).to(problem.x.dtype) * problem.radius)

    def children(self, problem: Problem, members: Tensor, losses: Tensor, stalled: Tensor) -> Tensor:
        """Return the next generation without its elite, ``(population - 1, batch, *)``."""
        assert problem.radius is not None
        count, shape = self.population - 1, problem.x.shape[1:]
        here = torch.arange(len(problem), device=members.device)
        odds = (losses / self.temperature).softmax(0)
        steps = odds.T.cumsum(1)
        draws = problem.random.uniform(2 * count).to(steps.dtype) * steps[:, -1:]
        first, second = torch.searchsorted(steps, draws).clamp_max(self.population - 1).T.chunk(2)
        share = odds[first, here] / (odds[first, here] + odds[second, here])
        share, shrink, radius = (
            v.reshape(*v.shape, *(1,) * len(shape)) for v in (share, self.decay**stalled, problem.radius.flatten())
        )
        from_first = problem.random.uniform(count, *shape).transpose(0, 1) < share
        child = torch.where(from_first, members[first, here], members[second, here])
        rate = (self.mutation_rate * shrink).clamp_min(min(self.least_rate, self.mutation_rate))
        reach = (self.mutation_range * shrink).clamp_min(min(self.least_range, self.mutation_range)) * radius
        if self.norm == "l2":
            reach = reach * (3 / shape.numel()) ** 0.5  # a uniform number in [-1, 1] has the mean square 1 / 3
        draw = problem.random.uniform(count, *shape).transpose(0, 1).to(child.dtype)
        noise = (draw / rate * 2 - 1) * reach  # below the rate, draw / rate is uniform
        return self.move(problem, torch.where(draw < rate, child + noise, child))

    def move(self, problem: Problem, members: Tensor) -> Tensor:
        """Move members into radius and bounds."""
        assert self.norm is not None
        return into_ball(problem, members, self.norm)

    def ask(self, problem: Problem, members: Tensor) -> tuple[Tensor, Tensor]:
        """Return the members' losses and whether they fool, ``(members, batch)``."""
        sizes = list(chunks(len(members), self.max_batch, len(problem)))
        losses, fooled = zip(*(ask(problem, some, self._loss) for some in torch.split(members, sizes)), strict=True)
        return torch.cat(losses), torch.cat(fooled)
