"""Projected gradient descent, the basic iterative method, and the one-step attacks."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_modules.attacks.engine.base import AttackArguments
from lit_modules.attacks.engine.checks import Radius, check_positive
from lit_modules.attacks.engine.fixed_radius import FixedRadiusAttack, Keep
from lit_modules.attacks.engine.losses import Loss, LossName
from lit_modules.attacks.engine.norms import per_sample, project, project_l1_box, steepest
from lit_modules.attacks.engine.problem import Problem
from lit_modules.utils.arguments import Unpack


class LinfPGD(FixedRadiusAttack):
    """Projected gradient descent in the Linf ball: ``x <- P(x + step_size sign(gradient))``.

    AdverTorch v0.1 has eps 0.3, 40 steps of 0.01 and a random start, and returns the last iterate (``keep="last"``).

    Args:
        eps: Linf radius in units of the samples, a number or one per sample.
        steps: Number of steps.
        step_size: Step in units of the samples, a number or one per sample.
        random_start: Start uniformly in the ball.
        loss: ``cross_entropy``, ``margin``, ``dlr``, ``soft_margin``, or a callable giving one value per sample.
        keep: What is returned: ``first`` to fool, ``best`` of all steps, ``last``; see :class:`FixedRadiusAttack`.
        passes: Passes whose gradients are averaged (EOT).
        arguments: Arguments of :class:`Attack`, by name.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> attack = LinfPGD(eps=0.1, steps=5, step_size=0.05)
        >>> bool((attack(model, torch.full((2, 4), 0.5)) - 0.5).abs().max() <= 0.1 + 1e-6)
        True

    References:
        Madry et al., "Towards deep learning models resistant to adversarial attacks" (arXiv 1706.06083), section 2.1.
    """

    norm = "linf"

    def __init__(
        self,
        *,
        eps: Radius = 0.3,
        steps: int = 40,
        step_size: Radius = 0.01,
        random_start: bool = True,
        loss: LossName | Loss = "cross_entropy",
        keep: Keep = "first",
        passes: int = 1,
        **arguments: Unpack[AttackArguments],
    ) -> None:
        super().__init__(
            eps=eps, steps=steps, random_start=random_start, loss=loss, keep=keep, passes=passes, **arguments
        )
        check_positive("step_size", step_size)
        self.step_size = step_size

    def step(self, problem: Problem, x: Tensor, gradient: Tensor, step: int, state: dict[str, Tensor]) -> Tensor:
        """Move by the sign, clip to the ball and to the bounds."""
        assert problem.radius is not None
        moved = gradient.sign().mul_(step_length(self.step_size, problem)).add_(x)
        moved = torch.minimum(torch.maximum(moved, problem.x - problem.radius), problem.x + problem.radius)
        return problem.clamp(moved)


class L2PGD(FixedRadiusAttack):
    """Projected gradient descent in the L2 ball: ``x <- P(x + step_size gradient / ||gradient||)``.

    AdverTorch v0.1 has eps 0.3, 40 steps of 0.01 and a random start (an image of the box scaled into the ball; here
    uniform in the ball).

    Args:
        eps: L2 radius in units of the samples, a number or one per sample.
        steps: Number of steps.
        step_size: L2 length of a step, a number or one per sample.
        random_start: Start uniformly in the ball.
        loss: ``cross_entropy``, ``margin``, ``dlr``, ``soft_margin``, or a callable giving one value per sample.
        keep: What is returned: ``first`` to fool, ``best`` of all steps, ``last``; see :class:`FixedRadiusAttack`.
        passes: Passes whose gradients are averaged (EOT).
        arguments: Arguments of :class:`Attack`, by name.

    References:
        Madry et al. (arXiv 1706.06083), section 2.1.
    """

    norm = "l2"

    def __init__(
        self,
        *,
        eps: Radius = 0.3,
        steps: int = 40,
        step_size: Radius = 0.01,
        random_start: bool = True,
        loss: LossName | Loss = "cross_entropy",
        keep: Keep = "first",
        passes: int = 1,
        **arguments: Unpack[AttackArguments],
    ) -> None:
        super().__init__(
            eps=eps, steps=steps, random_start=random_start, loss=loss, keep=keep, passes=passes, **arguments
        )
        check_positive("step_size", step_size)
        self.step_size = step_size

    def step(self, problem: Problem, x: Tensor, gradient: Tensor, step: int, state: dict[str, Tensor]) -> Tensor:
        """Move along the unit gradient, project into the ball, then into the bounds."""
        assert problem.radius is not None
        moved = x + step_length(self.step_size, problem) * steepest(gradient, "l2")
        return problem.clamp(problem.x + project(moved - problem.x, problem.radius, "l2"))


class L1PGD(FixedRadiusAttack):
    """Projected gradient descent in the L1 ball, with the exact projection on ball and box.

    A step has L1 length ``step_size`` and is spread over the largest coordinates of the gradient. AdverTorch (0.2, not
    in v0.1) moves one coordinate by 0.01 within eps 10, and projects on the ball before the box.

    Args:
        eps: L1 radius in units of the samples, a number or one per sample.
        steps: Number of steps.
        step_size: L1 length of a step, a number or one per sample.
        sparsity: Share of the coordinates that stay in a step, from 0 to 1; at 1 a single one moves.
        random_start: Start at a Laplace direction of uniform length.
        loss: ``cross_entropy``, ``margin``, ``dlr``, ``soft_margin``, or a callable giving one value per sample.
        keep: What is returned: ``first`` to fool, ``best`` of all steps, ``last``; see :class:`FixedRadiusAttack`.
        passes: Passes whose gradients are averaged (EOT).
        arguments: Arguments of :class:`Attack`, by name.

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
        sparsity: float = 0.95,
        random_start: bool = True,
        loss: LossName | Loss = "cross_entropy",
        keep: Keep = "first",
        passes: int = 1,
        **arguments: Unpack[AttackArguments],
    ) -> None:
        super().__init__(
            eps=eps, steps=steps, random_start=random_start, loss=loss, keep=keep, passes=passes, **arguments
        )
        check_positive("step_size", step_size)
        if not 0 <= sparsity <= 1:
            raise ValueError(f"sparsity must be from 0 to 1, got {sparsity}.")
        self.step_size = step_size
        self.sparsity = sparsity

    def step(self, problem: Problem, x: Tensor, gradient: Tensor, step: int, state: dict[str, Tensor]) -> Tensor:
        """Move along the sparse direction and project on ball and box at once."""
        assert problem.radius is not None
        moved = x + step_length(self.step_size, problem) * steepest(gradient, "l1", self.sparsity)
        lower = None if problem.lower is None else (problem.lower - problem.x)
        upper = None if problem.upper is None else (problem.upper - problem.x)
        return problem.clamp(problem.x + project_l1_box(moved - problem.x, problem.radius, lower, upper))


class SparseL1Descent(L1PGD):
    """Sparse L1 descent: :class:`L1PGD` without a random start, on the largest five per cent of the coordinates.

    AdverTorch (0.2, not in v0.1) has eps 0.3 and steps of 0.01 as for Linf, too small for L1; here L1PGD's defaults.

    Args:
        eps: L1 radius in units of the samples, a number or one per sample.
        steps: Number of steps.
        step_size: L1 length of a step.
        sparsity: Share of the coordinates that stay in a step.
        arguments: Further arguments of :class:`Attack`, by name.

    References:
        Tramer, Boneh (arXiv 1904.13000), section 3.
    """

    fixed = ("random_start",)

    def __init__(
        self,
        *,
        eps: Radius = 10.0,
        steps: int = 40,
        step_size: Radius = 1.0,
        sparsity: float = 0.95,
        loss: LossName | Loss = "cross_entropy",
        keep: Keep = "first",
        **arguments: Unpack[AttackArguments],
    ) -> None:
        super().__init__(
            eps=eps,
            steps=steps,
            step_size=step_size,
            sparsity=sparsity,
            random_start=False,
            loss=loss,
            keep=keep,
            **arguments,
        )


class LinfBIM(LinfPGD):
    """Basic iterative method in Linf: :class:`LinfPGD` from the sample itself. Defaults are those of AdverTorch v0.1.

    Args:
        eps: Linf radius in units of the samples, a number or one per sample.
        steps: Number of steps.
        step_size: Step in units of the samples.
        loss: ``cross_entropy``, ``margin``, ``dlr``, ``soft_margin``, or a callable giving one value per sample.
        keep: What is returned: ``first``, ``best`` or ``last``.
        arguments: Arguments of :class:`Attack`, by name.

    References:
        Kurakin, Goodfellow, Bengio, "Adversarial examples in the physical world" (arXiv 1607.02533), section 2.2.
    """

    fixed = ("random_start",)

    def __init__(
        self,
        *,
        eps: Radius = 0.1,
        steps: int = 10,
        step_size: Radius = 0.05,
        loss: LossName | Loss = "cross_entropy",
        keep: Keep = "first",
        **arguments: Unpack[AttackArguments],
    ) -> None:
        super().__init__(
            eps=eps, steps=steps, step_size=step_size, random_start=False, loss=loss, keep=keep, **arguments
        )


class L2BIM(L2PGD):
    """Basic iterative method in L2: :class:`L2PGD` from the sample itself. Defaults are those of AdverTorch v0.1.

    Args:
        eps: L2 radius in units of the samples, a number or one per sample.
        steps: Number of steps.
        step_size: L2 length of a step.
        loss: ``cross_entropy``, ``margin``, ``dlr``, ``soft_margin``, or a callable giving one value per sample.
        keep: What is returned: ``first``, ``best`` or ``last``.
        arguments: Arguments of :class:`Attack`, by name.

    References:
        Kurakin, Goodfellow, Bengio (arXiv 1607.02533), section 2.2.
    """

    fixed = ("random_start",)

    def __init__(
        self,
        *,
        eps: Radius = 0.1,
        steps: int = 10,
        step_size: Radius = 0.05,
        loss: LossName | Loss = "cross_entropy",
        keep: Keep = "first",
        **arguments: Unpack[AttackArguments],
    ) -> None:
        super().__init__(
            eps=eps, steps=steps, step_size=step_size, random_start=False, loss=loss, keep=keep, **arguments
        )


class FGSM(LinfPGD):
    """Fast gradient sign method: one step of length eps along the sign. AdverTorch v0.1 has eps 0.3.

    Args:
        eps: Linf radius in units of the samples, a number or one per sample.
        loss: ``cross_entropy``, ``margin``, ``dlr``, ``soft_margin``, or a callable giving one value per sample.
        keep: ``first`` returns the sample itself where it is misclassified or the step lowers the loss without fooling;
            ``last`` always the step, from a single pass when the attack is called.
        arguments: Arguments of :class:`Attack`, by name.

    References:
        Goodfellow, Shlens, Szegedy, "Explaining and harnessing adversarial examples" (arXiv 1412.6572), section 4.
    """

    fixed = ("steps", "step_size", "random_start")

    def __init__(
        self,
        *,
        eps: Radius = 0.3,
        loss: LossName | Loss = "cross_entropy",
        keep: Keep = "first",
        **arguments: Unpack[AttackArguments],
    ) -> None:
        super().__init__(eps=eps, steps=1, step_size=1.0, random_start=False, loss=loss, keep=keep, **arguments)

    def step(self, problem: Problem, x: Tensor, gradient: Tensor, step: int, state: dict[str, Tensor]) -> Tensor:
        """Move by eps along the sign."""
        assert problem.radius is not None
        return problem.clamp(x + problem.radius * gradient.sign())


class FGM(L2PGD):
    """Fast gradient method: one step of L2 length eps along the gradient. AdverTorch v0.1 has eps 0.3.

    Args:
        eps: L2 radius in units of the samples, a number or one per sample.
        loss: ``cross_entropy``, ``margin``, ``dlr``, ``soft_margin``, or a callable giving one value per sample.
        keep: ``first`` returns the sample itself where it is misclassified or the step lowers the loss without fooling;
            ``last`` always the step, from a single pass when the attack is called.
        arguments: Arguments of :class:`Attack`, by name.

    References:
        Goodfellow, Shlens, Szegedy (arXiv 1412.6572), section 4, with the L2 norm.
    """

    fixed = ("steps", "step_size", "random_start")

    def __init__(
        self,
        *,
        eps: Radius = 0.3,
        loss: LossName | Loss = "cross_entropy",
        keep: Keep = "first",
        **arguments: Unpack[AttackArguments],
    ) -> None:
        super().__init__(eps=eps, steps=1, step_size=1.0, random_start=False, loss=loss, keep=keep, **arguments)

    def step(self, problem: Problem, x: Tensor, gradient: Tensor, step: int, state: dict[str, Tensor]) -> Tensor:
        """Move by eps along the unit gradient."""
        assert problem.radius is not None
        return problem.clamp(x + project(problem.radius * steepest(gradient, "l2"), problem.radius, "l2"))


def step_length(step_size: Radius, problem: Problem) -> Tensor | float:
    """Return a step size that broadcasts; one value per sample follows the samples that are left."""
    if isinstance(step_size, Tensor) and step_size.numel() > 1:
        if step_size.shape != problem.spent.shape:
            raise ValueError(
                f"step_size has {step_size.numel()} values for a batch of {len(problem.spent)}; "
                "give one number, or one per sample."
            )
        return per_sample(step_size.to(problem.x)[problem.index], problem.x)
    return float(step_size)
