"""What the attacks by optimisation and by momentum share: inputs, batches, bounds, records, and faults of old."""

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks.carlini_wagner import CarliniWagner, ElasticNet
from lit_modules.attacks.engine.base import Attack
from lit_modules.attacks.engine.norms import lp_norm
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
SHAPES = [(12,), (1, 4, 5), (3, 4, 3), (2, 9)]


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


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("make", ALL)
def test_any_shape_is_fooled_within_the_bounds_and_left_untouched(make: Make, shape: tuple[int, ...]) -> None:
    model, x = network(*shape), samples(*shape)
    before = x.clone()
    result = make().run(model, x)
    assert torch.equal(x, before)
    assert result.adversarial.shape == x.shape
    assert float(result.success.float().mean()) > (0.4 if make is jsma else 0.8)
    assert torch.equal(model(result.adversarial).argmax(1) != model(x).argmax(1), result.success)
    assert float(result.adversarial.min()) >= 0
    assert float(result.adversarial.max()) <= 1
    assert bool((result.num_queries >= 1).all())


@pytest.mark.parametrize("make", ALL)
def test_targets_are_reached(make: Make) -> None:
    model, x = network(12), samples(12)
    target = model(x).topk(2, dim=1).indices[:, 1]
    result = make(targeted=True).run(model, x, target)
    assert torch.equal(model(result.adversarial).argmax(1) == target, result.success)
    assert float(result.success.float().mean()) > 0.6
    with pytest.raises(ValueError, match="A targeted attack needs y"):
        make(targeted=True)(model, x)


@pytest.mark.parametrize("make", ALL)
def test_neither_batch_nor_order_changes_a_result(make: Make) -> None:
    model, x = network(12).double(), samples(12).double()
    together = make()(model, x)
    alone = torch.cat([make()(model, sample[None]) for sample in x])
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.allclose(together, alone, atol=1e-6)
    assert torch.allclose(make()(model, x[order]), together[order], atol=1e-6)


@pytest.mark.parametrize("make", MINIMAL)
def test_failures_and_misclassified_samples_come_back_unchanged(make: Make) -> None:
    model, x = network(12), samples(12)
    with torch.no_grad():
        model[3].weight *= 1e-5
        model[3].bias.copy_(torch.tensor([4.0, 0.0, 0.0, 0.0]))
    wrong, attack = torch.tensor([0, 0, 1, 0, 0, 2]), make()
    result = attack.run(model, x, wrong)
    assert result.success.tolist() == [False, False, True, False, False, True]
    assert result.already.tolist() == result.success.tolist()
    assert torch.equal(result.adversarial, x)
    far = float("inf") if attack.minimum_norm else 0.0
    assert result.distance.tolist() == [far, far, 0, far, far, 0]


@pytest.mark.parametrize("make", ALL)
def test_parameters_modes_and_global_random_numbers_are_left_alone(make: Make) -> None:
    model, x = nn.Sequential(network(12), nn.Dropout(0.5)), samples(12)
    model[1].train()
    model[0][1].weight.requires_grad_(False)
    model(x).sum().backward()
    before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    make()(model, x)
    assert torch.equal(torch.get_rng_state(), state)
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)
    assert model[1].training
    assert not model[0].training
    assert not model[0][1].weight.requires_grad
    assert model[0][3].weight.requires_grad


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("kind", ["none", "scaled", "per pixel"])
def test_any_bounds(make: Make, kind: str) -> None:
    model, x = network(12), samples(12)
    if kind == "none":
        result = make(bounds=None).run(model, x)
    elif kind == "scaled":
        inner = model
        model = nn.Sequential(Rescale(), inner)
        x = x * 20 - 10
        result = make(bounds=(-10, 10)).run(model, x)
        assert float(result.adversarial.abs().max()) <= 10
    else:
        lower, upper = (x - 0.3).amin(0), x.amax(0)
        upper[3] = lower[3] = x[0, 3]
        x[:, 3] = x[0, 3]
        result = make(bounds=(lower, upper)).run(model, x)
        assert bool(((result.adversarial >= lower) & (result.adversarial <= upper)).all())
        assert torch.equal(result.adversarial[:, 3], x[:, 3])
    assert bool(torch.isfinite(result.adversarial).all())
    assert torch.equal(model(result.adversarial).argmax(1) != model(x).argmax(1), result.success)


class Rescale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + 10) / 20


@pytest.mark.parametrize("make", ALL)
def test_other_logits_that_are_all_negative(make: Make) -> None:
    model, x = network(12), samples(12)
    with torch.no_grad():
        model[3].bias -= 100
    result = make().run(model, x)
    assert bool((model(result.adversarial) < 0).all())
    assert float(result.success.float().mean()) > (0.4 if make is jsma else 0.8)


@pytest.mark.parametrize("make", ALL)
def test_broken_models_end_with_a_sentence(make: Make) -> None:
    x = samples(12)
    with pytest.raises(ValueError, match="no gradient with respect to its input"):
        make()(lambda z: torch.stack([z.detach().sum(1), -z.detach().sum(1)], 1), x)
    with pytest.raises(ValueError, match="NaN or infinite logits"):
        make()(Spoilt(), x)


class Spoilt(nn.Module):
    """Answers the clean samples, and after that with NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.stack([x.sum(1), x.sum(1) - 5], 1) * (float("nan") if self.calls > 1 else 1)


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


@pytest.mark.parametrize("kind", [LinfMomentum, L2Momentum])
def test_whole_numbers_and_one_number_per_sample_are_radii(kind: type[LinfMomentum]) -> None:
    model, x = network(12), samples(12)
    kind(eps=1)(model, x)
    eps = torch.tensor([0.0, 0.01, 0.05, 0.1, 0.2, 0.4])
    kept = eps.clone()
    attack = kind(eps=eps, steps=10, step_size=0.1, keep="best", random_start=True)
    adversarial = attack(model, x)
    assert bool((lp_norm(adversarial - x, str(attack.norm)) <= eps * (1 + 1e-5) + 1e-6).all())
    assert torch.equal(adversarial[0], x[0])
    assert torch.equal(eps, kept)


@pytest.mark.parametrize("make", [cw, ead, jsma])
def test_a_loss_is_refused_instead_of_ignored(make: Make) -> None:
    with pytest.raises(TypeError, match="loss"):
        make(loss="margin")


@pytest.mark.parametrize("make", ALL)
def test_bf16_passes_and_half_samples(make: Make) -> None:
    model, x = network(12), samples(12)
    result = make(precision="bf16").run(model, x)
    assert result.adversarial.dtype == torch.float32
    assert bool(result.success.any())
    half = make()(model, x.half())
    assert half.dtype == torch.float16
    assert bool(torch.isfinite(half).all())


@pytest.mark.parametrize("make", ALL)
def test_repeated_runs_and_pickles_agree(make: Make) -> None:
    model, x = network(12), samples(12)
    attack = make()
    assert torch.equal(attack(model, x), pickle.loads(pickle.dumps(attack))(model, x))
    assert repr(attack).startswith(type(attack).__name__ + "(")
