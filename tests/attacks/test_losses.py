"""Losses that attacks raise: their values, gradients and names."""

from typing import Any

import pytest
import torch

from lit_modules.attacks import APGD, APGDT, BestOf, LinfPGD, SoftLogitMarginLoss, Square, ZeroOneLoss
from lit_modules.attacks.engine.losses import LOSSES, dlr, margin, resolve_loss, soft_margin, targeted_dlr, zero_one
from tests.attacks.helpers import images, linear, spread


def logits(count: int = 20, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return 3 * torch.randn(count, classes, generator=random), torch.randint(classes, (count,), generator=random)


def test_margin_of_negative_logits() -> None:
    assert margin(torch.tensor([[-1.0, -5.0, -7.0]] * 2), torch.tensor([0, 2])).tolist() == [-4.0, 6.0]


def test_dlr_losses_by_hand() -> None:
    z = torch.tensor([[4.0, 3.0, 1.0, 0.0]])
    assert float(dlr(z, torch.tensor([0]))) == pytest.approx(-1 / 3)
    assert float(dlr(z, torch.tensor([2]))) == pytest.approx(3 / 3)
    assert float(targeted_dlr(z, torch.tensor([0]), torch.tensor([2]))) == pytest.approx(-3 / 3.5)
    assert torch.allclose(dlr(7 * z + 2, torch.tensor([0])), dlr(z, torch.tensor([0])))
    with pytest.raises(ValueError, match="DLR loss needs at least 3 classes, got 2; use loss='margin'"):
        APGD(loss="dlr")(linear(2, 4), torch.rand(2, 4))
    with pytest.raises(ValueError, match="targeted DLR loss needs at least 4 classes, got 3"):
        APGDT()(linear(3, 4), torch.rand(2, 4))


def test_soft_margin_is_the_log_odds_against_the_label() -> None:
    z, y = logits()
    p = z.double().softmax(1).gather(1, y[:, None])[:, 0]
    assert torch.allclose(soft_margin(z, y).double(), ((1 - p) / p).log(), atol=1e-5)
    assert bool((soft_margin(z, y) >= margin(z, y)).all())
    assert torch.allclose(soft_margin(z - 1000, y), soft_margin(z, y), atol=1e-3)  # negative logits are no trap
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(soft_margin(z, y).sum(), z)
    others = torch.ones_like(z).scatter(1, y[:, None], 0).bool()
    assert bool((gradient[others] > 0).all())
    assert torch.allclose(gradient.gather(1, y[:, None]), torch.tensor(-1.0))


@pytest.mark.parametrize(("kind", "function"), [(SoftLogitMarginLoss, soft_margin), (ZeroOneLoss, zero_one)])
def test_reductions(kind: Any, function: Any) -> None:
    z, y = logits()
    assert torch.equal(kind()(z, y), function(z, y))
    assert torch.equal(kind("mean")(z, y), function(z, y).mean())
    assert torch.equal(kind("sum")(z, y), function(z, y).sum())
    with pytest.raises(ValueError, match="reduction must be 'none' or 'mean' or 'sum', got 'max'"):
        kind("max")
    with pytest.raises(ValueError, match=r"a value per sample, shape \(3,\), got \(\); use reduction='none'"):
        LinfPGD(loss=kind("mean"))(spread(4), images(3))


@pytest.mark.parametrize("loss", ["soft_margin", SoftLogitMarginLoss()])
def test_attacks_with_gradients_raise_the_soft_margin(loss: Any) -> None:
    model, x = spread(4), images(12)
    y = model(x).argmax(1)
    adversarial = LinfPGD(eps=0.05, steps=5, step_size=0.02, keep="best", loss=loss)(model, x, y)
    assert bool((soft_margin(model(adversarial), y) > soft_margin(model(x), y)).all())
    assert bool(LinfPGD(eps=0.5, steps=5, step_size=0.2, loss=loss).run(model, x, y).success.any())


@pytest.mark.parametrize("loss", ["zero_one", ZeroOneLoss()])
def test_zero_one_counts_errors_and_serves_attacks_without_gradients(loss: Any) -> None:
    z, y = logits()
    assert torch.equal(zero_one(z, y), (z.argmax(1) != y).float())
    model, x = spread(4), images(12)
    attack = Square(eps=0.5, queries=50, loss=loss)
    assert bool(attack.run(model, x).success.any())
    assert bool(BestOf(attacks=[attack]).run(model, x).success.any())
    with pytest.raises(ValueError, match=r"zero_one has no useful gradient; take loss='margin', or .*Square"):
        LinfPGD(loss=loss)(model, x)


def test_names() -> None:
    assert {name: resolve_loss(name) for name in LOSSES} == LOSSES  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="loss must be one of cross_entropy, margin, dlr, soft_margin, zero_one or a"):
        resolve_loss("hinge")  # type: ignore[arg-type]
