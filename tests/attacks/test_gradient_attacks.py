"""What the attacks by optimisation and by momentum share: inputs, batches, bounds, records, and faults of old."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks.carlini_wagner import CarliniWagner, ElasticNet
from lit_modules.attacks.engine.base import Attack
from lit_modules.attacks.jsma import JSMA
from lit_modules.attacks.lbfgs import LBFGS
from lit_modules.attacks.pgd import L2Momentum, LinfMomentum

Make = Callable[..., Attack]


def cw(**arguments: object) -> Attack:
    return CarliniWagner(steps=60, search_steps=5, **arguments)  # type: ignore[arg-type]


def ead(**arguments: object) -> Attack:
    return ElasticNet(steps=60, search_steps=5, **arguments)  # type: ignore[arg-type]


def lbfgs(**arguments: object) -> Attack:
    return LBFGS(**arguments)  # type: ignore[arg-type]


def jsma(**arguments: object) -> Attack:
    return JSMA(theta=0.5, **arguments)  # type: ignore[arg-type]


def linf(**arguments: object) -> Attack:
    return LinfMomentum(eps=0.3, steps=20, step_size=0.04, **arguments)  # type: ignore[arg-type]


def l2(**arguments: object) -> Attack:
    return L2Momentum(eps=1.5, steps=20, step_size=0.2, **arguments)  # type: ignore[arg-type]


MINIMAL = [cw, ead, lbfgs, jsma]
ALL = [*MINIMAL, linf, l2]


def network(*shape: int, classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    size = torch.Size(shape).numel()
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, 24), nn.ReLU(), nn.Linear(24, classes)).eval()
    with torch.no_grad():
        model[1].weight *= 2
        model[3].weight *= 4
        model[3].bias -= model(torch.full((1, *shape), 0.5))[0]  # all classes are near
    return model


def samples(*shape: int, count: int = 6) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1


@pytest.mark.parametrize("make", ALL)
def test_other_logits_that_are_all_negative(make: Make) -> None:
    model, x = network(12), samples(12)
    with torch.no_grad():
        model[3].bias -= 100
    result = make().run(model, x)
    assert bool((model(result.adversarial) < 0).all())
    assert float(result.success.float().mean()) > (0.4 if make is jsma else 0.8)


@pytest.mark.parametrize("make", ALL)
def test_finished_samples_leave_and_passes_are_counted(make: Make) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.seen, self.sizes = network(12), 0, []

        def forward(self, x: Tensor) -> Tensor:
            self.seen += len(x)
            self.sizes.append(len(x))
            return self.inner(x)

    model = Counting()
    result = make().run(model, samples(12))
    assert int(result.num_queries.sum()) == model.seen
    if make is not ead:  # without abort_early all its samples take equally long
        assert len(set(model.sizes)) > 1
