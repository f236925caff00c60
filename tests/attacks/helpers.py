"""Models and samples of the attacks' tests, and a record of what a model was asked."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn


class Recorder:
    """A model that keeps the points that it was asked about; no module, so nothing but the attack asks it."""

    def __init__(self, model: Callable[[Tensor], Any]) -> None:
        self.model = model
        self.asked: list[Tensor] = []

    def __call__(self, x: Tensor) -> Any:
        self.asked.append(x.detach().clone())
        return self.model(x)

    @property
    def points(self) -> int:
        """Number of points asked about."""
        return sum(map(len, self.asked))


def images(count: int = 12, *shape: int, seed: int = 1) -> Tensor:
    """Uniform samples, of shape 2 x 4 x 6 if none is named."""
    return torch.rand(count, *(shape or (2, 4, 6)), generator=torch.Generator().manual_seed(seed))


def convolutional(classes: int = 5) -> nn.Module:
    """A random convolutional network for images of 2 x 4 x 6."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 6, classes)).eval()


def spread(classes: int = 5, size: int = 48) -> nn.Module:
    """A random network whose answers are spread over the classes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.ReLU(), nn.Linear(16, classes)).eval()
    with torch.no_grad():
        model[-1].bias -= model(torch.rand(200, size)).mean(0)
    return model


def curved(classes: int = 6, *shape: int, seed: int = 2, activation: type[nn.Module] = nn.Tanh) -> nn.Module:
    """A network with steep curved boundaries, for images of 3 x 4 x 4 if no shape is named."""
    torch.manual_seed(seed)
    size = prod(shape or (3, 4, 4))
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, 32), activation(), nn.Linear(32, classes))
    for layer in (model[1], model[3]):
        layer.weight.data *= 4
    return model


def linear(classes: int, size: int, scale: float = 1.0) -> nn.Linear:
    """A random linear model of vectors."""
    torch.manual_seed(0)
    model = nn.Linear(size, classes)
    model.weight.data *= scale
    return model


def opposed(weight: Tensor, bias: float = 0.0) -> nn.Linear:
    """A linear model of two classes: class 0 where ``weight . x + bias`` is positive."""
    model = nn.Linear(len(weight), 2)
    model.weight.data, model.bias.data = torch.stack([weight, -weight]), torch.tensor([bias, -bias])
    return model
