"""The projection on a plane within bounds, against independent solvers; gradients of logit differences."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

from lit_modules.attacks.boundary import differences, likely_others, nearest_plane, project_on_plane
from lit_modules.attacks.engine.state import AttackState
from lit_modules.attacks.minimum_norm import DDN


def state_of(model: Callable[[Tensor], Tensor], x: Tensor) -> AttackState:
    return DDN(bounds=None).prepare(model, x, None, None)


def random(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def solve(norm: str, normal: np.ndarray, value: float, low: np.ndarray, high: np.ndarray) -> float:
    """Return the least norm of a move between ``low`` and ``high`` with ``value + normal @ move = 0``."""
    d = len(normal)
    if norm == "l2":
        found = minimize(
            lambda m: m @ m,
            np.clip(-value * normal / (normal @ normal), low, high),
            jac=lambda m: 2 * m,
            bounds=list(zip(low, high, strict=True)),
            constraints={"type": "eq", "fun": lambda m: value + normal @ m, "jac": lambda m: normal},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert found.success
        return float(np.sqrt(found.fun))
    slack = d if norm == "l1" else 1  # move <= t, -move <= t
    spread = np.eye(d) if norm == "l1" else np.ones((d, 1))
    a_ub = np.block([[np.eye(d), -spread], [-np.eye(d), -spread]])
    found = linprog(
        np.r_[np.zeros(d), np.ones(slack)],
        A_ub=a_ub,
        b_ub=np.zeros(2 * d),
        A_eq=np.r_[normal, np.zeros(slack)][None],
        b_eq=[-value],
        bounds=[*zip(low, high, strict=True), *[(0, None)] * slack],
    )
    assert found.success
    return float(found.fun)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("bounded", [True, False])
def test_projection_agrees_with_a_solver(norm: str, bounded: bool) -> None:
    rows, d = 6, 9
    x = random(0, 2, rows, d)
    x[0, :, :2], x[1, :, -1] = 0.0, 1.0  # some coordinates stand at their bounds
    normal = random(1, rows, d) - 0.5
    normal[:, 3] = 0
    reach = torch.where(normal > 0, 1 - x, -x).mul(normal).sum(-1)  # most that the bounds allow upwards
    value = -reach * torch.linspace(0.05, 0.95, rows, dtype=torch.float64)
    lower, upper = (torch.tensor(0.0), torch.tensor(1.0)) if bounded else (None, None)
    move = project_on_plane(x, normal, value, norm, lower, upper)
    torch.testing.assert_close(value + (normal * move).sum(-1), torch.zeros(2, rows).double(), atol=1e-6, rtol=0)
    order = {"linf": float("inf"), "l2": 2, "l1": 1}[norm]
    for version in range(2):
        for row in range(rows):
            low, high = (
                (-x[version, row], 1 - x[version, row])
                if bounded
                else (torch.full((d,), -99.0), torch.full((d,), 99.0))
            )
            least = solve(norm, normal[row].numpy(), float(value[version, row]), low.numpy(), high.numpy())
            assert float(move[version, row].norm(order)) == pytest.approx(least, rel=1e-4)
    if bounded:
        assert bool(((x + move >= -1e-12) & (x + move <= 1 + 1e-12)).all())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_unreachable_plane_is_approached_as_far_as_the_bounds_allow(norm: str) -> None:
    x = torch.full((1, 3, 100), 0.25)
    normal = torch.ones(3, 100)
    normal[:, 50:] = -2
    value = torch.tensor([[-1000.0, 1000.0, 0.0]])
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    move = project_on_plane(x, normal, value, norm, zero, one)[0]
    torch.testing.assert_close(x[0, 0] + move[0], (normal[0] > 0).float())
    torch.testing.assert_close(x[0, 1] + move[1], (normal[1] < 0).float())
    assert not move[2].any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_tiny_and_zero_normals_stay_finite(norm: str) -> None:
    x = torch.full((2, 3, 4), 0.5)
    normal = torch.tensor([0.0, 1e-30, 1e-20])[:, None].expand(3, 4) * torch.tensor([1.0, -1.0, 0.0, 1.0])
    for bounds in ((None, None), (torch.tensor(0.0), torch.tensor(1.0))):
        move = project_on_plane(x, normal, torch.full((2, 3), -1e-21), norm, *bounds)
        assert torch.isfinite(move).all()
        assert not move[:, 0].any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_each_row_is_alone(norm: str) -> None:
    """Neither the other rows nor per-pixel bounds given in another shape change a result."""
    x, normal = random(0, 2, 40, 3, 8).float(), random(1, 40, 3, 8).float() - 0.5
    value = random(2, 2, 40).float() * -3
    lower, upper = torch.zeros(1, 3, 8), torch.ones(40, 3, 8)
    together = project_on_plane(x, normal, value, norm, lower, upper)
    for row in (0, 17, 39):
        alone = project_on_plane(
            x[:, row : row + 1],
            normal[row : row + 1],
            value[:, row : row + 1],
            norm,
            torch.tensor(0.0),
            torch.tensor(1.0),
        )
        torch.testing.assert_close(alone[:, 0], together[:, row], atol=1e-6, rtol=1e-5)


class Unbatchable(torch.autograd.Function):
    """Sine whose backward pass has no batched form."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.from_numpy(gradient.numpy() * x.cos().numpy())


@pytest.mark.parametrize("activation", [torch.sin, Unbatchable.apply])
def test_differences_have_their_gradients(activation: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(5, 7).double(), nn.Linear(7, 4).double()
    x = random(0, 3, 5)
    state = state_of(lambda z: second(activation(first(z))), x)
    classes = torch.tensor([[1, 2, 3], [3, 0, 0]])
    reference = torch.tensor([0, 1, 2])
    logits, gaps, gradients = differences(state, x, classes, reference)
    jacobian = torch.autograd.functional.jacobian(
        lambda z: second(torch.sin(first(z))).sum(0), x
    )  # (classes, batch, 5)
    for row in range(2):
        for sample in range(3):
            a, b = classes[row, sample], reference[sample]
            torch.testing.assert_close(gaps[row, sample], logits[sample, a] - logits[sample, b])
            torch.testing.assert_close(gradients[row, sample], jacobian[a, sample] - jacobian[b, sample])
    assert state.num_queries.tolist() == [2, 2, 2]  # the clean pass and this one


def test_model_without_gradient_is_refused() -> None:
    x = torch.rand(2, 3)
    state = state_of(lambda z: z.detach(), x)
    with pytest.raises(ValueError, match=r"no gradient with respect to its input.*BPDA"):
        differences(state, x, torch.tensor([[0, 0]]), torch.tensor([1, 1]))


def test_likely_others_leave_the_label_out() -> None:
    state = state_of(lambda z: z, torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]]))
    assert likely_others(state, 2).tolist() == [[2, 1], [2, 1]]
    assert likely_others(state, None).tolist() == [[2, 1, 3], [2, 1, 0]]
    assert likely_others(state, 99).shape == (2, 3)


def test_nearest_plane_divides_by_the_dual_norm() -> None:
    """Class 1 is nearest by the logits, class 2 by the distance."""
    weight = torch.tensor([[0.0, 0.0], [0.1, 0.0], [3.0, 4.0]])
    bias = torch.tensor([0.0, -1.0, -10.0])
    x = torch.zeros(1, 2)
    state = state_of(lambda z: z @ weight.T + bias, x)
    _, value, gradient = nearest_plane(state, x, torch.tensor([[1, 2]]), "l2")
    assert float(value) == -10
    assert gradient.tolist() == [[3.0, 4.0]]
