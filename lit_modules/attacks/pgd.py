"""Attacks by gradient steps in a ball: projected gradient descent, its one-step and basic forms, and momentum."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from lit_modules.attacks.engine.base import Attack, AttackArguments, warn_zero_gradient
from lit_modules.attacks.engine.checks import Radius, check_choice, check_count, check_positive, check_range
from lit_modules.attacks.engine.losses import Loss, LossName, resolve_loss
from lit_modules.attacks.engine.norms import few_steepest, normalise, project, random_in_ball, steepest
from lit_modules.attacks.engine.state import AttackState, BestSoFar, Carry, Model, Outcome, Seed
from lit_modules.utils.arguments import Unpack

Keep = Literal["first", "best", "last"]


class GradientArguments(AttackArguments, total=False):
    """Arguments that all attacks by gradient steps share; see :class:`GradientAttack`."""

    loss: LossName | Loss
    keep: Keep
    eot_samples: int


class StepArguments(GradientArguments, total=False):
    """Radius and steps of a :class:`GradientAttack`."""

    eps: Radius
    steps: int
    step_size: Radius


class GradientAttack(Attack):
    """Base of attacks that raise a loss within a radius by a fixed number of gradient steps.

    Args:
        eps: Radius in units of the samples, a number or one per sample.
        steps: Number of steps.
        step_size: Length of a step in the attack's norm, in units of the samples, a number or one per sample.
        random_start: Start at a random point of the ball instead of the sample.
        loss: ``cross_entropy``, ``margin``, ``dlr``, ``soft_margin``, or a callable giving one value per sample.
        keep: ``first``: a sample leaves with the first iterate that fools the model, and otherwise with the iterate of
            the largest loss. ``best``: all steps, then the iterate of the largest loss among those that fool, else
            among all. ``last``: all steps and the last iterate. Called with it, the attack moves misclassified samples
            too and costs exactly ``steps`` passes, as for adversarial training; :meth:`run` leaves them as they are.
        eot_samples: Passes whose gradients are averaged (EOT), for a model that answers at random.
    """

    norm: str

    def __init__(
        self,
        *,
        eps: Radius = 0.3,
        steps: int = 40,
        step_size: Radius = 0.01,
        random_start: bool = True,
        loss: LossName | Loss = "cross_entropy",
        keep: Keep = "first",
        eot_samples: int = 1,
        **shared: Unpack[AttackArguments],
    ) -> None:
        super().__init__(**shared)
        check_count(steps=steps, eot_samples=eot_samples)
        check_positive(step_size=step_size)
        check_choice("keep", keep, ("first", "best", "last"))
        self.eps = self.checked_eps(eps)
        self.steps = steps
        self.step_size = step_size
        self.random_start = random_start
        self.loss = loss
        self.keep = keep
        self.eot_samples = eot_samples
        self._loss = resolve_loss(loss)

    def __call__(self, model: Model, x: Tensor, y: Tensor | None = None, *, seed: Seed = None) -> Tensor:
        """Return adversarial samples; see the base class.

        With ``keep="last"`` and one restart nothing but the steps is computed, for misclassified samples too.
        """
        if self.keep != "last" or self.restarts > 1 or not len(x):
            return super().__call__(model, x, y, seed=seed)
        with self.session(model):
            state = self.prepare(model, x, y, seed, clean=False)
            return state.returned(self.iterate(state), x)

    def attack(self, state: AttackState) -> Outcome:
        """Take the steps; see ``keep``."""
        if self.keep == "last":
            x = self.iterate(state)
            with torch.no_grad():
                logits = state.logits(x)
            return Outcome(x, state.fooled(logits), state.objective(logits, self._loss))
        best, active, positions = BestSoFar(state, self._loss), state, state.positions()
        x, carry = self.start(active), self.initial_carry(active)
        for step in range(self.steps + 1):
            final = step == self.steps
            if final:
                with torch.no_grad():
                    logits = active.logits(x)
                    objective = active.objective(logits, self._loss)
            else:
                logits, objective, gradient = active.gradient(x, self._loss, self.eot_samples)
            fooled = active.fooled(logits)
            best.offer(positions, x, objective, fooled)
            if final:
                break
            if step == 0:
                warn_zero_gradient(gradient)
            if self.keep == "first" and bool(fooled.any()):
                stay = (~fooled).nonzero()[:, 0]
                if not len(stay):
                    break
                positions, active, x, gradient = positions[stay], active.select(stay), x[stay], gradient[stay]
                carry = {name: values[stay] for name, values in carry.items()}
            x = self.step(active, x, gradient, carry)
        return best.outcome()

    def iterate(self, state: AttackState) -> Tensor:
        """Take all steps with all samples and return the last iterates."""
        x, carry = self.start(state), self.initial_carry(state)
        for step in range(self.steps):
            _, _, gradient = state.gradient(x, self._loss, self.eot_samples)
            if step == 0:
                warn_zero_gradient(gradient)
            x = self.step(state, x, gradient, carry)
        return x

    def start(self, state: AttackState) -> Tensor:
        """Return the first iterate: the sample, or a random point of its ball moved into the bounds."""
        if not self.random_start:
            return state.x
        return state.clamp(state.x + random_in_ball(state.x, state.radius, self.norm, state.random))

    def initial_carry(self, state: AttackState) -> Carry:
        """Return the values of each sample that the steps carry along, as a momentum."""
        return {}

    @abstractmethod
    def step(self, state: AttackState, x: Tensor, gradient: Tensor, carry: Carry) -> Tensor:
        """Return the next iterate, within radius and bounds; ``carry`` is changed in place."""


class LinfPGD(GradientAttack):
    """Projected gradient descent in the Linf ball: ``x <- P(x + step_size sign(gradient))``.

    The defaults are those of AdverTorch v0.1, which returns the last iterate (``keep="last"``).

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> attack = LinfPGD(eps=0.1, steps=5, step_size=0.05)
        >>> bool((attack(model, torch.full((2, 4), 0.5)) - 0.5).abs().max() <= 0.1 + 1e-6)
        True

    References:
        Madry et al., "Towards deep learning models resistant to adversarial attacks" (arXiv 1706.06083), section 2.1.
    """

    norm = "linf"

    def step(self, state: AttackState, x: Tensor, gradient: Tensor, carry: Carry) -> Tensor:
        """Move by the sign, clip to the ball and to the bounds."""
        return state.project(gradient.sign().mul_(state.broadcast(self.step_size)).add_(x), "linf")


class L2PGD(GradientAttack):
    """Projected gradient descent in the L2 ball: ``x <- P(x + step_size gradient / ||gradient||)``.

    The defaults are those of AdverTorch v0.1, whose random start is an image of the box scaled into the ball.

    References:
        Madry et al. (arXiv 1706.06083), section 2.1.
    """

    norm = "l2"

    def step(self, state: AttackState, x: Tensor, gradient: Tensor, carry: Carry) -> Tensor:
        """Move along the unit gradient, project into the ball, then into the bounds."""
        return state.project(x + state.broadcast(self.step_size) * steepest(gradient, "l2"), "l2")


class L1PGD(GradientAttack):
    """Projected gradient descent in the L1 ball, with the exact projection on ball and box.

    A step has L1 length ``step_size`` and is spread over the largest coordinates of the gradient. By default these are
    a third as many as the coordinates that have changed, at most a twentieth of all, among those that the bounds leave
    room; on MNIST this fools more than any fixed share, on standard and on adversarially trained models. AdverTorch
    (0.2, not in v0.1) moves one coordinate by 0.01 within eps 10, and projects on the ball before the box; the sparse
    descent of foolbox moves the largest hundredth, ``sparsity=0.99``. A random start is a Laplace direction of uniform
    length.

    Args:
        eps: L1 radius in units of the samples, a number or one per sample.
        step_size: L1 length of a step, a number or one per sample.
        sparsity: Share of the coordinates that stay in a step, from 0 to 1; at 1 a single one moves. ``None`` follows
            the perturbation.
        steps: Number of steps.
        random_start: Start at a random point of the ball instead of the sample.

    References:
        Tramer, Boneh, "Adversarial training and robustness for multiple perturbations" (arXiv 1904.13000), section 3;
        Croce, Hein (arXiv 2103.01208), proposition 2.1, for the projection.
    """

    norm = "l1"

    def __init__(
        self,
        *,
        eps: Radius = 10.0,
        steps: int = 40,
        step_size: Radius = 1.0,
        sparsity: float | None = None,
        random_start: bool = True,
        **shared: Unpack[GradientArguments],
    ) -> None:
        super().__init__(eps=eps, steps=steps, step_size=step_size, random_start=random_start, **shared)
        if sparsity is not None:
            check_range("[0, 1]", sparsity=sparsity)
        self.sparsity = sparsity

    def step(self, state: AttackState, x: Tensor, gradient: Tensor, carry: Carry) -> Tensor:
        """Move along the sparse direction and project on ball and box at once."""
        if self.sparsity is None:
            direction = few_steepest(gradient, x - state.x, state.movable(x, gradient), largest=0.05)
        else:
            direction = steepest(gradient, "l1", self.sparsity)
        return state.project(x + state.broadcast(self.step_size) * direction, "l1")


class SparseL1Descent(L1PGD):
    """Sparse L1 descent: :class:`L1PGD` without a random start, on the largest hundredth of the coordinates.

    AdverTorch (0.2, not in v0.1) has eps 0.3 and steps of 0.01 as for Linf, too small for L1; here L1PGD's defaults,
    and the share of foolbox.

    Args:
        sparsity: Share of the coordinates that stay in a step, from 0 to 1; ``None`` follows the perturbation.

    References:
        Tramer, Boneh (arXiv 1904.13000), section 3.
    """

    fixed = ("random_start",)

    def __init__(self, *, sparsity: float | None = 0.99, **shared: Unpack[StepArguments]) -> None:
        super().__init__(random_start=False, sparsity=sparsity, **shared)


class BasicIterative(GradientAttack):
    """Base of the basic iterative methods: PGD from the sample itself. Defaults are those of AdverTorch v0.1.

    Args:
        eps: Radius in units of the samples, a number or one per sample.
        steps: Number of steps.
        step_size: Length of a step in the attack's norm.

    References:
        Kurakin, Goodfellow, Bengio, "Adversarial examples in the physical world" (arXiv 1607.02533), section 2.2.
    """

    fixed = ("random_start",)

    def __init__(
        self, *, eps: Radius = 0.1, steps: int = 10, step_size: Radius = 0.05, **shared: Unpack[GradientArguments]
    ) -> None:
        super().__init__(eps=eps, steps=steps, step_size=step_size, random_start=False, **shared)


class LinfBIM(BasicIterative, LinfPGD):
    """Basic iterative method in Linf: :class:`LinfPGD` from the sample itself."""


class L2BIM(BasicIterative, L2PGD):
    """Basic iterative method in L2: :class:`L2PGD` from the sample itself."""


class FGSM(LinfPGD):
    """Fast gradient sign method: one step of length eps along the sign. AdverTorch v0.1 has eps 0.3.

    With ``keep="first"`` the sample itself comes back where it is misclassified or the step lowers the loss without
    fooling; with ``keep="last"`` always the step, from a single pass when the attack is called.

    Args:
        eps: Linf radius in units of the samples, a number or one per sample.

    References:
        Goodfellow, Shlens, Szegedy, "Explaining and harnessing adversarial examples" (arXiv 1412.6572), section 4.
    """

    fixed = ("steps", "step_size", "random_start")

    def __init__(self, *, eps: Radius = 0.3, **shared: Unpack[GradientArguments]) -> None:
        super().__init__(eps=eps, steps=1, step_size=1.0, random_start=False, **shared)

    def step(self, state: AttackState, x: Tensor, gradient: Tensor, carry: Carry) -> Tensor:
        """Move by eps along the sign."""
        return state.clamp(x + state.radius * gradient.sign())


class FGM(L2PGD):
    """Fast gradient method: one step of L2 length eps along the gradient; ``keep`` as in :class:`FGSM`.

    Args:
        eps: L2 radius in units of the samples, a number or one per sample; 0.3 in AdverTorch v0.1.

    References:
        Goodfellow, Shlens, Szegedy (arXiv 1412.6572), section 4, with the L2 norm.
    """

    fixed = ("steps", "step_size", "random_start")

    def __init__(self, *, eps: Radius = 0.3, **shared: Unpack[GradientArguments]) -> None:
        super().__init__(eps=eps, steps=1, step_size=1.0, random_start=False, **shared)

    def step(self, state: AttackState, x: Tensor, gradient: Tensor, carry: Carry) -> Tensor:
        """Move by eps along the unit gradient."""
        return state.clamp(x + project(state.radius * steepest(gradient, "l2"), state.radius, "l2"))


class Momentum(GradientAttack):
    """Base of the momentum iterative methods: ``m <- decay m + gradient / ||gradient||_1``, then a step along m.

    Args:
        decay: Share of the momentum that stays, at least 0; at 0 the basic iterative method.
        random_start: Start uniformly in the ball.
    """

    def __init__(self, *, decay: float = 1.0, random_start: bool = False, **shared: Unpack[StepArguments]) -> None:
        super().__init__(random_start=random_start, **shared)
        check_range("[0, inf)", decay=decay)
        self.decay = decay

    def initial_carry(self, state: AttackState) -> Carry:
        """Return a momentum of zero."""
        return {"momentum": torch.zeros_like(state.x)}

    def accumulate(self, gradient: Tensor, carry: Carry) -> Tensor:
        """Add a gradient to the momentum, in place, and return it."""
        return carry["momentum"].mul_(self.decay).add_(normalise(gradient, "l1"))


class LinfMomentum(Momentum):
    """Momentum iterative method in Linf (MI-FGSM): a step along the sign of the accumulated gradients.

    The defaults are those of AdverTorch v0.1, which returns the last iterate (``keep="last"``).

    References:
        Dong, Liao, Pang, Su, Zhu, Hu, Li, "Boosting adversarial attacks with momentum" (arXiv 1710.06081), algorithm 1.
    """

    norm = "linf"

    def step(self, state: AttackState, x: Tensor, gradient: Tensor, carry: Carry) -> Tensor:
        """Move by the sign of the momentum, clip to the ball and to the bounds."""
        momentum = self.accumulate(gradient, carry)
        return state.project(momentum.sign().mul_(state.broadcast(self.step_size)).add_(x), "linf")


class L2Momentum(Momentum):
    """Momentum iterative method in L2: a step along the accumulated gradients over their norm.

    The defaults are those of AdverTorch 0.2, which divides by the perturbation coordinate by coordinate: NaN wherever
    one is 0. Here a perturbation outside the ball is divided by its norm.

    References:
        Dong et al. (arXiv 1710.06081), eq. 8.
    """

    norm = "l2"

    def step(self, state: AttackState, x: Tensor, gradient: Tensor, carry: Carry) -> Tensor:
        """Move along the unit momentum, project into the ball, then into the bounds."""
        momentum = self.accumulate(gradient, carry)
        return state.project(x + state.broadcast(self.step_size) * steepest(momentum, "l2"), "l2")
