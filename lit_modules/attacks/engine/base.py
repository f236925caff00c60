"""What every attack shares: arguments, the active set, restarts, and the record of a run."""

from __future__ import annotations

import inspect
import warnings
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from torch import Tensor

from lit_modules.attacks.engine.checks import (
    Bounds,
    Radius,
    check_bounds,
    check_count,
    check_eps,
    check_labels,
    check_radius,
    check_samples,
)
from lit_modules.attacks.engine.describe import describe
from lit_modules.attacks.engine.norms import lp_norm
from lit_modules.attacks.engine.oracle import Model, Oracle
from lit_modules.attacks.engine.problem import Outcome, Problem, check_repeatable
from lit_modules.attacks.engine.random import SampleRandom
from lit_modules.attacks.wrappers import EOT, EstimatedGradient
from lit_modules.utils.model_modes import evaluation_mode, modules_of, no_parameter_gradients


@dataclass(frozen=True)
class AttackResult:
    """What an attack found.

    Attributes:
        adversarial: Adversarial samples, shape and dtype of the input.
        success: Whether the model is fooled (targeted: answers the target), ``(batch,)``.
        distance: Norm of the perturbation in the attack's norm, float64, ``(batch,)``; L2 for attacks without one;
            infinite where an attack for the smallest perturbation found none.
        forward_passes: Forward passes spent on each sample, ``(batch,)``.
        already: Samples that needed no attack, ``(batch,)``; they come back unchanged.
    """

    adversarial: Tensor
    success: Tensor
    distance: Tensor
    forward_passes: Tensor
    already: Tensor


class AttackArguments(TypedDict, total=False):
    """Arguments that every attack takes by name; see :class:`Attack`."""

    targeted: bool
    bounds: Bounds | None
    restarts: int
    seed: int
    precision: Literal["32", "bf16"]
    model_mode: Literal["eval", "keep"]


class Attack(ABC):
    """Base of the attacks: ``attack(model, x, y)`` gives adversarial samples, ``attack.run(model, x, y)`` a record.

    The model is called in evaluation mode, without gradients of its parameters, and is left as it was found. A sample
    that is already misclassified comes back unchanged; a sample on which the attack fails comes back as the best
    attempt, or unchanged from an attack that looks for the smallest perturbation. Randomness belongs to each sample:
    neither the batch nor its order changes a result.

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
    fixed: tuple[str, ...] = ()  # arguments of the base that the attack sets itself
    minimal = False  # looks for the smallest perturbation instead of the best in a radius

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
        check_count("restarts", restarts)
        if precision not in ("32", "bf16"):
            raise ValueError(f"precision must be '32' or 'bf16', got {precision!r}.")
        if model_mode not in ("eval", "keep"):
            raise ValueError(f"model_mode must be 'eval' or 'keep', got {model_mode!r}.")
        self.targeted = targeted
        self.bounds = bounds
        self.restarts = restarts
        self.seed = seed
        self.precision = precision
        self.model_mode = model_mode

    def checked_eps(self, eps: Radius) -> Radius:
        """Return a radius that is not negative, and warn of one that bounds of two numbers cannot need.

        Raises:
            ValueError: If it is negative or no radius.
        """
        check_eps(eps)
        if self.norm == "linf" and self._has_plain_bounds():
            assert self.bounds is not None
            warn_wide("linf", torch.as_tensor(eps), torch.as_tensor(self.bounds[1] - self.bounds[0]))
        return eps

    def _has_plain_bounds(self) -> bool:
        return self.bounds is not None and not any(isinstance(side, Tensor) for side in self.bounds)

    @abstractmethod
    def attack(self, problem: Problem) -> Outcome:
        """Attack samples that the model still classifies as it should: the method proper, one restart."""

    def __call__(
        self, model: Model, x: Tensor, y: Tensor | None = None, *, seed: int | torch.Generator | None = None
    ) -> Tensor:
        """Return adversarial samples, shape and dtype of ``x``.

        Args:
            model: Gives logits ``(batch, classes)`` for samples within the bounds.
            x: Samples, floating point, ``(batch, *)``.
            y: Labels, int64 ``(batch,)``, or targets of a targeted attack; ``None`` takes the model's own answers.
            seed: Replaces the attack's seed in this call; a generator gives a new seed at each call.
        """
        return self.run(model, x, y, seed=seed).adversarial

    def run(
        self, model: Model, x: Tensor, y: Tensor | None = None, *, seed: int | torch.Generator | None = None
    ) -> AttackResult:
        """Return the adversarial samples with success, distance and cost; arguments as of a call.

        Raises:
            ValueError: If an argument is malformed.
            RuntimeError: If the attack passed its own radius or bounds.
        """
        check_samples(x)
        if not len(x):
            return self.result_of_none(x)
        with self.session(model):
            problem = self.problem(model, x, y, seed)
            already = problem.already()
            return self.result(problem, x, self.solve(problem, already), already)

    def result(self, problem: Problem, x: Tensor, outcome: Outcome, already: Tensor) -> AttackResult:
        """Return the record of a run, after the audit of what is returned.

        Args:
            problem: All samples.
            x: The samples as they were given.
            outcome: What the run found.
            already: Samples that needed no attack.
        """
        adversarial = problem.returned(outcome.adversarial, x)
        distance = problem.audit(adversarial, self.norm)
        if self.minimal:
            distance = distance.masked_fill(~outcome.success, float("inf"))
        return AttackResult(adversarial, outcome.success, distance, problem.spent, already)

    def result_of_none(self, x: Tensor) -> AttackResult:
        """Return the record of an empty batch."""
        none = torch.zeros(0, dtype=torch.bool, device=x.device)
        return AttackResult(x.clone(), none, none.double(), none.long(), none)

    def solve(self, problem: Problem, already: Tensor) -> Outcome:
        """Run the attack with its restarts on the samples that are not misclassified yet."""
        adversarial, success = problem.x.clone(), already.clone()
        score = torch.full_like(already, float("-inf"), dtype=problem.x.dtype)
        for restart in range(self.restarts):
            index = (~(already if self.minimal else success)).nonzero()[:, 0]
            if not len(index):
                break
            part = problem.select(index)
            part.random = part.random.fork(restart)
            found = self.attack(part)
            better = found.success & ~success[index]
            better |= (found.success == success[index]) & (found.score > score[index])
            chosen = index[better]
            adversarial[chosen] = found.adversarial[better].to(adversarial.dtype)
            success[chosen] = found.success[better]
            score[chosen] = found.score[better].to(score.dtype)
        return Outcome(adversarial, success, score)

    def session(self, model: Model) -> ExitStack:
        """Return the context in which a model is attacked: gradients on, those of parameters off, evaluation mode."""
        stack = ExitStack()
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(no_parameter_gradients(model))
        if self.model_mode == "eval":
            stack.enter_context(evaluation_mode(model))
        return stack

    def problem(
        self, model: Model, x: Tensor, y: Tensor | None, seed: int | torch.Generator | None, clean: bool = True
    ) -> Problem:
        """Check the input and make the problem of the whole batch.

        Args:
            model: Gives logits.
            x: Samples.
            y: Labels or targets.
            seed: Seed, generator or ``None``.
            clean: Whether to evaluate the clean samples; they are evaluated anyway if ``y`` is ``None``.
        """
        check_samples(x)
        lower, upper = check_bounds(self.bounds, x)
        if self.targeted and y is None:
            raise ValueError("A targeted attack needs y, the class that each sample shall be taken for.")
        asks = any(isinstance(module, EstimatedGradient) for module in modules_of(model))
        oracle = Oracle(model, x, probe=not asks)
        dtype = torch.promote_types(torch.promote_types(x.dtype, oracle.own_dtype), torch.float32)
        # a copy of its own: contiguous, whatever layout was given, and no tensor of an inference mode
        work = torch.empty(x.shape, dtype=dtype, device=x.device).copy_(x.detach())
        problem = Problem(
            oracle=oracle,
            x=work,
            label=torch.zeros(len(x), dtype=torch.int64, device=x.device) if y is None else check_labels(y, x),
            radius=None if self.eps is None else check_radius(self.eps, work),
            lower=None if lower is None else lower.to(dtype),
            upper=None if upper is None else upper.to(dtype),
            random=SampleRandom.of(work, resolve_seed(self.seed if seed is None else seed)),
            clean_logits=None,
            targeted=self.targeted,
            spent=torch.zeros(len(x), dtype=torch.int64, device=x.device),
            index=torch.arange(len(x), device=x.device),
            precision=self.precision,
            dtype=x.dtype,
        )
        checked = self.norm == "linf" and self._has_plain_bounds()  # when the attack was made
        if not checked and problem.radius is not None and lower is not None and upper is not None and self.norm != "l0":
            width = (upper - lower).expand_as(work)
            warn_wide(self.norm or "l2", problem.radius.flatten(), lp_norm(width, self.norm or "l2"))
        if clean or y is None:
            with torch.no_grad():
                problem.clean_logits = problem.logits(work)
                training = any(module.training for module in modules_of(model))
                if self.model_mode == "keep" and training and not isinstance(model, EOT):
                    check_repeatable(problem)
            if y is None:
                problem.label = problem.clean_logits.argmax(1)
        return problem

    def arguments(self) -> dict[str, object]:
        """Return the arguments of the class, and those of its bases that are not the default, by name."""
        found: dict[str, object] = {}
        seen = set(self.fixed)
        for kind in type(self).__mro__:
            for name, parameter in inspect.signature(kind).parameters.items() if kind is not object else ():
                if name in seen or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                    continue
                seen.add(name)
                if not hasattr(self, name):
                    continue
                value = getattr(self, name)
                differs = parameter.default is not parameter.empty and describe(value) != describe(parameter.default)
                if kind is type(self) or differs:  # what a base needs and the class does not take, it sets itself
                    found[name] = value
        return found

    def __repr__(self) -> str:
        """Return the class with its arguments; attacks that differ in one differ in this."""
        return f"{type(self).__name__}({', '.join(f'{k}={describe(v)}' for k, v in self.arguments().items())})"


def warn_wide(norm: str, radius: Tensor, width: Tensor) -> None:
    """Warn of a radius beyond the largest distance within the bounds.

    Args:
        norm: Norm.
        radius: Radii.
        width: Norm of the difference of the bounds, one or as many.
    """
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
