"""The one audit: exact where nothing is rounded, with one allowance where numbers are."""

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import APGD, L1PGD, L2PGD, Attack, LinfPGD, Square
from lit_modules.attacks.engine.checks import audit_perturbation


def test_norms_in_float64() -> None:
    x = torch.full((2, 3), 0.5)
    moved = x + torch.tensor([[0.25, 0.0, -0.25], [0.125, 0.0, 0.0]])
    for norm, expected in (("linf", [0.25, 0.125]), ("l1", [0.5, 0.125]), ("l0", [2, 1]), (None, [0.125**0.5, 0.125])):
        distance = audit_perturbation(x, moved, norm=norm, bounds=(0, 1))
        torch.testing.assert_close(distance, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_what_is_beyond_is_named(dtype: torch.dtype, norm: str) -> None:
    x = torch.full((3, 4), 0.5, dtype=dtype)
    moved = x.clone()
    moved[1, :2] += 0.25
    size = float(audit_perturbation(x, moved, norm=norm)[1])
    audit_perturbation(x, moved, norm=norm, eps=size)
    with pytest.raises(
        RuntimeError, match=rf"^'mine' broke its radius: {norm} distance {size:.8g} of sample 41, allow"
    ):
        audit_perturbation(x, moved, norm=norm, eps=size * 0.9999, name="'mine'", samples=[40, 41, 42])
    with pytest.raises(RuntimeError, match=r"of sample 1, allowed 0\.1"):
        audit_perturbation(x, moved, norm=norm, eps=torch.tensor([0.0, 0.1, 0.0]))


def test_bounds_are_exact_in_the_samples_precision() -> None:
    x, upper = torch.full((2, 2), 0.05), torch.full((2, 2), 0.1)  # the float32 nearest to 0.1 lies above it
    audit_perturbation(x, upper, bounds=(0.0, 0.1))
    with pytest.raises(
        RuntimeError, match=r"The attack left the bounds by 7\.45.*e-09 on sample 0, with values from 0"
    ):
        audit_perturbation(x, torch.nextafter(upper, torch.ones(2, 2)), bounds=(0.0, 0.1))
    lower = torch.tensor([[0.0, 0.05]])
    with pytest.raises(RuntimeError, match=r"left the bounds by 0\.05\d* on sample 0"):
        audit_perturbation(x, torch.zeros(2, 2), bounds=(lower, torch.ones(1, 2)))


def test_samples_of_another_shape_or_not_finite() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(RuntimeError, match=r"gave samples of shape \(2, 1\) for \(2, 3\)"):
        audit_perturbation(x, x[:, :1])
    with pytest.raises(RuntimeError, match="values that are not finite, for sample 1"):
        audit_perturbation(x, torch.tensor([[0.0] * 3, [0.0, float("nan"), 0.0]]))


class Scaled(nn.Module):
    """A linear classifier of samples in other units."""

    def __init__(self, values: int, scale: float) -> None:
        super().__init__()
        self.net, self.scale = nn.Sequential(nn.Flatten(), nn.Linear(values, 4)), scale

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x / self.scale)
        return logits


@pytest.mark.parametrize(
    ("attack", "side", "scale"),
    [
        (LinfPGD(eps=1.0, steps=3, step_size=0.5, bounds=(0, 255)), 32, 255.0),
        (LinfPGD(eps=0.1, steps=3, bounds=None), 32, 20.0),
        (L1PGD(eps=1.0, steps=3, step_size=0.3), 32, 1.0),
        (L1PGD(eps=0.1, steps=3, step_size=0.03), 32, 1.0),
        (L1PGD(eps=1.0, steps=3, step_size=0.3, sparsity=0.0), 64, 1.0),
        (L2PGD(eps=0.1, steps=3, step_size=0.05), 64, 1.0),
        (Square(norm="l2", eps=0.5, queries=20), 32, 1.0),
        (APGD(norm="l1", eps=12.0, steps=10), 32, 1.0),
    ],
    ids=str,
)
def test_rounding_to_float32_is_allowed(attack: Attack, side: int, scale: float) -> None:
    torch.manual_seed(0)
    x = torch.rand(16, 3, side, side) * scale
    model = Scaled(x[0].numel(), scale).eval()
    result = attack.run(model, x, model(x).argmax(1))
    again = audit_perturbation(x, result.adversarial, norm=attack.norm, eps=attack.eps, bounds=attack.bounds)
    assert torch.equal(again, result.distance)
