"""Attacks by queries of the logits: SPSA, NES, Bandits and NAttack climb an estimated gradient."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from lit_modules.attacks.engine.base import Attack, AttackArguments
from lit_modules.attacks.engine.checks import Radius, check_choice, check_count, check_positive
from lit_modules.attacks.engine.losses import Loss, LossName, resolve_loss
from lit_modules.attacks.engine.norms import normalise, project, steepest
from lit_modules.attacks.engine.state import AttackState, BestSoFar, Carry, Outcome, best_version, chunks
from lit_modules.utils.arguments import Unpack

Values = Callable[[Tensor], Tensor]
Offer = Callable[[Tensor, Tensor, Tensor], None]


def estimate_gradient(
    values: Values, x: Tensor, draw: Callable[..., Tensor], *, directions: int, fd_step: float, max_batch: int
) -> Tensor:
    """Estimate gradients by two-sided differences along random directions ``v``.

    ``1 / (2 n fd_step) sum over v of (f(x + fd_step v) - f(x - fd_step v)) v``. Random signs give simultaneous
    perturbation (SPSA), Gaussian directions natural evolution strategies (NES). Each sample has its own directions, so
    its estimate is the same alone and in any batch.

    Args:
        values: Function to differentiate: points ``(versions, batch, *)`` to one value each, ``(versions, batch)``.
        x: Where to differentiate, ``(batch, *)``.
        draw: Draws directions: ``sign`` or ``normal`` of the streams of the samples.
        directions: Random directions of each sample; each costs two values.
        fd_step: Length of the difference in each coordinate, in units of the samples.
        max_batch: Most points in one call of ``values``; at least two versions of each sample go at once.

    References:
        Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient approximation" (IEEE
        TAC 1992); Ilyas et al., "Black-box adversarial attacks with limited queries and information" (arXiv
        1804.08598), algorithm 1.
    """
    total = torch.zeros_like(x)
    for count in chunks(directions, max_batch, 2 * len(x)):
        u = draw(count, *x.shape[1:]).to(x.dtype)
        offset = (fd_step * u).transpose(0, 1)
        ahead, behind = values(torch.cat([x + offset, x - offset])).chunk(2)
        total += weighted_sum(ahead - behind, u)
    return total / (2 * directions * fd_step)


def weighted_sum(weights: Tensor, directions: Tensor) -> Tensor:
    """Return the sum of each sample's directions, ``(batch, versions, *)``, by weights ``(versions, batch)``."""
    flat = directions.flatten(2) if directions.ndim > 2 else directions[:, :, None]
    total = torch.bmm(weights.to(flat.dtype).T[:, None], flat)
    return total.reshape(len(directions), *directions.shape[2:])


def project_into_ball(state: AttackState, x: Tensor, norm: str) -> Tensor:
    """Return points, ``(batch, *)`` or ``(versions, batch, *)``, moved into radius and bounds."""
    delta = x - state.x
    if norm == "linf":
        delta = delta.clamp_(-state.radius, state.radius)
    elif x.ndim == state.x.ndim:
        delta = project(delta, state.radius, norm)
    else:
        radius = state.radius.expand(len(x), *state.radius.shape).flatten(0, 1)
        delta = project(delta.flatten(0, 1), radius, norm).reshape(x.shape)
    return state.clamp(delta.add_(state.x))


class QueryArguments(AttackArguments, total=False):
    """Arguments that the attacks by queries share; see :class:`QueryAttack`."""

    eps: Radius
    loss: LossName | Loss
    max_batch: int


class BallArguments(QueryArguments, total=False):
    """Arguments of :class:`QueryAttack` with a choice of the norm."""

    norm: Literal["linf", "l2"]
    steps: int


class EstimateArguments(BallArguments, total=False):
    """Arguments of :class:`EstimatedGradientAttack`."""

    step_size: Radius


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
        check_choice("norm", norm, ("linf", "l2"))
        check_count(steps=steps, max_batch=max_batch)
        self.norm: str = norm
        self.eps = self.checked_eps(eps)
        self.steps = steps
        self.loss = loss
        self.max_batch = max_batch
        self._loss = resolve_loss(loss)


class EstimatedGradientAttack(QueryAttack):
    """Base of query attacks that climb an estimated gradient by steps in the steepest direction of the norm.

    A sample leaves when it is fooled; one that never is comes back as the iterate of the largest loss.

    Args:
        step_size: Length of a step in the norm, in units of the samples, a number or one per sample.
    """

    def __init__(self, *, step_size: Radius = 0.01, **shared: Unpack[BallArguments]) -> None:
        super().__init__(**shared)
        check_positive(step_size=step_size)
        self.step_size = step_size

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
        """Return the estimated gradient of the objective; ``carry`` is changed in place.

        ``offer`` takes evaluated points within radius and bounds, one of each sample: points, objectives and whether
        they fool.
        """

    def step(self, state: AttackState, x: Tensor, gradient: Tensor, step: int, carry: Carry) -> Tensor:
        """Return the next iterate, within radius and bounds; ``carry`` is changed in place."""
        moved = x + state.broadcast(self.step_size) * steepest(gradient, self.norm)
        return project_into_ball(state, moved, self.norm)

    def values(self, state: AttackState) -> Values:
        """Return the function to differentiate; points outside the bounds are moved into them first."""
        return lambda points: state.query(state.clamp(points), self._loss)[0]


def warn_flat(gradient: Tensor) -> None:
    """Warn if the estimates are zero for all samples: the model gives the same answer all around them."""
    if not bool(gradient.any()):
        warnings.warn(
            f"The loss does not change around any of the {len(gradient)} samples: the model is constant, or rounds "
            "its input; try a larger fd_step or sigma.",
            stacklevel=2,
        )


class NES(EstimatedGradientAttack):
    """Projected gradient descent on natural-evolution-strategy estimates, without gradients of the model.

    Each step estimates the gradient of the margin from ``2 directions`` answers along Gaussian directions, and moves by
    its sign (Linf) or along it (L2). Every sample has its own directions. The points of the differences are moved into
    the bounds. The defaults are those of AdverTorch 0.2, which has Linf only.

    Args:
        directions: Random directions of a step; each costs two forward passes.
        fd_step: Standard deviation of the differences, in units of the samples.

    References:
        Ilyas et al., "Black-box adversarial attacks with limited queries and information" (arXiv 1804.08598), algorithm
        1.
    """

    def __init__(self, *, directions: int = 100, fd_step: float = 0.01, **shared: Unpack[EstimateArguments]) -> None:
        super().__init__(**shared)
        check_count(directions=directions)
        check_positive(fd_step=fd_step)
        self.directions = directions
        self.fd_step = fd_step

    def draw(self, state: AttackState) -> Callable[..., Tensor]:
        """Return the source of the directions."""
        return state.random.normal

    def estimate(self, state: AttackState, x: Tensor, carry: Carry, offer: Offer) -> Tensor:
        """Take differences along the directions drawn."""
        settings = {"directions": self.directions, "max_batch": self.max_batch}
        return estimate_gradient(self.values(state), x, self.draw(state), fd_step=self.fd_step, **settings)


_BETA1, _BETA2, _TINY = 0.9, 0.999, 1e-8


class SPSA(NES):
    """Simultaneous perturbation stochastic approximation in the Linf ball, without gradients of the model.

    Each step estimates the gradient of the margin from ``2 directions`` answers and moves by Adam, then clips to ball
    and bounds. Every sample has its own directions. The points of the differences stay within the bounds: a coordinate
    at a bound counts half there.

    AdverTorch 0.2 takes one step, which moves by 0.01 only, and shares one direction in its whole batch.

    Args:
        steps: Number of steps.
        step_size: Learning rate of Adam in units of the samples, a number or one per sample.
        directions: Random directions of a step; each costs two forward passes.
        fd_step: Length of the differences in each coordinate, in units of the samples.

    References:
        Uesato et al., "Adversarial risk and the dangers of evaluating against weak attacks" (arXiv 1802.05666).
    """

    fixed = ("norm",)

    def __init__(
        self,
        *,
        steps: int = 100,
        step_size: Radius = 0.01,
        directions: int = 128,
        fd_step: float = 0.01,
        **shared: Unpack[QueryArguments],
    ) -> None:
        super().__init__(
            norm="linf", steps=steps, step_size=step_size, directions=directions, fd_step=fd_step, **shared
        )

    def initial_carry(self, state: AttackState) -> Carry:
        """Start Adam's two averages at zero."""
        return {"mean": torch.zeros_like(state.x), "square": torch.zeros_like(state.x)}

    def draw(self, state: AttackState) -> Callable[..., Tensor]:
        """Return the source of random signs."""
        return state.random.sign

    def step(self, state: AttackState, x: Tensor, gradient: Tensor, step: int, carry: Carry) -> Tensor:
        """Move by Adam, clip to the ball and to the bounds."""
        mean = carry["mean"].lerp_(gradient, 1 - _BETA1)
        square = carry["square"].mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        scale = (square / (1 - _BETA2 ** (step + 1))).sqrt_().add_(_TINY)
        move = mean / (1 - _BETA1 ** (step + 1)) / scale
        return project_into_ball(state, x + move * state.broadcast(self.step_size), "linf")


_EXPLORATION = {"linf": 1.0, "l2": 0.01}


class Bandits(EstimatedGradientAttack):
    """Bandit optimisation of a gradient prior, without gradients of the model.

    A guess ``v`` of the gradient is carried from step to step. Each step asks about ``x + fd_step q`` for the unit
    vectors ``q`` along ``v + exploration u`` and ``v - exploration u`` with ``u ~ N(0, I / d)``, and moves ``v`` along
    ``u`` by their difference: additively for L2, by exponentiated gradients within [-1, 1] for Linf. Then ``x`` moves
    by the sign of ``v`` (Linf) or along it (L2). So a step costs three forward passes: two for the difference, one to
    see whether the sample is fooled.

    The defaults are those of AdverTorch 0.2 but for ``exploration`` in Linf, where it has 0.01 too. They ask little: 40
    steps are 121 passes, where the paper spends up to 10000 answers on an image.

    Args:
        prior_step: Learning rate of the guess (the paper's ``h_g``).
        exploration: Length of the exploration (the paper's ``delta``); ``None`` takes that of the authors' code, 1 for
            Linf and 0.01 for L2. A guess in Linf soon is so long that 0.01 of a direction tells nothing any more.
        fd_step: L2 length of the differences, in units of the samples.
        tile: Side in pixels of the squares on which the guess is constant, for images; ``None`` for one value per
            coordinate. With tiles there are fewer numbers to guess, and neighbouring pixels have similar gradients.

    References:
        Ilyas, Engstrom, Madry, "Prior convictions: black-box adversarial attacks with bandits and priors" (arXiv
        1807.07978), algorithms 1 to 3.
    """

    def __init__(
        self,
        *,
        prior_step: float = 0.1,
        exploration: float | None = None,
        fd_step: float = 0.01,
        tile: int | None = None,
        **shared: Unpack[EstimateArguments],
    ) -> None:
        super().__init__(**shared)
        check_positive(prior_step=prior_step, fd_step=fd_step)
        if exploration is not None:
            check_positive(exploration=exploration)
        if tile is not None:
            check_count(tile=tile)
        self.prior_step = prior_step
        self.exploration = exploration
        self.fd_step = fd_step
        self.tile = tile

    def initial_carry(self, state: AttackState) -> Carry:
        """Start with no guess, one value for each tile."""
        shape = state.x.shape
        if self.tile is not None:
            if len(shape) != 4:
                raise ValueError(
                    "Tiles are squares of an image, so x must be (batch, channel, height, width), got "
                    f"{tuple(shape)}; pass tile=None."
                )
            shape = torch.Size([*shape[:2], -(-shape[2] // self.tile), -(-shape[3] // self.tile)])
        return {"prior": state.x.new_zeros(shape)}

    def estimate(self, state: AttackState, x: Tensor, carry: Carry, offer: Offer) -> Tensor:
        """Improve the guess by two answers and return it."""
        prior = carry["prior"]
        shape = prior.shape[1:]
        u = state.random.normal(*shape).to(x.dtype) / shape.numel() ** 0.5
        length = _EXPLORATION[self.norm] if self.exploration is None else self.exploration
        sides = [normalise(self.spread(prior + way * length * u, x), "l2") for way in (1, -1)]
        points = state.clamp(x + self.fd_step * torch.stack(sides))
        if 2 * len(x) <= self.max_batch:
            ahead, behind = state.query(points, self._loss)[0]
        else:
            ahead, behind = (state.query(point[None], self._loss)[0][0] for point in points)
        slope = ((ahead - behind) / self.fd_step).reshape(-1, *(1,) * len(shape))
        move = self.prior_step * slope * u
        if self.norm == "linf":  # exponentiated gradients of (prior + 1) / 2, a probability
            carry["prior"] = torch.tanh(torch.atanh(prior.clamp(-1 + 1e-6, 1 - 1e-6)) + move)
        else:
            carry["prior"] = prior + move
        return self.spread(carry["prior"], x)

    def spread(self, prior: Tensor, x: Tensor) -> Tensor:
        """Return the guess with one value for each coordinate of ``x``."""
        if self.tile is None:
            return prior
        rows, columns = (torch.arange(side, device=x.device) // self.tile for side in x.shape[2:])
        return prior[:, :, rows][:, :, :, columns]


_INSIDE = 1 - 1e-6  # keeps the inverse of tanh finite at the bounds


class NAttack(EstimatedGradientAttack):
    """Learn a Gaussian whose draws are adversarial, without gradients of the model.

    Each step draws ``samples`` points ``w = mean + sigma u``, takes them through the transform and into ball and
    bounds, asks the model about them, and moves the mean by ``step_size / (samples sigma) sum z u``, where ``z`` are
    the losses less their mean over their standard deviation. Every draw lies within radius and bounds, so the first
    step in which one fools the model ends the search for its sample. The defaults are those of AdverTorch 0.2.

    Args:
        step_size: Learning rate of the mean, a number or one per sample.
        samples: Draws of a step; each costs a forward pass, and the mean costs one more.
        sigma: Standard deviation of the draws.
        transform: ``identity``: the draws are samples, cut at the bounds. ``tanh``, as in the paper: the draws pass a
            hyperbolic tangent onto the bounds; coordinates at a bound then hardly move, so that on images with black
            and white parts, as digits, the attack finds far less.

    Raises:
        ValueError: If ``transform`` is ``tanh`` and there are no bounds.

    References:
        Li et al., "NATTACK: learning the distributions of adversarial examples for an improved black-box attack on deep
        neural networks" (arXiv 1905.00441), algorithm 1.
    """

    def __init__(
        self,
        *,
        step_size: Radius = 0.02,
        samples: int = 100,
        sigma: float = 0.1,
        transform: Literal["identity", "tanh"] = "identity",
        **shared: Unpack[BallArguments],
    ) -> None:
        super().__init__(step_size=step_size, **shared)
        check_count(least=2, samples=samples)
        check_positive(sigma=sigma)
        check_choice("transform", transform, ("identity", "tanh"))
        if transform == "tanh" and self.bounds is None:
            raise ValueError("transform='tanh' maps onto the bounds, got bounds=None; pass transform='identity'.")
        self.samples = samples
        self.sigma = sigma
        self.transform = transform

    def initial_carry(self, state: AttackState) -> Carry:
        """Start with the mean at the sample."""
        if self.transform == "identity":
            return {"mean": state.x.clone()}
        middle, half = state.box()
        share = (state.x - middle) / half.clamp_min(torch.finfo(half.dtype).tiny)
        return {"mean": torch.atanh(share.clamp(-1, 1) * _INSIDE)}

    def estimate(self, state: AttackState, x: Tensor, carry: Carry, offer: Offer) -> Tensor:
        """Return the sum of the draws, weighted by their standardised losses, over their number and ``sigma``."""
        mean = carry["mean"]
        losses, weighted, total = [], torch.zeros_like(x), torch.zeros_like(x)
        for count in chunks(self.samples, self.max_batch, len(x)):
            u = state.random.normal(count, *x.shape[1:]).to(x.dtype)
            points = self.points(state, mean + self.sigma * u.transpose(0, 1))
            objective, fooled = state.query(points, self._loss)
            offer(*best_version(points, objective, fooled))
            losses.append(objective)
            weighted += weighted_sum(objective - losses[0][0], u)  # a constant less, for accuracy
            total += u.sum(1)
        every = torch.cat(losses) - losses[0][0]
        centre, spread = (m.reshape(-1, *(1,) * (x.ndim - 1)).to(x.dtype) for m in (every.mean(0), every.std(0) + 1e-7))
        return (weighted - centre * total) / (spread * self.samples * self.sigma)

    def step(self, state: AttackState, x: Tensor, gradient: Tensor, step: int, carry: Carry) -> Tensor:
        """Move the mean and return the point that belongs to it."""
        carry["mean"] = carry["mean"] + state.broadcast(self.step_size) * gradient
        return self.points(state, carry["mean"])

    def points(self, state: AttackState, w: Tensor) -> Tensor:
        """Return the samples that belong to one or several draws, within radius and bounds."""
        if self.transform == "tanh":
            middle, half = state.box()
            w = torch.tanh(w) * half + middle
        return project_into_ball(state, w, self.norm)
