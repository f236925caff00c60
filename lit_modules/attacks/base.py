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

from lit_modules.attacks.checks import (
    Bounds,
    Radius,
    check_bounds,
    check_count,
    check_labels,
    check_radius,
    check_samples,
)
from lit_modules.attacks.contexts import evaluation_mode, no_parameter_gradients
from lit_modules.attacks.problem import Model, Outcome, Problem, check_repeatable
from lit_modules.attacks.random import SampleRandom
from lit_modules.attacks.wrappers import EOT


@dataclass(frozen=True)
class AttackResult:
    """What an attack found.

    Attributes:
        adversarial: Adversarial samples, shape and dtype of the input.
        success: Whether the model is fooled (targeted: answers the target), ``(batch,)``.
        distance: Norm of the perturbation in the attack's norm, float64, ``(batch,)``; L2 for attacks without one.
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
        precision: ``bf16`` runs the model's forward pass under autocast; perturbation and projection stay in float32.
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
        with self.session(model):
            problem = self.problem(model, x, y, seed)
            assert problem.clean_logits is not None
            already = problem.fooled(problem.clean_logits)
            outcome = self.solve(problem, already)
            distance = problem.audit(outcome.adversarial, self.norm)
        return AttackResult(outcome.adversarial.to(x.dtype), outcome.success, distance, problem.spent, already)

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
        x = x.detach().clone()
        work = x if x.dtype == torch.float64 else x.float()
        problem = Problem(
            model=model,
            x=work,
            label=torch.zeros(len(x), dtype=torch.int64, device=x.device) if y is None else check_labels(y, x),
            radius=None if self.eps is None else check_radius(self.eps, work),
            lower=lower,
            upper=upper,
            random=SampleRandom.of(work, resolve_seed(self.seed if seed is None else seed)),
            clean_logits=None,
            targeted=self.targeted,
            spent=torch.zeros(len(x), dtype=torch.int64, device=x.device),
            index=torch.arange(len(x), device=x.device),
            precision=self.precision,
        )
        if clean or y is None:
            with torch.no_grad():
                problem.clean_logits = problem.logits(work)
                if self.model_mode == "keep" and getattr(model, "training", False) and not isinstance(model, EOT):
                    check_repeatable(problem)
            if y is None:
                problem.label = problem.clean_logits.argmax(1)
        return problem

    def __repr__(self) -> str:
        """Return the class with its own arguments, and with those of the base that are not the default."""
        own = inspect.signature(type(self).__init__).parameters
        base = inspect.signature(Attack.__init__).parameters
        names = [name for name in own if name not in ("self", "arguments")]
        names += [
            k for k, p in base.items() if k not in (*names, "self", *self.fixed) and getattr(self, k) != p.default
        ]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


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
