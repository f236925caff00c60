"""FMN: the L0 count on linear models, curved boundaries beside the bounds, another implementation's distances."""

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks.minimum_norm import FMN


def model_and_samples(n: int = 10) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 6))
    for layer in (model[1], model[3]):
        layer.weight.data *= 4
    return model, torch.rand(n, 3, 4, 4)


def test_l0_count_of_a_linear_model_is_near_the_least() -> None:
    """The least number of values: those that gain most when they go to a bound, until the margin is used up."""
    torch.manual_seed(0)
    model, x = nn.Linear(40, 2), torch.rand(20, 40)
    logits = model(x)
    label = logits.argmax(1)
    slope = (model.weight[1 - label] - model.weight[label]).detach()
    gain = torch.where(slope > 0, slope * (1 - x), -slope * x).sort(1, descending=True).values.cumsum(1)
    margin = (logits.gather(1, label[:, None]) - logits.gather(1, 1 - label[:, None])).detach()
    least = (gain <= margin).sum(1) + 1
    result = FMN(norm="l0", steps=300).run(model, x)
    assert result.success.all()
    assert (result.distance >= least).all()
    assert result.distance.mean() <= 1.2 * least.double().mean()


def test_l2_crosses_curved_boundaries_beside_the_bounds() -> None:
    """Where the bounds cut the iterate short of its ball, the linearised distance alone ends below the boundary."""
    model, x = model_and_samples(24)
    result = FMN(norm="l2").run(model, x.round())
    assert result.success.all()


@pytest.mark.parametrize("norm", ["l0", "l1", "l2", "linf"])
def test_distances_are_no_worse_than_another_implementation(norm: str) -> None:
    foolbox = pytest.importorskip("foolbox")
    model, x = model_and_samples(16)
    y = model(x).argmax(1)
    wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device="cpu")
    name = {"l0": "L0", "l1": "L1", "l2": "L2", "linf": "LInf"}[norm]
    other, _, _ = getattr(foolbox.attacks, f"{name}FMNAttack")(steps=100)(wrapped, x, y, epsilons=None)
    ours = FMN(norm=norm).run(model, x, y)
    fooled = model(other).argmax(1) != y
    order = {"l0": 0, "l1": 1, "l2": 2, "linf": float("inf")}[norm]
    theirs = (other - x).flatten(1).norm(order, dim=1)
    assert ours.success.all()
    assert ours.distance[fooled].median() <= 1.02 * theirs[fooled].median()
