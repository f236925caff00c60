"""The strongest of several attacks, sample by sample."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypedDict

import torch
from torch import Tensor

from lit_modules.attacks.engine.base import Attack
from lit_modules.attacks.engine.checks import Radius, check_radius
from lit_modules.attacks.engine.losses import margin
from lit_modules.attacks.engine.norms import lp_norm
from lit_modules.attacks.engine.state import AttackState, Outcome
from lit_modules.utils.arguments import Unpack


class EnsembleArguments(TypedDict, total=False):
    """Shared arguments that an ensemble does not take from its members."""

    restarts: int
    seed: int


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
        **shared: Unpack[EnsembleArguments],
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
        first = attacks[0]
        super().__init__(
            targeted=first.targeted,
            bounds=first.bounds,
            precision=first.precision,
            model_mode=first.model_mode,
            **shared,
        )
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
        self.minimum_norm = all(attack.minimum_norm for attack in attacks)
        self._nearest = any(attack.minimum_norm for attack in attacks)
        if self.norm is not None and all(_equal(attack.eps, first.eps) for attack in attacks):
            self.eps = first.eps

    def attack(self, state: AttackState) -> Outcome:
        """Run the attacks in their order."""
        best = Outcome(
            state.x.clone(),
            torch.zeros(len(state), dtype=torch.bool, device=state.x.device),
            torch.full((len(state),), float("-inf"), dtype=state.x.dtype, device=state.x.device),
        )
        if not self.minimum_norm and state.clean is not None:
            best.score[:] = state.objective(state.clean, margin)
        for number, attack in enumerate(self.attacks):
            positions = (~best.success).nonzero()[:, 0] if self.keep == "first" else state.positions()
            if not len(positions):
                break
            active = state.select(positions)
            random = active.random.fork(number).fork(attack.seed)
            active = replace(active, eps=_radius(attack.eps, active), random=random)
            outcome = attack.solve(active, torch.zeros_like(best.success[positions]))
            active.audit(outcome.adversarial, attack.norm)
            score = self._score(active, outcome)
            better = (outcome.success & ~best.success[positions]) | (
                (outcome.success == best.success[positions]) & (score > best.score[positions])
            )
            chosen = positions[better]
            best.adversarial[chosen] = outcome.adversarial[better].to(best.adversarial.dtype)
            best.success[chosen] = outcome.success[better]
            best.score[chosen] = score[better]
        return best

    def _score(self, state: AttackState, outcome: Outcome) -> Tensor:
        """Return what makes one result better than another of equal success."""
        nearness = -lp_norm(outcome.adversarial.to(state.x.dtype) - state.x, self.norm or "l2")
        if self.minimum_norm:
            return torch.where(outcome.success, nearness, float("-inf"))
        with torch.no_grad():
            gap = state.objective(state.logits(outcome.adversarial), margin)
        return torch.where(outcome.success, nearness, gap) if self._nearest else gap


def _radius(eps: Radius | None, state: AttackState) -> Tensor | None:
    """Return the radius of the samples that are left."""
    if isinstance(eps, Tensor) and eps.ndim and len(eps) > 1:
        eps = eps.to(state.x.device)[state.index]
    return None if eps is None else check_radius(eps, state.x)


def _equal(first: object, second: object) -> bool:
    """Return whether two settings are the same; tensors are compared by value."""
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(_equal(a, b) for a, b in zip(first, second, strict=True))
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        a, b = torch.as_tensor(first), torch.as_tensor(second)
        return a.shape == b.shape and bool((a == b).all())
    return first == second
