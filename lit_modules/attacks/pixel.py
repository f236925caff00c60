"""Attacks that change a few pixels of an image, without gradients of the model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_modules.attacks.engine.base import Attack, AttackArguments
from lit_modules.attacks.engine.checks import check_count, check_positive, check_range
from lit_modules.attacks.engine.losses import Loss, LossName, margin, resolve_loss
from lit_modules.attacks.engine.norms import lp_norm
from lit_modules.attacks.engine.state import AttackState, Outcome, chunks
from lit_modules.utils.arguments import Unpack


class _PixelAttack(Attack):
    """Base of the attacks that move pixels against their bounds.

    Args:
        max_batch: Most points of one forward pass, if the batch is smaller.
    """

    norm = "l0"
    minimum_norm = True

    def __init__(self, *, max_batch: int, **shared: Unpack[AttackArguments]) -> None:
        super().__init__(**shared)
        check_count(max_batch=max_batch)
        self.max_batch = max_batch
        if self.bounds is None:
            raise ValueError(
                f"{type(self).__name__} sets pixels by the bounds, got bounds=None; pass bounds=(lower, upper)."
            )

    def sides(self, state: AttackState) -> tuple[Tensor, Tensor]:
        """Return the bounds in the shape of the samples."""
        assert state.lower is not None
        assert state.upper is not None
        return state.lower.expand_as(state.x), state.upper.expand_as(state.x)


def outcome(state: AttackState, adversarial: Tensor, success: Tensor) -> Outcome:
    """Return successes with the number of their changed coordinates, failures unchanged."""
    distance = lp_norm(adversarial - state.x, "l0")
    return Outcome(adversarial, success, torch.where(success, -distance, float("-inf")))


class SinglePixel(_PixelAttack):
    """Set one pixel, all its channels, to its least or its largest value.

    Up to ``max_pixels`` pixels are tried in a random order, each with both values; values that a pixel has already are
    left out. The first that fools the model is returned, else the sample unchanged. Images may have any height and
    width; of a vector each coordinate is a pixel, of a signal each position with its channels. The distance counts
    coordinates, so a pixel of three channels counts up to 3. The default is that of AdverTorch v0.1.

    Args:
        max_pixels: Most pixels that are tried; each costs up to two forward passes.
        max_batch: Most points of one forward pass, if the batch is smaller; changes memory and speed, no result.

    Raises:
        ValueError: If there are no bounds.

    References:
        Narodytska, Kasiviswanathan, "Simple black-box adversarial perturbations for deep networks" (arXiv 1612.06299).
    """

    def __init__(self, *, max_pixels: int = 100, max_batch: int = 256, **shared: Unpack[AttackArguments]) -> None:
        super().__init__(max_batch=max_batch, **shared)
        check_count(max_pixels=max_pixels)
        self.max_pixels = max_pixels

    def attack(self, state: AttackState) -> Outcome:
        """Try the pixels, several at once."""
        x = as_pixels(state.x)
        values = torch.stack([as_pixels(side) for side in self.sides(state)])  # (2, batch, channels, pixels)
        pixels = state.random.permutation(x.shape[2])[:, : self.max_pixels]
        trial, value = pixels.repeat_interleave(2, 1), torch.arange(2, device=x.device).repeat(pixels.shape[1])
        positions = state.positions()
        new = (values != x).any(2)[value, positions[:, None], trial]
        order = new.logical_not().sort(dim=1, stable=True).indices  # those that change something first, in their order
        trial, value = trial.gather(1, order), value[order]
        most = int(new.sum(1).max())

        adversarial, success = state.x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        active, done = state, 0
        while done < most and len(positions):
            count = next(chunks(most - done, self.max_batch, len(positions)))
            here = trial[positions, done : done + count].T  # (count, active)
            colour = values[value[positions, done : done + count].T, positions, :, here]
            points = x[positions].repeat(count, 1, 1)
            points.scatter_(2, here.reshape(-1, 1, 1).expand(-1, points.shape[1], 1), colour.flatten(0, 1)[:, :, None])
            points = points.view(count, len(positions), *state.x.shape[1:])
            fooled = active.query(points, margin)[1]
            first, hit = fooled.int().argmax(0), fooled.any(0)
            chosen = hit.nonzero()[:, 0]
            adversarial[positions[chosen]] = points[first[chosen], chosen]
            success[positions[chosen]] = True
            stay = (~hit).nonzero()[:, 0]
            positions, active, done = positions[stay], active.select(stay), done + count
        return outcome(state, adversarial, success)


class LocalSearch(_PixelAttack):
    """Greedy search for influential pixels near those that were influential before.

    In each round the candidate pixels, up to ``max_candidates`` drawn at random, are tried one by one, and the
    ``pixels`` of them that raise the loss most are moved: their distance from the middle of the bounds is multiplied by
    ``stretch``, and what passes a bound comes in again from the other one. The next candidates lie within ``reach``
    pixels of those. A sample leaves when it is fooled; if it is not after ``rounds``, it comes back unchanged. Images
    may have any height and width, and bounds may differ from pixel to pixel.

    A candidate is tried with the value that it would be moved to. The paper and AdverTorch v0.1 try another one,
    outside the bounds (``push=1``), on the side to which the pixel leans; a pixel near a bound then moves the other
    way, so on images of black and white the pixels chosen are those that should not move. The other defaults are
    AdverTorch's, where the arguments are p, r, d, t, round_ub, seed_ratio and max_nb_seeds, and k is 1 here.

    Args:
        push: ``None``: try a candidate with the value that it would be moved to. A number: try it at this distance from
            the middle, as part of the bounds' distance, on the side where it is (the paper's p).
        stretch: Factor of the distance from the middle when a pixel moves, from 0 to 2 (r).
        reach: Pixels to each side from which the next candidates come (d).
        pixels: Pixels that move in a round (t).
        rounds: Most rounds (R).
        start: Part of the pixels that are candidates in the first round, above 0 and up to 1.
        max_candidates: Most candidates of a round; each costs a forward pass.
        loss: ``cross_entropy`` for the probability of the label, as in the paper, ``margin``, ``dlr``, or a callable.
        max_batch: Most points of one forward pass, if the batch is smaller; changes memory and speed, no result.

    Raises:
        ValueError: If an argument is outside its range, there are no bounds, or the samples are no images.

    References:
        Narodytska, Kasiviswanathan (arXiv 1612.06299), the algorithm LocSearchAdv.
    """

    def __init__(
        self,
        *,
        push: float | None = None,
        stretch: float = 1.5,
        reach: int = 5,
        pixels: int = 5,
        rounds: int = 10,
        start: float = 0.1,
        max_candidates: int = 128,
        loss: LossName | Loss = "cross_entropy",
        max_batch: int = 256,
        **shared: Unpack[AttackArguments],
    ) -> None:
        super().__init__(max_batch=max_batch, **shared)
        if push is not None:
            check_positive(push=push)
        check_range("[0, 2]", stretch=stretch)
        check_count(reach=reach, pixels=pixels, rounds=rounds)
        check_range("(0, 1]", start=start)
        check_count(max_candidates=max_candidates)
        self.push = push
        self.stretch = stretch
        self.reach = reach
        self.pixels = pixels
        self.rounds = rounds
        self.start = start
        self.max_candidates = max_candidates
        self.loss = loss
        self._loss = resolve_loss(loss)

    def attack(self, state: AttackState) -> Outcome:
        """Move the pixels of the samples that are not fooled yet, round by round."""
        if state.x.ndim != 4:
            raise ValueError(
                "LocalSearch moves pixels of images, so x must be (batch, channel, height, width), got "
                f"{tuple(state.x.shape)}."
            )
        adversarial, success = state.x.clone(), torch.zeros_like(state.label, dtype=torch.bool)
        active, positions = state, state.positions()
        x = as_pixels(state.x)
        near, limit = torch.ones_like(x[:, 0], dtype=torch.bool), max(1, int(self.start * x.shape[2]))
        for _ in range(self.rounds):
            x, moved = self.move(active, x, near, limit)
            points = x.view(-1, *state.x.shape[1:])
            fooled = active.query(points[None], self._loss)[1][0]
            adversarial[positions[fooled]] = points[fooled]
            success[positions[fooled]] = True
            stay = (~fooled).nonzero()[:, 0]
            if not len(stay):
                break
            active, positions, x, moved = active.select(stay), positions[stay], x[stay], moved[stay]
            picture = moved.view(-1, 1, *state.x.shape[2:]).to(x.dtype)
            near = F.max_pool2d(picture, 2 * self.reach + 1, 1, self.reach).flatten(1) > 0
            limit = x.shape[2]
        return outcome(state, adversarial, success)

    def move(self, state: AttackState, x: Tensor, near: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        """Move the most influential of at most ``limit`` candidates among the pixels ``near``, ``(active, pixels)``.

        Returns the images, ``(active, channels, pixels)``, and which pixels moved.
        """
        lower, upper = (as_pixels(side) for side in self.sides(state))
        middle, width = (upper + lower) / 2, upper - lower
        stretched = self.stretch * (x - middle)
        stretched = torch.where(stretched.abs() > width / 2, stretched - width * stretched.sign(), stretched)
        new = (middle + stretched).clamp(lower, upper)
        trial = new if self.push is None else middle + self.push * width * torch.where(x < middle, -1.0, 1.0).to(x)
        most = min(limit, self.max_candidates, int(near.sum(1).max()))
        lot = torch.where(near, state.random.uniform(near.shape[1]), 2.0)
        lot, candidates = lot.topk(most, dim=1, largest=False)
        influence = self.influence(state, x, trial, candidates).masked_fill(lot > 1, float("-inf"))
        top, chosen = (v[:, : self.pixels] for v in influence.sort(dim=1, descending=True, stable=True))
        chosen = candidates.gather(1, chosen)
        moved = torch.zeros_like(near).scatter_(1, chosen, top > float("-inf"))
        return torch.where(moved[:, None], new, x), moved

    def influence(self, state: AttackState, x: Tensor, trial: Tensor, candidates: Tensor) -> Tensor:
        """Return the objective with each candidate alone set to its trial value, ``(active, candidates)``."""
        objectives = []
        for some in torch.split(candidates, list(chunks(candidates.shape[1], self.max_batch, len(x))), 1):
            count = some.shape[1]
            here = some.T[:, :, None, None].expand(-1, -1, x.shape[1], 1)
            points = x.expand(count, *x.shape).clone()
            points.scatter_(3, here, trial.expand_as(points).gather(3, here))
            objectives.append(state.query(points.view(count, *state.x.shape), self._loss)[0])
        return torch.cat(objectives).T


def as_pixels(x: Tensor) -> Tensor:
    """Return samples as ``(batch, channels, pixels)``; a vector has one channel."""
    return x[:, None] if x.ndim == 2 else x.flatten(2)
