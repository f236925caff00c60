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
from tests.attacks.helpers import curved, images

norms = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
ZERO, ONE = torch.tensor(0.0), torch.tensor(1.0)


def state_of(model: Callable[[Tensor], Tensor], x: Tensor) -> AttackState:
    return DDN(bounds=None).prepare(model, x, None, None)


def random(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def solve(norm: str, normal: np.ndarray, value: float, low: np.ndarray, high: np.ndarray) -> float:
    """Return the least norm of a move between ``low`` and ``high`` with ``value + normal @ move = 0``."""
    d = len(normal)
    if norm == "l2":
        solution = minimize(
            lambda m: m @ m,
            np.clip(-value * normal / (normal @ normal), low, high),
            jac=lambda m: 2 * m,
            bounds=list(zip(low, high, strict=True)),
            constraints={"type": "eq", "fun": lambda m: value + normal @ m, "jac": lambda m: normal},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert solution.success
        return float(np.sqrt(solution.fun))
    slack = d if norm == "l1" else 1  # move <= t, -move <= t
    spread = np.eye(d) if norm == "l1" else np.ones((d, 1))
    solution = linprog(
        np.r_[np.zeros(d), np.ones(slack)],
        A_ub=np.block([[np.eye(d), -spread], [-np.eye(d), -spread]]),
        b_ub=np.zeros(2 * d),
        A_eq=np.r_[normal, np.zeros(slack)][None],
        b_eq=[-value],
        bounds=[*zip(low, high, strict=True), *[(0, None)] * slack],
    )
    assert solution.success
    return float(solution.fun)


@norms
@pytest.mark.parametrize("bounded", [True, False])
def test_projection_agrees_with_a_solver(norm: str, bounded: bool) -> None:
    rows, d = 6, 9
    x = random(0, 2, rows, d)
    x[0, :, :2], x[1, :, -1] = 0.0, 1.0  # some coordinates stand at their bounds
    normal = random(1, rows, d) - 0.5
    normal[:, 3] = 0
    reach = torch.where(normal > 0, 1 - x, -x).mul(normal).sum(-1)  # most that the bounds allow upwards
    value = -reach * torch.linspace(0.05, 0.95, rows, dtype=torch.float64)
    move = project_on_plane(x, normal, value, norm, *((ZERO, ONE) if bounded else (None, None)))
    torch.testing.assert_close(value + (normal * move).sum(-1), torch.zeros(2, rows).double(), atol=1e-6, rtol=0)
    length = move.norm({"linf": float("inf"), "l2": 2, "l1": 1}[norm], dim=-1)
    low, high = (-x, 1 - x) if bounded else (torch.full_like(x, -99), torch.full_like(x, 99))
    for at in np.ndindex(2, rows):
        least = solve(norm, normal[at[1]].numpy(), float(value[at]), low[at].numpy(), high[at].numpy())
        assert float(length[at]) == pytest.approx(least, rel=1e-4)
    if bounded:
        assert bool(((x + move >= -1e-12) & (x + move <= 1 + 1e-12)).all())


@norms
def test_unreachable_plane_is_approached_as_far_as_the_bounds_allow(norm: str) -> None:
    x, normal = torch.full((1, 3, 100), 0.25), torch.ones(3, 100)
    normal[:, 50:] = -2
    move = project_on_plane(x, normal, torch.tensor([[-1000.0, 1000.0, 0.0]]), norm, ZERO, ONE)[0]
    torch.testing.assert_close(x[0, 0] + move[0], (normal[0] > 0).float())
    torch.testing.assert_close(x[0, 1] + move[1], (normal[1] < 0).float())
    assert not move[2].any()


@norms
@pytest.mark.parametrize("bounds", [(None, None), (ZERO, ONE)])
def test_tiny_and_zero_normals_stay_finite(norm: str, bounds: Any) -> None:
    normal = torch.tensor([0.0, 1e-30, 1e-20])[:, None].expand(3, 4) * torch.tensor([1.0, -1.0, 0.0, 1.0])
    move = project_on_plane(torch.full((2, 3, 4), 0.5), normal, torch.full((2, 3), -1e-21), norm, *bounds)
    assert torch.isfinite(move).all()
    assert not move[:, 0].any()


@norms
def test_each_row_is_alone(norm: str) -> None:
    """Neither the other rows nor per-pixel bounds given in another shape change a result."""
    x, normal = random(0, 2, 40, 3, 8).float(), random(1, 40, 3, 8).float() - 0.5
    value = random(2, 2, 40).float() * -3
    together = project_on_plane(x, normal, value, norm, torch.zeros(1, 3, 8), torch.ones(40, 3, 8))
    for row in ([0], [17], [39]):
        alone = project_on_plane(x[:, row], normal[row], value[:, row], norm, ZERO, ONE)
        torch.testing.assert_close(alone, together[:, row], atol=1e-6, rtol=1e-5)


class Unbatchable(torch.autograd.Function):
    """Sine whose backward pass has no batched form."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.from_numpy(gradient.numpy() * ctx.saved_tensors[0].cos().numpy())


@pytest.mark.parametrize("activation", [torch.sin, Unbatchable.apply])
def test_differences_have_their_gradients(activation: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(5, 7).double(), nn.Linear(7, 4).double()
    x = random(0, 3, 5)
    state = state_of(lambda z: second(activation(first(z))), x)
    classes, reference = torch.tensor([[1, 2, 3], [3, 0, 0]]), torch.tensor([0, 1, 2])
    logits, gaps, gradients = differences(state, x, classes, reference)
    jacobian = torch.autograd.functional.jacobian(lambda z: second(torch.sin(first(z))).sum(0), x)
    for row, sample in np.ndindex(2, 3):
        a, b = classes[row, sample], reference[sample]
        torch.testing.assert_close(gaps[row, sample], logits[sample, a] - logits[sample, b])
        torch.testing.assert_close(gradients[row, sample], jacobian[a, sample] - jacobian[b, sample])
    assert state.num_queries.tolist() == [2, 2, 2]  # the clean pass and this one


def test_likely_others_leave_the_label_out() -> None:
    state = state_of(lambda z: z, torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]]))
    assert likely_others(state, 2).tolist() == [[2, 1], [2, 1]]
    assert likely_others(state, None).tolist() == [[2, 1, 3], [2, 1, 0]]
    assert likely_others(state, 99).shape == (2, 3)


def test_nearest_plane_divides_by_the_dual_norm_among_the_likely_classes() -> None:
    """Class 1 is nearest by the logits, class 2 by the distance."""
    model, x = nn.Linear(2, 3), torch.zeros(1, 2)
    model.weight.data, model.bias.data = torch.tensor([[0.0, 0], [0.1, 0], [3, 4]]), torch.tensor([0.0, -1, -10])
    _, value, gradient = nearest_plane(state_of(model, x), x, torch.tensor([[1, 2]]), "l2")
    assert float(value) == -10
    assert gradient.tolist() == [[3.0, 4.0]]
    near, likely = (DeepFool(bounds=None, classes=classes).run(model, x) for classes in (None, 2))
    assert float(near.distance) == pytest.approx(2, rel=0.01)
    assert near.adversarial[0, 1] > 0
    assert float(likely.distance) > 3.3  # on the way along the first axis
    assert likely.adversarial[0, 1] == 0


@pytest.mark.parametrize(("norm", "dual"), [("l2", 2), ("linf", 1)])
def test_deepfool_takes_one_step_and_the_overshoot_on_a_linear_model(norm: Any, dual: int) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(20, 4), torch.randn(8, 20)
    result = DeepFool(norm=norm, bounds=None, search_steps=0, overshoot=0.05).run(model, x)
    logits, label = model(x), model(x).argmax(1)
    normals = model.weight[label][:, None] - model.weight
    distances = (logits.gather(1, label[:, None]) - logits) / normals.norm(dual, dim=2)
    least = distances.nan_to_num(float("inf")).amin(1).double().detach()
    torch.testing.assert_close(result.distance, 1.05 * least, rtol=1e-3, atol=1e-6)
    assert result.num_queries.tolist() == [3] * 8  # clean, gradient, result


@pytest.fixture
def relu() -> tuple[nn.Module, Tensor]:
    return curved(activation=nn.ReLU), images(10, 3, 4, 4, seed=2)


@pytest.mark.parametrize("max_batch", [1, 12])
def test_chunks_do_not_change_the_result(relu: Any, max_batch: int) -> None:
    whole, parts = FABT(steps=10).run(*relu), FABT(steps=10, max_batch=max_batch).run(*relu)
    torch.testing.assert_close(parts.adversarial, whole.adversarial, atol=2e-5, rtol=0)
    assert torch.equal(parts.num_queries, whole.num_queries)


def test_targets_are_the_likely_classes(relu: Any) -> None:
    attack = FABT(n_targets=2)
    state = attack.prepare(*relu, None, None)
    assert torch.equal(attack.targets(state), relu[0](relu[1]).argsort(1, descending=True)[:, 1:3])
    assert FABT(n_targets=99).targets(state).shape == (10, 5)


def test_more_targets_are_never_worse(relu: Any) -> None:
    one, every = (FABT(steps=30, n_targets=n, search_steps=0).run(*relu).distance for n in (1, 5))
    assert (every <= one + 1e-6).all()
    assert (every < one - 1e-6).any()


def test_all_targets_of_a_sample_leave_together(relu: Any) -> None:
    """With a radius that the first step reaches, each of the 5 targets has cost two passes."""
    result = FABT(stop_radius=1.0).run(*relu)
    assert result.success.all()
    assert (result.num_queries <= 1 + 5 * 3).all()
    assert (result.num_queries == 1 + 5 * 2).any()


def test_last_search_only_improves(relu: Any) -> None:
    plain, searched = (FAB(norm="l2", steps=4, search_steps=n).run(*relu).distance for n in (0, 3))
    assert (searched <= plain).all()
    assert searched.sum() < plain.sum()
