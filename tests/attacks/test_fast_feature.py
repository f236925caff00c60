"""The fast feature attack: how near it comes to its guide, where the features are, and what it says of a run."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import FastFeature
from tests.attacks.helpers import images


def network() -> nn.Module:
    torch.manual_seed(0)
    head = nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 4)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), *head).eval()


def samples(seed: int = 1) -> Tensor:
    return images(6, 1, 4, 4, seed=seed) * 0.8 + 0.1


def apart(model: nn.Module, x: Tensor, guide: Tensor) -> Tensor:
    return (model(x) - model(guide)).flatten(1).norm(dim=1).detach()


@pytest.mark.parametrize("layer", [None, "1", "4"])
@pytest.mark.parametrize("start", [True, False])
def test_features_come_nearer(layer: str | None, start: bool) -> None:
    model, x, guide = network(), samples(), samples(seed=2)
    result = FastFeature(eps=0.2, steps=20, step_size=0.03, random_start=start, layer=layer).run(model, x, guide)
    part = model if layer is None else model[: int(layer) + 1]  # type: ignore[index]
    assert bool((apart(part, result.adversarial, guide) < 0.9 * apart(part, x, guide)).all())
    assert torch.equal(model(result.adversarial).argmax(1) == model(guide).argmax(1), result.success)
    assert not bool(result.already.any())


def test_a_ball_that_holds_the_guide_gives_its_features() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(6, 3), torch.rand(5, 6) * 0.5 + 0.2
    adversarial = FastFeature(eps=0.2, steps=300, step_size=0.002, random_start=False)(model, x, x + 0.1)
    assert float(apart(model, adversarial, x + 0.1).max()) < 0.02


def test_least_distance_of_a_linear_model() -> None:
    x, guide = torch.full((1, 4), 0.4), torch.tensor([[0.9, 0.9, 0.1, 0.1]])
    adversarial = FastFeature(eps=0.1, steps=30, step_size=0.02)(lambda z: z.view(-1, 2, 2).sum(2), x, guide)
    assert torch.allclose(adversarial, torch.tensor([[0.5, 0.5, 0.3, 0.3]]), atol=1e-6)


def test_layer_by_name_or_itself_or_nested() -> None:
    model, x, guide = nn.Sequential(network(), nn.Identity()), samples(), samples(seed=2)
    named = FastFeature(layer="0.4")(model, x, guide)
    assert torch.equal(named, FastFeature(layer=model[0][4])(model, x, guide))
    assert not torch.equal(named, FastFeature()(model, x, guide))
    assert not model[0][4]._forward_hooks


def test_neither_batch_nor_order_changes_a_result() -> None:
    model, x, guide = network().double(), samples().double(), samples(seed=2).double()
    attack = FastFeature(eps=0.2, layer="4", restarts=2)
    together = attack(model, x, guide)
    alone = torch.cat([attack(model, a[None], b[None]) for a, b in zip(x, guide, strict=True)])
    assert torch.allclose(together, alone, atol=1e-9)
    assert torch.allclose(attack(model, x.flip(0), guide.flip(0)).flip(0), together, atol=1e-9)
    assert not torch.allclose(attack(model, x, guide, seed=7), together, atol=1e-4)


def test_passes_are_the_guide_and_the_steps_and_the_end() -> None:
    assert FastFeature(steps=7).run(network(), samples(), samples(seed=2)).num_queries.unique().tolist() == [9]


class Twice(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Hidden(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class Pieces(nn.Module):
    """Has a layer that is not called, one that gives two tensors, and one that hides its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.twice, self.hidden, self.last = nn.Linear(4, 4), Twice(), Hidden(), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, _ = self.twice(x.flatten(1))
        self.hidden(first)
        logits: Tensor = self.last(first)
        return logits


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("nowhere", "has no layer 'nowhere'; its layers are 'idle', 'twice', 'hidden', 'last'"),
        ("idle", "was not called by the model"),
        ("twice", "must give a tensor .* got tuple"),
        ("hidden", "features have no gradient"),
    ],
)
def test_layers_that_will_not_do(layer: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FastFeature(layer=layer)(Pieces(), samples(), samples(seed=2))


@pytest.mark.parametrize(
    ("arguments", "guide", "error", "message"),
    [
        ({}, None, ValueError, "FastFeature needs a guide"),
        ({}, samples()[:5], ValueError, r"guide must have the shape of x, \(6, 1, 4, 4\), got \(5, 1, 4, 4\)"),
        ({}, torch.zeros(6, dtype=torch.int64), TypeError, "floating-point"),
        ({"layer": "0"}, samples(), ValueError, "must be a torch module, got function"),
    ],
)
def test_bad_input(arguments: Any, guide: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        FastFeature(**arguments)(lambda z: z.flatten(1), samples(), guide)
