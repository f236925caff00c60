"""Base class of the attacks, their shared arguments, and the record of a run."""

from __future__ import annotations

import inspect
import warnings
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from types import FunctionType
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn

from lit_modules.attacks.engine.checks import (
    Bounds,
    Radius,
    check_bounds,
    check_choice,
    check_count,
    check_eps,
    check_labels,
    check_radius,
    check_samples,
)
from lit_modules.attacks.engine.norms import lp_norm
from lit_modules.attacks.engine.random import SampleRandom
from lit_modules.attacks.engine.state import AttackState, BestSoFar, Model, Oracle, Outcome, Seed, check_repeatable
from lit_modules.attacks.wrappers import EOT, EstimatedGradient
from lit_modules.utils.fingerprint import UnidentifiableError, identify
from lit_modules.utils.model_modes import evaluation_mode, modules_of, no_parameter_gradients

_SHOWN = 16  # most numbers of a tensor that are written out in a text


@dataclass(frozen=True)
class AttackResult:
    """Record of an attack.

    Attributes:
        adversarial: Adversarial samples, shape and dtype of the input.
        success: Whether the model is fooled (targeted: answers the target), ``(batch,)``.
        distance: Norm of the perturbation in the attack's norm, float64, ``(batch,)``; L2 for attacks without one;
            infinite where a minimum-norm attack failed.
        num_queries: Forward passes spent on each sample, ``(batch,)``.
        already: Samples that needed no attack, ``(batch,)``; they come back unchanged.
    """

    adversarial: Tensor
    success: Tensor
    distance: Tensor
    num_queries: Tensor
    already: Tensor


class AttackArguments(TypedDict, total=False):
    """Arguments that all attacks share; see :class:`Attack`."""

    targeted: bool
    bounds: Bounds | None
    restarts: int
    seed: int
    precision: Literal["32", "bf16"]
    model_mode: Literal["eval", "keep"]


class Attack(ABC):
    """Base of the attacks: ``attack(model, x, y)`` gives adversarial samples, ``attack.run(model, x, y)`` a record.

    The model is called in evaluation mode, without gradients of its parameters, and is left as it was. A sample that is
    already misclassified comes back unchanged; a sample on which the attack fails comes back as the best attempt, or
    unchanged from a minimum-norm attack. Random numbers belong to each sample: neither the batch nor its order changes
    a result.

    Args:
        targeted: Whether ``y`` is the class to be reached.
        bounds: Least and largest value of a sample, numbers or tensors that broadcast; ``None`` for no bounds.
        restarts: Independent runs; the best result of each sample is kept.
        seed: Seed of the random numbers.
        precision: ``bf16`` runs the model's forward pass under autocast; perturbation and projection stay in float32
            (float64 if the samples or the model are).
        model_mode: ``eval`` puts the model in evaluation mode during the attack; ``keep`` leaves its mode.

    Raises:
        ValueError: If an argument is outside its range.
    """

    norm: str | None = None
    eps: Radius | None = None
    fixed: tuple[str, ...] = ()  # arguments of a base class that the attack sets itself
    minimum_norm = False  # seeks the smallest perturbation instead of the largest loss in a radius

    def __init__(
        self,
        *,
        targeted: bool = False,
        bounds: Bounds | None = (0.0, 1.0),
        restarts: int = 1,
        seed: int = 0,
        precision: Literal["32", "bf16"] = "32",
        model_mode: Literal["eval", "keep"] = "eval",
    ) -> None:
        check_count(restarts=restarts)
        check_choice("precision", precision, ("32", "bf16"))
        check_choice("model_mode", model_mode, ("eval", "keep"))
        self.targeted = targeted
        self.bounds = bounds
        self.restarts = restarts
        self.seed = seed
        self.precision = precision
        self.model_mode = model_mode

    def checked_eps(self, eps: Radius) -> Radius:
        """Return a radius that is not negative, and warn of one wider than bounds of two numbers."""
        check_eps(eps)
        if self.norm == "linf" and self.bounds is not None and self._has_plain_bounds():
            warn_wide("linf", torch.as_tensor(eps), torch.as_tensor(self.bounds[1] - self.bounds[0]))
        return eps

    def _has_plain_bounds(self) -> bool:
        return self.bounds is not None and not any(isinstance(side, Tensor) for side in self.bounds)

    @abstractmethod
    def attack(self, state: AttackState) -> Outcome:
        """Attack samples that the model still classifies as it should: the method proper, one restart."""

    def __call__(self, model: Model, x: Tensor, y: Tensor | None = None, *, seed: Seed = None) -> Tensor:
        """Return adversarial samples, shape and dtype of ``x``.

        Args:
            model: Gives logits ``(batch, classes)`` for samples within the bounds.
            x: Samples, floating point, ``(batch, *)``.
            y: Labels, int64 ``(batch,)``, or targets of a targeted attack; ``None`` takes the model's own answers.
            seed: Replaces the attack's seed in this call; a generator gives a new seed at each call.
        """
        return self.run(model, x, y, seed=seed).adversarial

    def run(self, model: Model, x: Tensor, y: Tensor | None = None, *, seed: Seed = None) -> AttackResult:
        """Return the adversarial samples with success, distance and cost; arguments as of a call.

        Raises:
            ValueError: If an argument is malformed.
            RuntimeError: If the attack exceeded its own radius or bounds.
        """
        check_samples(x)
        if not len(x):
            return self.empty_result(x)
        with self.session(model):
            state = self.prepare(model, x, y, seed)
            already = state.already()
            return self.result(state, x, self.solve(state, already), already)

    def result(self, state: AttackState, x: Tensor, outcome: Outcome, already: Tensor) -> AttackResult:
        """Return the record of a run on the input samples ``x``, after the audit of the samples returned."""
        adversarial = state.returned(outcome.adversarial, x)
        distance = state.audit(adversarial, self.norm)
        if self.minimum_norm:
            distance = distance.masked_fill(~outcome.success, float("inf"))
        return AttackResult(adversarial, outcome.success, distance, state.num_queries, already)

    def empty_result(self, x: Tensor) -> AttackResult:
        """Return the record of an empty batch."""
        none = torch.zeros(0, dtype=torch.bool, device=x.device)
        return AttackResult(x.clone(), none, none.double(), none.long(), none)

    def solve(self, state: AttackState, already: Tensor) -> Outcome:
        """Run the attack with its restarts on the samples that are not misclassified yet."""
        best = BestSoFar(state)
        best.success |= already
        for restart in range(self.restarts):
            index = (~(already if self.minimum_norm else best.success)).nonzero()[:, 0]
            if not len(index):
                break
            active = state.select(index)
            active.random = active.random.fork(restart)
            outcome = self.attack(active)
            best.offer(index, outcome.adversarial, outcome.score, outcome.success)
        return best.outcome()

    def session(self, model: Model) -> ExitStack:
        """Return the context of an attack: gradients on, those of parameters off, evaluation mode."""
        stack = ExitStack()
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(no_parameter_gradients(model))
        if self.model_mode == "eval":
            stack.enter_context(evaluation_mode(model))
        return stack

    def prepare(self, model: Model, x: Tensor, y: Tensor | None, seed: Seed, clean: bool = True) -> AttackState:
        """Check the arguments of a call and return the state of the whole batch.

        Without ``clean`` the clean samples are evaluated only if ``y`` is ``None``.
        """
        check_samples(x)
        lower, upper = check_bounds(self.bounds, x)
        if self.targeted and y is None:
            raise ValueError("A targeted attack needs y, the class that each sample shall be taken for.")
        estimated = any(isinstance(module, EstimatedGradient) for module in modules_of(model))
        oracle = Oracle(model, x, probe=not estimated)
        dtype = torch.promote_types(torch.promote_types(x.dtype, oracle.own_dtype), torch.float32)
        # a copy: contiguous in any layout of the input, and no tensor of an inference mode
        work = torch.empty(x.shape, dtype=dtype, device=x.device).copy_(x.detach())
        state = AttackState(
            oracle=oracle,
            x=work,
            label=torch.zeros(len(x), dtype=torch.int64, device=x.device) if y is None else check_labels(y, x),
            eps=None if self.eps is None else check_radius(self.eps, work),
            lower=None if lower is None else lower.to(dtype),
            upper=None if upper is None else upper.to(dtype),
            random=SampleRandom.of(work, resolve_seed(self.seed if seed is None else seed)),
            clean=None,
            targeted=self.targeted,
            num_queries=torch.zeros(len(x), dtype=torch.int64, device=x.device),
            index=torch.arange(len(x), device=x.device),
            precision=self.precision,
            dtype=x.dtype,
        )
        warned = self.norm == "linf" and self._has_plain_bounds()  # when the attack was made
        if not warned and state.eps is not None and lower is not None and upper is not None and self.norm != "l0":
            width = (upper - lower).expand_as(work)
            warn_wide(self.norm or "l2", state.eps.flatten(), lp_norm(width, self.norm or "l2"))
        if clean or y is None:
            with torch.no_grad():
                state.clean = state.logits(work)
                training = any(module.training for module in modules_of(model))
                if self.model_mode == "keep" and training and not isinstance(model, EOT):
                    check_repeatable(state)
            if y is None:
                state.label = state.clean.argmax(1)
        return state

    def arguments(self) -> dict[str, object]:
        """Return the arguments of the attack by name; those of :class:`Attack` only if not the default."""
        values: dict[str, object] = {}
        for kind in type(self).__mro__[: type(self).__mro__.index(Attack) + 1]:
            for name, parameter in inspect.signature(kind).parameters.items():
                if name in values or name in self.fixed or not hasattr(self, name):
                    continue
                # an argument without default in a base class is set by its subclasses
                if kind is not type(self) and parameter.default is parameter.empty:
                    continue
                if kind is not Attack or describe(getattr(self, name)) != describe(parameter.default):
                    values[name] = getattr(self, name)
        return values

    def __repr__(self) -> str:
        """Return the class with its arguments; attacks that differ in one differ in this."""
        return f"{type(self).__name__}({', '.join(f'{k}={describe(v)}' for k, v in self.arguments().items())})"


def describe(value: object) -> str:
    """Return the text of an argument; it differs for arguments that act differently.

    Numbers, texts, containers and small tensors are written out; losses, modules and large tensors carry the beginning
    of their hash. Objects without a hash have their own text.

    Args:
        value: Argument of an attack.

    Example:
        >>> describe((torch.tensor(0.5), 1.0))
        '(tensor(0.5, dtype=torch.float32), 1.0)'
    """
    if isinstance(value, list):
        return f"[{', '.join(map(describe, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(describe, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, Tensor):
        if value.numel() <= _SHOWN:
            return f"tensor({value.tolist()!r}, dtype={value.dtype})"
        return f"tensor(shape={tuple(value.shape)}, dtype={value.dtype}, hash={identify(value)[:16]})"
    if value is None or isinstance(value, bool | int | float | str | Attack):
        return repr(value)
    kind = value if isinstance(value, FunctionType) else type(value)
    name = repr(value) if isinstance(value, nn.Module) else f"{kind.__module__}.{kind.__qualname__}"
    try:
        return f"{name}#{identify(value)[:16]}"
    except UnidentifiableError:
        return repr(value)


def warn_wide(norm: str, radius: Tensor, width: Tensor) -> None:
    """Warn of a radius beyond the largest distance within the bounds."""
    wide = (radius > width.to(radius)) & (width.to(radius) > 0)
    if bool(wide.any()):
        eps, most = float(radius.max()), float(width.max())
        levels = f" Did you mean {eps:g}/255?" if norm == "linf" and most <= 2 and eps <= 255 else ""
        warnings.warn(
            f"eps={eps:g} is larger than any {norm} distance within the bounds, {most:g}; give it in units of the "
            f"samples.{levels}",
            stacklevel=4,
        )


def warn_zero_gradient(gradient: Tensor) -> None:
    """Warn if no sample has a gradient: the model may be constant or hide it."""
    if not bool(gradient.any()):
        warnings.warn(
            f"The gradient of the loss is exactly zero for all {len(gradient)} samples: the model is constant there or "
            "hides its gradient; try loss='margin', or an attack without gradients, as Square.",
            stacklevel=2,
        )


def resolve_seed(seed: int | torch.Generator) -> int:
    """Return the seed, or draw one from a generator."""
    if isinstance(seed, torch.Generator):
        return int(torch.randint(2**62, (1,), generator=seed, device=seed.device))
    return int(seed)
