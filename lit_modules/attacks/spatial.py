"""Attacks that move the pixels of an image: a smooth flow, or rotation and translation."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_modules.attacks.engine.base import Attack, AttackArguments
from lit_modules.attacks.engine.checks import check_choice, check_count, check_positive, check_range
from lit_modules.attacks.engine.losses import Loss, LossName, margin, resolve_loss
from lit_modules.attacks.engine.norms import per_sample
from lit_modules.attacks.engine.state import AttackState, BestSoFar, Outcome, best_version
from lit_modules.utils.arguments import Unpack

Border = Literal["zeros", "border", "reflection"]
BORDERS: tuple[Border, ...] = ("zeros", "border", "reflection")
_ROOT = 1e-8  # under the square root of the variation, as in the authors' code


class SpatialTransform(Attack):
    """Move the pixels instead of changing them: the smoothest flow that fools the model.

    Every pixel of the new image is read, bilinearly, at a displaced place of the old one; all channels share the
    displacement. Adam lowers ``max(-objective, -confidence) + smoothness * variation``, where the objective is the
    margin by which the model is fooled and the variation is that of :func:`flow_variation`. Of the flows that fool,
    the one of least variation counts. A sample on which all steps fail comes back unchanged. There is no Lp radius;
    the reported distance is L2.

    AdverTorch v0.1 (weight 1, 1000 iterations) and the paper use L-BFGS for the whole batch at once; Adam treats each
    sample alone and needs one pass a step.

    Args:
        smoothness: Weight of the variation (tau of the paper), at the first search step.
        confidence: Margin of the logits that the fooled model must show, at least 0.
        steps: Steps of each search step.
        step_size: Learning rate of Adam, in pixels.
        search_steps: Tries of the weight: each sample's is divided by 10 after a failure and multiplied by 10 after a
            success, and goes to the geometric mean once both are known.
        patience: Steps without an improvement of one part in a thousand after which a sample leaves.
        padding_mode: What lies beyond the border: ``border`` repeats it, ``zeros``, ``reflection``.

    Raises:
        ValueError: If an argument is outside its range; on use, if the samples are no images.

    References:
        Xiao et al., "Spatially transformed adversarial examples" (arXiv 1801.02612), equations 1 to 4.
    """

    minimum_norm = True

    def __init__(
        self,
        *,
        smoothness: float = 0.05,
        confidence: float = 0.0,
        steps: int = 100,
        step_size: float = 0.05,
        search_steps: int = 2,
        patience: int = 20,
        padding_mode: Border = "border",
        **shared: Unpack[AttackArguments],
    ) -> None:
        super().__init__(**shared)
        check_positive(smoothness=smoothness, step_size=step_size)
        check_count(steps=steps, search_steps=search_steps, patience=patience)
        check_choice("padding_mode", padding_mode, BORDERS)
        check_range("[0, inf)", confidence=confidence)
        self.smoothness = smoothness
        self.confidence = confidence
        self.steps = steps
        self.step_size = step_size
        self.search_steps = search_steps
        self.patience = patience
        self.padding_mode: Border = padding_mode

    def attack(self, state: AttackState) -> Outcome:
        """Search the weight of the variation, with a fresh flow each time."""
        check_images(state.x, type(self).__name__)
        best, score = state.x.clone(), state.x.new_full((len(state),), float("-inf"))
        weight = torch.full_like(score, self.smoothness)
        works, fails = torch.zeros_like(weight), torch.full_like(weight, float("inf"))
        for _ in range(self.search_steps):
            images, variation = self._descend(state, weight)
            success = variation.isfinite()
            better = success & (-variation > score)
            best[better] = images[better]
            score = torch.where(better, -variation, score)
            works = torch.where(success, weight, works)
            fails = torch.where(success, fails, weight)
            between = (works * fails).sqrt()
            weight = torch.where(success, torch.where(fails.isinf(), weight * 10, between), weight / 10)
            weight = torch.where(~success & (works > 0), between, weight)
        return Outcome(best, score.isfinite(), score)

    def _descend(self, state: AttackState, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best image and the variation of its flow, infinite where none fooled."""
        best, least = state.x.clone(), torch.full_like(weight, float("inf"))
        positions, active, waited = torch.arange(len(state), device=weight.device), state, torch.zeros_like(weight)
        lowest = torch.full_like(weight, float("inf"))
        flow = state.x.new_zeros(len(state), 2, *state.x.shape[2:])
        first, second = torch.zeros_like(flow), torch.zeros_like(flow)
        for step in range(self.steps):
            flow.requires_grad_()
            image = active.clamp(warp(active.x, flow, self.padding_mode))
            logits, objective, upward = active.gradient(image, margin)
            variation = flow_variation(flow)
            reached = active.fooled(logits) & (objective >= self.confidence)
            seen = variation.detach()
            better = reached & (seen < least[positions])
            best[positions[better]], least[positions[better]] = image.detach()[better], seen[better]
            cost = (self.confidence - objective).clamp_min(0) + weight[positions] * seen
            (gradient,) = torch.autograd.grad(
                (weight[positions] * variation).sum() - (image * upward * per_sample(~reached, upward)).sum(), flow
            )
            improved = cost < lowest * 0.999
            lowest, waited = torch.minimum(lowest, cost), torch.where(improved, 0, waited + 1)
            stay = (waited < self.patience).nonzero()[:, 0]
            if not len(stay):
                break
            flow = flow.detach()
            if len(stay) < len(positions):
                positions, active, flow, gradient = positions[stay], active.select(stay), flow[stay], gradient[stay]
                first, second, lowest, waited = first[stay], second[stay], lowest[stay], waited[stay]
            first.lerp_(gradient, 0.1)
            second.lerp_(gradient.square(), 0.001)
            rate = self.step_size * (1 - 0.999 ** (step + 1)) ** 0.5 / (1 - 0.9 ** (step + 1))
            flow = flow - rate * first / (second.sqrt() + 1e-8)
        return best, least


def warp(images: Tensor, flow: Tensor, padding_mode: Border = "border") -> Tensor:
    """Return images read at displaced places, bilinearly (``align_corners=False``).

    The flow is the displacement of the place to read, rows then columns, in pixels, ``(batch, 2, height, width)``.
    """
    height, width = images.shape[2:]
    rows = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None] + flow[:, 0]
    columns = torch.arange(width, device=flow.device, dtype=flow.dtype) + flow[:, 1]
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding_mode, align_corners=False)


def flow_variation(flow: Tensor) -> Tensor:
    """Return the summed lengths of the differences between neighbouring displacements, ``(batch,)``.

    Each pair of neighbours counts once; the paper's sum over all neighbours of all pixels counts it twice.

    References:
        Xiao et al. (arXiv 1801.02612), equation 4.
    """
    down = (flow[:, :, 1:] - flow[:, :, :-1]).square().sum(1)
    right = (flow[:, :, :, 1:] - flow[:, :, :, :-1]).square().sum(1)
    lengths = [(squares + _ROOT).sqrt().flatten(1) - _ROOT**0.5 for squares in (down, right)]
    return torch.cat(lengths, 1).sum(1)


def check_images(x: Tensor, attack: str) -> None:
    """Refuse samples that are no batch of images."""
    if x.ndim != 4:
        raise ValueError(f"{attack} moves pixels: x must be (batch, channel, height, width), got {tuple(x.shape)}.")


class RotationTranslation(Attack):
    """Rotate and shift each image by the amounts, within limits, that hurt the model most.

    ``grid`` tries every combination of evenly spaced amounts, the largest movements first; ``random`` tries
    ``samples`` random ones (the paper's worst-of-k). The image that comes back is the first to fool the model, or the
    worst; where nothing fools it, the one with the largest loss, which may be the image itself. No gradient is
    needed. There is no Lp radius; the reported distance is L2.

    The default limits are the paper's for CIFAR-10: 30 degrees, 3 pixels, 31 x 5 x 5 grid points, 10 random tries.

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
        check_range("[0, inf)", max_rotation=max_rotation, max_translation=max_translation)
        check_choice("search", search, ("grid", "random"))
        check_choice("keep", keep, ("first", "best"))
        check_count(rotations=rotations, translations=translations, samples=samples, max_batch=max_batch)
        check_choice("padding_mode", padding_mode, BORDERS)
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
            objective, fooled = active.query(images, self._loss)
            chosen, value, success = best_version(images, objective, fooled)
            best.offer(positions, chosen, value, success)
            if self.keep == "first" and bool(success.any()):
                stay = (~success).nonzero()[:, 0]
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

    Moves are degrees, anticlockwise as one looks at the image, and the shifts down and to the right in pixels,
    ``(batch, 3)``.
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
