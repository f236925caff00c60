"""Decoupled direction and norm: gradient steps on a sphere whose radius follows success."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lit_modules.attacks.engine.checks import check_count, check_positive
from lit_modules.attacks.engine.losses import Loss, LossName, resolve_loss
from lit_modules.attacks.engine.minimum_norm import Iterate, MinimumNormArguments, MinimumNormAttack
from lit_modules.attacks.engine.norms import lp_norm, normalise, per_sample
from lit_modules.attacks.engine.state import AttackState, Carry
from lit_modules.utils.arguments import Unpack


class DDN(MinimumNormAttack):
    """Decoupled direction and norm attack: the smallest L2 perturbation.

    Each step moves along the unit gradient, with a length that falls from 1 to 0.01 along a cosine, and puts the
    perturbation back on a sphere; the sphere shrinks by ``gamma`` after an iterate that fools the model and grows by it
    otherwise. The nearest iterate that fools is kept. A step costs one forward and one backward pass. The gradient
    leads to a likely class, not always to the nearest one.

    DDN came after AdverTorch v0.1; the 0.2 releases have these defaults with ``levels=256``, and ignore the loss given.

    Args:
        steps: Number of steps.
        gamma: Share by which the radius changes, between 0 and 1.
        init_norm: First radius, in units of the samples.
        levels: Round iterates to this many equally spaced values between the bounds, as 256 for 8-bit images; ``None``
            for no rounding.
        loss: ``cross_entropy``, ``margin``, ``dlr``, ``soft_margin``, or a callable giving one value per sample.
        search_steps: Forward passes of a last search between the sample and the best iterate; there is none with
            ``levels``.

    Raises:
        ValueError: If an argument is outside its range, or ``levels`` is given without bounds.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> bool(DDN(bounds=None).run(model, torch.rand(2, 4)).success.all())
        True

    References:
        Rony et al., "Decoupling direction and norm for efficient gradient-based L2 adversarial attacks and defenses"
        (arXiv 1811.09600), algorithm 1.
    """

    def __init__(
        self,
        *,
        steps: int = 100,
        gamma: float = 0.05,
        init_norm: float = 1.0,
        levels: int | None = None,
        loss: LossName | Loss = "cross_entropy",
        search_steps: int = 3,
        **shared: Unpack[MinimumNormArguments],
    ) -> None:
        super().__init__(norm="l2", steps=steps, search_steps=search_steps if levels is None else 0, **shared)
        if not 0 < gamma < 1:
            raise ValueError(f"gamma must lie between 0 and 1, got {gamma!r}.")
        check_positive("init_norm", init_norm)
        if levels is not None:
            check_count("levels", levels, least=2)
            if self.bounds is None:
                raise ValueError("levels divide the range between the bounds; pass bounds=, or levels=None.")
        self.gamma = gamma
        self.init_norm = init_norm
        self.levels = levels
        self.loss = loss
        self._loss = resolve_loss(loss)

    def initial_carry(self, state: AttackState) -> Carry:
        """Return the radius of each sample's sphere."""
        return {"radius": torch.full((len(state),), self.init_norm, dtype=state.x.dtype, device=state.x.device)}

    def evaluate(self, active: AttackState, x: Tensor, carry: Carry) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, loss and its gradient."""
        return active.gradient(x, self._loss)

    def step(self, active: AttackState, at: Iterate, step: int, carry: Carry) -> Tensor:
        """Move along the unit gradient and rescale to the new radius."""
        rate = 0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2
        radius = carry["radius"].mul_(torch.where(at.fooled, 1 - self.gamma, 1 + self.gamma))
        moved = normalise(at.gradient, "l2").mul_(rate).add_(at.move)
        length = lp_norm(moved, "l2").clamp_min(torch.finfo(moved.dtype).tiny)
        return self.quantise(active, active.clamp(moved.mul_(per_sample(radius / length, moved)).add_(active.x)))

    def quantise(self, active: AttackState, x: Tensor) -> Tensor:
        """Round to the levels."""
        if self.levels is None:
            return x
        assert active.lower is not None
        assert active.upper is not None
        width = (active.upper - active.lower) / (self.levels - 1)
        return active.clamp(active.lower + ((x - active.lower) / width).round_() * width)
