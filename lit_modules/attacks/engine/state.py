"""Samples under attack, the model that they are shown to, and the best result so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lit_modules.attacks.engine.checks import Radius, audit_perturbation, check_classes, check_logits
from lit_modules.attacks.engine.losses import Loss, check_per_sample
from lit_modules.attacks.engine.norms import per_sample, project, project_l1_box
from lit_modules.attacks.engine.random import SampleRandom
from lit_modules.utils.classifiers import input_device, take_logits
from lit_modules.utils.model_modes import modules_of
from lit_modules.utils.progress import count_pass

Model = Callable[[Tensor], Tensor]
Seed = int | torch.Generator | None  # ``None`` takes that of the attack
Carry = dict[str, Tensor]  # values of each sample, (batch, ...), that an attack carries from step to step


class Oracle:
    """Model under attack, called as its user would call it.

    Samples keep their type, or, where the model refuses it, take that of its parameters; they have the memory layout of
    a batch of the input samples. They go to the device of a module's first parameter, and the logits come back to that
    of the samples, so a model may lie on another device, or on several. On the CPU convolutions are up to several times
    faster with the channels innermost in memory. Images are laid out so if a module with convolutions, in evaluation
    mode, takes one sample in either layout and answers the same, which costs two passes of that sample, not counted as
    queries.

    Args:
        model: Gives logits.
        samples: Input samples, ``(batch, *)``.
        probe: Whether the faster layout may be tried.

    Attributes:
        dtype: Type of the model's input.
        own_dtype: Type of the model's first parameter; that of the samples without one.
        device: Device of the model's input: that of a module's first parameter, else that of the samples.
        strides: Memory layout of a batch.
    """

    def __init__(self, model: Model, samples: Tensor, probe: bool = True) -> None:
        self.model = model
        self.dtype = samples.dtype
        self.strides = (samples[0].numel(), *torch.empty_like(samples[0]).stride())
        modules = modules_of(model)
        parameters = [p for module in modules for p in module.parameters(recurse=False) if p.is_floating_point()]
        self.own_dtype = parameters[0].dtype if parameters else samples.dtype
        # a callable that is no module places its input itself
        device = input_device(parameters) if isinstance(model, nn.Module) else None
        self.device = samples.device if device is None else device
        self._settled = False
        self._probe = (
            probe
            and samples.ndim == 4
            and self.device.type == "cpu"
            and isinstance(model, nn.Module)
            and any(isinstance(module, nn.Conv2d) for module in modules)
            and not any(module.training for module in modules)
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits, in the model's type, of samples in the type in which the attack computes."""
        if self._settled:
            return self._call(x)
        self._settled = True
        if self.dtype == self.own_dtype:
            self._choose_layout(x[:1].detach())
            return self._call(x)
        try:
            logits = self._call(x)
        except RuntimeError:
            self.dtype = self.own_dtype
            logits = self._call(x)
        self._choose_layout(x[:1].detach())
        return logits

    def _call(self, x: Tensor) -> Tensor:
        inputs = arrange(x.to(self.device, self.dtype), self.strides)
        return take_logits(self.model(inputs)).to(x.device)

    def _choose_layout(self, x: Tensor) -> None:
        """Take the faster layout if a sample goes through in it, forward and backward, with the same logits."""
        if not self._probe:
            return
        strides, (_, channels, height, width) = self.strides, x.shape
        try:
            first = self._try(x)
            self.strides = channels * height * width, 1, width * channels, channels
            second = self._try(x)
            same = first[1] == second[1] and _close(first[0], second[0])
        except Exception:  # whatever is wrong with the model itself shows when it is asked in earnest
            same = False
        if not same:
            self.strides = strides

    def _try(self, x: Tensor) -> tuple[Tensor, bool]:
        """Return the logits of a sample, and whether they can be differentiated."""
        with torch.random.fork_rng(devices=()), torch.enable_grad():
            point = x.clone().requires_grad_()
            logits = self._call(point)
            try:
                torch.autograd.grad(logits.float().sum(), point)
            except RuntimeError:
                return logits.detach(), False
            return logits.detach(), True


def arrange(x: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Return samples in a memory layout: themselves if they have it, else a copy."""
    if x.stride() == strides:
        return x
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)


def _close(first: Tensor, second: Tensor) -> bool:
    """Return whether logits differ by no more than rounding."""
    if first.shape != second.shape:
        return False
    allowed = max(1e-5, torch.finfo(first.dtype).eps) * (1 + float(first.abs().max()))
    return bool(((first - second).abs() <= allowed).all())


class Outcome(NamedTuple):
    """Result of one run of an attack.

    Attributes:
        adversarial: Best sample of each, ``(batch, *)``.
        success: Whether it fools the model, ``(batch,)``.
        score: Which of two is better when both or none succeed: larger is, ``(batch,)``.
    """

    adversarial: Tensor
    success: Tensor
    score: Tensor


@dataclass
class AttackState:
    """Samples under attack, their model, and the allowed perturbation.

    Attributes:
        oracle: The model, which gives logits ``(batch, classes)``.
        x: Clean samples, float32 or float64, ``(batch, *)``.
        label: True labels, or the targets of a targeted attack, ``(batch,)``.
        eps: Largest norm of the perturbation, ``(batch, 1, ..., 1)``; ``None`` without a radius.
        lower: Least allowed value, broadcastable, or ``None``.
        upper: Largest allowed value, broadcastable, or ``None``.
        random: Random numbers of each sample.
        clean: Logits of ``x``, or ``None`` if they were not needed.
        targeted: Whether ``label`` is to be reached instead of left.
        num_queries: Forward passes of each sample of the whole batch; shared by all selections.
        index: Positions of these samples in the whole batch.
        precision: Type of the model's forward pass.
        dtype: Type of the input samples.
        checked: Whether the model's first logits have been checked.
    """

    oracle: Oracle
    x: Tensor
    label: Tensor
    eps: Tensor | None
    lower: Tensor | None
    upper: Tensor | None
    random: SampleRandom
    clean: Tensor | None
    targeted: bool
    num_queries: Tensor
    index: Tensor
    precision: Literal["32", "bf16"] = "32"
    dtype: torch.dtype = torch.float32
    checked: bool = False

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.x)

    @property
    def radius(self) -> Tensor:
        """Radius of an attack that has one, ``(batch, 1, ..., 1)``."""
        assert self.eps is not None
        return self.eps

    @property
    def clean_logits(self) -> Tensor:
        """Logits of the clean samples, ``(batch, classes)``, for an attack that evaluates them."""
        assert self.clean is not None
        return self.clean

    def positions(self) -> Tensor:
        """Return the positions of the samples in this state, ``(batch,)``."""
        return torch.arange(len(self), device=self.x.device)

    def select(self, index: Tensor) -> AttackState:
        """Return the state of some of the samples, in this order; a sample may come several times."""

        def pick(values: Tensor | None) -> Tensor | None:
            return values if values is None or values.ndim == 0 or len(values) == 1 != len(self) else values[index]

        return replace(
            self,
            x=self.x[index],
            label=self.label[index],
            eps=pick(self.eps),
            lower=pick(self.lower),
            upper=pick(self.upper),
            random=self.random.select(index),
            clean=pick(self.clean),
            index=self.index[index],
        )

    def clamp(self, x: Tensor) -> Tensor:
        """Return the samples moved into the bounds."""
        return x if self.lower is None and self.upper is None else x.clamp(self.lower, self.upper)

    def box(self) -> tuple[Tensor, Tensor]:
        """Return the middle of the bounds and half their distance."""
        assert self.lower is not None
        assert self.upper is not None
        return (self.upper + self.lower) / 2, (self.upper - self.lower) / 2

    def room(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the least and the largest perturbation within the bounds, ``None`` where there is none."""
        return (
            None if self.lower is None else self.lower - self.x,
            None if self.upper is None else self.upper - self.x,
        )

    def movable(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Return which values of the points may still move along the gradient, within the bounds."""
        free = torch.ones_like(gradient, dtype=torch.bool)
        if self.upper is not None:
            free &= (gradient < 0) | (x < self.upper)
        if self.lower is not None:
            free &= (gradient > 0) | (x > self.lower)
        return free

    def project(self, x: Tensor, norm: str) -> Tensor:
        """Return points moved into the ball, then into the bounds; for L1, the nearest points of both."""
        if norm == "linf":
            return self.clamp(torch.minimum(torch.maximum(x, self.x - self.radius), self.x + self.radius))
        if norm == "l2":
            return self.clamp(self.x + project(x - self.x, self.radius, "l2"))
        return self.clamp(self.x + project_l1_box(x - self.x, self.radius, *self.room()))

    def broadcast(self, step_size: Radius) -> Tensor | float:
        """Return a step size that broadcasts; one value per sample follows the samples that are left."""
        if isinstance(step_size, Tensor) and step_size.numel() > 1:
            if step_size.shape != self.num_queries.shape:
                raise ValueError(
                    f"step_size has {step_size.numel()} values for a batch of {len(self.num_queries)}; "
                    "give one number, or one per sample."
                )
            return per_sample(step_size.to(self.x)[self.index], self.x)
        return float(step_size)

    def stored(self, x: Tensor) -> Tensor:
        """Return points rounded to the type of the input samples.

        Each value is rounded toward that of the clean sample if rounding to the nearest would move it away. So no norm
        grows, and no bound is passed. The model sees rounded points only.

        Args:
            x: One version of each sample, ``(batch, *)``, or several, ``(versions, batch, *)``.
        """
        if self.dtype == x.dtype:
            return x
        nearest, clean = x.to(self.dtype), self.x.to(self.dtype)
        away = (nearest.double() - self.x.double()).abs() > (x.double() - self.x.double()).abs()
        return torch.where(away, torch.nextafter(nearest, clean.expand_as(nearest)), nearest).to(x.dtype)

    def point(self, x: Tensor) -> Tensor:
        """Return points to differentiate at: a leaf, rounded as the model sees it."""
        return self.stored(x.detach()).requires_grad_()

    def logits(self, x: Tensor) -> Tensor:
        """Return the model's logits in at least float32, and count the pass.

        Args:
            x: One version of each sample, ``(batch, *)``, or several, ``(versions, batch, *)``; what comes from
                :meth:`point` can be differentiated.

        Raises:
            ValueError: If the logits are not finite.
        """
        if not x.requires_grad:
            x = self.stored(x)
        several = x.ndim == self.x.ndim + 1
        batch = x.flatten(0, 1) if several else x
        with torch.autocast(self.oracle.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.oracle(batch)
        if not self.checked:
            check_logits(logits.detach(), len(batch))
            check_classes(self.label, logits.shape[1])
            self.checked = True
        logits = logits if logits.dtype == torch.float64 else logits.float()
        self.num_queries.index_add_(0, self.index, torch.full_like(self.index, len(x) if several else 1))
        count_pass()
        if not bool(torch.isfinite(logits.detach()).all()):
            bad = int((~torch.isfinite(logits.detach())).any(1).sum())
            raise ValueError(
                f"The model answers NaN or infinite logits for {bad} of {len(logits)} samples; check its weights."
            )
        return logits.view(*x.shape[:2], -1) if several else logits

    def already(self) -> Tensor:
        """Return which samples need no attack, by the clean logits, ``(batch,)``."""
        return self.fooled(self.clean_logits)

    def returned(self, adversarial: Tensor, x: Tensor) -> Tensor:
        """Return adversarial samples in type and memory layout of the input ``x``."""
        return torch.empty_like(x).copy_(self.stored(adversarial))

    def audit(self, adversarial: Tensor, norm: str | None) -> Tensor:
        """Return the distances of adversarial samples in float64; see :func:`audit_perturbation`."""
        eps = None if self.eps is None else self.eps.flatten()
        bounds = None if self.lower is None or self.upper is None else (self.lower, self.upper)
        return audit_perturbation(self.x, adversarial, norm=norm, eps=eps, bounds=bounds)

    def fooled(self, logits: Tensor) -> Tensor:
        """Return where the logits mean success, shape of the logits less the classes."""
        answer = logits.detach().argmax(-1)
        return answer == self.label if self.targeted else answer != self.label

    def objective(self, logits: Tensor, loss: Loss) -> Tensor:
        """Return what the attack raises: the loss, or for a targeted attack its negative, ``(batch,)``."""
        values = check_per_sample(loss(logits, self.label), len(logits))
        return -values if self.targeted else values

    def gradient(self, x: Tensor, loss: Loss, eot_samples: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, objective and the objective's gradient with respect to the samples.

        All are averages over ``eot_samples`` passes, for a model that answers at random.
        """
        logits, objective, gradient = self._gradient(x, loss)
        for _ in range(eot_samples - 1):
            more = self._gradient(x, loss)
            logits, objective, gradient = logits + more[0], objective + more[1], gradient + more[2]
        if eot_samples > 1:
            logits, objective, gradient = logits / eot_samples, objective / eot_samples, gradient / eot_samples
        return logits, objective, gradient

    def query(self, points: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """Return objectives of several versions of each sample, and whether they fool, without gradients.

        Takes points ``(versions, batch, *)``; both results are ``(versions, batch)``.
        """
        with torch.no_grad():
            logits = self.logits(points)
            flat = logits.flatten(0, 1)
            values = check_per_sample(loss(flat, self.label.repeat(len(points))), len(flat)).reshape(points.shape[:2])
        return -values if self.targeted else values, self.fooled(logits)

    def _gradient(self, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        point = self.point(x)
        logits = self.logits(point)
        check_differentiable(logits)
        objective = self.objective(logits, loss)
        (gradient,) = torch.autograd.grad(objective.sum(), point)
        return logits.detach(), objective.detach(), gradient.contiguous()


def chunks(total: int, max_batch: int, batch: int) -> Iterator[int]:
    """Split versions, of ``batch`` points each, into parts of at most ``max_batch`` points, at least one version."""
    most = max(1, max_batch // max(1, batch))
    for done in range(0, total, most):
        yield min(most, total - done)


def best_version(points: Tensor, objective: Tensor, fooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Choose a version of each sample: the largest objective among those that fool, else among all.

    Takes points ``(versions, batch, *)`` with their objectives and whether they fool; returns one of each sample.
    """
    success = fooled.any(0)
    chosen = objective.masked_fill(~fooled & success, float("-inf")).argmax(0)
    here = torch.arange(points.shape[1], device=points.device)
    return points[chosen, here], objective[chosen, here], success


def check_differentiable(logits: Tensor) -> None:
    """Refuse logits that have no gradient with respect to the samples."""
    if not logits.requires_grad:
        raise ValueError(
            "The model's output has no gradient with respect to its input; wrap the part without one in "
            "lit_modules.defenses.BPDA, or take an attack that needs none, as Square."
        )


def check_repeatable(state: AttackState) -> None:
    """Refuse a model in training mode that answers the same samples differently."""
    again = state.logits(state.x)
    if not torch.allclose(again, state.clean_logits, rtol=1e-4, atol=1e-5):
        raise ValueError(
            "The model is in training mode and answers the same samples differently; call model.eval(), leave "
            "model_mode='eval', or wrap the model in lit_modules.attacks.EOT if the randomness is meant."
        )


class BestSoFar:
    """Best iterate of each sample: the first that fools, else the one with the largest objective.

    Args:
        state: All samples of the run.
        loss: Gives the clean samples their value, so that only a larger one replaces them; ``None`` lets any.
    """

    def __init__(self, state: AttackState, loss: Loss | None = None) -> None:
        self.adversarial = state.x.clone()
        self.success = torch.zeros(len(state), dtype=torch.bool, device=state.x.device)
        self.score = torch.full((len(state),), float("-inf"), dtype=state.x.dtype, device=state.x.device)
        if loss is not None and state.clean is not None:
            self.score = state.objective(state.clean, loss).to(state.x.dtype)

    def offer(self, positions: Tensor, x: Tensor, objective: Tensor, fooled: Tensor) -> None:
        """Keep the iterates that are better than those before, at their positions in the run, ``(active,)``."""
        success, score = self.success[positions], self.score[positions]
        better = (fooled & ~success) | ((fooled == success) & (objective > score))
        positions = positions[better]
        self.adversarial[positions] = x[better].to(self.adversarial.dtype)
        self.success[positions] = fooled[better]
        self.score[positions] = objective[better].to(self.score.dtype)

    def outcome(self) -> Outcome:
        """Return the best iterates."""
        return Outcome(self.adversarial, self.success, self.score)
