"""Projection on a plane within bounds against solvers, DeepFool and FAB."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

from lit_modules.attacks import DDN, FAB, FABT, DeepFool
from lit_modules.attacks.boundary import differences, likely_others, nearest_plane, project_on_plane
from lit_modules.attacks.engine.state import AttackState


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


def model_and_samples(n: int = 10, classes: int = 6) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, classes))
    for layer in (model[1], model[3]):
        layer.weight.data *= 4
    return model, torch.rand(n, 3, 4, 4)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_linear_model_takes_one_step_and_the_overshoot(norm: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(20, 4), torch.randn(8, 20)
    result = DeepFool(norm=norm, bounds=None, search_steps=0, overshoot=0.05).run(model, x)
    logits = model(x)
    label = logits.argmax(1)
    gaps = logits.gather(1, label[:, None]) - logits
    normals = model.weight[label][:, None] - model.weight
    least = gaps / normals.norm(2 if norm == "l2" else 1, dim=2).clamp_min(1e-30)
    least = least.scatter(1, label[:, None], float("inf")).amin(1).double().detach()
    torch.testing.assert_close(result.distance, 1.05 * least, rtol=1e-3, atol=1e-6)
    assert result.num_queries.tolist() == [3] * 8  # clean, gradient, result


def test_only_the_likely_classes_are_considered() -> None:
    """Class 2 is nearest, but class 1 is the more likely one."""
    model = nn.Linear(2, 3)
    model.weight.data = torch.tensor([[0.0, 0.0], [0.1, 0.0], [3.0, 4.0]])
    model.bias.data = torch.tensor([0.0, -1.0, -10.0])
    x = torch.zeros(1, 2)
    near = DeepFool(bounds=None, classes=None).run(model, x)
    likely = DeepFool(bounds=None, classes=2).run(model, x)
    assert float(near.distance) == pytest.approx(2, rel=0.01)
    assert float(likely.distance) > 3.3  # on the way along the first axis
    assert near.adversarial[0, 1] > 0
    assert likely.adversarial[0, 1] == 0


def test_bounds_that_cut_the_moves_do_not_hold_it_up() -> None:
    """The clipped moves alone would end short of the boundary."""
    model, x = model_and_samples(24)
    x = x.round()  # every value stands at a bound
    for norm in ("l2", "linf"):
        assert DeepFool(norm=norm).run(model, x).success.all()


def model_and_samples_fab(n: int = 10, classes: int = 6) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, classes))
    for layer in (model[1], model[3]):
        layer.weight.data *= 4
    return model, torch.rand(n, 3, 4, 4)


def test_chunks_do_not_change_the_result() -> None:
    model, x = model_and_samples_fab()
    whole = FABT(steps=10).run(model, x)
    for max_batch in (1, 12):
        parts = FABT(steps=10, max_batch=max_batch).run(model, x)
        torch.testing.assert_close(parts.adversarial, whole.adversarial, atol=2e-5, rtol=0)
        assert torch.equal(parts.num_queries, whole.num_queries)


def test_targets_are_the_likely_classes() -> None:
    model, x = model_and_samples_fab()
    attack = FABT(n_targets=2)
    state = attack.prepare(model, x, None, None)
    order = model(x).argsort(1, descending=True)
    assert torch.equal(attack.targets(state), order[:, 1:3])
    assert FABT(n_targets=99).targets(state).shape == (10, 5)


def test_more_targets_are_never_worse() -> None:
    model, x = model_and_samples_fab()
    one, all_ = (FABT(steps=30, n_targets=n, search_steps=0).run(model, x).distance for n in (1, 5))
    assert (all_ <= one + 1e-6).all()
    assert (all_ < one - 1e-6).any()


def test_all_targets_of_a_sample_leave_together() -> None:
    """With a radius that the first step reaches, each of the 5 targets has cost two passes."""
    model, x = model_and_samples_fab()
    result = FABT(stop_radius=1.0).run(model, x)
    assert result.success.all()
    assert (result.num_queries <= 1 + 5 * 3).all()
    assert (result.num_queries == 1 + 5 * 2).any()


def test_last_search_only_improves() -> None:
    model, x = model_and_samples_fab()
    plain, searched = (FAB(norm="l2", steps=4, search_steps=n).run(model, x).distance for n in (0, 3))
    assert (searched <= plain).all()
    assert searched.sum() < plain.sum()
