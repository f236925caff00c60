"""Square attack: random search with square-shaped changes, without gradients."""

from __future__ import annotations

import math
from typing import Literal, Unpack

import torch
from torch import Tensor

from lit_modules.attacks.base import Attack, AttackArguments
from lit_modules.attacks.checks import Radius, check_count
from lit_modules.attacks.fixed_radius import BestSoFar
from lit_modules.attacks.losses import Loss, LossName, resolve_loss
from lit_modules.attacks.norms import check_norm, normalise, per_sample, project
from lit_modules.attacks.problem import Outcome, Problem

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries, of 10 000, after which the area halves
_BLOCK = 64  # random numbers are drawn for so many queries at once


def square_area(query: int, start: float) -> float:
    """Return the share of the image that a query changes.

    Args:
        query: Number of the query on the scale of 10 000.
        start: Share at the start.
    """
    return start * 0.5 ** sum(query > bound for bound in _HALVINGS)


class Square(Attack):
    """Random search that changes a square at a time and keeps what lowers the margin.

    Linf: a square becomes the sample plus or minus eps, one sign for each channel. L2: the perturbation of one window
        moves
    to another. Vectors and signals are taken as images of one row. A fooled sample leaves at once.

    Args:
        norm: ``linf`` or ``l2``.
        eps: Radius in units of the samples, a number or one per sample.
        queries: Forward passes of each sample.
        start_area: Share of the image that the first squares cover, above 0 to 1.
        rescale: Stretch the schedule of areas from 10 000 queries to ``queries``; AutoAttack does not.
        loss: ``margin``, ``cross_entropy``, ``dlr``, or a callable giving one value per sample.
        arguments: Arguments of :class:`Attack`, by name.

    Raises:
        ValueError: If an argument is outside its range.

    References:
        Andriushchenko et al., "Square attack: a query-efficient black-box adversarial attack via random search"
        (arXiv 1912.00049), algorithms 1 to 3.
    """

    def __init__(
        self,
        *,
        norm: Literal["linf", "l2"] = "linf",
        eps: Radius = 0.3,
        queries: int = 5000,
        start_area: float = 0.8,
        rescale: bool = False,
        loss: LossName | Loss = "margin",
        **arguments: Unpack[AttackArguments],
    ) -> None:
        super().__init__(**arguments)
        check_norm(norm, ("linf", "l2"))
        check_count("queries", queries)
        if not 0 < start_area <= 1:
            raise ValueError(f"start_area must be above 0 and at most 1, got {start_area}.")
        self.norm = norm
        self.eps = self.checked_eps(eps)
        self.queries = queries
        self.start_area = start_area
        self.rescale = rescale
        self.loss = loss
        self._loss = resolve_loss(loss)

    @torch.no_grad()
    def attack(self, problem: Problem) -> Outcome:
        """Search at random."""
        found, part = BestSoFar(problem, self._loss), problem
        place = torch.arange(len(problem), device=problem.x.device)
        x = self._stripes(part) if self.norm == "linf" else self._bumps(part)
        objective: Tensor | None = None
        numbers: Tensor | None = None
        for query in range(self.queries):
            tried = x if numbers is None else self._change(part, x, query, numbers[:, query % _BLOCK])
            logits = part.logits(tried)
            value, fooled = part.objective(logits, self._loss), part.fooled(logits)
            if objective is None:
                objective = value
            else:
                better = fooled | (value > objective)
                x = torch.where(per_sample(better, x), tried, x)
                objective = torch.where(better, value, objective)
            if bool(fooled.any()):
                found.offer(place[fooled], x[fooled], objective[fooled], fooled[fooled])
                stay = (~fooled).nonzero()[:, 0]
                if not len(stay):
                    return found.outcome()
                place, part, x, objective = place[stay], part.select(stay), x[stay], objective[stay]
                numbers = None if numbers is None else numbers[stay]
            if numbers is None or (query + 1) % _BLOCK == 0:
                numbers = part.random.uniform(_BLOCK, 5 + 2 * _shape(part.x)[0])
        assert objective is not None
        found.offer(place, x, objective, torch.zeros_like(place, dtype=torch.bool))
        return found.outcome()

    def _sides(self, query: int, x: Tensor) -> tuple[int, int]:
        """Return height and width of the changed window."""
        _, height, width = _shape(x)
        scaled = int(query / self.queries * 10_000) if self.rescale else query
        area = square_area(scaled, self.start_area) * height * width
        side = max(1, round(math.sqrt(area)))
        if self.norm == "l2":
            side = max(side, 3) | 1
        tall = min(side, height)
        wide = min(width, max(1, round(area / tall)) if tall < side else side)
        return tall, wide

    def _change(self, part: Problem, x: Tensor, query: int, numbers: Tensor) -> Tensor:
        """Return the samples to try next; ``numbers`` are uniform, ``(batch, 5 + 2 channels)``."""
        channels, height, width = _shape(x)
        tall, wide = self._sides(query, x)
        top, left = (numbers[:, 0] * (height - tall + 1)).long(), (numbers[:, 1] * (width - wide + 1)).long()
        sign = (numbers[:, 5 : 5 + channels] < 0.5).to(x.dtype).mul_(2).sub_(1)[:, :, None, None]
        assert part.radius is not None
        if self.norm == "linf":
            window = _window(x, top, left, tall, wide)
            image, clean = x.view(-1, channels, height, width), part.x.view(-1, channels, height, width)
            changed = clean + part.radius.view(-1, 1, 1, 1) * sign
            return part.clamp(torch.where(window, changed, image).view_as(x))
        second = (numbers[:, 2] * (height - tall + 1)).long(), (numbers[:, 3] * (width - wide + 1)).long()
        return self._move(part, x, (top, left), second, (tall, wide), sign, numbers[:, 4] < 0.5)

    def _stripes(self, part: Problem) -> Tensor:
        """Return the samples plus or minus eps in vertical stripes."""
        channels, _, width = _shape(part.x)
        assert part.radius is not None
        sign = part.random.sign(channels, 1, width).to(part.x.dtype)
        image = part.x.view(-1, *_shape(part.x)) + part.radius.view(-1, 1, 1, 1) * sign
        return part.clamp(image.view_as(part.x))

    def _bumps(self, part: Problem) -> Tensor:
        """Return the samples plus a grid of five by five bumps of random sign, on the sphere of the radius."""
        channels, height, width = _shape(part.x)
        side = max(1, min(height, width) // 5)
        rows, columns = max(1, height // side), max(1, width // side)
        tile = _bump(min(side, height), side, part.x)
        sign = part.random.sign(channels, rows, columns).to(part.x.dtype)
        grid = (sign[:, :, :, None, :, None] * tile[:, None, :]).reshape(len(part), channels, rows * len(tile), -1)
        delta = torch.zeros(len(part), channels, height, width, dtype=part.x.dtype, device=part.x.device)
        delta[:, :, : grid.shape[2], : grid.shape[3]] = grid[:, :, :height, :width]
        return self._on_sphere(part, delta)

    def _on_sphere(self, part: Problem, delta: Tensor) -> Tensor:
        """Return the samples plus the perturbation scaled to the radius, moved into the bounds."""
        assert part.radius is not None
        scaled = part.radius * normalise(delta.view_as(part.x), "l2")
        return part.clamp(part.x + project(scaled, part.radius, "l2"))

    def _move(
        self,
        part: Problem,
        x: Tensor,
        first: tuple[Tensor, Tensor],
        second: tuple[Tensor, Tensor],
        sides: tuple[int, int],
        sign: Tensor,
        turned: Tensor,
    ) -> Tensor:
        """Return the samples with the perturbation of the second window spent in the first (algorithm 3)."""
        shape = _shape(x)
        delta = (x - part.x).view(-1, *shape)
        into, out = _window(x, *first, *sides), _window(x, *second, *sides)
        assert part.radius is not None
        total = delta.square().sum((1, 2, 3), keepdim=True)
        both = (delta.square() * (into | out)).sum((1, 2, 3), keepdim=True)
        free = (part.radius.view(-1, 1, 1, 1).square() - total).clamp_min(0)
        budget = (free / shape[0] + both).sqrt()
        tile = _bump(*sides, x)
        if sides[0] == sides[1]:
            pattern = torch.where(turned[:, None, None], tile.T, tile)
        else:
            pattern = tile.expand(len(x), *sides)
        rows = first[0][:, None] + torch.arange(sides[0], device=x.device)
        columns = first[1][:, None] + torch.arange(sides[1], device=x.device)
        batch = torch.arange(len(x), device=x.device)[:, None, None, None]
        channel = torch.arange(shape[0], device=x.device)[None, :, None, None]
        at = batch, channel, rows[:, None, :, None], columns[:, None, None, :]
        old = delta[at]
        fresh = sign * pattern[:, None] + old / old.square().sum((2, 3), keepdim=True).sqrt().clamp_min(1e-12)
        fresh = fresh / fresh.square().sum((2, 3), keepdim=True).sqrt().clamp_min(1e-12) * budget
        moved = delta.masked_fill(out, 0.0)
        moved[at] = fresh
        return self._on_sphere(part, moved)


def _shape(x: Tensor) -> tuple[int, int, int]:
    """Return channels, height and width; a signal has one row, a vector one channel too."""
    if x.ndim == 2:
        return 1, 1, x.shape[1]
    if x.ndim == 3:
        return x.shape[1], 1, x.shape[2]
    if x.ndim == 4:
        return x.shape[1], x.shape[2], x.shape[3]
    raise ValueError(
        f"Square takes vectors, signals or images, 2 to 4 dimensions with the batch, got {tuple(x.shape)}."
    )


def _window(x: Tensor, top: Tensor, left: Tensor, tall: int, wide: int) -> Tensor:
    """Return a mask of one window for each sample, ``(batch, 1, height, width)``."""
    _, height, width = _shape(x)
    row, column = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    rows = (row >= top[:, None]) & (row < top[:, None] + tall)
    columns = (column >= left[:, None]) & (column < left[:, None] + wide)
    return rows[:, None, :, None] & columns[:, None, None, :]


def _pyramid(tall: int, wide: int, like: Tensor) -> Tensor:
    """Return a peak in the middle: ring ``r`` from the outside of the last has the sum of ``1 / k^2`` from ``r``."""
    row = (torch.arange(tall, device=like.device) - tall // 2).abs()
    column = (torch.arange(wide, device=like.device) - wide // 2).abs()
    ring = torch.maximum(row[:, None], column[None, :])
    rings = max(tall, wide) // 2 + 1
    heights = (1 / torch.arange(1, rings + 1, device=like.device, dtype=like.dtype) ** 2).flip(0).cumsum(0).flip(0)
    return heights[ring.clamp_max(rings - 1)]


def _bump(tall: int, wide: int, like: Tensor) -> Tensor:
    """Return a window whose upper half is a peak and whose lower half is its negative, of unit L2 norm."""
    upper = _pyramid(tall // 2, wide, like)
    bump = torch.cat([upper, -_pyramid(tall - tall // 2, wide, like)])
    return bump / bump.square().sum().sqrt().clamp_min(1e-12)
