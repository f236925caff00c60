"""Faults of earlier toolboxes that must not come back, where they concern what all attacks share."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks.engine.losses import cross_entropy, margin
from lit_modules.attacks.ensembles import BestOf
from lit_modules.attacks.pgd import FGM, FGSM, L1PGD, L2PGD, LinfPGD, SparseL1Descent
from lit_modules.attacks.spatial import SpatialTransform

BOUNDED = [LinfPGD, L2PGD, L1PGD, SparseL1Descent, FGSM, FGM]


def linear(classes: int = 4, size: int = 36) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(size, classes))


def images(count: int = 6) -> Tensor:
    return torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", BOUNDED)
def test_1_gradients_of_parameters_do_not_accumulate(kind: type[LinfPGD]) -> None:
    model = linear()
    model(images()).sum().backward()
    before = [p.grad.clone() for p in model.parameters()]
    kind()(model, images())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    "make", [SpatialTransform, lambda: BestOf(attacks=[SpatialTransform(steps=3), FGSM(eps=1e-6)])]
)
def test_2_failures_are_not_black(make) -> None:  # noqa: ANN001
    model = linear()
    with torch.no_grad():
        model[1].weight *= 1e-6
        model[1].bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    result = make().run(model, images())
    assert not bool(result.success.any())
    assert torch.allclose(result.adversarial, images(), atol=1e-5)


def test_8_untouched_coordinates_give_no_nan() -> None:
    class FirstPixel(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first = x.flatten(1)[:, 0]
            return torch.stack([first - 0.5, 0.5 - first], 1)

    x = images()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in BOUNDED:
            adversarial = (
                kind(random_start=False)(FirstPixel(), x)
                if kind in (LinfPGD, L2PGD, L1PGD)
                else kind()(FirstPixel(), x)
            )
            assert bool(torch.isfinite(adversarial).all())
            assert torch.equal(adversarial.flatten(1)[:, 1:], x.flatten(1)[:, 1:])


def test_9_negative_logits_have_a_best_other() -> None:
    logits = torch.tensor([[-1.0, -5.0, -7.0]])
    assert margin(logits, torch.tensor([0])).tolist() == [-4.0]
    assert margin(logits, torch.tensor([2])).tolist() == [6.0]


def test_11_arguments_are_not_changed() -> None:
    x, y, eps = images(), torch.zeros(6, dtype=torch.int64), torch.full((6,), 0.2)
    lower, upper = torch.zeros(1, 6, 6), torch.ones(1, 6, 6)
    copies = [value.clone() for value in (x, y, eps, lower, upper)]
    for kind in BOUNDED:
        kind(eps=eps, bounds=(lower, upper))(linear(), x, y)
    for value, copy in zip((x, y, eps, lower, upper), copies, strict=True):
        assert torch.equal(value, copy)
        assert not value.requires_grad


def test_13_every_sample_starts_in_its_own_direction() -> None:
    x = images(2)
    start = LinfPGD(eps=0.1, steps=1, step_size=1e-9, keep="last", bounds=None)(linear(), x) - x
    assert not torch.allclose(start[0], start[1], atol=1e-2)


class Sawtooth(nn.Module):
    """Fooled by 0.55, not by 0.6 and more: the last step of a walk up is classified correctly again."""

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(1).mean(1)
        bump = 0.03 - (value - 0.55).abs()
        return torch.stack([torch.zeros_like(bump), bump + 0 * value], 1)


def test_19_the_iterate_that_fooled_comes_back() -> None:
    x, y = torch.full((1, 4), 0.5), torch.tensor([0])
    arguments = {"eps": 0.1, "step_size": 0.05, "steps": 6, "random_start": False, "loss": cross_entropy}
    for keep in ("first", "best"):
        result = LinfPGD(**arguments, keep=keep).run(Sawtooth(), x, y)  # type: ignore[arg-type]
        assert bool(result.success.all())
        assert int(Sawtooth()(result.adversarial).argmax()) == 1


def test_19_fooled_samples_leave() -> None:
    seen: list[int] = []
    model = linear()

    def spy(x: Tensor) -> Tensor:
        seen.append(len(x))
        return model(x)

    LinfPGD(eps=0.1, steps=20, step_size=0.01, random_start=False)(spy, images(30))
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < seen[0]


def test_21_arguments_go_by_name() -> None:
    for kind in BOUNDED:
        with pytest.raises(TypeError, match="positional"):
            kind(0.3)  # type: ignore[misc]
