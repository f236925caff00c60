"""AutoAttack: an ensemble of parameter-free attacks, each on the samples that withstood the ones before."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor

from lit_modules.attacks.apgd import APGD, APGDT
from lit_modules.attacks.best_of import BestOf
from lit_modules.attacks.engine.base import Attack, AttackArguments, AttackResult
from lit_modules.attacks.engine.checks import Radius, check_samples
from lit_modules.attacks.engine.losses import cross_entropy
from lit_modules.attacks.engine.norms import check_norm, lp_norm
from lit_modules.attacks.engine.state import AttackState, BestSoFar, Model, Outcome
from lit_modules.attacks.fab import FAB, FABT
from lit_modules.attacks.square import Square
from lit_modules.utils.arguments import Unpack

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
        check_norm(norm, ("linf", "l2", "l1"))
        if version not in ("standard", "plus", "rand", "custom"):
            raise ValueError(f"version must be 'standard', 'plus', 'rand' or 'custom', got {version!r}.")
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
        self, model: Model, x: Tensor, y: Tensor | None = None, *, seed: int | torch.Generator | None = None
    ) -> AutoAttackResult:
        """Return the adversarial samples with the count of robust samples after each attack; see the base class."""
        check_samples(x)
        if not len(x):
            robust = dict.fromkeys(["clean", *self._members], 0)
            return AutoAttackResult(**vars(self.empty_result(x)), robust=robust)
        with self.session(model):
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
        for number, (name, member) in enumerate(self._members.items()):
            positions = (~best.success).nonzero()[:, 0]
            if len(positions):
                active = state.select(positions)
                active.random = active.random.fork(number)
                outcome = member.solve(active, torch.zeros_like(already[positions]))
                success = outcome.success
                if member.minimum_norm:
                    success = success & (lp_norm(outcome.adversarial - active.x, self.norm) <= active.radius.flatten())
                best.offer(positions[success], outcome.adversarial[success], outcome.score[success], success[success])
                if not member.minimum_norm:
                    rest = ~success
                    best.offer(positions[rest], outcome.adversarial[rest], outcome.score[rest], success[rest])
            if robust is not None:
                robust[name] = int((~best.success).sum())
                _logger.info("%s: %d of %d samples robust", name, robust[name], len(state))
        return best.outcome()

    def attack(self, state: AttackState) -> Outcome:
        """Run the ensemble once."""
        return self.solve(state, torch.zeros(len(state), dtype=torch.bool, device=state.x.device))

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
