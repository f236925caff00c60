"""Attacks that change few values: sigma-zero and the voting folded Gaussian attack."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lit_modules.attacks.engine.base import Attack, AttackArguments, warn_zero_gradient
from lit_modules.attacks.engine.checks import check_count, check_positive, check_range
from lit_modules.attacks.engine.losses import cross_entropy, margin
from lit_modules.attacks.engine.norms import normalise, per_sample
from lit_modules.attacks.engine.state import AttackState, Carry, Outcome, best_version, chunks
from lit_modules.attacks.minimum_norm import Iterate, MinimumNormArguments, MinimumNormAttack
from lit_modules.utils.arguments import Unpack


class SigmaZero(MinimumNormAttack):
    """Sigma-zero: few changed values, by descent on a smooth count of them and a threshold that follows success.

    Each step descends on the lead of the label, while it is positive, plus the mean over all values of ``d^2 / (d^2 +
    sigma)``, with the gradient over its largest entry, by Adam; then changes below a threshold are undone. The
    threshold grows after an iterate that fools the model and falls otherwise. The step falls along a cosine. A step
    costs one forward and one backward pass.

    :class:`~lit_modules.attacks.minimum_norm.FMN` in L0 changes fewer values on models trained adversarially.

    Args:
        steps: Number of steps; 1000 in the paper.
        step_size: First step of Adam, in units of the samples.
        final_share: Last step over the first.
        sigma: Smoothness of the count.
        threshold: First threshold, in units of the samples.
        threshold_step: Change of the threshold, over the size of the step.

    References:
        Cina, Villani, Pintor, Schonherr, Biggio, Pelillo, "sigma-zero: gradient-based optimization of l0-norm
        adversarial examples" (arXiv 2402.01879), algorithm 1.
    """

    def __init__(
        self,
        *,
        steps: int = 100,
        step_size: float = 1.0,
        final_share: float = 0.1,
        sigma: float = 1e-3,
        threshold: float = 0.3,
        threshold_step: float = 0.01,
        **shared: Unpack[MinimumNormArguments],
    ) -> None:
        super().__init__(norm="l0", steps=steps, search_steps=0, **shared)
        check_positive(step_size=step_size, sigma=sigma, threshold_step=threshold_step)
        check_range("(0, 1]", final_share=final_share)
        check_range("[0, inf)", threshold=threshold)
        self.step_size = step_size
        self.final_share = final_share
        self.sigma = sigma
        self.threshold = threshold
        self.threshold_step = threshold_step

    def initial_carry(self, state: AttackState) -> Carry:
        """Return each sample's threshold and the moments of Adam."""
        threshold = torch.full((len(state),), self.threshold, dtype=state.x.dtype, device=state.x.device)
        return {"threshold": threshold, "first": torch.zeros_like(state.x), "second": torch.zeros_like(state.x)}

    def evaluate(self, active: AttackState, x: Tensor, carry: Carry) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, margin and its gradient."""
        return active.gradient(x, margin)

    def step(self, active: AttackState, at: Iterate, step: int, carry: Carry) -> Tensor:
        """Take a step of Adam, then undo the changes below the threshold."""
        fall = (1 + math.cos(math.pi * step / self.steps)) / 2
        rate = self.step_size * (self.final_share + (1 - self.final_share) * fall)
        count = 2 * self.sigma * at.move / (at.move.square() + self.sigma).square_() / at.move[0].numel()
        gradient = normalise(count - at.gradient * per_sample(~at.fooled, at.x), "linf")
        carry["first"].lerp_(gradient, 0.1)
        carry["second"].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        size = (carry["second"] / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-8)
        moved = active.clamp(at.x - (rate / (1 - 0.9 ** (step + 1))) * carry["first"] / size)
        change = self.threshold_step * rate
        carry["threshold"].add_(torch.where(at.fooled, change, -change)).clamp_(0, 1)
        return torch.where((moved - active.x).abs() < per_sample(carry["threshold"], moved), active.x, moved)


class VFGA(Attack):
    """Voting folded Gaussian attack: one value after another, each by the best of several random amounts.

    Each step finds the value whose rise to its bound gains most loss by the gradient, and the one whose fall does. For
    each it draws ``samples`` amounts from a folded normal distribution whose scale is the way to the bound, cut there;
    the model is asked about all, and the best is kept. A value changes once. A sample leaves when it is fooled, or when
    ``gamma`` of its values are used up. A step costs one forward and backward pass and ``2 samples`` forward passes.

    From the paper are the two candidates, the folded normal amounts with that scale, the vote by the model, and that a
    value changes once. Of this implementation are: the cross-entropy in place of the label's probability, which ranks
    values and amounts alike in exact arithmetic and still tells them apart where the probability rounds to 1; ``gamma``
    in place of a number of steps; and that both candidates count as used where neither has room.

    Args:
        samples: Amounts drawn for each of the two values.
        gamma: Largest share of a sample's values that may be changed, above 0 and at most 1.
        max_batch: Largest number of points in one pass.

    Raises:
        ValueError: If an argument is outside its range, or there are no bounds.

    References:
        Cesaire, Schott, Hajri, Lamprier, Gallinari, "Stochastic sparse adversarial attacks" (arXiv 2011.12423).
    """

    norm = "l0"
    minimum_norm = True

    def __init__(
        self, *, samples: int = 10, gamma: float = 1.0, max_batch: int = 4096, **shared: Unpack[AttackArguments]
    ) -> None:
        super().__init__(**shared)
        check_count(samples=samples, max_batch=max_batch)
        check_range("(0, 1]", gamma=gamma)
        if self.bounds is None:
            raise ValueError("VFGA draws amounts up to the bounds; pass bounds=, got None.")
        self.samples = samples
        self.gamma = gamma
        self.max_batch = max_batch

    def attack(self, state: AttackState) -> Outcome:
        """Change one value after another until the samples are fooled."""
        adversarial, active, positions = state.x.clone(), state, state.positions()
        success = torch.zeros_like(state.label, dtype=torch.bool)
        x, used = state.x.clone(), torch.zeros_like(state.x.flatten(1), dtype=torch.bool)
        for step in range(max(1, int(self.gamma * used.shape[1] + 1e-6))):
            _, _, gradient = active.gradient(x, cross_entropy)
            if step == 0:
                warn_zero_gradient(gradient)
            x, fooled = self.change(active, x, gradient, used)
            adversarial[positions[fooled]], success[positions[fooled]] = x[fooled], True
            stay = (~fooled).nonzero()[:, 0]
            if not len(stay):
                break
            if len(stay) < len(positions):
                positions, active, x, used = positions[stay], active.select(stay), x[stay], used[stay]
        changed = (adversarial != state.x).flatten(1).sum(1).to(state.x.dtype)
        return Outcome(adversarial, success, torch.where(success, -changed, float("-inf")))

    def change(self, active: AttackState, x: Tensor, gradient: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        """Return the samples with one more value changed, and which are fooled; ``used`` is changed in place."""
        assert active.lower is not None
        assert active.upper is not None
        flat, count = x.flatten(1), 2 * self.samples
        ways = torch.stack([(active.upper - x).flatten(1), (active.lower - x).flatten(1)])  # up and down
        place = torch.where(used, float("-inf"), gradient.flatten(1) * ways).argmax(2)
        way = ways.gather(2, place[..., None])[..., 0].repeat_interleave(self.samples, 0)  # (versions, batch)
        place = place.repeat_interleave(self.samples, 0)
        amount = active.random.normal(count).abs().clamp_max(1).T.to(x.dtype)
        points, objective, fooled = [], [], []
        done = 0
        for part in chunks(count, self.max_batch, len(x)):
            where = place[done : done + part, :, None]
            value = flat.expand(part, *flat.shape).gather(2, where) + (amount * way)[done : done + part, :, None]
            versions = flat.repeat(part, 1, 1).scatter_(2, where, value).view(part, *x.shape)
            versions = active.clamp(versions.flatten(0, 1).view(part, *x.shape))
            values, hits = active.query(versions, cross_entropy)
            points.append(versions)
            objective.append(values)
            fooled.append(hits)
            done += part
        best, _, success = best_version(torch.cat(points), torch.cat(objective), torch.cat(fooled))
        changed, places = best.flatten(1) != flat, place[[0, -1]].T
        used |= changed
        stuck = ~changed.any(1, keepdim=True)  # neither value has room
        used.scatter_(1, places, used.gather(1, places) | stuck)
        return best, success
