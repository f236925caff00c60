"""Losses that attacks raise: their values, gradients and names."""

from typing import Any

import pytest
import torch
from torch import nn

from lit_modules.attacks import BestOf, LinfPGD, SoftLogitMarginLoss, Square, ZeroOneLoss
from lit_modules.attacks.engine.losses import LOSSES, margin, resolve_loss, soft_margin, zero_one


def logits(count: int = 20, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return 3 * torch.randn(count, classes, generator=random), torch.randint(classes, (count,), generator=random)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def test_soft_margin_is_the_log_odds_against_the_label() -> None:
    z, y = logits()
    p = z.double().softmax(1).gather(1, y[:, None])[:, 0]
    assert torch.allclose(soft_margin(z, y).double(), ((1 - p) / p).log(), atol=1e-5)
    assert bool((soft_margin(z, y) >= margin(z, y)).all())
    assert torch.allclose(soft_margin(100 * z, y), margin(100 * z, y), atol=1e-3)
    two, label = logits(classes=2)
    assert torch.allclose(soft_margin(two, label), margin(two, label))
    assert torch.allclose(soft_margin(z - 1000, y), soft_margin(z, y), atol=1e-3)  # negative logits are no trap


def test_all_other_classes_pull_on_the_soft_margin() -> None:
    z, y = logits()
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(soft_margin(z, y).sum(), z)
    others = torch.ones_like(z).scatter(1, y[:, None], 0).bool()
    assert bool((gradient[others] > 0).all())
    assert torch.allclose(gradient.gather(1, y[:, None]), torch.tensor(-1.0))


def test_zero_one_counts_errors_and_has_no_gradient() -> None:
    z, y = logits()
    assert torch.equal(zero_one(z, y), (z.argmax(1) != y).float())
    z.requires_grad_()
    with pytest.raises(ValueError, match=r"zero_one has no useful gradient; take loss='margin', or .*Square"):
        zero_one(z, y).sum().backward()  # type: ignore[no-untyped-call]


def test_reductions() -> None:
    z, y = logits()
    for kind, function in ((SoftLogitMarginLoss, soft_margin), (ZeroOneLoss, zero_one)):
        assert torch.equal(kind()(z, y), function(z, y))
        assert torch.equal(kind("mean")(z, y), function(z, y).mean())
        assert torch.equal(kind("sum")(z, y), function(z, y).sum())
        with pytest.raises(ValueError, match="reduction must be 'none' or 'mean' or 'sum', got 'max'"):
            kind("max")  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", ["soft_margin", SoftLogitMarginLoss()])
def test_attacks_with_gradients_raise_the_soft_margin(loss: Any) -> None:
    net, x = model(), torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    y = net(x).argmax(1)
    found = LinfPGD(eps=0.05, steps=5, step_size=0.02, keep="best", loss=loss).run(net, x, y)
    assert bool((soft_margin(net(found.adversarial), y) > soft_margin(net(x), y)).all())
    assert bool(LinfPGD(eps=0.5, steps=5, step_size=0.2, loss=loss).run(net, x, y).success.any())


@pytest.mark.parametrize("loss", ["zero_one", ZeroOneLoss()])
def test_zero_one_serves_attacks_without_gradients(loss: Any) -> None:
    net, x = model(), torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = Square(eps=0.5, queries=50, loss=loss).run(net, x)
    assert bool(found.success.any())
    with pytest.raises(ValueError, match="zero_one has no useful gradient"):
        LinfPGD(loss=loss)(net, x)
    assert bool(BestOf(attacks=[Square(eps=0.5, queries=50, loss=loss)]).run(net, x).success.any())


def test_a_loss_already_averaged_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a value per sample, shape \(3,\), got \(\); use reduction='none'"):
        LinfPGD(loss=SoftLogitMarginLoss("mean"))(model(), torch.rand(3, 3, 4, 4))


def test_names() -> None:
    assert {name: resolve_loss(name) for name in LOSSES} == LOSSES  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="loss must be one of cross_entropy, margin, dlr, soft_margin, zero_one or a"):
        resolve_loss("hinge")  # type: ignore[arg-type]
