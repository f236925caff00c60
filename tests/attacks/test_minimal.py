"""What all attacks that look for the smallest perturbation hold: closed forms, bounds, batches, failures, stopping."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks.boundary import FAB, FABT, DeepFool
from lit_modules.attacks.minimum_norm import DDN, FMN, MinimumNormAttack

Make = Callable[..., MinimumNormAttack]
DUAL = {"linf": 1, "l2": 2, "l1": float("inf")}


def make(kind: type[MinimumNormAttack], norm: str) -> Make:
    def build(**arguments: object) -> MinimumNormAttack:
        named = {} if kind is DDN else {"norm": norm}
        return kind(**named, **arguments)  # type: ignore[call-arg]

    return build


CASES = [
    pytest.param(make(kind, norm), norm, id=f"{kind.__name__}-{norm}")
    for kind, norms in (
        (FAB, ("linf", "l2", "l1")),
        (FABT, ("linf", "l2", "l1")),
        (DDN, ("l2",)),
        (DeepFool, ("l2", "linf")),
        (FMN, ("l1", "l2", "linf")),
    )
    for norm in norms
]
WITH_L0 = [*CASES, pytest.param(make(FMN, "l0"), "l0", id="FMN-l0")]
each = pytest.mark.parametrize(("build", "norm"), CASES)
each_and_l0 = pytest.mark.parametrize(("build", "norm"), WITH_L0)


def linear(classes: int, d: int, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    model = nn.Linear(d, classes)
    model.weight.data *= 10
    model.bias.data = -model.weight.data.sum(1) / 2  # boundaries meet in the middle of the box
    return model


def curved(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 5))
    for layer in (model[1], model[3]):
        layer.weight.data *= 4
    return model


def samples(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def middle(n: int, d: int) -> Tensor:
    """Samples so close to the middle that the way to a boundary stays in the box, the ones nearest to it left out."""
    x = 0.5 + 0.06 * torch.randn(8 * n, d, generator=torch.Generator().manual_seed(3))
    return x[(x - 0.5).sum(1).abs().argsort()[-n:]]


def truth(model: nn.Linear, x: Tensor, norm: str) -> Tensor:
    """Distance of the nearest boundary of a linear model."""
    logits = model(x).double()
    label = logits.argmax(1)
    gaps = logits.gather(1, label[:, None]) - logits
    normals = model.weight.double()[label][:, None] - model.weight.double()
    distance = gaps / torch.linalg.vector_norm(normals, DUAL[norm], dim=2)
    return distance.scatter(1, label[:, None], float("inf")).amin(1).detach()


@each
@pytest.mark.parametrize("classes", [2, 5])
def test_linear_model_is_met_within_a_hundredth(build: Make, norm: str, classes: int) -> None:
    """With more classes DDN and FMN follow the likely one, not always the nearest; the cross-entropy mixes all."""
    model, x = linear(classes, 30), middle(40, 30)
    least = truth(model, x, norm)
    for bounds in ((0.0, 1.0), None):
        extra = {"loss": "margin"} if isinstance(build(), DDN) else {}
        result = build(bounds=bounds, **extra).run(model, x)
        assert result.success.all()
        ratio = result.distance / least
        assert ratio.min() >= 1 - 1e-4
        if classes > 2 and isinstance(build(), DDN | FMN):
            assert ratio.median() <= 1.02
        else:
            assert ratio.max() <= 1.01


@each_and_l0
def test_contract(build: Make, norm: str) -> None:
    """Bounds hold, x is left alone, success is the model's, misclassified samples and failures come back unchanged."""
    model, x = curved(), samples(12, 3, 4, 4)
    y = model(x).argmax(1)
    y[3] = (y[3] + 1) % 5
    before = x.clone()
    result = build(steps=20).run(model, x, y)
    assert torch.equal(x, before)
    assert result.adversarial.min() >= 0
    assert result.adversarial.max() <= 1
    assert torch.equal(result.success, model(result.adversarial).argmax(1) != y)
    assert result.success.all()
    assert result.already.nonzero().tolist() == [[3]]
    assert torch.equal(result.adversarial[3], x[3])
    steep = nn.Linear(48, 2)
    steep.bias.data = torch.tensor([60.0, 0.0])
    failed = build(steps=3).run(nn.Sequential(nn.Flatten(), steep), x)
    assert not failed.success.any()
    assert torch.equal(failed.adversarial, x)
    assert failed.distance.isinf().all()


@each_and_l0
def test_batch_and_order_do_not_matter(build: Make, norm: str) -> None:
    model, x = curved(), samples(6, 3, 4, 4)
    attack = build(steps=8, restarts=2)
    together = attack(model, x)
    order = torch.tensor([4, 2, 5, 0, 1, 3])
    torch.testing.assert_close(attack(model, x[order]), together[order], atol=2e-5, rtol=0)
    torch.testing.assert_close(attack(model, x[2:3]), together[2:3], atol=2e-5, rtol=0)


@each_and_l0
def test_targeted_reaches_the_target(build: Make, norm: str) -> None:
    model, x = linear(4, 20), middle(10, 20)
    target = (model(x).argmax(1) + 1) % 4
    result = build(targeted=True).run(model, x, target)
    assert result.success.double().mean() >= 0.9
    assert torch.equal(model(result.adversarial).argmax(1) == target, result.success)


@each_and_l0
def test_restarts_never_lose(build: Make, norm: str) -> None:
    model, x = curved(), samples(8, 3, 4, 4)
    once, thrice = build(steps=8).run(model, x), build(steps=8, restarts=3).run(model, x)
    assert (thrice.distance <= once.distance).all()
    assert (thrice.num_queries > once.num_queries).all()


@each
def test_stop_radius_lets_samples_leave(build: Make, norm: str) -> None:
    """A sample within the radius costs less, and its result is within; the others are followed to the end."""
    model, x = curved(), samples(8, 3, 4, 4)
    full = build(steps=30).run(model, x)
    radius = float(full.distance.median()) * 1.05
    stopped = build(steps=30, stop_radius=radius).run(model, x)
    near = full.distance < radius
    assert (stopped.distance[near] <= radius).all()
    if build().leaves_when_fooled:
        return
    assert (stopped.num_queries[near] < full.num_queries[near]).any()
    torch.testing.assert_close(stopped.distance[~near], full.distance[~near], atol=1e-5, rtol=1e-4)


@each
def test_radius_of_an_ensemble_stops_each_sample_at_its_own(build: Make, norm: str) -> None:
    model, x = curved(), samples(4, 3, 4, 4)
    attack = build(steps=30)
    best = attack.run(model, x).distance.float()
    with attack.session(model):
        state = attack.prepare(model, x, None, None)
        state.eps = (best * torch.tensor([2.0, 0.5, 2.0, 0.5]))[:, None, None, None]
        outcome = attack.solve(state, torch.zeros(4, dtype=torch.bool))
    distance = -outcome.score
    within = distance <= state.radius.flatten()
    assert within.tolist() == [True, False, True, False]
    torch.testing.assert_close(distance[1::2], best[1::2], atol=1e-5, rtol=1e-4)


@each_and_l0
def test_one_pass_a_step(build: Make, norm: str) -> None:
    """The clean pass, one per step and target, one for the last iterate; a search costs one more than its steps."""
    model, x = curved(), samples(5, 3, 4, 4)
    attack = build(steps=6)
    result = attack.run(model, x)
    search = attack.search_steps + 1 if attack.search_steps else 0
    targets = 4 if isinstance(attack, FABT) else 1
    most = 1 + 7 * targets + search
    if attack.leaves_when_fooled:
        assert (result.num_queries <= most).all()
    else:
        assert set(result.num_queries.tolist()) <= {most, most - search}


@each
def test_per_pixel_bounds_of_any_width(build: Make, norm: str) -> None:
    """Half of the pixels may not move; the others range over 0 to 255."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 4))
    x = samples(6, 3, 4, 4) * 255
    model[1].weight.data /= 40
    lower, upper = torch.zeros(6, 3, 4, 4), torch.full((6, 3, 4, 4), 255.0)
    lower[..., :2], upper[..., :2] = x[..., :2], x[..., :2]
    result = build(bounds=(lower, upper)).run(model, x)
    assert torch.equal(result.adversarial[..., :2], x[..., :2])
    assert result.adversarial.min() >= 0
    assert result.adversarial.max() <= 255


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"steps": 0}, r"steps must be an integer of at least 1, got 0"),
        ({"search_steps": -1}, r"search_steps must be an integer of at least 0, got -1"),
        ({"stop_radius": 0.0}, r"stop_radius must be positive and finite, got 0\.0"),
        ({"start_radius": -1.0}, r"start_radius must be positive and finite, got -1\.0"),
        ({"norm": "l0"}, r"norm must be 'linf' or 'l2' or 'l1', got 'l0'"),
        ({"alpha_max": 1.5}, r"alpha_max must be from 0 to 1, got 1\.5"),
        ({"eta": 0.9}, r"eta must be at least 1, got 0\.9"),
        ({"beta": 1.0}, r"beta must lie between 0 and 1, got 1\.0"),
    ],
)
def test_arguments_outside_their_range_are_named(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FAB(**arguments)  # type: ignore[arg-type]


@each_and_l0
@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
def test_constant_model_warns_and_stays_finite(build: Make, norm: str, bounds: tuple[float, float] | None) -> None:
    model, x = nn.Linear(3, 2), torch.rand(2, 3)
    model.weight.data.zero_()
    model.bias.data = torch.tensor([90.0, 0.0])
    with pytest.warns(UserWarning, match="exactly zero"):
        result = build(steps=2, bounds=bounds, restarts=2).run(model, x)
    assert not result.success.any()
    assert torch.equal(result.adversarial, x)


def test_last_search_stops_a_thousandth_beyond() -> None:
    """A result that rounding could turn back would not be one."""
    model, x = linear(3, 10), middle(20, 10)
    result = DeepFool(overshoot=0.5, search_steps=3).run(model, x)
    ratio = result.distance / truth(model, x, "l2")
    assert ratio.min() > 1.0005
    assert ratio.max() < 1.002
