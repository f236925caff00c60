"""Auto-PGD: projected gradient descent with momentum that chooses its own step size, and its targeted form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lit_modules.attacks.engine.base import Attack, AttackArguments, warn_zero_gradient
from lit_modules.attacks.engine.checks import Radius, check_choice, check_count, check_range
from lit_modules.attacks.engine.losses import Loss, LossName, resolve_loss, targeted_dlr
from lit_modules.attacks.engine.norms import lp_norm, normalise, per_sample, project, steepest
from lit_modules.attacks.engine.state import AttackState, BestSoFar, Carry, Outcome
from lit_modules.utils.arguments import Unpack

LossAt = Callable[[Tensor], Loss]
_STAGES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # radius in units of eps, share of the steps


class APGDArguments(AttackArguments, total=False):
    """Arguments that APGD and APGD-T share; see :class:`APGD`."""

    norm: Literal["linf", "l2", "l1"]
    eps: Radius
    steps: int
    rho: float
    larger_eps: bool
    eot_samples: int


class APGD(Attack):
    """Auto-PGD in the Linf, L2 or L1 ball.

    The step begins at twice the radius and is halved, with a return to the best iterate, where a stretch of steps did
    not raise the loss often enough. In L1 the steps are sparse, the sparsity follows that of the best iterate, and the
    search begins in balls of three and two times the radius. With ``cross_entropy`` this is APGD-CE, with ``dlr``
    APGD-DLR. A fooled sample leaves at once.

    Args:
        norm: ``linf``, ``l2`` or ``l1``.
        eps: Radius in units of the samples, a number or one per sample.
        steps: Number of steps.
        loss: ``cross_entropy``, ``margin``, ``dlr``, ``soft_margin``, or a callable giving one value per sample.
        rho: Share of steps that must raise the loss for the step size to stay.
        larger_eps: In L1, begin in larger balls.
        keep: ``first``: a sample leaves once fooled; ``best``: it takes all steps and the largest loss is returned.
        eot_samples: Passes whose gradients are averaged (EOT).

    References:
        Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks"
        (arXiv 2003.01690), algorithm 1; "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers"
        (arXiv 2103.01208), algorithm 1, for L1.
    """

    def __init__(
        self,
        *,
        norm: Literal["linf", "l2", "l1"] = "linf",
        eps: Radius = 0.3,
        steps: int = 100,
        loss: LossName | Loss = "cross_entropy",
        rho: float = 0.75,
        larger_eps: bool = True,
        keep: Literal["first", "best"] = "first",
        eot_samples: int = 1,
        **shared: Unpack[AttackArguments],
    ) -> None:
        super().__init__(**shared)
        check_choice("norm", norm, ("linf", "l2", "l1"))
        check_count(steps=steps, eot_samples=eot_samples)
        check_range("[0, 1]", rho=rho)
        check_choice("keep", keep, ("first", "best"))
        self.norm: str = norm
        self.eps = self.checked_eps(eps)
        self.steps = steps
        self.loss = loss
        self.rho = rho
        self.larger_eps = larger_eps
        self.keep = keep
        self.eot_samples = eot_samples
        self._loss = resolve_loss(loss)

    def attack(self, state: AttackState) -> Outcome:
        """Raise the loss from one random start."""
        return self.ascend(state, lambda positions: self._loss)

    def ascend(self, state: AttackState, loss: LossAt) -> Outcome:
        """Raise a loss from one random start; ``loss`` gives that of the samples at some positions."""
        if self.norm != "l1":
            start = state.clamp(state.x + self._start(state))
            return self._momentum_steps(state, start, loss)
        x = state.x + state.random.normal(*state.x.shape[1:]).to(state.x.dtype)
        stages = _STAGES if self.larger_eps and self.steps > 3 else ((1.0, 1.0),)
        taken = 0
        for number, (factor, share) in enumerate(stages):
            steps = self.steps - taken if number == len(stages) - 1 else max(1, int(share * self.steps))
            taken += steps
            stage = replace(state, eps=state.radius * factor)
            x = stage.project(x, "l1")
            outcome = self._sparse_steps(stage, x, loss, steps, first=number == 0, last=factor == 1)
            x = outcome.adversarial
        return outcome

    def _start(self, state: AttackState) -> Tensor:
        """Return a random perturbation whose norm is the radius."""
        shape = state.x.shape[1:]
        noise = state.random.uniform(*shape) * 2 - 1 if self.norm == "linf" else state.random.normal(*shape)
        return project(state.radius * normalise(noise.to(state.x.dtype), self.norm), state.radius, self.norm)

    def _momentum_steps(self, state: AttackState, x: Tensor, loss: LossAt) -> Outcome:
        """Algorithm 1 of arXiv 2003.01690."""
        positions, active = state.positions(), state
        best = BestSoFar(state, loss(positions))
        stretch, shortest, shortening = (max(1, int(share * self.steps)) for share in (0.22, 0.06, 0.03))
        since = 0  # steps since the last checkpoint
        carry = {
            "x": x,
            "before": x,
            "size": 2 * state.radius.expand(len(state), *state.radius.shape[1:]),
            "rises": torch.zeros(len(state), device=x.device),
            "halved": torch.ones(len(state), dtype=torch.bool, device=x.device),
        }
        for step in range(self.steps + 1):
            objective, fooled = self._evaluate(active, carry, loss(positions), last=step == self.steps)
            if step == 0:
                warn_zero_gradient(carry["gradient"])
                carry |= {"loss": objective, "best": carry["x"], "best_gradient": carry["gradient"]}
                carry |= {"checked": objective, "previous": objective}
            else:
                carry["rises"] += objective > carry["previous"]
                carry["previous"] = objective
                self._keep_best(carry, objective)
            best.offer(positions[fooled], carry["x"][fooled], objective[fooled], fooled[fooled])
            if step == self.steps:
                break
            if self.keep == "first" and bool(fooled.any()):
                stay = (~fooled).nonzero()[:, 0]
                if not len(stay):
                    return best.outcome()
                positions, active = positions[stay], active.select(stay)
                carry = {name: values[stay] for name, values in carry.items()}
            if step and since == stretch:
                stuck = carry["rises"] <= self.rho * stretch
                stuck |= ~carry["halved"] & (carry["checked"] >= carry["loss"])
                carry["halved"], carry["checked"] = stuck, carry["loss"]
                wide = per_sample(stuck, active.x)
                carry["size"] = torch.where(wide, carry["size"] / 2, carry["size"])
                carry["x"] = torch.where(wide, carry["best"], carry["x"])
                carry["gradient"] = torch.where(wide, carry["best_gradient"], carry["gradient"])
                carry["rises"] = torch.zeros_like(carry["rises"])
                since, stretch = 0, max(stretch - shortening, shortest)
            share = 0.75 if step else 1.0
            x = carry["x"]
            moved = active.project(x + carry["size"] * steepest(carry["gradient"], self.norm), self.norm)
            mixed = x + share * (moved - x) + (1 - share) * (x - carry["before"])
            carry["before"], carry["x"] = x, active.project(mixed, self.norm)
            since += 1
        best.offer(positions, carry["best"], carry["loss"], torch.zeros_like(positions, dtype=torch.bool))
        return best.outcome()

    def _sparse_steps(
        self, state: AttackState, x: Tensor, loss: LossAt, steps: int, *, first: bool, last: bool
    ) -> Outcome:
        """Algorithm 1 of arXiv 2103.01208, within one radius; only in the last one success counts."""
        best, active, positions = BestSoFar(state), state, state.positions()
        size = state.x[0].numel()
        stretch, since = max(1, int(0.04 * steps)), 0
        support = lp_norm(x - state.x, "l0")
        carry = {
            "x": x,
            "size": state.radius.expand(len(state), *state.radius.shape[1:]).clone(),
            "share": torch.full_like(support, 0.2) if first else support / size / 1.5,
            "support": torch.full_like(support, size) if first else support,
        }
        for step in range(steps + 1):
            objective, fooled = self._evaluate(active, carry, loss(positions), last=step == steps)
            if step == 0:
                if first:
                    warn_zero_gradient(carry["gradient"])
                carry |= {"loss": objective, "best": carry["x"], "best_gradient": carry["gradient"]}
            else:
                self._keep_best(carry, objective)
            if last:
                best.offer(positions[fooled], carry["x"][fooled], objective[fooled], fooled[fooled])
            if step == steps:
                break
            if last and self.keep == "first" and bool(fooled.any()):
                stay = (~fooled).nonzero()[:, 0]
                if not len(stay):
                    return best.outcome()
                positions, active = positions[stay], active.select(stay)
                carry = {name: values[stay] for name, values in carry.items()}
            if step and since == stretch:
                support = lp_norm(carry["best"] - active.x, "l0")
                sparser = support / carry["support"].clamp_min(1) < 0.95
                wide = per_sample(sparser, active.x)
                carry["share"], carry["support"] = support / size / 1.5, support
                carry["size"] = torch.where(wide, active.radius, (carry["size"] / 1.5).clamp_min(active.radius / 10))
                carry["x"] = torch.where(wide, carry["best"], carry["x"])
                carry["gradient"] = torch.where(wide, carry["best_gradient"], carry["gradient"])
                since = 0
            gradient = carry["gradient"].flatten(1)
            rank = ((1 - carry["share"]) * size).long().clamp(0, size - 1)
            floor = gradient.abs().sort(dim=1).values.gather(1, rank[:, None])
            sparse = torch.where(gradient.abs() >= floor, gradient.sign(), 0.0).view_as(active.x)
            carry["x"] = active.project(carry["x"] + carry["size"] * normalise(sparse, "l1"), "l1")
            since += 1
        best.offer(positions, carry["best"], carry["loss"], torch.zeros_like(positions, dtype=torch.bool))
        return best.outcome()

    def _evaluate(self, active: AttackState, carry: Carry, loss: Loss, *, last: bool) -> tuple[Tensor, Tensor]:
        """Return objective and success of the iterates; renew the gradient unless they are the last."""
        if not last:
            logits, objective, carry["gradient"] = active.gradient(carry["x"], loss, self.eot_samples)
            return objective, active.fooled(logits)
        with torch.no_grad():
            logits = active.logits(carry["x"])
            return active.objective(logits, loss), active.fooled(logits)

    @staticmethod
    def _keep_best(carry: Carry, objective: Tensor) -> None:
        """Remember iterates with a larger loss than before."""
        better = objective > carry["loss"]
        wide = per_sample(better, carry["x"])
        carry["loss"] = torch.where(better, objective, carry["loss"])
        carry["best"] = torch.where(wide, carry["x"], carry["best"])
        carry["best_gradient"] = torch.where(wide, carry["gradient"], carry["best_gradient"])


class APGDT(APGD):
    """Targeted Auto-PGD (APGD-T): one run of the targeted DLR loss for each of the most likely other classes.

    The sample counts as fooled with any wrong answer, and then leaves; the later targets are tried on what is left.

    Args:
        targets: Number of classes tried, the most likely first; at most one less than there are.

    Raises:
        ValueError: If an argument is outside its range, or the model has fewer than 4 classes.

    References:
        Croce, Hein (arXiv 2003.01690), section 4.2 and eq. 7.
    """

    fixed = ("loss", "keep")

    def __init__(self, *, targets: int = 9, **shared: Unpack[APGDArguments]) -> None:
        super().__init__(loss="dlr", keep="first", **shared)
        check_count(targets=targets)
        if self.targeted:
            raise ValueError("APGDT chooses its targets itself; for a target of yours use APGD(targeted=True).")
        self.targets = targets

    def attack(self, state: AttackState) -> Outcome:
        """Try the targets in turn."""
        return try_targets(state, self.targets, self._toward)

    def _toward(self, active: AttackState, target: Tensor) -> Outcome:
        return self.ascend(
            active, lambda positions: lambda logits, label: targeted_dlr(logits, label, target[positions])
        )


def try_targets(state: AttackState, targets: int, attack: Callable[[AttackState, Tensor], Outcome]) -> Outcome:
    """Attack toward the most likely other classes in turn, each time the samples that are left."""
    others = state.clean_logits.scatter(1, state.label[:, None], float("-inf")).argsort(1, descending=True)
    best = BestSoFar(state)
    for number in range(min(targets, others.shape[1] - 1)):
        positions = (~best.success).nonzero()[:, 0]
        if not len(positions):
            break
        active = state.select(positions)
        active.random = active.random.fork(number)
        outcome = attack(active, others[positions, number])
        best.offer(positions, outcome.adversarial, outcome.score, outcome.success)
    return best.outcome()
