"""Samples under attack, and what one run of an attack gives for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_modules.attacks.engine.audit import audit_perturbation
from lit_modules.attacks.engine.checks import check_classes, check_logits
from lit_modules.attacks.engine.losses import Loss, check_per_sample
from lit_modules.attacks.engine.oracle import Oracle
from lit_modules.attacks.engine.random import SampleRandom


class Outcome(NamedTuple):
    """What one run of the inner attack gives for the samples of its problem.

    Attributes:
        adversarial: Best sample of each, ``(batch, *)``.
        success: Whether it fools the model, ``(batch,)``.
        score: Which of two is better when both or none succeed: larger is, ``(batch,)``.
    """

    adversarial: Tensor
    success: Tensor
    score: Tensor


@dataclass
class Problem:
    """Samples under attack, the model, and what the attack may do.

    Attributes:
        oracle: The model, which gives logits ``(batch, classes)``.
        x: Clean samples, float32 or float64, ``(batch, *)``.
        label: True labels, or the targets of a targeted attack, ``(batch,)``.
        radius: Largest norm of the perturbation, ``(batch, 1, ..., 1)``; ``None`` if the attack looks for the smallest.
        lower: Least allowed value, broadcastable, or ``None``.
        upper: Largest allowed value, broadcastable, or ``None``.
        random: Random numbers of each sample.
        clean_logits: Logits of ``x``, or ``None`` if they were not needed.
        targeted: Whether ``label`` is to be reached instead of left.
        spent: Forward passes of each sample of the whole batch; shared by all selections.
        index: Places of these samples in the whole batch.
        precision: Type of the model's forward pass.
        dtype: Type of the samples as they were given.
        checked: Whether the first logits were looked at.
    """

    oracle: Oracle
    x: Tensor
    label: Tensor
    radius: Tensor | None
    lower: Tensor | None
    upper: Tensor | None
    random: SampleRandom
    clean_logits: Tensor | None
    targeted: bool
    spent: Tensor
    index: Tensor
    precision: Literal["32", "bf16"] = "32"
    dtype: torch.dtype = torch.float32
    checked: bool = False

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.x)

    def select(self, index: Tensor) -> Problem:
        """Return the problem of some of the samples, in the order given; a sample may come several times."""

        def pick(values: Tensor | None) -> Tensor | None:
            return values if values is None or values.ndim == 0 or len(values) == 1 != len(self) else values[index]

        return replace(
            self,
            x=self.x[index],
            label=self.label[index],
            radius=pick(self.radius),
            lower=pick(self.lower),
            upper=pick(self.upper),
            random=self.random.select(index),
            clean_logits=pick(self.clean_logits),
            index=self.index[index],
        )

    def clamp(self, x: Tensor) -> Tensor:
        """Return the samples moved into the bounds."""
        return x if self.lower is None and self.upper is None else x.clamp(self.lower, self.upper)

    def stored(self, x: Tensor) -> Tensor:
        """Return points as they can be returned: with values that the samples' own type has.

        Each value is rounded toward that of the clean sample if rounding to the nearest would move it away. So no norm
        grows, and no bound is passed. The model is asked about these points alone.

        Args:
            x: One version of each sample, ``(batch, *)``, or several, ``(versions, batch, *)``.
        """
        if self.dtype == x.dtype:
            return x
        nearest, clean = x.to(self.dtype), self.x.to(self.dtype)
        away = (nearest.double() - self.x.double()).abs() > (x.double() - self.x.double()).abs()
        return torch.where(away, torch.nextafter(nearest, clean.expand_as(nearest)), nearest).to(x.dtype)

    def point(self, x: Tensor) -> Tensor:
        """Return points to be differentiated at, as the model is asked about them: a leaf that asks for a gradient."""
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
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.oracle(batch)
        if not self.checked:
            check_logits(logits.detach(), len(batch))
            check_classes(self.label, logits.shape[1])
            self.checked = True
        logits = logits if logits.dtype == torch.float64 else logits.float()
        self.spent.index_add_(0, self.index, torch.full_like(self.index, len(x) if several else 1))
        if not bool(torch.isfinite(logits.detach()).all()):
            bad = int((~torch.isfinite(logits.detach())).any(1).sum())
            raise ValueError(
                f"The model answers NaN or infinite logits for {bad} of {len(logits)} samples; check its weights."
            )
        return logits.view(*x.shape[:2], -1) if several else logits

    def already(self) -> Tensor:
        """Return the samples that need no attack, by the clean logits, ``(batch,)``."""
        assert self.clean_logits is not None
        return self.fooled(self.clean_logits)

    def returned(self, adversarial: Tensor, x: Tensor) -> Tensor:
        """Return adversarial samples in the type and the memory layout of the samples that were given.

        Args:
            adversarial: What an attack found.
            x: The samples as they were given.
        """
        return torch.empty_like(x).copy_(self.stored(adversarial))

    def audit(self, adversarial: Tensor, norm: str | None) -> Tensor:
        """Return the distances of adversarial samples in float64; see :func:`audit_perturbation`."""
        eps = None if self.radius is None else self.radius.flatten()
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

    def gradient(self, x: Tensor, loss: Loss, passes: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, objective and the objective's gradient with respect to the samples.

        Args:
            x: Samples to evaluate, ``(batch, *)``.
            loss: Loss per sample.
            passes: Passes whose logits and gradients are averaged, for a model that answers at random.

        Raises:
            ValueError: If the answer does not depend on the samples in a way that has a gradient.
        """
        total: tuple[Tensor, Tensor, Tensor] | None = None
        for _ in range(passes):
            point = self.point(x)
            logits = self.logits(point)
            if not logits.requires_grad:
                raise ValueError(
                    "The model's output has no gradient with respect to its input; wrap the part without one in "
                    "lit_modules.defenses.BPDA, or take an attack that needs none, as Square."
                )
            objective = self.objective(logits, loss)
            (gradient,) = torch.autograd.grad(objective.sum(), point)
            part = (logits.detach(), objective.detach(), gradient.contiguous())
            total = part if total is None else (total[0] + part[0], total[1] + part[1], total[2] + part[2])
        assert total is not None
        return total if passes == 1 else (total[0] / passes, total[1] / passes, total[2] / passes)


def check_repeatable(problem: Problem) -> None:
    """Raise a sentence if a model in training mode answers the same samples differently."""
    assert problem.clean_logits is not None
    again = problem.logits(problem.x)
    if not torch.allclose(again, problem.clean_logits, rtol=1e-4, atol=1e-5):
        raise ValueError(
            "The model is in training mode and answers the same samples differently; call model.eval(), leave "
            "model_mode='eval', or wrap the model in lit_modules.attacks.EOT if the randomness is meant."
        )
