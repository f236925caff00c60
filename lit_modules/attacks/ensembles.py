"""Ensembles: AutoAttack, and the strongest of several attacks."""

from __future__ import annotations

import inspect
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from lit_modules.attacks.apgd import APGD, APGDT
from lit_modules.attacks.boundary import FAB, FABT
from lit_modules.attacks.engine.base import Attack, AttackArguments, AttackResult
from lit_modules.attacks.engine.checks import Radius, check_choice, check_radius, check_samples
from lit_modules.attacks.engine.losses import cross_entropy, margin
from lit_modules.attacks.engine.norms import lp_norm
from lit_modules.attacks.engine.state import AttackState, BestSoFar, Model, Outcome, Seed
from lit_modules.attacks.square import Square
from lit_modules.utils.arguments import Unpack
from lit_modules.utils.progress import alone, step


class EnsembleArguments(TypedDict, total=False):
    """Shared arguments that an ensemble does not take from its members."""

    restarts: int
    seed: int


class BestOf(Attack):
    """Run several attacks and keep the best result of each sample.

    A success counts more than any failure. Among successes, the smallest distance counts if one of the attacks looks
    for the smallest perturbation, else the largest margin; among failures, the largest margin of the logits. With
    ``keep="first"`` a sample meets the next attack only while nothing has fooled the model, so later attacks see
    fewer samples; put the cheap ones first. A sample on which all fail comes back as the best attempt, or unchanged
    if all look for the smallest perturbation.

    Each attack keeps its norm, radius and restarts, and is held to them. ``targeted``, ``bounds``, ``precision`` and
    ``model_mode`` must be equal in all attacks and are taken from them. AdverTorch has such an ensemble from 0.2 on,
    which returns black images where all attacks fail.

    Args:
        attacks: Attacks, in the order in which they run.
        keep: ``first``: a sample leaves with the first success; ``best``: all attacks run on all samples.

    Raises:
        TypeError: If something is no attack, or an attack that takes no labels, as FastFeature.
        ValueError: If there is no attack, or the attacks disagree.

    Example:
        >>> from lit_modules.attacks.pgd import FGSM, LinfPGD
        >>> attack = BestOf(attacks=[FGSM(eps=0.1), LinfPGD(eps=0.1, steps=10, step_size=0.02)])
    """

    def __init__(
        self,
        *,
        attacks: Sequence[Attack],
        keep: Literal["first", "best"] = "first",
        **shared: Unpack[EnsembleArguments],
    ) -> None:
        attacks = list(attacks)
        if not attacks:
            raise ValueError("attacks must hold at least one attack, got none.")
        for attack in attacks:
            if not isinstance(attack, Attack):
                raise TypeError(f"attacks must hold attacks of lit_modules.attacks, got {type(attack).__name__}.")
            if "y" not in inspect.signature(attack.run).parameters:
                raise TypeError(f"BestOf gives its attacks labels; {type(attack).__name__} takes something else.")
        check_choice("keep", keep, ("first", "best"))
        first = attacks[0]
        super().__init__(
            targeted=first.targeted,
            bounds=first.bounds,
            precision=first.precision,
            model_mode=first.model_mode,
            **shared,
        )
        for attack in attacks:
            for name in ("targeted", "bounds", "precision", "model_mode"):
                if not _equal(getattr(attack, name), getattr(self, name)):
                    raise ValueError(
                        f"All attacks of BestOf need the same {name}, got {getattr(attack, name)!r} in "
                        f"{type(attack).__name__} and {getattr(self, name)!r}."
                    )
        norms = {attack.norm for attack in attacks}
        self.attacks = attacks
        self.keep = keep
        self.norm = norms.pop() if len(norms) == 1 else None
        self.minimum_norm = all(attack.minimum_norm for attack in attacks)
        self._nearest = any(attack.minimum_norm for attack in attacks)
        if self.norm is not None and all(_equal(attack.eps, first.eps) for attack in attacks):
            self.eps = first.eps

    def attack(self, state: AttackState) -> Outcome:
        """Run the attacks in their order."""
        best = BestSoFar(state, None if self.minimum_norm else margin)
        for number, attack in enumerate(self.attacks):
            positions = (~best.success).nonzero()[:, 0] if self.keep == "first" else state.positions()
            if not len(positions):
                break
            active = state.select(positions)
            active.random = active.random.fork(number).fork(attack.seed)
            active.eps = _radius(attack.eps, active)
            outcome = attack.solve(active, torch.zeros_like(best.success[positions]))
            active.audit(outcome.adversarial, attack.norm)
            best.offer(positions, outcome.adversarial, self._score(active, outcome), outcome.success)
        return best.outcome()

    def _score(self, state: AttackState, outcome: Outcome) -> Tensor:
        """Return what makes one result better than another of equal success."""
        nearness = -lp_norm(outcome.adversarial.to(state.x.dtype) - state.x, self.norm or "l2")
        if self.minimum_norm:
            return torch.where(outcome.success, nearness, float("-inf"))
        with torch.no_grad():
            gap = state.objective(state.logits(outcome.adversarial), margin)
        return torch.where(outcome.success, nearness, gap) if self._nearest else gap


def _radius(eps: Radius | None, state: AttackState) -> Tensor | None:
    """Return the radius of the samples that are left."""
    if isinstance(eps, Tensor) and eps.ndim and len(eps) > 1:
        eps = eps.to(state.x.device)[state.index]
    return None if eps is None else check_radius(eps, state.x)


def _equal(first: object, second: object) -> bool:
    """Return whether two settings are the same; tensors are compared by value."""
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(_equal(a, b) for a, b in zip(first, second, strict=True))
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        a, b = torch.as_tensor(first), torch.as_tensor(second)
        return a.shape == b.shape and bool((a == b).all())
    return first == second


Version = Literal["standard", "plus", "rand", "custom"]
AttackNorm = Literal["linf", "l2", "l1"]
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AutoAttackResult(AttackResult):
    """Record of AutoAttack.

    Attributes:
        robust: Number of samples that are still classified rightly, before the attacks (``clean``) and after each.
        flags: Reasons to doubt the robust accuracy, one sentence each.
    """

    robust: dict[str, int] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


class AutoAttack(Attack):
    """AutoAttack, with all attacks sharing the clean logits and the set of samples that are left.

    ``standard``: APGD-CE, APGD-T and FAB-T with 9 targets, Square with 5000 queries; in L1 APGD-CE has 5 restarts and
    APGD-T 5 targets. ``plus``: APGD-CE, APGD-DLR and FAB with 5 restarts, Square, APGD-T,
    FAB-T. ``rand``: APGD-CE and APGD-DLR with gradients averaged over 20 passes, for a model that answers at random.
    ``custom``: the attacks given.

    Args:
        norm: ``linf``, ``l2`` or ``l1``.
        eps: Radius in units of the samples, a number or one per sample.
        version: ``standard``, ``plus``, ``rand`` or ``custom``.
        attacks: Attacks of ``custom``, run in this order with this radius; they must be of the same norm.
        check: Look for signs of a doubtful evaluation (random answers, zero gradients, optimisation inside the model,
            Square stronger than the attacks with gradients) and warn of each.

    Raises:
        ValueError: If an argument is outside its range, or the model has too few classes.

    Example:
        >>> model = torch.nn.Linear(8, 5)
        >>> x, y = torch.rand(4, 8), torch.tensor([0, 1, 2, 3])
        >>> result = AutoAttack(norm="linf", eps=0.1).run(model, x, y)
        >>> list(result.robust)
        ['clean', 'apgd-ce', 'apgd-t', 'fab-t', 'square']

    References:
        Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks"
        (arXiv 2003.01690), section 6.
    """

    def __init__(
        self,
        *,
        norm: AttackNorm = "linf",
        eps: Radius = 0.3,
        version: Version = "standard",
        attacks: Sequence[Attack] | None = None,
        check: bool = True,
        **shared: Unpack[AttackArguments],
    ) -> None:
        super().__init__(**shared)
        check_choice("norm", norm, ("linf", "l2", "l1"))
        check_choice("version", version, ("standard", "plus", "rand", "custom"))
        if (attacks is not None and len(attacks) > 0) != (version == "custom"):
            raise ValueError(f"attacks belong to version='custom' and only to it, got {attacks!r} with {version!r}.")
        if self.targeted:
            raise ValueError("AutoAttack chooses its targets itself; for a target of yours use APGD(targeted=True).")
        self.norm: str = norm
        self.eps = self.checked_eps(eps)
        self.version = version
        self.attacks = None if attacks is None else list(attacks)
        self.check = check
        self._members = self._custom(self.attacks) if self.attacks else _members(norm, version)

    def run(
        self, model: Model, x: Tensor, y: Tensor | None = None, *, seed: Seed = None, progress: bool = False
    ) -> AutoAttackResult:
        """Return the adversarial samples with the count of robust samples after each attack; see the base class.

        Args:
            model: Gives logits.
            x: Samples.
            y: Labels.
            seed: Replaces the attack's seed.
            progress: Show a bar on a terminal or in a notebook: the attack, the samples that are left, its passes.
        """
        check_samples(x)
        if not len(x):
            robust = dict.fromkeys(["clean", *self._members], 0)
            return AutoAttackResult(**vars(self.empty_result(x)), robust=robust)
        with alone(progress), self.session(model):
            state = self.prepare(model, x, y, seed)
            already = state.already()
            flags = self._flags(state) if self.check else []
            self._need_classes(state.clean_logits.shape[1])
            robust = {"clean": int((~already).sum())}
            outcome = self.solve(state, already, robust)
            flags += self._square_flag(robust, len(x))
            result = self.result(state, x, outcome, already)
        for flag in flags:
            warnings.warn(flag, stacklevel=2)
        return AutoAttackResult(**vars(result), robust=robust, flags=tuple(flags))

    def solve(self, state: AttackState, already: Tensor, robust: dict[str, int] | None = None) -> Outcome:
        """Run the attacks in turn, each with its restarts, on the samples that are left."""
        best = BestSoFar(state)
        best.success |= already
        with step(f"AutoAttack {self.norm}", len(self._members)) as bar:
            for number, (name, member) in enumerate(self._members.items()):
                positions = (~best.success).nonzero()[:, 0]
                bar.say(f"{name}, {len(positions)} of {len(state)} left")
                if len(positions):
                    self._run_member(state.select(positions), number, member, best=best, positions=positions)
                if robust is not None:
                    robust[name] = int((~best.success).sum())
                    _logger.info("%s: %d of %d samples robust", name, robust[name], len(state))
                bar.advance()
        return best.outcome()

    def attack(self, state: AttackState) -> Outcome:
        """Run the ensemble once."""
        return self.solve(state, torch.zeros(len(state), dtype=torch.bool, device=state.x.device))

    def _run_member(
        self, active: AttackState, number: int, member: Attack, *, best: BestSoFar, positions: Tensor
    ) -> None:
        """Run an attack on the samples that are left, and keep what it has found."""
        active.random = active.random.fork(number)
        outcome = member.solve(active, torch.zeros_like(best.success[positions]))
        success = outcome.success
        if member.minimum_norm:
            success = success & (lp_norm(outcome.adversarial - active.x, self.norm) <= active.radius.flatten())
        best.offer(positions[success], outcome.adversarial[success], outcome.score[success], success[success])
        if not member.minimum_norm:
            rest = ~success
            best.offer(positions[rest], outcome.adversarial[rest], outcome.score[rest], success[rest])

    def _custom(self, attacks: list[Attack]) -> dict[str, Attack]:
        members: dict[str, Attack] = {}
        for attack in attacks:
            if attack.norm != self.norm:
                raise ValueError(f"The attacks must have the norm {self.norm!r}, got {attack!r}.")
            if isinstance(attack, AutoAttack | BestOf):
                raise ValueError(
                    f"The attacks of an ensemble must not be ensembles; give their members, got {attack!r}."
                )
            if attack.targeted:
                raise ValueError(f"The attacks of an ensemble must be untargeted, got {attack!r}.")
            name = type(attack).__name__.lower()
            members[name if name not in members else f"{name}-{len(members)}"] = attack
        return members

    def _need_classes(self, classes: int) -> None:
        """Refuse a model with too few classes for the DLR losses."""
        need = {"standard": 4, "plus": 4, "rand": 3, "custom": 2}[self.version]
        if classes < need:
            raise ValueError(
                f"AutoAttack {self.version!r} needs at least {need} classes for the DLR loss, got {classes}; use "
                "version='custom' with APGD(loss='cross_entropy'), FAB and Square."
            )

    def _flags(self, state: AttackState) -> list[str]:
        """Return the signs of a doubtful evaluation that show before the attack."""
        flags = []
        with torch.no_grad():
            if calls_autograd(state):
                flags.append(
                    "The model runs a backward pass inside its forward pass; AutoAttack does not fit such a defence."
                )
            spread = max(float((state.logits(state.x) - state.clean_logits).abs().max()) for _ in range(4))
        if spread > 1e-4 and self.version != "rand":
            flags.append(f"The model answers at random (logits differ by {spread:.2g}); use version='rand'.")
        _, _, gradient = state.gradient(state.x, cross_entropy)
        zero = int((gradient.flatten(1) == 0).all(1).sum())
        if zero:
            flags.append(f"The gradient of the cross-entropy is exactly zero for {zero} of {len(state)} samples.")
        return flags

    def _square_flag(self, robust: dict[str, int], total: int) -> list[str]:
        """Return a sentence if Square found what the attacks with gradients missed."""
        names = list(robust)
        if "square" not in names[2:]:  # after "clean" and one attack
            return []
        gain = 100 * (robust[names[names.index("square") - 1]] - robust["square"]) / total
        if gain <= 0.2:
            return []
        return [f"Square lowers the robust accuracy by {gain:.2f} points more; the model may hide its gradients."]


def calls_autograd(state: AttackState) -> bool:
    """Return whether one forward pass of the model calls ``torch.autograd.grad`` or ``backward``."""
    seen = False

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal seen
        if event == "call" and frame.f_code.co_name in ("grad", "backward"):
            seen = seen or frame.f_globals.get("__name__", "").startswith(("torch.autograd", "torch._tensor"))

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        state.select(state.index[:1]).logits(state.x[:1])
    finally:
        sys.setprofile(before)
    return seen


def _members(norm: AttackNorm, version: Version) -> dict[str, Attack]:
    """Return the attacks of a version in their order."""
    if version == "rand":
        return {
            "apgd-ce": APGD(norm=norm, loss="cross_entropy", eot_samples=20),
            "apgd-dlr": APGD(norm=norm, loss="dlr", eot_samples=20),
        }
    square = Square(norm=norm)
    targeted = APGDT(norm=norm, targets=5 if norm == "l1" else 9)
    if version == "standard":
        ascent = APGD(norm=norm, restarts=5 if norm == "l1" else 1)
        return {"apgd-ce": ascent, "apgd-t": targeted, "fab-t": FABT(norm=norm), "square": square}
    return {
        "apgd-ce": APGD(norm=norm, restarts=5),
        "apgd-dlr": APGD(norm=norm, loss="dlr", restarts=5),
        "fab": FAB(norm=norm, restarts=5),
        "square": square,
        "apgd-t": targeted,
        "fab-t": FABT(norm=norm),
    }
