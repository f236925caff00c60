"""DDN: the radius, the levels, and the distances of another implementation."""

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks.minimum_norm import DDN


def model_and_samples(n: int = 10) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 6))
    for layer in (model[1], model[3]):
        layer.weight.data *= 4
    return model, torch.rand(n, 3, 4, 4)


def test_radius_grows_until_fooled_and_then_shrinks() -> None:
    """A boundary at distance 1.2: the radii are 1, 1.1 and so on, up to the first beyond it."""
    model = nn.Linear(2, 2)
    model.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    model.bias.data.zero_()
    seen: list[float] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(float(x.detach()[0, 0]))
        return model(x)

    x = torch.tensor([[1.2, 0.0]])
    result = DDN(steps=6, gamma=0.1, bounds=None, search_steps=0).run(watched, x)
    moves = [1.2 - value for value in seen[2:]]
    assert moves == pytest.approx(
        [1.1, 1.21, 1.21 * 0.9, 1.21 * 0.99, 1.21 * 0.99 * 1.1, 1.21 * 0.99 * 1.1 * 0.9], abs=1e-5
    )
    assert float(result.distance) == pytest.approx(1.21, abs=1e-5)


def test_levels_are_kept() -> None:
    model, x = model_and_samples()
    for levels, bounds in ((256, (0.0, 1.0)), (5, (-1.0, 3.0))):
        result = DDN(steps=30, levels=levels, bounds=bounds).run(model, x)
        low, high = bounds
        steps = (result.adversarial - low) / (high - low) * (levels - 1)
        assert result.success.all()
        torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)


def test_small_samples_need_a_small_first_norm() -> None:
    """The units of the samples do not matter where the first radius and the rate of steps fit: distances scale."""
    model, x = model_and_samples()
    scaled = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 6))
    scaled.load_state_dict(model.state_dict())
    scaled[1].weight.data /= 2
    first = DDN(search_steps=3).run(model, x).distance
    second = DDN(init_norm=2.0, bounds=(0.0, 2.0)).run(scaled, 2 * x).distance
    assert (second / first).median() == pytest.approx(2, rel=0.05)
