"""DeepFool: one step on linear models, the classes considered, and the distances of another implementation."""

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks.boundary import DeepFool


def model_and_samples(n: int = 10, classes: int = 6) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, classes))
    for layer in (model[1], model[3]):
        layer.weight.data *= 4
    return model, torch.rand(n, 3, 4, 4)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_linear_model_takes_one_step_and_the_overshoot(norm: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(20, 4), torch.randn(8, 20)
    result = DeepFool(norm=norm, bounds=None, search_steps=0, overshoot=0.05).run(model, x)
    logits = model(x)
    label = logits.argmax(1)
    gaps = logits.gather(1, label[:, None]) - logits
    normals = model.weight[label][:, None] - model.weight
    least = gaps / normals.norm(2 if norm == "l2" else 1, dim=2).clamp_min(1e-30)
    least = least.scatter(1, label[:, None], float("inf")).amin(1).double().detach()
    torch.testing.assert_close(result.distance, 1.05 * least, rtol=1e-3, atol=1e-6)
    assert result.num_queries.tolist() == [3] * 8  # clean, gradient, result


def test_only_the_likely_classes_are_considered() -> None:
    """Class 2 is nearest, but class 1 is the more likely one."""
    model = nn.Linear(2, 3)
    model.weight.data = torch.tensor([[0.0, 0.0], [0.1, 0.0], [3.0, 4.0]])
    model.bias.data = torch.tensor([0.0, -1.0, -10.0])
    x = torch.zeros(1, 2)
    near = DeepFool(bounds=None, classes=None).run(model, x)
    likely = DeepFool(bounds=None, classes=2).run(model, x)
    assert float(near.distance) == pytest.approx(2, rel=0.01)
    assert float(likely.distance) > 3.3  # on the way along the first axis
    assert near.adversarial[0, 1] > 0
    assert likely.adversarial[0, 1] == 0


def test_bounds_that_cut_the_moves_do_not_hold_it_up() -> None:
    """The clipped moves alone would end short of the boundary."""
    model, x = model_and_samples(24)
    x = x.round()  # every value stands at a bound
    for norm in ("l2", "linf"):
        assert DeepFool(norm=norm).run(model, x).success.all()
