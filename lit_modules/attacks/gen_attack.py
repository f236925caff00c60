"""GenAttack: a population of perturbations that inherit, mutate and compete."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_modules.attacks.engine.checks import check_count, check_positive, check_range
from lit_modules.attacks.engine.state import AttackState, BestSoFar, Outcome, best_version, chunks
from lit_modules.attacks.score_based import BallArguments, QueryAttack, project_into_ball
from lit_modules.utils.arguments import Unpack


class GenAttack(QueryAttack):
    """Evolve a population of perturbed samples in the ball, without gradients of the model.

    In each generation the best member stays. The others are children of two members, drawn with probabilities
    ``softmax(loss / temperature)``: each coordinate comes from one parent with its share of the two probabilities, and
    a part ``mutation_rate`` of the coordinates then moves at random by up to ``mutation_range`` of the radius. Both
    fall by the factor ``decay`` in each generation without a better best member, down to their least values. A sample
    leaves with the first generation that fools the model.

    The paper's loss, the target's log-probability less the others', is the margin of logits up to a soft maximum.
    The defaults are those of AdverTorch 0.2.

    Args:
        population: Members; each of the ``steps`` generations costs one forward pass less than that.
        temperature: Temperature of the choice of parents, in units of the loss.
        mutation_range: Largest mutation at the start, as part of the radius, above 0 and up to 1. In L2 the mutation's
            expected length if all coordinates mutate.
        mutation_rate: Part of the coordinates that mutate at the start, above 0 and up to 1.
        least_range: Least mutation range.
        least_rate: Least mutation rate.
        decay: Factor of range and rate for each generation without progress, above 0 and up to 1.

    References:
        Alzantot et al., "GenAttack: practical black-box attacks with gradient-free optimization" (arXiv 1805.11090),
        algorithm 1.
    """

    def __init__(
        self,
        *,
        population: int = 100,
        temperature: float = 0.1,
        mutation_range: float = 0.4,
        mutation_rate: float = 0.5,
        least_range: float = 0.15,
        least_rate: float = 0.1,
        decay: float = 0.9,
        **shared: Unpack[BallArguments],
    ) -> None:
        super().__init__(**shared)
        check_count(least=2, population=population)
        check_positive(temperature=temperature)
        check_range("(0, 1]", mutation_range=mutation_range, mutation_rate=mutation_rate, decay=decay)
        check_range("(0, 1]", least_range=least_range, least_rate=least_rate)
        self.population = population
        self.temperature = temperature
        self.mutation_range = mutation_range
        self.mutation_rate = mutation_rate
        self.least_range = least_range
        self.least_rate = least_rate
        self.decay = decay

    def attack(self, state: AttackState) -> Outcome:
        """Evolve the samples that are not fooled yet."""
        best, active, positions = BestSoFar(state), state, state.positions()
        members = self.first(active)
        losses, fooled = self.evaluate(active, members)
        stalled = torch.zeros(len(state), dtype=state.x.dtype, device=state.x.device)
        for generation in range(self.steps + 1):
            elite, top, success = best_version(members, losses, fooled)
            best.offer(positions, elite, top, success)
            stay = (~success).nonzero()[:, 0]
            if generation == self.steps or not len(stay):
                break
            if len(stay) < len(positions):
                positions, active, stalled = positions[stay], active.select(stay), stalled[stay]
                members, losses, elite, top = members[:, stay], losses[:, stay], elite[stay], top[stay]
            children = self.children(active, members, losses, stalled)
            losses, fooled = self.evaluate(active, children)
            stalled = stalled + (losses.amax(0) <= top)
            members = torch.cat([elite[None], children])
            losses = torch.cat([top[None], losses])
            fooled = torch.cat([torch.zeros_like(fooled[:1]), fooled])
        return best.outcome()

    def first(self, state: AttackState) -> Tensor:
        """Draw the first generation uniformly from the ball, ``(population, batch, *)``."""
        shape = state.x.shape[1:]
        if self.norm == "linf":
            offset = state.random.uniform(self.population, *shape) * 2 - 1
        else:
            offset = state.random.normal(self.population, *shape).flatten(2)
            length = state.random.uniform(self.population, 1) ** (1 / shape.numel())
            offset = torch.nn.functional.normalize(offset, dim=2).mul_(length).reshape(-1, self.population, *shape)
        return project_into_ball(state, state.x + offset.transpose(0, 1).to(state.x.dtype) * state.radius, self.norm)

    def children(self, state: AttackState, members: Tensor, losses: Tensor, stalled: Tensor) -> Tensor:
        """Return the next generation without its elite, ``(population - 1, batch, *)``."""
        count, shape = self.population - 1, state.x.shape[1:]
        here = torch.arange(len(state), device=members.device)
        odds = (losses / self.temperature).softmax(0)
        steps = odds.T.cumsum(1)
        draws = state.random.uniform(2 * count).to(steps.dtype) * steps[:, -1:]
        first, second = torch.searchsorted(steps, draws).clamp_max(self.population - 1).T.chunk(2)
        share = odds[first, here] / (odds[first, here] + odds[second, here])
        share, shrink, radius = (
            v.reshape(*v.shape, *(1,) * len(shape)) for v in (share, self.decay**stalled, state.radius.flatten())
        )
        from_first = state.random.uniform(count, *shape).transpose(0, 1) < share
        child = torch.where(from_first, members[first, here], members[second, here])
        rate = (self.mutation_rate * shrink).clamp_min(min(self.least_rate, self.mutation_rate))
        reach = (self.mutation_range * shrink).clamp_min(min(self.least_range, self.mutation_range)) * radius
        if self.norm == "l2":
            reach = reach * (3 / shape.numel()) ** 0.5  # a uniform number in [-1, 1] has the mean square 1 / 3
        draw = state.random.uniform(count, *shape).transpose(0, 1).to(child.dtype)
        noise = (draw / rate * 2 - 1) * reach  # below the rate, draw / rate is uniform
        return project_into_ball(state, torch.where(draw < rate, child + noise, child), self.norm)

    def evaluate(self, state: AttackState, members: Tensor) -> tuple[Tensor, Tensor]:
        """Return the members' losses and whether they fool, ``(members, batch)``."""
        sizes = list(chunks(len(members), self.max_batch, len(state)))
        losses, fooled = zip(*(state.query(some, self._loss) for some in torch.split(members, sizes)), strict=True)
        return torch.cat(losses), torch.cat(fooled)
