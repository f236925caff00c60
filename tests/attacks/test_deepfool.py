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


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"classes": 1}, r"classes must be an integer of at least 2, got 1"),
        ({"overshoot": -0.1}, r"overshoot must be at least 0, got -0\.1"),
        ({"norm": "l1"}, r"norm must be 'l2' or 'linf', got 'l1'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        DeepFool(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("norm", "name"), [("l2", "L2DeepFoolAttack"), ("linf", "LinfDeepFoolAttack")])
def test_distances_are_no_worse_than_another_implementation(norm: str, name: str) -> None:
    foolbox = pytest.importorskip("foolbox")
    model, x = model_and_samples(16)
    y = model(x).argmax(1)
    wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device="cpu")
    peer = getattr(foolbox.attacks, name)(steps=50, candidates=10, overshoot=0.02)
    other, _, success = peer(wrapped, x, y, epsilons=None)
    assert success.all()
    ours = DeepFool(norm=norm).run(model, x, y)
    assert ours.success.all()
    theirs = (other - x).flatten(1).norm(2 if norm == "l2" else float("inf"), dim=1)
    assert ours.distance.median() <= 1.02 * theirs.median()
