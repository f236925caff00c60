"""Square attack: schedule, start, windows, and what its arguments promise."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import Square
from lit_modules.attacks.engine.norms import lp_norm
from lit_modules.attacks.square import square_area

EPS: dict[str, float] = {"linf": 0.1, "l2": 0.6, "l1": 3.0}


def network(size: int = 48) -> nn.Module:
    """A random network whose answers are spread over the classes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.ReLU(), nn.Linear(16, 5)).eval()
    with torch.no_grad():
        model[-1].bias -= model(torch.rand(200, size)).mean(0)
    return model


def images(count: int = 12) -> Tensor:
    return torch.rand(count, 2, 4, 6, generator=torch.Generator().manual_seed(1))


def make(norm: str, **changes: Any) -> Square:
    arguments: dict[str, Any] = {"norm": norm, "eps": EPS[norm], "queries": 60} | changes
    return Square(**arguments)


class Stubborn(nn.Module):
    """Never fooled, and no try is better than another; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.tries: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.tries.append(x.clone())
        return torch.tensor([5.0, 0.0, -1.0]).expand(len(x), 3)


def test_areas_are_those_of_the_paper() -> None:
    bounds = [0, 10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]
    for halvings, bound in enumerate(bounds):
        assert square_area(bound + 1, 0.8) == pytest.approx(0.8 / 2**halvings)
        assert square_area(bound, 0.8) == pytest.approx(0.8 / 2 ** max(0, halvings - 1))
    assert square_area(0, 0.8) == 0.8
    assert square_area(9999, 0.8) == pytest.approx(0.8 / 512)
    assert square_area(11, 0.4) == pytest.approx(0.2)


def test_starts_with_vertical_stripes() -> None:
    model, x = Stubborn(), torch.rand(5, 3, 7, 9)
    Square(eps=0.2, queries=1, bounds=None)(model, x, torch.zeros(5, dtype=torch.int64))
    stripes = (model.tries[1] - x) / 0.2
    assert torch.allclose(stripes.abs(), torch.ones_like(stripes), atol=1e-5)
    assert torch.allclose(stripes, stripes[:, :, :1].expand_as(stripes), atol=1e-5)
    assert len({tuple(row.round().tolist()) for row in stripes[:, :, 0].flatten(0, 1)}) > 10
    assert 0.2 < float((stripes > 0).float().mean()) < 0.8


@pytest.mark.parametrize("eps", [0.7, 4.0, 200.0])
def test_starts_on_the_l1_sphere(eps: float) -> None:
    model, x = Stubborn(), torch.rand(5, 3, 40, 39)
    Square(norm="l1", eps=eps, queries=1, bounds=None)(model, x, torch.zeros(5, dtype=torch.int64))
    move = model.tries[1] - x
    assert torch.allclose(lp_norm(move, "l1"), torch.full((5,), eps), rtol=1e-4)
    moved = float((move != 0).float().mean())
    assert moved > 0.7 if eps == 200 else 0 < moved < 0.2


@pytest.mark.parametrize("channels", [1, 3])
def test_l1_tries_are_at_the_radius_within_the_bounds(channels: int) -> None:
    """The box takes from the perturbation while the projection gives nothing back, so a try may be a little inside."""
    model, x = Stubborn(), torch.rand(8, channels, 12, 12, generator=torch.Generator().manual_seed(0))
    Square(norm="l1", eps=6.0, queries=80)(model, x, torch.zeros(8, dtype=torch.int64))
    for tried in model.tries[1:]:
        sizes = lp_norm((tried - x).double(), "l1")
        assert bool((sizes <= 6 * (1 + 1e-6)).all())
        assert bool((sizes > 3).all())
        assert bool(((tried >= 0) & (tried <= 1)).all())
    start, last = model.tries[1], model.tries[-1]
    assert not torch.equal(start, last)


@pytest.mark.parametrize("rescale", [False, True])
def test_windows_have_the_area_of_the_schedule(rescale: bool) -> None:
    """The start is kept by the stubborn model, so each try differs from it in one window."""
    side, queries = 20, 50
    model, x = Stubborn(), torch.rand(8, 1, side, side, generator=torch.Generator().manual_seed(0))
    Square(eps=0.2, queries=queries, rescale=rescale, bounds=None)(model, x, torch.zeros(8, dtype=torch.int64))
    start, tries = model.tries[1], model.tries[1:]
    for query in (1, 2, 5, 11, 47):
        changed = (tries[query] != start)[:, 0]
        rows, columns = int(changed.any(2).sum(1).max()), int(changed.any(1).sum(1).max())
        wide = max(1, round((square_area(query * 200 if rescale else query, 0.8) * side**2) ** 0.5))
        assert rows == wide
        assert columns <= wide


def test_linf_values_are_at_the_radius() -> None:
    result = make("linf", bounds=None).run(network(), images())
    moves = (result.adversarial - images()).abs()
    assert torch.allclose(moves, torch.full_like(moves, 0.1), atol=1e-6)


@pytest.mark.parametrize("norm", EPS)
def test_every_query_counts(norm: str) -> None:
    model, x = network(), images(40)
    result = make(norm, queries=100, eps=EPS[norm] / 4).run(model, x)
    assert bool(result.success.any())
    assert not bool(result.success.all())
    assert bool((result.num_queries[~result.success] == 101).all())  # the clean sample, then the queries
    assert bool((result.num_queries[result.success] <= 101).all())
    seen = 0

    def count(x: Tensor) -> Any:
        nonlocal seen
        seen += len(x)
        return model(x)

    assert int(make(norm, queries=100).run(count, x).num_queries.sum()) == seen


@pytest.mark.parametrize("norm", EPS)
def test_failures_are_the_best_try(norm: str) -> None:
    model, x = network(), images(20)
    label = model(x).argmax(1)
    values: list[Tensor] = []

    def spy(x: Tensor) -> Any:
        logits = model(x)
        others = logits.scatter(1, label[:, None], float("-inf")).amax(1)
        values.append((others - logits.gather(1, label[:, None])[:, 0]).detach())
        return logits

    result = make(norm, queries=30, eps=0.004).run(spy, x)
    assert not bool(result.success.any())
    best = torch.stack(values[1:]).amax(0)
    spy(result.adversarial)
    assert torch.allclose(values[-1], best, atol=1e-6)


@pytest.mark.parametrize("norm", EPS)
def test_model_without_gradient_is_fooled(norm: str) -> None:
    model = network()

    @torch.no_grad()
    def coarse(x: Tensor) -> Any:
        return model((x * 16).round() / 16)

    result = make(norm, queries=200).run(coarse, images(20))
    assert float(result.success.float().mean()) > 0.5


@pytest.mark.parametrize("norm", EPS)
def test_restarts_and_losses(norm: str) -> None:
    model, x = network(), images(40)
    one = make(norm, queries=5, eps=EPS[norm] / 3).run(model, x)
    many = make(norm, queries=5, eps=EPS[norm] / 3, restarts=4).run(model, x)
    assert bool((many.success >= one.success).all())
    assert int(many.success.sum()) > int(one.success.sum())
    for loss in ("cross_entropy", "dlr", lambda logits, y: -logits.gather(1, y[:, None])[:, 0]):
        assert bool(make(norm, loss=loss).run(model, x).success.any())


def test_five_dimensions_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"Square takes vectors, signals or images, 2 to 4 dimensions.*\(2, 1, 2, 4, 6\)"
    ):
        Square()(nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), torch.rand(2, 1, 2, 4, 6))
