"""Attacks by queries: estimates of a gradient from a model's answers, and the loop that climbs them."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from lit_modules.attacks.engine.base import Attack, AttackArguments
from lit_modules.attacks.engine.checks import Radius, check_count
from lit_modules.attacks.engine.losses import Loss, LossName, check_per_sample, resolve_loss
from lit_modules.attacks.engine.norms import check_norm, project
from lit_modules.attacks.engine.random import SampleRandom
from lit_modules.attacks.engine.state import AttackState, BestSoFar, Carry, Outcome
from lit_modules.utils.arguments import Unpack

Values = Callable[[Tensor], Tensor]
Offer = Callable[[Tensor, Tensor, Tensor], None]


def spsa_gradient(
    values: Values, x: Tensor, random: SampleRandom, *, directions: int, fd_step: float, max_batch: int
) -> Tensor:
    """Estimate gradients by simultaneous perturbation: two-sided differences along random signs.

    ``mean over v of (f(x + fd_step v) - f(x - fd_step v)) / (2 fd_step) v``. Each sample has its own directions, so its
    estimate is the same alone and in any batch.

    Args:
        values: Function to differentiate: points ``(versions, batch, *)`` to one value each, ``(versions, batch)``.
        x: Where to differentiate, ``(batch, *)``.
        random: Streams of the samples.
        directions: Random directions of each sample; each costs two values.
        fd_step: Length of the difference in each coordinate, in units of the samples.
        max_batch: Most points in one call of ``values``; at least two versions of each sample go at once.

    Returns:
        Estimates, shape of ``x``.

    Example:
        >>> x = torch.zeros(1, 3)
        >>> slope = torch.tensor([1.0, -2.0, 3.0])
        >>> random = SampleRandom.of(x, seed=0)
        >>> estimate = spsa_gradient(lambda p: p @ slope, x, random, directions=4096, fd_step=0.1, max_batch=512)
        >>> bool((estimate - slope).abs().max() < 0.3)
        True

    References:
        Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient approximation" (IEEE
        TAC 1992); Uesato et al., "Adversarial risk and the dangers of evaluating against weak attacks" (arXiv
        1802.05666).
    """
    return _two_sided(values, x, random.sign, directions, fd_step, max_batch)


def nes_gradient(
    values: Values, x: Tensor, random: SampleRandom, *, directions: int, fd_step: float, max_batch: int
) -> Tensor:
    """Estimate gradients by natural evolution strategies: two-sided differences along Gaussian directions.

    ``1 / (2 n fd_step) sum over u of (f(x + fd_step u) - f(x - fd_step u)) u``. Each sample has its own directions.

    Args:
        values: Function to differentiate: points ``(versions, batch, *)`` to one value each, ``(versions, batch)``.
        x: Where to differentiate, ``(batch, *)``.
        random: Streams of the samples.
        directions: Random directions of each sample; each costs two values.
        fd_step: Standard deviation of the differences, in units of the samples.
        max_batch: Most points in one call of ``values``; at least two versions of each sample go at once.

    Returns:
        Estimates, shape of ``x``.

    References:
        Ilyas et al., "Black-box adversarial attacks with limited queries and information" (arXiv 1804.08598), algorithm
        1.
    """
    return _two_sided(values, x, random.normal, directions, fd_step, max_batch)


def _two_sided(
    values: Values, x: Tensor, draw: Callable[..., Tensor], directions: int, fd_step: float, max_batch: int
) -> Tensor:
    total = torch.zeros_like(x)
    for count in chunks(directions, max_batch, 2 * len(x)):
        u = draw(count, *x.shape[1:]).to(x.dtype)
        offset = (fd_step * u).transpose(0, 1)
        ahead, behind = values(torch.cat([x + offset, x - offset])).chunk(2)
        total += weighted_sum(ahead - behind, u)
    return total / (2 * directions * fd_step)


def weighted_sum(weights: Tensor, directions: Tensor) -> Tensor:
    """Return each sample's sum of its directions, weighted.

    Args:
        weights: Weights, ``(versions, batch)``.
        directions: Directions as :class:`SampleRandom` draws them, ``(batch, versions, *)``.
    """
    flat = directions.flatten(2) if directions.ndim > 2 else directions[:, :, None]
    total = torch.bmm(weights.to(flat.dtype).T[:, None], flat)
    return total.reshape(len(directions), *directions.shape[2:])


def chunks(total: int, max_batch: int, batch: int) -> Iterator[int]:
    """Split versions of a batch into parts that a forward pass takes; at least one version goes at once.

    Args:
        total: Versions.
        max_batch: Most points of a part.
        batch: Points that a version costs.
    """
    most = max(1, max_batch // max(1, batch))
    for done in range(0, total, most):
        yield min(most, total - done)


def query(state: AttackState, points: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """Query the model about several versions of each sample, without gradients.

    Args:
        state: Samples under attack.
        points: Versions, ``(versions, batch, *)``.
        loss: Loss per sample.

    Returns:
        Objectives, and whether the model is fooled, both ``(versions, batch)``.
    """
    with torch.no_grad():
        logits = state.logits(points)
        flat = logits.flatten(0, 1)
        values = check_per_sample(loss(flat, state.label.repeat(len(points))), len(flat)).reshape(points.shape[:2])
    return -values if state.targeted else values, state.fooled(logits)


def project_into_ball(state: AttackState, x: Tensor, norm: str) -> Tensor:
    """Return points moved into radius and bounds.

    Args:
        state: Samples under attack.
        x: One point of each sample, ``(batch, *)``, or several, ``(versions, batch, *)``.
        norm: ``linf`` or ``l2``.
    """
    delta = x - state.x
    if norm == "linf":
        delta = delta.clamp_(-state.radius, state.radius)
    elif x.ndim == state.x.ndim:
        delta = project(delta, state.radius, norm)
    else:
        radius = state.radius.expand(len(x), *state.radius.shape).flatten(0, 1)
        delta = project(delta.flatten(0, 1), radius, norm).reshape(x.shape)
    return state.clamp(delta.add_(state.x))


def best_version(points: Tensor, objective: Tensor, fooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Choose a version of each sample: the largest objective among those that fool, else among all.

    Args:
        points: Versions, ``(versions, batch, *)``.
        objective: Objectives, ``(versions, batch)``.
        fooled: Whether the model is fooled, ``(versions, batch)``.

    Returns:
        Points, objectives and whether they fool, ``(batch, ...)``.
    """
    success = fooled.any(0)
    chosen = objective.masked_fill(~fooled & success, float("-inf")).argmax(0)
    here = torch.arange(points.shape[1], device=points.device)
    return points[chosen, here], objective[chosen, here], success


class QueryArguments(AttackArguments, total=False):
    """Arguments that the attacks by queries share; see :class:`QueryAttack`."""

    eps: Radius
    loss: LossName | Loss
    max_batch: int


class BallArguments(QueryArguments, total=False):
    """Arguments of :class:`QueryAttack` with a choice of the norm."""

    norm: Literal["linf", "l2"]
    steps: int


class QueryAttack(Attack):
    """Base of attacks in a radius that use the model's answers alone, never its gradients.

    Args:
        norm: ``linf`` or ``l2``.
        eps: Radius in units of the samples, a number or one per sample.
        steps: Number of steps.
        loss: ``margin``, ``cross_entropy``, ``dlr``, or a callable giving one value per sample.
        max_batch: Most points of one forward pass, if the batch is smaller; changes memory and speed, no result.
    """

    def __init__(
        self,
        *,
        norm: Literal["linf", "l2"] = "linf",
        eps: Radius = 0.3,
        steps: int = 40,
        loss: LossName | Loss = "margin",
        max_batch: int = 256,
        **shared: Unpack[AttackArguments],
    ) -> None:
        super().__init__(**shared)
        check_norm(norm, ("linf", "l2"))
        check_count("steps", steps)
        check_count("max_batch", max_batch)
        self.norm: str = norm
        self.eps = self.checked_eps(eps)
        self.steps = steps
        self.loss = loss
        self.max_batch = max_batch
        self._loss = resolve_loss(loss)


class EstimatedGradientAttack(QueryAttack):
    """Base of query attacks that climb an estimated gradient.

    A sample leaves when it is fooled; one that never is comes back as the iterate of the largest loss.
    """

    def attack(self, state: AttackState) -> Outcome:
        """Take the steps with the samples that are not fooled yet."""
        best, active, positions = BestSoFar(state), state, state.positions()
        x, carry = state.x, self.initial_carry(state)
        with torch.no_grad():
            for step in range(self.steps + 1):
                known = active.clean if step == 0 else None
                logits = active.logits(x) if known is None else known
                best.offer(positions, x, active.objective(logits, self._loss), active.fooled(logits))
                if step == self.steps:
                    break
                stay = (~best.success[positions]).nonzero()[:, 0]
                if not len(stay):
                    break
                if len(stay) < len(positions):
                    positions, active, x = positions[stay], active.select(stay), x[stay]
                    carry = {name: values[stay] for name, values in carry.items()}
                gradient = self.estimate(active, x, carry, partial(best.offer, positions))
                if step == 0 and bool(active.radius.any()):
                    warn_flat(gradient)
                x = self.step(active, x, gradient, step, carry)
        return best.outcome()

    def initial_carry(self, state: AttackState) -> Carry:
        """Return the values of each sample that the steps carry along."""
        return {}

    @abstractmethod
    def estimate(self, state: AttackState, x: Tensor, carry: Carry, offer: Offer) -> Tensor:
        """Return the estimated gradient of the objective.

        Args:
            state: Samples that are still under attack.
            x: Their iterates, ``(active, *)``.
            carry: Values of :meth:`initial_carry`, to be changed in place.
            offer: Takes points within radius and bounds that the estimate evaluated: points, objectives and whether
                they fool, one of each sample.
        """

    @abstractmethod
    def step(self, state: AttackState, x: Tensor, gradient: Tensor, step: int, carry: Carry) -> Tensor:
        """Return the next iterate, within radius and bounds.

        Args:
            state: Samples that are still under attack.
            x: Their iterates, ``(active, *)``.
            gradient: Estimate of :meth:`estimate`.
            step: Number of the step, from 0.
            carry: Values of :meth:`initial_carry`, to be changed in place.
        """

    def values(self, state: AttackState) -> Values:
        """Return the function to differentiate; points outside the bounds are moved into them first."""
        return lambda points: query(state, state.clamp(points), self._loss)[0]


def warn_flat(gradient: Tensor) -> None:
    """Warn if the estimates are zero for all samples: the model gives the same answer all around them."""
    if not bool(gradient.any()):
        warnings.warn(
            f"The loss does not change around any of the {len(gradient)} samples: the model is constant, or rounds "
            "its input; try a larger fd_step or sigma.",
            stacklevel=2,
        )
