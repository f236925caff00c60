"""Square attack: schedule, start, windows, and what its arguments promise."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import Square
from lit_modules.attacks.engine.losses import margin
from lit_modules.attacks.engine.norms import lp_norm
from lit_modules.attacks.square import square_area
from tests.attacks.helpers import Recorder, images, spread

EPS: dict[str, float] = {"linf": 0.1, "l2": 0.6, "l1": 3.0}
norms: Any = pytest.mark.parametrize("norm", EPS)


def make(norm: str, **changes: Any) -> Square:
    arguments: dict[str, Any] = {"norm": norm, "eps": EPS[norm], "queries": 60} | changes
    return Square(**arguments)


def tries(attack: Square, x: Tensor) -> list[Tensor]:
    """What a model is asked that is never fooled, and for which no try is better than another."""
    model = Recorder(lambda x: torch.tensor([5.0, 0.0, -1.0]).expand(len(x), 3))
    attack(model, x, torch.zeros(len(x), dtype=torch.int64))
    return model.asked[1:]


def test_areas_are_those_of_the_paper() -> None:
    for halvings, bound in enumerate([0, 10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]):
        assert square_area(bound + 1, 0.8) == pytest.approx(0.8 / 2**halvings)
        assert square_area(bound, 0.8) == pytest.approx(0.8 / 2 ** max(0, halvings - 1))
    assert square_area(11, 0.4) == pytest.approx(0.2)


def test_starts_with_vertical_stripes() -> None:
    x = torch.rand(5, 3, 7, 9)
    stripes = (tries(Square(eps=0.2, queries=1, bounds=None), x)[0] - x) / 0.2
    assert torch.allclose(stripes.abs(), torch.ones_like(stripes), atol=1e-5)
    assert torch.allclose(stripes, stripes[:, :, :1].expand_as(stripes), atol=1e-5)
    assert len({tuple(row.round().tolist()) for row in stripes[:, :, 0].flatten(0, 1)}) > 10
    assert 0.2 < float((stripes > 0).float().mean()) < 0.8


@pytest.mark.parametrize("eps", [0.7, 4.0, 200.0])
def test_starts_on_the_l1_sphere(eps: float) -> None:
    x = torch.rand(5, 3, 40, 39)
    move = tries(Square(norm="l1", eps=eps, queries=1, bounds=None), x)[0] - x
    assert torch.allclose(lp_norm(move, "l1"), torch.full((5,), eps), rtol=1e-4)
    moved = float((move != 0).float().mean())
    assert moved > 0.7 if eps == 200 else 0 < moved < 0.2


@pytest.mark.parametrize("channels", [1, 3])
def test_l1_tries_are_at_the_radius_within_the_bounds(channels: int) -> None:
    """The box takes from the perturbation while the projection gives nothing back, so a try may be a little inside."""
    x = images(8, channels, 12, 12, seed=0)
    tried = torch.stack(tries(Square(norm="l1", eps=6.0, queries=80), x))
    sizes = lp_norm((tried - x).double().flatten(0, 1), "l1")
    assert bool(((sizes <= 6 * (1 + 1e-6)) & (sizes > 3)).all())
    assert bool(((tried >= 0) & (tried <= 1)).all())
    assert not torch.equal(tried[0], tried[-1])


@pytest.mark.parametrize("rescale", [False, True])
def test_windows_have_the_area_of_the_schedule(rescale: bool) -> None:
    """The start is kept by the stubborn model, so each try differs from it in one window."""
    side, queries = 20, 50
    tried = tries(Square(eps=0.2, queries=queries, rescale=rescale, bounds=None), images(8, 1, side, side, seed=0))
    for query in (1, 2, 5, 11, 47):
        changed = (tried[query] != tried[0])[:, 0]
        rows, columns = int(changed.any(2).sum(1).max()), int(changed.any(1).sum(1).max())
        wide = max(1, round((square_area(query * 200 if rescale else query, 0.8) * side**2) ** 0.5))
        assert rows == wide
        assert columns <= wide


def test_linf_values_are_at_the_radius() -> None:
    moves = (make("linf", bounds=None)(spread(), images()) - images()).abs()
    assert torch.allclose(moves, torch.full_like(moves, 0.1), atol=1e-6)


@norms
def test_every_query_counts(norm: str) -> None:
    result = make(norm, queries=100, eps=EPS[norm] / 4).run(spread(), images(40))
    assert bool(result.success.any())
    assert not bool(result.success.all())
    assert bool((result.num_queries[~result.success] == 101).all())  # the clean sample, then the queries
    assert bool((result.num_queries[result.success] <= 101).all())


@norms
def test_failures_are_the_best_try(norm: str) -> None:
    model, x = Recorder(spread()), images(20)
    label = model.model(x).argmax(1)
    result = make(norm, queries=30, eps=0.004).run(model, x)
    assert not bool(result.success.any())
    margins = torch.stack([margin(model.model(point), label) for point in (result.adversarial, *model.asked[1:])])
    assert torch.allclose(margins[0], margins[1:].amax(0), atol=1e-6)


@norms
def test_model_without_gradient_is_fooled(norm: str) -> None:
    model = spread()
    result = make(norm, queries=200).run(lambda x: model((x.detach() * 16).round() / 16).detach(), images(20))
    assert float(result.success.float().mean()) > 0.5


@norms
def test_restarts_and_losses(norm: str) -> None:
    model, x = spread(), images(40)
    one, many = (make(norm, queries=5, eps=EPS[norm] / 3, restarts=n).run(model, x) for n in (1, 4))
    assert bool((many.success >= one.success).all())
    assert int(many.success.sum()) > int(one.success.sum())
    for loss in ("cross_entropy", "dlr", lambda logits, y: -logits.gather(1, y[:, None])[:, 0]):
        assert bool(make(norm, loss=loss).run(model, x).success.any())


def test_five_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"vectors, signals or images, 2 to 4 dimensions.*\(2, 1, 2, 4, 6\)"):
        Square()(nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), torch.rand(2, 1, 2, 4, 6))
