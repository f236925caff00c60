"""The Jacobian-based saliency map attack."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_modules.attacks.engine.base import Attack, AttackArguments
from lit_modules.attacks.engine.checks import check_choice, check_range
from lit_modules.attacks.engine.state import AttackState, Outcome, check_differentiable
from lit_modules.utils.arguments import Unpack


class JSMA(Attack):
    """Jacobian-based saliency map attack: changes the pair of values that most raises the target and lowers the rest.

    With ``a`` the gradient of the target's output and ``b`` that of the sum of the others, each step adds ``theta`` to
    the values p and q with the largest ``-(a_p + a_q)(b_p + b_q)`` among pairs with ``a_p + a_q > 0 > b_p + b_q`` (for
    a negative theta, of the gradients with their signs turned). A value that has reached its bound leaves the search. A
    sample leaves when it is fooled, when no pair is left, or after as many steps as would change ``gamma`` of its
    values.

    The output is the probabilities, or with ``output="logits"`` the logits, as in AdverTorch and torchattacks. Of
    logits the sum of the others counts classes that are no rival as much as those that are: on a small network for
    MNIST it fools 70 % of the samples where probabilities fool 97 %, by twice as many changes.

    Without a target, each sample is driven to the class other than its label that the model finds most likely, and any
    wrong answer counts. Only the values that can be part of the best pair are compared; AdverTorch v0.1, which has the
    same ``theta`` and ``gamma``, compares all pairs in matrices of 38 MB a sample of 3072 values.

    Args:
        theta: What a step adds to two values, not 0; the sum is clipped to the bounds.
        gamma: Largest share of a sample's values that may be changed, above 0 and at most 1.
        output: Which output the saliency is of: ``probabilities`` or ``logits``.

    Example:
        >>> model = torch.nn.Linear(4, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[-1.0, -1, -1, 0], [3, 2, 1, -4]]))
        >>> attack = JSMA(theta=0.5, targeted=True)
        >>> attack(model, torch.tensor([[0.0, 0, 0, 0.5]]), torch.tensor([1]))
        tensor([[0.5000, 0.5000, 0.0000, 0.5000]])

    References:
        Papernot et al., "The limitations of deep learning in adversarial settings" (arXiv 1511.07528), algorithms 2 and
        3.
    """

    norm = "l0"
    minimum_norm = True

    def __init__(
        self,
        *,
        theta: float = 1.0,
        gamma: float = 1.0,
        output: Literal["probabilities", "logits"] = "probabilities",
        **shared: Unpack[AttackArguments],
    ) -> None:
        super().__init__(**shared)
        if not 0 < abs(theta) < float("inf"):
            raise ValueError(f"theta must be finite and not 0, got {theta!r}.")
        check_range("(0, 1]", gamma=gamma)
        check_choice("output", output, ("probabilities", "logits"))
        self.theta = theta
        self.gamma = gamma
        self.output = output

    def attack(self, state: AttackState) -> Outcome:
        """Change pairs until the samples are fooled."""
        adversarial, active = state.x.clone(), state
        success = torch.zeros_like(state.label, dtype=torch.bool)
        positions = state.positions()
        target = state.label
        if not state.targeted:
            target = state.clean_logits.scatter(1, state.label[:, None], float("-inf")).argmax(1)
        x, steps = state.x.clone(), int(self.gamma * state.x[0].numel() / 2 + 1e-6)
        for step in range(steps + 1):
            point = active.point(x)
            logits = active.logits(point)
            fooled = active.fooled(logits)
            adversarial[positions[fooled]], success[positions[fooled]] = x[fooled], True
            if step == steps or bool(fooled.all()):
                break
            gain, loss = (log_odds if self.output == "probabilities" else jacobian_sums)(point, logits, target)
            room = torch.ones_like(x, dtype=torch.bool)
            if active.lower is not None and active.upper is not None:
                room = x < active.upper if self.theta > 0 else x > active.lower
            sign = 1 if self.theta > 0 else -1
            pair, valid = best_pair((sign * gain).flatten(1), (-sign * loss).flatten(1), room.flatten(1))
            stay = (valid & ~fooled).nonzero()[:, 0]
            if not len(stay):
                break
            if len(stay) < len(positions):
                positions, active = positions[stay], active.select(stay)
                target, x, pair = target[stay], x[stay], pair[stay]
            flat = x.flatten(1)
            x = active.clamp(flat.scatter_add(1, pair, torch.full_like(flat[:, :2], self.theta)).view_as(x))
        changed = (adversarial != state.x).flatten(1).sum(1).to(state.x.dtype)
        return Outcome(adversarial, success, torch.where(success, -changed, float("-inf")))


def jacobian_sums(point: Tensor, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of each target's logit and that of the sum of the other logits, by two backward passes."""
    check_differentiable(logits)
    (gain,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), point, retain_graph=True)
    (total,) = torch.autograd.grad(logits.sum(), point)
    return gain, total - gain


def log_odds(point: Tensor, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of each target's log-odds, and its negative.

    Probabilities sum to one, so the gradients of the target's and of the others' sum are opposed. That of the log-odds
    is the same up to a positive factor for each sample, which no choice of a pair depends on, and does not vanish with
    the probability.
    """
    check_differentiable(logits)
    others = logits.scatter(1, target[:, None], float("-inf")).logsumexp(1)
    (gain,) = torch.autograd.grad((logits.gather(1, target[:, None])[:, 0] - others).sum(), point)
    return gain, -gain


def best_pair(first: Tensor, second: Tensor, allowed: Tensor, max_pairs: int = 2**22) -> tuple[Tensor, Tensor]:
    """Find the two places p, q with the largest ``(first_p + first_q)(second_p + second_q)``, both sums positive.

    A place that two others match or pass in both values is in no best pair but one of equal worth, for one of the two
    can stand in for it. The places left are found by one sort, and are few: of independent values, a few times log d.
    They alone are compared, at most ``max_pairs`` pairs at once, so the pair is exact and memory does not grow with d
    squared. Takes ``(batch, d)`` values and allowed places; returns the pair, int64 ``(batch, 2)``, and whether there
    is one, ``(batch,)``.
    """
    none = float("-inf")
    order = torch.where(allowed, first, none).argsort(dim=1, descending=True, stable=True)
    ranked = torch.where(allowed, second, none).gather(1, order)
    before = torch.full_like(ranked[:, :1], none)
    largest = torch.cat([before, ranked.cummax(1).values[:, :-1]], 1)  # of the columns before
    runner_up = torch.minimum(ranked, largest).cummax(1).values
    undominated = ranked > torch.cat([before, runner_up[:, :-1]], 1)
    count = max(2, int(undominated.sum(1).max())) if undominated.shape[1] > 1 else 1
    chosen = undominated.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
    present = undominated.gather(1, chosen)
    columns = order.gather(1, chosen)
    a = torch.where(present, first.gather(1, columns), none)
    b = torch.where(present, second.gather(1, columns), none)
    best = torch.full_like(a[:, 0], none)
    pair = torch.zeros_like(columns[:, :1]).expand(-1, 2).clone()
    rows = torch.arange(len(a), device=a.device)
    for start in range(0, count, max(1, max_pairs // (len(a) * count))):
        block = slice(start, start + max(1, max_pairs // (len(a) * count)))
        up, down = a[:, block, None] + a[:, None], b[:, block, None] + b[:, None]
        worth = torch.where((up > 0) & (down > 0), up * down, none)
        worth.diagonal(offset=start, dim1=1, dim2=2).fill_(none)
        value, index = worth.flatten(1).max(1)
        better = value > best
        best = torch.where(better, value, best)
        candidate = torch.stack([columns[rows, start + index // count], columns[rows, index % count]], 1)
        pair = torch.where(better[:, None], candidate, pair)
    return pair, best > none
