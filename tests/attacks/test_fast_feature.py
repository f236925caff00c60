"""The fast feature attack: how near it comes to its guide, where the features are, and what it says of a run."""

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import FastFeature
from lit_modules.attacks.engine.norms import lp_norm


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 4)
    ).eval()


def samples(count: int = 6, seed: int = 1) -> Tensor:
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) * 0.8 + 0.1


def apart(model: nn.Module, x: Tensor, guide: Tensor) -> Tensor:
    return (model(x) - model(guide)).flatten(1).norm(dim=1).detach()


@pytest.mark.parametrize("layer", [None, "1", "4"])
@pytest.mark.parametrize("start", [True, False])
def test_features_come_nearer_within_the_ball_and_the_bounds(layer: str | None, start: bool) -> None:
    model, x, guide = network(), samples(), samples(seed=2)
    before = x.clone(), guide.clone()
    result = FastFeature(eps=0.2, steps=20, step_size=0.03, random_start=start, layer=layer).run(model, x, guide)
    assert torch.equal(x, before[0])
    assert torch.equal(guide, before[1])
    part = model if layer is None else model[: int(layer) + 1]
    assert bool((apart(part, result.adversarial, guide) < 0.9 * apart(part, x, guide)).all())
    assert float(result.distance.max()) <= 0.2 + 1e-6
    assert torch.allclose(result.distance, lp_norm((result.adversarial - x).double(), "linf"))
    assert float(result.adversarial.min()) >= 0
    assert float(result.adversarial.max()) <= 1
    assert torch.equal(model(result.adversarial).argmax(1) == model(guide).argmax(1), result.success)
    assert not bool(result.already.any())


def test_a_ball_that_holds_the_guide_gives_its_features() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(6, 3), torch.rand(5, 6) * 0.5 + 0.2
    guide = x + 0.1
    found = FastFeature(eps=0.2, steps=300, step_size=0.002, random_start=False)(model, x, guide)
    assert float(apart(model, found, guide).max()) < 0.02


def test_least_distance_of_a_linear_model() -> None:
    model = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]))
    x, guide = torch.full((1, 4), 0.4), torch.tensor([[0.9, 0.9, 0.1, 0.1]])
    result = FastFeature(eps=0.1, steps=30, step_size=0.02).run(model, x, guide)
    assert torch.allclose(result.adversarial, torch.tensor([[0.5, 0.5, 0.3, 0.3]]), atol=1e-6)


def test_layer_by_name_or_itself_or_nested() -> None:
    model, x, guide = nn.Sequential(network(), nn.Identity()), samples(), samples(seed=2)
    named = FastFeature(layer="0.4")(model, x, guide)
    assert torch.equal(named, FastFeature(layer=model[0][4])(model, x, guide))
    assert not torch.equal(named, FastFeature()(model, x, guide))
    assert not model[0][4]._forward_hooks


def test_neither_batch_nor_order_nor_global_generator_changes_a_result() -> None:
    model, x, guide = network().double(), samples().double(), samples(seed=2).double()
    attack = FastFeature(eps=0.2, layer="4", restarts=2)
    together = attack(model, x, guide)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    alone = torch.cat([attack(model, a[None], b[None]) for a, b in zip(x, guide, strict=True)])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.allclose(together, alone, atol=1e-9)
    order = torch.tensor([2, 0, 1, 5, 4, 3])
    assert torch.allclose(attack(model, x[order], guide[order]), together[order], atol=1e-9)
    assert not torch.allclose(attack(model, x, guide, seed=7), together, atol=1e-4)


def test_passes_are_the_guide_and_the_steps_and_the_end() -> None:
    result = FastFeature(steps=7).run(network(), samples(), samples(seed=2))
    assert result.num_queries.unique().tolist() == [9]


class Pieces(nn.Module):
    """Has a layer that is not called, one that gives two tensors, and one that hides its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.twice, self.hidden = nn.Linear(4, 4), Twice(), Hidden()
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, _ = self.twice(x.flatten(1))
        self.hidden(first)
        return self.last(first)


class Twice(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Hidden(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "nowhere"}, "has no layer 'nowhere'; its layers are 'idle', 'twice', 'hidden', 'last'"),
        ({"layer": "idle"}, "was not called by the model"),
        ({"layer": "twice"}, "must give a tensor .* got tuple"),
        ({"layer": "hidden"}, "features have no gradient"),
    ],
)
def test_layers_that_will_not_do(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FastFeature(**arguments)(Pieces(), samples(), samples(seed=2))  # type: ignore[arg-type]


def test_bad_input() -> None:
    model, x = network(), samples()
    with pytest.raises(ValueError, match="FastFeature needs a guide"):
        FastFeature()(model, x)
    with pytest.raises(ValueError, match=r"guide must have the shape of x, \(6, 1, 4, 4\), got \(5, 1, 4, 4\)"):
        FastFeature()(model, x, x[:5])
    with pytest.raises(TypeError, match="floating-point"):
        FastFeature()(model, x, x.argmax(1))
    with pytest.raises(ValueError, match="takes no targeted"):
        FastFeature(targeted=True)
    with pytest.raises(ValueError, match="eps must be finite"):
        FastFeature(eps=-0.1)
    with pytest.raises(ValueError, match="steps must be an integer"):
        FastFeature(steps=0)
    with pytest.raises(ValueError, match="must be a torch module, got function"):
        FastFeature(layer="0")(lambda z: z.flatten(1), x, x)
