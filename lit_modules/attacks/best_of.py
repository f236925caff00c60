"""The strongest of several attacks, sample by sample."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lit_modules.attacks.engine.base import Attack, AttackArguments
from lit_modules.attacks.engine.checks import Radius, check_radius
from lit_modules.attacks.engine.losses import margin
from lit_modules.attacks.engine.norms import lp_norm
from lit_modules.attacks.engine.problem import Outcome, Problem
from lit_modules.utils.arguments import Unpack


class BestOf(Attack):
    """Run several attacks and keep the best result of each sample.

    A success counts more than any failure. Among successes, the smallest distance counts if one of the attacks looks
    for the smallest perturbation, else the largest margin; among failures, the largest margin of the logits. With
    ``keep="first"`` a sample meets the next attack only while nothing has fooled the model, so later attacks see
    fewer samples; put the cheap ones first. A sample on which all fail comes back as the best attempt, or unchanged
    if all look for the smallest perturbation.

    Each attack keeps its norm, radius and restarts, and is held to them. ``targeted``, ``bounds``, ``precision`` and
    ``model_mode`` must be equal in all attacks and are taken from them. AdverTorch has such an ensemble from 0.2 on,
    which returns black images where all attacks fail.

    Args:
        attacks: Attacks, in the order in which they run.
        keep: ``first``: a sample leaves with the first success; ``best``: all attacks run on all samples.
        arguments: Arguments of :class:`Attack`, by name: restarts of the whole ensemble, and seed.

    Raises:
        TypeError: If something is no attack, or an attack that takes no labels, as FastFeature.
        ValueError: If there is no attack, or the attacks disagree.

    Example:
        >>> from lit_modules.attacks.pgd import FGSM, LinfPGD
        >>> attack = BestOf(attacks=[FGSM(eps=0.1), LinfPGD(eps=0.1, steps=10, step_size=0.02)])
    """

    def __init__(
        self,
        *,
        attacks: Sequence[Attack],
        keep: Literal["first", "best"] = "first",
        **arguments: Unpack[AttackArguments],
    ) -> None:
        attacks = list(attacks)
        if not attacks:
            raise ValueError("attacks must hold at least one attack, got none.")
        for attack in attacks:
            if not isinstance(attack, Attack):
                raise TypeError(f"attacks must hold attacks of lit_modules.attacks, got {type(attack).__name__}.")
            if "y" not in inspect.signature(attack.run).parameters:
                raise TypeError(f"BestOf gives its attacks labels; {type(attack).__name__} takes something else.")
        if keep not in ("first", "best"):
            raise ValueError(f"keep must be 'first' or 'best', got {keep!r}.")
        shared: AttackArguments = {
            "targeted": attacks[0].targeted,
            "bounds": attacks[0].bounds,
            "precision": attacks[0].precision,
            "model_mode": attacks[0].model_mode,
        }
        shared.update(arguments)
        super().__init__(**shared)
        for attack in attacks:
            for name in ("targeted", "bounds", "precision", "model_mode"):
                if not _equal(getattr(attack, name), getattr(self, name)):
                    raise ValueError(
                        f"All attacks of BestOf need the same {name}, got {getattr(attack, name)!r} in "
                        f"{type(attack).__name__} and {getattr(self, name)!r}."
                    )
        norms = {attack.norm for attack in attacks}
        self.attacks = attacks
        self.keep = keep
        self.norm = norms.pop() if len(norms) == 1 else None
        self.minimal = all(attack.minimal for attack in attacks)
        self._nearest = any(attack.minimal for attack in attacks)
        if all(attack.eps is not None and _equal(attack.eps, attacks[0].eps) for attack in attacks):
            self.eps = attacks[0].eps if self.norm is not None else None

    def attack(self, problem: Problem) -> Outcome:
        """Run the attacks in their order."""
        best = Outcome(
            problem.x.clone(),
            torch.zeros(len(problem), dtype=torch.bool, device=problem.x.device),
            torch.full((len(problem),), float("-inf"), dtype=problem.x.dtype, device=problem.x.device),
        )
        if not self.minimal and problem.clean_logits is not None:
            best.score[:] = problem.objective(problem.clean_logits, margin)
        for number, attack in enumerate(self.attacks):
            place = (~best.success).nonzero()[:, 0] if self.keep == "first" else torch.arange(len(problem))
            place = place.to(problem.x.device)
            if not len(place):
                break
            part = problem.select(place)
            random = part.random.fork(number).fork(attack.seed)
            part = replace(part, radius=_radius(attack.eps, part), random=random)
            found = attack.solve(part, torch.zeros_like(best.success[place]))
            part.audit(found.adversarial, attack.norm)
            score = self._score(part, found)
            better = (found.success & ~best.success[place]) | (
                (found.success == best.success[place]) & (score > best.score[place])
            )
            chosen = place[better]
            best.adversarial[chosen] = found.adversarial[better].to(best.adversarial.dtype)
            best.success[chosen] = found.success[better]
            best.score[chosen] = score[better]
        return best

    def _score(self, problem: Problem, found: Outcome) -> Tensor:
        """Return what makes one result better than another of equal success."""
        nearness = -lp_norm(found.adversarial.to(problem.x.dtype) - problem.x, self.norm or "l2")
        if self.minimal:
            return torch.where(found.success, nearness, float("-inf"))
        with torch.no_grad():
            gap = problem.objective(problem.logits(found.adversarial), margin)
        return torch.where(found.success, nearness, gap) if self._nearest else gap


def _radius(eps: Radius | None, problem: Problem) -> Tensor | None:
    """Return the radius of the samples that are left."""
    if isinstance(eps, Tensor) and eps.ndim and len(eps) > 1:
        eps = eps.to(problem.x.device)[problem.index]
    return None if eps is None else check_radius(eps, problem.x)


def _equal(first: object, second: object) -> bool:
    """Return whether two settings are the same; tensors are compared by value."""
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(_equal(a, b) for a, b in zip(first, second, strict=True))
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        a, b = torch.as_tensor(first), torch.as_tensor(second)
        return a.shape == b.shape and bool((a == b).all())
    return first == second
