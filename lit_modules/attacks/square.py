"""Square attack: random search with square-shaped changes, without gradients."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lit_modules.attacks.engine.base import Attack, AttackArguments
from lit_modules.attacks.engine.checks import Radius, check_choice, check_count, check_range
from lit_modules.attacks.engine.losses import Loss, LossName, resolve_loss
from lit_modules.attacks.engine.norms import lp_norm, normalise, per_sample, project, project_l1_box
from lit_modules.attacks.engine.state import AttackState, BestSoFar, Outcome
from lit_modules.utils.arguments import Unpack

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries, of 10 000, after which the area halves
_BLOCK = 64  # random numbers are drawn for so many queries at once


def square_area(query: int, start: float) -> float:
    """Return the share of the image that a query changes; ``query`` counts on the scale of 10 000."""
    return start * 0.5 ** sum(query > bound for bound in _HALVINGS)


class Square(Attack):
    """Random search that changes a square at a time and keeps what lowers the margin.

    Linf: a square becomes the sample plus or minus eps, one sign for each channel. L2 and L1: the perturbation of one
    window moves to another; in L1 the nearest point of both ball and bounds is taken then, which leaves it sparse.
    Vectors and signals are taken as images of one row. A fooled sample leaves at once.

    Args:
        norm: ``linf``, ``l2`` or ``l1``.
        eps: Radius in units of the samples, a number or one per sample.
        queries: Forward passes of each sample.
        start_area: Share of the image that the first squares cover, above 0 to 1.
        rescale: Stretch the schedule of areas from 10 000 queries to ``queries``; AutoAttack does not.
        loss: ``margin``, ``cross_entropy``, ``dlr``, ``soft_margin``, ``zero_one`` (the answer alone), or a callable
            giving one value per sample.

    References:
        Andriushchenko et al., "Square attack: a query-efficient black-box adversarial attack via random search"
        (arXiv 1912.00049), algorithms 1 to 3; Croce, Hein, "Mind the box: l1-APGD for sparse adversarial attacks on
        image classifiers" (arXiv 2103.01208), section 4, for L1.
    """

    def __init__(
        self,
        *,
        norm: Literal["linf", "l2", "l1"] = "linf",
        eps: Radius = 0.3,
        queries: int = 5000,
        start_area: float = 0.8,
        rescale: bool = False,
        loss: LossName | Loss = "margin",
        **shared: Unpack[AttackArguments],
    ) -> None:
        super().__init__(**shared)
        check_choice("norm", norm, ("linf", "l2", "l1"))
        check_count(queries=queries)
        check_range("(0, 1]", start_area=start_area)
        self.norm = norm
        self.eps = self.checked_eps(eps)
        self.queries = queries
        self.start_area = start_area
        self.rescale = rescale
        self.loss = loss
        self._loss = resolve_loss(loss)

    @torch.no_grad()
    def attack(self, state: AttackState) -> Outcome:
        """Search at random."""
        best, active, positions = BestSoFar(state, self._loss), state, state.positions()
        x = self._stripes(active) if self.norm == "linf" else self._bumps(active)
        objective: Tensor | None = None
        numbers: Tensor | None = None
        for query in range(self.queries):
            tried = x if numbers is None else self._change(active, x, query, numbers[:, query % _BLOCK])
            logits = active.logits(tried)
            value, fooled = active.objective(logits, self._loss), active.fooled(logits)
            if objective is None:
                objective = value
            else:
                better = fooled | (value > objective)
                x = torch.where(per_sample(better, x), tried, x)
                objective = torch.where(better, value, objective)
            if bool(fooled.any()):
                best.offer(positions[fooled], x[fooled], objective[fooled], fooled[fooled])
                stay = (~fooled).nonzero()[:, 0]
                if not len(stay):
                    return best.outcome()
                positions, active, x, objective = positions[stay], active.select(stay), x[stay], objective[stay]
                numbers = None if numbers is None else numbers[stay]
            if numbers is None or (query + 1) % _BLOCK == 0:
                numbers = active.random.uniform(_BLOCK, 5 + 2 * _shape(active.x)[0])
        assert objective is not None
        best.offer(positions, x, objective, torch.zeros_like(positions, dtype=torch.bool))
        return best.outcome()

    def _sides(self, query: int, x: Tensor) -> tuple[int, int]:
        """Return height and width of the changed window."""
        _, height, width = _shape(x)
        scaled = int(query / self.queries * 10_000) if self.rescale else query
        area = square_area(scaled, self.start_area) * height * width
        side = max(1, round(math.sqrt(area)))
        if self.norm != "linf":
            side = max(side, 3) | 1
        tall = min(side, height)
        wide = min(width, max(1, round(area / tall)) if tall < side else side)
        return tall, wide

    def _change(self, active: AttackState, x: Tensor, query: int, numbers: Tensor) -> Tensor:
        """Return the samples to try next; ``numbers`` are uniform, ``(batch, 5 + 2 channels)``."""
        channels, height, width = _shape(x)
        tall, wide = self._sides(query, x)
        top, left = (numbers[:, 0] * (height - tall + 1)).long(), (numbers[:, 1] * (width - wide + 1)).long()
        sign = (numbers[:, 5 : 5 + channels] < 0.5).to(x.dtype).mul_(2).sub_(1)[:, :, None, None]
        if self.norm == "linf":
            window = _window(x, top, left, tall, wide)
            image, clean = x.view(-1, channels, height, width), active.x.view(-1, channels, height, width)
            changed = clean + active.radius.view(-1, 1, 1, 1) * sign
            return active.clamp(torch.where(window, changed, image).view_as(x))
        second = (numbers[:, 2] * (height - tall + 1)).long(), (numbers[:, 3] * (width - wide + 1)).long()
        return self._move(active, x, (top, left), second, (tall, wide), sign, numbers[:, 4] < 0.5)

    def _stripes(self, active: AttackState) -> Tensor:
        """Return the samples plus or minus eps in vertical stripes."""
        channels, _, width = _shape(active.x)
        sign = active.random.sign(channels, 1, width).to(active.x.dtype)
        image = active.x.view(-1, *_shape(active.x)) + active.radius.view(-1, 1, 1, 1) * sign
        return active.clamp(image.view_as(active.x))

    def _bumps(self, active: AttackState) -> Tensor:
        """Return the samples plus a grid of five by five bumps of random sign, at the radius."""
        channels, height, width = _shape(active.x)
        side = max(1, min(height, width) // 5)
        rows, columns = max(1, height // side), max(1, width // side)
        tile = self._bump(min(side, height), side, active.x)
        sign = active.random.sign(channels, rows, columns).to(active.x.dtype)
        grid = (sign[:, :, :, None, :, None] * tile[:, None, :]).reshape(len(active), channels, rows * len(tile), -1)
        delta = torch.zeros(len(active), channels, height, width, dtype=active.x.dtype, device=active.x.device)
        delta[:, :, : grid.shape[2], : grid.shape[3]] = grid[:, :, :height, :width]
        return self._at_radius(active, delta)

    def _at_radius(self, active: AttackState, delta: Tensor) -> Tensor:
        """Return the samples plus the perturbation brought to the radius, within the bounds."""
        delta = delta.view_as(active.x)
        if self.norm == "l2":
            return active.clamp(active.x + project(active.radius * normalise(delta, "l2"), active.radius, "l2"))
        # what is larger is not scaled down: the projection takes the same off every value, and the small ones vanish
        short = active.radius / per_sample(lp_norm(delta, "l1"), delta).clamp_min(torch.finfo(delta.dtype).tiny)
        return active.clamp(active.x + project_l1_box(delta * short.clamp_min(1), active.radius, *active.room()))

    def _bump(self, tall: int, wide: int, like: Tensor) -> Tensor:
        """Return a window whose upper half is a peak and whose lower half is its negative, of unit norm."""
        power = 2 if self.norm == "l2" else 4
        upper, lower = _pyramid(tall // 2, wide, power, like), _pyramid(tall - tall // 2, wide, power, like)
        if self.norm == "l1":
            upper, lower = self._unit(upper), self._unit(lower)
        return self._unit(torch.cat([upper, -lower]))

    def _unit(self, windows: Tensor) -> Tensor:
        """Return windows of unit norm, ``(..., height, width)``."""
        return windows / self._size(windows, (-2, -1)).clamp_min(1e-12)

    def _size(self, delta: Tensor, over: tuple[int, ...]) -> Tensor:
        """Return the norm of a perturbation over some of its dimensions."""
        size: Tensor = torch.linalg.vector_norm(delta, 2 if self.norm == "l2" else 1, dim=over, keepdim=True)
        return size

    def _move(
        self,
        active: AttackState,
        x: Tensor,
        first: tuple[Tensor, Tensor],
        second: tuple[Tensor, Tensor],
        sides: tuple[int, int],
        sign: Tensor,
        turned: Tensor,
    ) -> Tensor:
        """Return the samples with the perturbation of the second window spent in the first (algorithm 3)."""
        shape = _shape(x)
        delta = (x - active.x).view(-1, *shape)
        into, out = _window(x, *first, *sides), _window(x, *second, *sides)
        tile = self._bump(*sides, x)
        if sides[0] == sides[1]:
            pattern = torch.where(turned[:, None, None], tile.T, tile)
        else:
            pattern = tile.expand(len(x), *sides)
        rows = first[0][:, None] + torch.arange(sides[0], device=x.device)
        columns = first[1][:, None] + torch.arange(sides[1], device=x.device)
        batch = torch.arange(len(x), device=x.device)[:, None, None, None]
        channel = torch.arange(shape[0], device=x.device)[None, :, None, None]
        at = batch, channel, rows[:, None, :, None], columns[:, None, None, :]
        fresh = self._unit(sign * pattern[:, None] + self._unit(delta[at]))
        moved = delta.masked_fill(out, 0.0)
        moved[at] = fresh * self._budget(active, delta, into | out)
        return self._at_radius(active, moved)

    def _budget(self, active: AttackState, delta: Tensor, windows: Tensor) -> Tensor:
        """Return the norm that each channel of the first window gets: what both held and what the radius has left."""
        radius, channels = active.radius.view(-1, 1, 1, 1), delta.shape[1]
        if self.norm == "l2":
            free = (radius.square() - self._size(delta, (1, 2, 3)).square()).clamp_min(0)
            return (free / channels + self._size(delta * windows, (1, 2, 3)).square()).sqrt()
        # more than there is, for the projection to take from: the published attack has this factor too
        free = (radius - self._size(delta, (1, 2, 3))).clamp_min(0)
        return free + channels * self._size(delta * windows, (2, 3))


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


def _pyramid(tall: int, wide: int, power: int, like: Tensor) -> Tensor:
    """Return a peak in the middle: ring ``r`` from the outside of the last sums ``1 / k^power`` from ``r``."""
    row = (torch.arange(tall, device=like.device) - tall // 2).abs()
    column = (torch.arange(wide, device=like.device) - wide // 2).abs()
    ring = torch.maximum(row[:, None], column[None, :])
    rings = max(tall, wide) // 2 + 1
    heights = (1 / torch.arange(1, rings + 1, device=like.device, dtype=like.dtype) ** power).flip(0).cumsum(0).flip(0)
    return heights[ring.clamp_max(rings - 1)]
