"""Modules around a model: expectation over transformation, and estimated gradients."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from lit_modules.attacks.engine.checks import check_count, check_positive
from lit_modules.attacks.engine.random import SampleRandom
from lit_modules.attacks.engine.state import Model
from lit_modules.utils.classifiers import take_logits


class EOT(nn.Module):
    """Average the logits of several passes of a model that answers at random.

    The gradient of the average is the average of the gradients: the expectation over transformation. Dropout draws
    only in training mode: attack with ``model_mode="keep"`` then. An attack counts a call as one pass.

    Args:
        model: Module or callable that gives logits.
        num_samples: Passes of each call.

    Example:
        >>> model = EOT(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), num_samples=8)
        >>> model(torch.rand(2, 4)).shape
        torch.Size([2, 3])

    References:
        Athalye et al., "Synthesizing robust adversarial examples" (arXiv 1707.07397), equation 2.
    """

    def __init__(self, model: Model, num_samples: int = 20) -> None:
        super().__init__()
        check_count(num_samples=num_samples)
        self.model = model
        self.num_samples = num_samples

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean logits, ``(batch, classes)``."""
        total = take_logits(self.model(x))
        for _ in range(self.num_samples - 1):
            total = total + take_logits(self.model(x))
        return total / self.num_samples

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"num_samples={self.num_samples}"


class EstimatedGradient(nn.Module):
    """Base of the modules that give a model a gradient by evaluating nearby points.

    The model may be any callable of a batch, also one outside torch's gradients. Its parameters receive no gradient.
    An attack counts a call as one pass, without the points of the backward pass, ``queries`` per sample.

    Args:
        model: Gives logits.
        step: Distance of the nearby points, in units of the samples.
        max_batch: Largest number of points in one pass of the model.
    """

    def __init__(self, model: Model, step: float, max_batch: int) -> None:
        super().__init__()
        check_positive(step=step)
        check_count(max_batch=max_batch)
        self.model = model
        self.step = step
        self.max_batch = max_batch

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, ``(batch, classes)``."""
        logits: Tensor = _Estimated.apply(x, self)
        return logits

    @abstractmethod
    def directions(self, x: Tensor, start: int, count: int) -> Tensor:
        """Return ``count`` of the directions for samples ``x``, from number ``start`` on, ``(count, batch, *)``."""

    @abstractmethod
    def number(self, x: Tensor) -> int:
        """Return the number of directions for samples of this shape."""

    def queries(self, x: Tensor) -> int:
        """Return the points per sample of one backward pass."""
        return 2 * self.number(x)

    @torch.no_grad()
    def estimate(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the estimated gradient of ``(logits * weight).sum()`` with respect to the samples, shape of ``x``."""
        total, number = torch.zeros_like(x), self.number(x)
        several = max(1, self.max_batch // (2 * len(x)))
        for start in range(0, number, several):
            directions = self.directions(x, start, min(several, number - start))
            points = torch.stack([x + self.step * directions, x - self.step * directions])
            logits = take_logits(self.model(points.flatten(0, 2))).to(x.device)
            values = (logits.view(*points.shape[:3], -1) * weight).sum(-1)
            slopes = (values[0] - values[1]) / (2 * self.step)
            total += (slopes.reshape(*slopes.shape, *(1,) * (x.ndim - 1)).to(x.dtype) * directions).sum(0)
        return total * self.scale(x)

    def scale(self, x: Tensor) -> float:
        """Return the factor of the summed slopes."""
        return 1.0


class FiniteDifference(EstimatedGradient):
    """Estimate the gradient by central differences along every coordinate.

    A backward pass costs two passes per value of a sample, 1568 for a 28 x 28 image.

    Args:
        model: Gives logits; any callable.
        step: Distance of the nearby points, in units of the samples; in float32 not much smaller.
        max_batch: Largest number of points in one pass of the model.

    Example:
        >>> model = FiniteDifference(nn.Linear(4, 3))
        >>> x = torch.rand(2, 4, requires_grad=True)
        >>> model(x)[:, 0].sum().backward()
        >>> torch.allclose(x.grad, model.model.weight[0].expand(2, 4), atol=1e-3)
        True
    """

    def __init__(self, model: Model, step: float = 1e-3, max_batch: int = 1024) -> None:
        super().__init__(model, step, max_batch)

    def number(self, x: Tensor) -> int:
        """Return the number of coordinates."""
        return x[0].numel()

    def directions(self, x: Tensor, start: int, count: int) -> Tensor:
        """Return unit vectors."""
        units = torch.zeros(count, x[0].numel(), dtype=x.dtype, device=x.device)
        units[torch.arange(count), torch.arange(start, start + count)] = 1
        return units.view(count, 1, *x.shape[1:]).expand(count, *x.shape)


class NESGradient(EstimatedGradient):
    """Estimate the gradient by differences along random Gaussian directions: natural evolution strategies.

    Each direction is used both ways. The directions belong to a sample's values and the seed: they depend neither on
    the batch nor on earlier calls. They change as the sample moves. The defaults are those of AdverTorch 0.2.

    Args:
        model: Gives logits; any callable.
        samples: Random directions per sample; two points are asked for each.
        step: Standard deviation of the nearby points (sigma), in units of the samples.
        seed: Seed of the directions.
        max_batch: Largest number of points in one pass of the model.

    References:
        Ilyas et al., "Black-box adversarial attacks with limited queries and information" (arXiv 1804.08598),
        algorithm 1.
    """

    def __init__(
        self, model: Model, samples: int = 100, step: float = 1e-3, seed: int = 0, max_batch: int = 1024
    ) -> None:
        super().__init__(model, step, max_batch)
        check_count(samples=samples)
        self.samples = samples
        self.seed = seed

    def number(self, x: Tensor) -> int:
        """Return the number of random directions."""
        return self.samples

    def directions(self, x: Tensor, start: int, count: int) -> Tensor:
        """Return standard normal vectors of each sample."""
        random = SampleRandom.of(x, self.seed)
        random.position = start * x[0].numel()
        return random.normal(count, *x.shape[1:]).transpose(0, 1).to(x.dtype)

    def scale(self, x: Tensor) -> float:
        """Return one over the number of directions."""
        return 1 / self.samples


class _Estimated(torch.autograd.Function):
    """The one function of all estimates; what differs is in the module."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: EstimatedGradient) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(x)
        return take_logits(module.model(x)).detach().to(x.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return ctx.module.estimate(x, gradients[0]), None
