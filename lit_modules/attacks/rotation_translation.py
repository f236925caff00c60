"""Adversarial rotations and translations of images."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_modules.attacks.engine.base import Attack, AttackArguments
from lit_modules.attacks.engine.checks import check_count
from lit_modules.attacks.engine.losses import Loss, LossName, check_per_sample, resolve_loss
from lit_modules.attacks.engine.state import AttackState, BestSoFar, Outcome
from lit_modules.attacks.spatial import Border, check_border, check_images
from lit_modules.utils.arguments import Unpack


class RotationTranslation(Attack):
    """Rotate and shift each image by the amounts, within limits, that hurt the model most.

    ``grid`` tries every combination of evenly spaced amounts, the largest movements first; ``random`` tries
    ``samples`` random ones (the paper's worst-of-k). The image that comes back is the first to fool the model, or the
    worst; where nothing fools it, the one with the largest loss, which may be the image itself. No gradient is
    needed. There is no Lp radius; the reported distance is L2.

    Not in AdverTorch v0.1. The default limits are the paper's for CIFAR-10: 30 degrees, 3 pixels, 31 x 5 x 5 grid
    points, 10 random tries.

    Args:
        max_rotation: Largest rotation in degrees, to either side, at least 0.
        max_translation: Largest shift in pixels, in each direction, at least 0.
        search: ``grid`` or ``random``.
        rotations: Rotations of the grid.
        translations: Shifts of the grid in each direction; the grid has ``rotations * translations ** 2`` points.
        samples: Random tries per image.
        padding_mode: What comes in from outside the image: ``zeros``, ``border`` or ``reflection``.
        loss: Compares images that all fool or all fail.
        keep: ``first``: an image leaves once it fools the model; ``best``: all movements are tried.
        max_batch: Largest number of images in one pass of the model.

    Raises:
        ValueError: If an argument is outside its range; on use, if the samples are no images.

    References:
        Engstrom et al., "Exploring the landscape of spatial robustness" (arXiv 1712.02779), sections 3 and 4.
    """

    def __init__(
        self,
        *,
        max_rotation: float = 30.0,
        max_translation: float = 3.0,
        search: Literal["grid", "random"] = "grid",
        rotations: int = 31,
        translations: int = 5,
        samples: int = 10,
        padding_mode: Border = "zeros",
        loss: LossName | Loss = "cross_entropy",
        keep: Literal["first", "best"] = "first",
        max_batch: int = 1024,
        **shared: Unpack[AttackArguments],
    ) -> None:
        super().__init__(**shared)
        for name, value in (("max_rotation", max_rotation), ("max_translation", max_translation)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be finite and at least 0, got {value}.")
        if search not in ("grid", "random"):
            raise ValueError(f"search must be 'grid' or 'random', got {search!r}.")
        if keep not in ("first", "best"):
            raise ValueError(f"keep must be 'first' or 'best', got {keep!r}.")
        for name, count in (("rotations", rotations), ("translations", translations), ("samples", samples)):
            check_count(name, count)
        check_count("max_batch", max_batch)
        check_border(padding_mode)
        self.max_rotation = max_rotation
        self.max_translation = max_translation
        self.search = search
        self.rotations = rotations
        self.translations = translations
        self.samples = samples
        self.padding_mode: Border = padding_mode
        self.loss = loss
        self.keep = keep
        self.max_batch = max_batch
        self._loss = resolve_loss(loss)

    def attack(self, state: AttackState) -> Outcome:
        """Try the movements, several in one pass."""
        check_images(state.x, type(self).__name__)
        moves = self.moves(state)
        best, active = BestSoFar(state, self._loss), state
        positions, done = state.positions(), 0
        while done < len(moves) and len(positions):
            several = max(1, min(self.max_batch // len(positions), len(moves) - done))
            chunk = moves[done : done + several]
            chunk = chunk[:, positions] if moves.shape[1] > 1 else chunk.expand(-1, len(positions), -1)
            done += several
            images = move(
                active.x.expand(several, *active.x.shape).flatten(0, 1), chunk.flatten(0, 1), self.padding_mode
            )
            images = active.clamp(images.view(several, *active.x.shape))
            with torch.no_grad():
                logits = active.logits(images)
                values = self._loss(logits.flatten(0, 1), active.label.repeat(several))
            objective = check_per_sample(values, several * len(positions)).view(several, -1)
            objective = -objective if self.targeted else objective
            fooled = active.fooled(logits)
            worst = torch.where(fooled == fooled.any(0), objective, float("-inf")).argmax(0)
            columns = torch.arange(len(positions), device=positions.device)
            best.offer(positions, images[worst, columns], objective[worst, columns], fooled[worst, columns])
            if self.keep == "first" and bool(fooled.any()):
                stay = (~fooled.any(0)).nonzero()[:, 0]
                positions, active = positions[stay], active.select(stay)
        return best.outcome()

    def moves(self, state: AttackState) -> Tensor:
        """Return degrees, rows and columns of each movement, ``(movements, 1 or batch, 3)``."""
        limits = state.x.new_tensor([self.max_rotation, self.max_translation, self.max_translation])
        if self.search == "random":
            return ((state.random.uniform(self.samples, 3) * 2 - 1) * limits).transpose(0, 1)
        counts = (self.rotations, self.translations, self.translations)
        sides = [torch.linspace(-1, 1, count) if count > 1 else torch.zeros(1) for count in counts]
        grid = torch.cartesian_prod(*sides)
        grid = grid[grid.square().sum(1).argsort(descending=True, stable=True)]
        grid = grid.to(limits) * limits
        return grid[grid.any(1)][:, None]  # the image itself was seen before


def move(images: Tensor, moves: Tensor, padding_mode: Border = "zeros") -> Tensor:
    """Return images rotated about their centre, then shifted, read bilinearly (``align_corners=False``).

    Args:
        images: ``(batch, channel, height, width)``.
        moves: Degrees, anticlockwise as one looks at the image, and shift down and to the right in pixels, ``(batch,
            3)``.
        padding_mode: What comes in from outside.
    """
    height, width = images.shape[2:]
    angle, down, right = (moves * moves.new_tensor([math.pi / 180, 1, 1])).T[:, :, None, None]
    cosine, sine = angle.cos(), angle.sin()
    rows = (torch.arange(height, device=moves.device, dtype=moves.dtype) - (height - 1) / 2)[:, None] - down
    columns = torch.arange(width, device=moves.device, dtype=moves.dtype) - (width - 1) / 2 - right
    # where a pixel of the new image comes from: rows point down, so the inverse of an anticlockwise turn is
    source_columns = cosine * columns - sine * rows
    source_rows = sine * columns + cosine * rows
    grid = torch.stack([source_columns * 2 / width, source_rows * 2 / height], dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding_mode, align_corners=False)
