"""Attacks that minimise a distance plus a weighted classification term: Carlini and Wagner's, and elastic net."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from lit_modules.attacks.engine.base import Attack, AttackArguments, warn_zero_gradient
from lit_modules.attacks.engine.checks import check_choice, check_count, check_positive, check_range
from lit_modules.attacks.engine.losses import Loss, margin
from lit_modules.attacks.engine.norms import lp_norm, per_sample
from lit_modules.attacks.engine.state import AttackState, Carry, Outcome
from lit_modules.utils.arguments import Unpack

_IMPROVES = 0.9999  # a run whose loss falls by less than this factor in a tenth of its steps has stalled
# share of the box where the search may start: tanh is flat at the bounds, and from 0.999999 it moves late
_INSIDE = 0.999
_ENDS = 1e-4  # of the weight c: the most that is left of a round's own term when it ends
_MOVED = 1e-3  # changes up to this, in units of the samples, are rounding of a search inside the bounds


class ConstantSearch:
    """Search for the least weight of the classification term with which each sample is fooled.

    A weight that fails is the new lower end, one that fools the new upper end. The next weight is the middle of the
    two, or ten times the last one while none has fooled yet.
    """

    def __init__(self, like: Tensor, initial: float) -> None:
        self.weight = torch.full((len(like),), initial, dtype=like.dtype, device=like.device)
        self.lower = torch.zeros_like(self.weight)
        self.upper = torch.full_like(self.weight, float("inf"))
        self.rounds = torch.zeros_like(self.weight, dtype=torch.int64)

    def advance(self, positions: Tensor, fooled: Tensor) -> None:
        """Close a round of the samples at some positions, and set their next weight by whether it fooled the model."""
        weight = self.weight[positions]
        lower = torch.where(fooled, self.lower[positions], weight)
        upper = torch.where(fooled, weight, self.upper[positions])
        self.weight[positions] = torch.where(upper.isinf(), weight * 10, (lower + upper) / 2)
        self.lower[positions] = lower
        self.upper[positions] = upper
        self.rounds[positions] += 1


def class_scales(state: AttackState, classes: int = 9) -> Tensor:
    """Return by how much to stretch the lead of each class, so that leads compare as distances do.

    The stretch is the L2 norm of the gradient of the best other class's lead over that of the class's own, at the
    sample: by it, the largest lead is that of the class whose linearised boundary is nearest. It is 1 for the best
    other class, for those behind the first ``classes``, and from 0.01 to 100, since a gradient may be flat at the
    sample alone. Each class compared costs a backward pass. The stretches are ``(batch, classes)``.
    """
    point = state.point(state.x)
    logits = state.logits(point)
    scale = torch.ones_like(logits.detach())
    own = logits.gather(1, state.label[:, None])
    others = logits.detach().scatter(1, state.label[:, None], float("-inf"))
    best: Tensor | None = None
    ranked = others.topk(min(classes, logits.shape[1] - 1), dim=1).indices
    for rank in range(ranked.shape[1]):
        other = ranked[:, rank : rank + 1]
        gap = (logits.gather(1, other) - own).sum()
        if not gap.requires_grad:
            break
        (gradient,) = torch.autograd.grad(gap, point, retain_graph=True)
        length = lp_norm(gradient, "l2").clamp_min(1e-12)[:, None]
        best = length if best is None else best
        scale.scatter_(1, other, (best / length).clamp(0.01, 100))
    return scale


def in_turn(scale: Tensor, rounds: Tensor) -> Tensor:
    """Return the stretches ``(batch, classes)`` where the number of the round, ``(batch,)``, is odd, and 1 elsewhere.

    A gradient that is steep at the sample and ends soon makes a class seem near that is not.
    """
    return torch.where(rounds[:, None] % 2 == 1, scale, 1)


def nearest_lead(logits: Tensor, label: Tensor, scale: Tensor, confidence: float = 0.0) -> Tensor:
    """Return the largest stretched lead of another class over the label, less the confidence, ``(batch,)``.

    It is at least 0 exactly where the largest plain lead is at least ``confidence``.
    """
    lead = (logits - logits.gather(1, label[:, None]) - confidence) * scale
    return lead.scatter(1, label[:, None], float("-inf")).amax(1)


def lead_loss(scale: Tensor | None, confidence: float) -> Loss:
    """Return the loss whose objective is how far a sample is beyond the confidence: at least 0 where it fools.

    Args:
        scale: Stretch of each class's lead, ``(batch, classes)``; ``None`` for none.
        confidence: Least lead in logits.
    """
    if scale is None:
        return lambda logits, label: margin(logits, label) + confidence
    return lambda logits, label: nearest_lead(logits, label, scale, confidence)


def start_adam(state: AttackState, x: Tensor) -> Carry:
    """Return the variable of points, inside the bounds if there are any, and empty moments."""
    variable = x.clone()
    if state.lower is not None:
        middle, half = state.box()
        if not bool(torch.isfinite(half).all()):
            raise ValueError(
                "The search inside the bounds needs finite bounds, got an infinite one; pass bounds=None for none."
            )
        share = (variable - middle) / half.clamp_min(torch.finfo(variable.dtype).tiny)
        variable = torch.atanh(share.clamp(-1, 1) * _INSIDE)
    return {"variable": variable, "first": torch.zeros_like(variable), "second": torch.zeros_like(variable)}


def adam_point(state: AttackState, carry: Carry) -> Tensor:
    """Return the points of the variables."""
    if state.lower is None:
        return carry["variable"].clone()
    middle, half = state.box()
    carry["tanh"] = carry["variable"].tanh()
    return state.clamp(carry["tanh"] * half + middle)


def adam_step(state: AttackState, carry: Carry, gradient: Tensor, count: Tensor, step_size: float) -> None:
    """Take a step of Adam, in place, with the moments' bias corrected by each sample's own count.

    ``gradient`` is that with respect to the points; it is changed.
    """
    if state.lower is not None:
        gradient *= state.box()[1] * (1 - carry["tanh"].square())
    carry["first"].lerp_(gradient, 0.1)
    carry["second"].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    taken = per_sample(count + 1, gradient).to(gradient.dtype)
    size = (carry["second"] / (1 - 0.999**taken)).sqrt_().add_(1e-8)
    carry["variable"] -= carry["first"].div(size).mul_(step_size / (1 - 0.9**taken))


class PenaltyArguments(AttackArguments, total=False):
    """Arguments of :class:`PenaltyAttack` without ``abort_early``."""

    confidence: float
    step_size: float
    search_steps: int
    steps: int
    initial_const: float


class PenaltyAttack(Attack):
    """Base of attacks that minimise a distance plus a weight times how far the sample is from being misclassified.

    For each sample a search over the weight runs in rounds of at most ``steps`` steps, with one forward and one
    backward pass each. Every sample keeps its own round and its own count of steps: when its round is over it begins
    the next one at once, and after its last round it leaves the batch. The smallest adversarial sample of all rounds is
    kept.

    Args:
        confidence: Least lead in logits of an adversarial sample.
        step_size: Step of the optimiser.
        search_steps: Rounds of the search over the weight c.
        steps: Most steps of a round; one forward and one backward pass each.
        initial_const: First weight.
        abort_early: End a sample's round whose loss has fallen by less than a ten-thousandth in a tenth of the steps.
    """

    minimum_norm = True

    def __init__(
        self,
        *,
        confidence: float = 0.0,
        step_size: float = 0.01,
        search_steps: int = 9,
        steps: int = 1000,
        initial_const: float = 1e-3,
        abort_early: bool = True,
        **shared: Unpack[AttackArguments],
    ) -> None:
        super().__init__(**shared)
        check_count(search_steps=search_steps, steps=steps)
        check_positive(step_size=step_size, initial_const=initial_const)
        check_range("[0, inf)", confidence=confidence)
        self.confidence = confidence
        self.step_size = step_size
        self.search_steps = search_steps
        self.steps = steps
        self.initial_const = initial_const
        self.abort_early = abort_early

    @abstractmethod
    def begin(self, state: AttackState) -> Carry:
        """Return the values of each sample that a round carries along, at its start."""

    @abstractmethod
    def point(self, state: AttackState, carry: Carry) -> Tensor:
        """Return the samples to evaluate, within the bounds."""

    @abstractmethod
    def distances(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distance that is minimised and the one by which samples are kept, ``(batch,)`` each."""

    @abstractmethod
    def update(self, state: AttackState, carry: Carry, x: Tensor, gradient: Tensor, count: Tensor) -> None:
        """Take one step, in place, by the gradient of the weighted classification term and the samples' step counts."""

    def attack(self, state: AttackState) -> Outcome:
        """Run the rounds of every sample."""
        adversarial, positions = state.x.clone(), state.positions()
        score = torch.full((len(state),), float("-inf"), dtype=state.x.dtype, device=state.x.device)
        search, active, carry = ConstantSearch(state.x, self.initial_const), state, self.begin(state)
        count, successful = torch.zeros_like(positions), torch.zeros_like(positions, dtype=torch.bool)
        previous, interval, first = torch.full_like(score, float("inf")), max(1, self.steps // 10), True
        scale = None if state.targeted or self.search_steps == 1 else class_scales(state)
        while len(positions):
            x = self.point(active, carry)
            stretch = None if scale is None else in_turn(scale, search.rounds[positions])
            term = lead_loss(stretch, self.confidence)
            logits, lead, gradient = active.gradient(x, term)
            if first:
                warn_zero_gradient(gradient)
                first = False
            weight = search.weight[positions]
            minimised, ranked = self.distances(x - active.x)
            fooled = active.fooled(logits) & (lead >= 0)
            successful |= fooled & (count >= interval)
            better = (fooled & (-ranked > score[positions])).nonzero()[:, 0]
            if len(better):
                adversarial[positions[better]] = x[better]
                score[positions[better]] = -ranked[better]
            gradient = gradient * per_sample(torch.where(lead < 0, -weight, 0), x)  # it may be expanded
            self.update(active, carry, x, gradient, count)
            count += 1
            ended = count == self.steps
            if self.abort_early:
                loss = minimised - weight * lead.clamp_max(0)
                check = count % interval == 0
                ended |= check & (loss > previous * _IMPROVES)
                previous = torch.where(check, loss, previous)
            index = ended.nonzero()[:, 0]
            if not len(index):
                continue
            search.advance(positions[index], successful[index])
            count[index], successful[index], previous[index] = 0, False, float("inf")
            for name, values in self.begin(active.select(index)).items():
                carry[name][index] = values
            stay = (search.rounds[positions] < self.search_steps).nonzero()[:, 0]
            if len(stay) < len(positions):
                positions, active, count = positions[stay], active.select(stay), count[stay]
                successful, previous = successful[stay], previous[stay]
                carry = {name: values[stay] for name, values in carry.items()}
                scale = None if scale is None else scale[stay]
        return Outcome(adversarial, score > float("-inf"), score)


class CarliniWagner(PenaltyAttack):
    """Carlini and Wagner's attack in L2: Adam on ``||x' - x||^2 + c max(confidence - lead, 0)`` inside the bounds.

    The lead is that of another logit over the label's (targeted: of the target's over the best other). Without a
    target, every second round stretches the leads of the classes by the norms of their gradients at the sample, so that
    the class whose boundary is nearest is sought instead of the one whose logit is largest; the objective is 0 for the
    same points as in the paper. On linear models that class is the right one; on adversarially trained ones the
    gradients at the sample mislead, and the other rounds find more.

    The weight c is found for each sample by itself, and each has its own moments of Adam, so no sample waits for
    another. A weight counts as large enough if it fools after the first tenth of a round's steps, since the first steps
    of Adam pass a near boundary with any weight. Within bounds the search is over ``w`` in ``x' = middle + half
    tanh(w)``, with bounds of any shape; without, over ``x'`` itself.

    The defaults are those of AdverTorch v0.1 but for ``steps``, there 10000; it stops a round for the whole batch at
    once, and masks logits by an offset, so that a best other logit below it is missed.

    Example:
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(2 * torch.eye(2))
        >>> attack = CarliniWagner(steps=100)
        >>> result = attack.run(model, torch.tensor([[0.6, 0.4]]), torch.tensor([0]))
        >>> round(float(result.distance), 2)  # 0.2 / sqrt(2)
        0.14

    References:
        Carlini, Wagner, "Towards evaluating the robustness of neural networks" (arXiv 1608.04644), section VI.A, with
        the objective f6 and the change of variables of section V.B.
    """

    norm = "l2"

    def begin(self, state: AttackState) -> Carry:
        """Return the variable of the sample itself and empty moments."""
        return start_adam(state, state.x)

    def point(self, state: AttackState, carry: Carry) -> Tensor:
        """Return the samples of the variables."""
        return adam_point(state, carry)

    def distances(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squared L2 norm and the L2 norm."""
        length = lp_norm(delta, "l2")
        return length.square(), length

    def update(self, state: AttackState, carry: Carry, x: Tensor, gradient: Tensor, count: Tensor) -> None:
        """Take a step of Adam."""
        gradient += 2 * (x - state.x)
        adam_step(state, carry, gradient, count, self.step_size)


class ElasticNet(PenaltyAttack):
    """Elastic-net attack (EAD): least ``||d||^2 + beta ||d||_1`` with which the perturbation ``d`` fools the model.

    Each step moves against the gradient of ``||x' - x||^2 + c max(confidence - lead, 0)``, shrinks the change of every
    coordinate by ``beta``, clips to the bounds, and goes on in the direction of the last move (FISTA). The step falls
    as ``sqrt(1 - step / steps)``; the weight c is found as in :class:`CarliniWagner`. The model is evaluated at the
    extrapolated point alone, moved into the bounds, and that is the point kept when it fools: one forward pass a step
    instead of the two of the authors' code.

    The threshold is ``beta`` at any step size, as in the paper, so small steps weigh the L1 norm more than ``beta``
    does. For a least L1 norm, take ``decision="l1"`` and a ``beta`` of 0.1. The defaults are those of AdverTorch 0.2.

    Args:
        beta: Weight of the L1 norm, and the threshold of a step in units of the samples.
        decision: Which adversarial sample is kept: ``en`` for the least elastic-net distance, ``l1`` for the least L1
            norm.
        abort_early: End a round of a sample whose loss has fallen by less than a ten-thousandth in a tenth of the
            steps.

    References:
        Chen, Sharma, Zhang, Yi, Hsieh, "EAD: elastic-net attacks to deep neural networks via adversarial examples"
        (arXiv 1709.04114), algorithm 1.
    """

    norm = "l1"

    def __init__(
        self,
        *,
        beta: float = 0.01,
        decision: Literal["en", "l1"] = "en",
        abort_early: bool = False,
        **shared: Unpack[PenaltyArguments],
    ) -> None:
        super().__init__(abort_early=abort_early, **shared)
        check_range("[0, inf)", beta=beta)
        check_choice("decision", decision, ("en", "l1"))
        self.beta = beta
        self.decision = decision

    def begin(self, state: AttackState) -> Carry:
        """Return the sample as last iterate and as the point to ask about."""
        return {"last": state.x.clone(), "point": state.x.clone()}

    def point(self, state: AttackState, carry: Carry) -> Tensor:
        """Return the extrapolated point within the bounds."""
        return state.clamp(carry["point"])

    def distances(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the elastic-net distance, and that of the decision rule."""
        l1 = lp_norm(delta, "l1")
        elastic = lp_norm(delta, "l2").square_() + self.beta * l1
        return elastic, elastic if self.decision == "en" else l1

    def update(self, state: AttackState, carry: Carry, x: Tensor, gradient: Tensor, count: Tensor) -> None:
        """Take a step of FISTA."""
        taken = per_sample(count, x).to(x.dtype)
        gradient += 2 * (x - state.x)
        delta = x - state.x - self.step_size * (1 - taken / self.steps).sqrt() * gradient
        shrunk = state.clamp(state.x + torch.nn.functional.softshrink(delta, self.beta))
        carry["point"] = shrunk + taken / (taken + 3) * (shrunk - carry["last"])
        carry["last"] = shrunk


class NarrowingArguments(AttackArguments, total=False):
    """Arguments of :class:`NarrowingAttack` without the weights."""

    confidence: float
    step_size: float
    steps: int
    rounds: int


class NarrowingAttack(Attack):
    """Base of Carlini and Wagner's attacks in norms that a gradient cannot follow: rounds that narrow what may change.

    A round takes at most ``steps`` steps of Adam, inside the bounds, on a term of its own plus the weight c times how
    far the sample is from being misclassified. It ends as soon as the sample is fooled and the term of its own is small
    enough, and the next round narrows the perturbation allowed. After a round that fails, c doubles. A round begins
    where the last one ended. Without a target, the nearest class is sought as in :class:`CarliniWagner`; until a sample
    is fooled for the first time, rounds that fail go over to the likeliest class and back. Every sample keeps its own
    round, weight and count of steps, and leaves the batch when its weight passes ``largest_const`` or its rounds are
    over. A step costs one forward and one backward pass.

    Args:
        confidence: Least lead in logits of an adversarial sample.
        step_size: Step of Adam.
        steps: Most steps of a round.
        rounds: Most rounds.
        initial_const: First weight c.
        largest_const: Weight beyond which a sample is given up.
    """

    norm: str
    minimum_norm = True

    def __init__(
        self,
        *,
        confidence: float = 0.0,
        step_size: float = 0.01,
        steps: int = 1000,
        rounds: int = 1000,
        initial_const: float,
        largest_const: float,
        **shared: Unpack[AttackArguments],
    ) -> None:
        super().__init__(**shared)
        check_count(steps=steps, rounds=rounds)
        check_positive(step_size=step_size, initial_const=initial_const, largest_const=largest_const)
        check_range("[0, inf)", confidence=confidence)
        self.confidence = confidence
        self.step_size = step_size
        self.steps = steps
        self.rounds = rounds
        self.initial_const = initial_const
        self.largest_const = largest_const

    @abstractmethod
    def allowed(self, state: AttackState) -> Carry:
        """Return what may change before the first round, one entry for each sample."""

    @abstractmethod
    def excess(self, state: AttackState, carry: Carry, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the term of the norm, ``(batch,)``, which ends a round at 0, and its gradient for Adam."""

    @abstractmethod
    def narrow(self, carry: Carry, index: Tensor, delta: Tensor, gradient: Tensor) -> None:
        """Narrow, in place, what may change of the samples at ``index``; their perturbations have fooled the model."""

    def confine(self, state: AttackState, carry: Carry, x: Tensor) -> Tensor:
        """Return points with the values restored that may not change."""
        return x

    def attack(self, state: AttackState) -> Outcome:
        """Run the rounds of every sample."""
        adversarial, positions, active = state.x.clone(), state.positions(), state
        score = torch.full((len(state),), float("-inf"), dtype=state.x.dtype, device=state.x.device)
        scale = None if state.targeted else class_scales(state)
        carry = self.allowed(state) | start_adam(state, state.x)
        carry["weight"] = torch.full_like(score, self.initial_const)
        carry |= {name: torch.zeros_like(positions) for name in ("count", "rounds", "lost")}
        for step in itertools.count():
            x = self.confine(active, carry, adam_point(active, carry))
            stretch = None if scale is None else in_turn(scale, carry["lost"] + 1)
            term = lead_loss(stretch, self.confidence)
            logits, lead, gradient = active.gradient(x, term)
            if step == 0:
                warn_zero_gradient(gradient)
            move = x - active.x
            fooled = active.fooled(logits) & (lead >= 0)
            distance = lp_norm(move, self.norm)
            better = (fooled & (-distance > score[positions])).nonzero()[:, 0]
            adversarial[positions[better]], score[positions[better]] = x[better], -distance[better]
            excess, own = self.excess(active, carry, move)
            succeeded = fooled & (excess <= _ENDS * carry["weight"])
            pushed = own - gradient * per_sample(torch.where(lead < 0, carry["weight"], 0), x)
            adam_step(active, carry, pushed, carry["count"], self.step_size)
            carry["count"] += 1
            index = (succeeded | (carry["count"] == self.steps)).nonzero()[:, 0]
            if not len(index):
                continue
            won, lost = index[succeeded[index]], index[~succeeded[index]]
            if len(won):
                self.narrow(carry, won, move[won], gradient[won])
            carry["weight"][lost] *= 2
            carry["lost"][lost] += score[positions[lost]].isinf()  # until the first success another class each time
            carry["rounds"][index] += 1
            carry["count"][index] = 0
            for name, values in start_adam(active.select(index), x[index]).items():
                carry[name][index] = values
            stay = (carry["weight"] <= self.largest_const) & (carry["rounds"] < self.rounds) & self.left(carry)
            if not bool(stay.any()):
                break
            if not bool(stay.all()):
                index = stay.nonzero()[:, 0]
                positions, active = positions[index], active.select(index)
                carry = {name: values[index] for name, values in carry.items()}
                scale = None if scale is None else scale[index]
        return Outcome(adversarial, score > float("-inf"), score)

    def left(self, carry: Carry) -> Tensor:
        """Return which samples have anything left that may change, ``(batch,)``."""
        return torch.ones_like(carry["count"], dtype=torch.bool)


class CarliniWagnerLinf(NarrowingAttack):
    """Carlini and Wagner's attack in Linf: Adam on ``sum max(|x' - x| - tau, 0) + c max(confidence - lead, 0)``.

    A round ends when the sample is fooled with no value changed by more than tau; then tau falls to ``decrease`` of the
    largest change, and the next round goes on from there.

    Args:
        decrease: Share of the largest change that becomes the next tau, between 0 and 1.
        reduce_const: Whether c halves after a round that fools.
        initial_const: First weight c.
        largest_const: Weight beyond which a sample is given up.

    References:
        Carlini, Wagner, "Towards evaluating the robustness of neural networks" (arXiv 1608.04644), section VI.C.
    """

    norm = "linf"

    def __init__(
        self,
        *,
        decrease: float = 0.9,
        reduce_const: bool = False,
        initial_const: float = 1e-5,
        largest_const: float = 20.0,
        **shared: Unpack[NarrowingArguments],
    ) -> None:
        super().__init__(initial_const=initial_const, largest_const=largest_const, **shared)
        check_range("(0, 1)", decrease=decrease)
        self.decrease = decrease
        self.reduce_const = reduce_const

    def allowed(self, state: AttackState) -> Carry:
        """Return the first tau: the largest change within the bounds, or 1 without bounds."""
        if state.lower is None or state.upper is None:
            return {"tau": torch.ones_like(state.x.flatten(1)[:, 0])}
        return {"tau": torch.maximum(state.upper - state.x, state.x - state.lower).flatten(1).amax(1)}

    def excess(self, state: AttackState, carry: Carry, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far the changes pass tau, summed."""
        beyond = delta.abs() - per_sample(carry["tau"], delta)
        return beyond.clamp_min(0).flatten(1).sum(1), delta.sign() * (beyond > 0)

    def narrow(self, carry: Carry, index: Tensor, delta: Tensor, gradient: Tensor) -> None:
        """Lower tau below the largest change."""
        carry["tau"][index] = self.decrease * torch.minimum(carry["tau"][index], lp_norm(delta, "linf"))
        if self.reduce_const:
            carry["weight"][index] /= 2


class CarliniWagnerL0(NarrowingAttack):
    """Carlini and Wagner's attack in L0: rounds of the L2 attack on ever fewer values.

    A round is Adam on ``||x' - x||^2 + c max(confidence - lead, 0)`` over the values that may still change, and ends
    when the sample is fooled. Then the values whose change times gradient is least are restored for good: those that
    have not changed, and ``removal`` times the square root of the number of those that have, at least one.

    Args:
        removal: Factor of the number of values restored after a round, positive.
        initial_const: First weight c.
        largest_const: Weight beyond which a sample is given up.

    References:
        Carlini, Wagner, "Towards evaluating the robustness of neural networks" (arXiv 1608.04644), section VI.B, where
        one value is restored after a round.
    """

    norm = "l0"

    def __init__(
        self,
        *,
        removal: float = 0.3,
        initial_const: float = 1e-3,
        largest_const: float = 2e6,
        **shared: Unpack[NarrowingArguments],
    ) -> None:
        super().__init__(initial_const=initial_const, largest_const=largest_const, **shared)
        check_positive(removal=removal)
        self.removal = removal

    def allowed(self, state: AttackState) -> Carry:
        """Return a mask of all values."""
        return {"mask": torch.ones_like(state.x, dtype=torch.bool)}

    def left(self, carry: Carry) -> Tensor:
        """Return which samples have a value that may change."""
        return carry["mask"].flatten(1).any(1)

    def confine(self, state: AttackState, carry: Carry, x: Tensor) -> Tensor:
        """Restore the values outside the mask, and those that have hardly moved."""
        return torch.where(carry["mask"] & ((x - state.x).abs() > _MOVED), x, state.x)

    def excess(self, state: AttackState, carry: Carry, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Return 0, since any sample that fools ends a round, and the gradient of the squared L2 norm."""
        return torch.zeros_like(carry["weight"]), 2 * delta

    def narrow(self, carry: Carry, index: Tensor, delta: Tensor, gradient: Tensor) -> None:
        """Take the values that matter least out of the mask."""
        changed = (delta != 0).flatten(1)
        worth = (delta * gradient).abs().flatten(1).masked_fill(~changed, -1.0)
        rank = worth.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
        number = changed.sum(1)
        out = changed.shape[1] - number + (self.removal * number.sqrt()).long().clamp_min(1)
        carry["mask"][index] &= (rank >= out[:, None]).view_as(delta)
