"""Single pixel and local search: images of any size, bounds of any kind, no sample alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_modules.attacks import LocalSearch, SinglePixel
from tests.attacks.helpers import Recorder, images, opposed


def spot(row: int, column: int, threshold: float, dark: bool = False) -> Recorder:
    """Two classes; one pixel of the image decides when it passes a threshold."""

    def model(x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        over = (-1 if dark else 1) * (x[:, :, row, column].mean(1) - threshold)
        return torch.stack([-over, over], 1) * 3

    return Recorder(model)


def by_sum(threshold: float) -> Any:
    """Two classes by the sum of all values."""
    return lambda x: opposed(-torch.ones(x[0].numel()), threshold)(x.flatten(1)).detach()


def draw(count: int, *shape: int) -> Tensor:
    return images(count, *shape, seed=2) * 0.4 + 0.3


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [(4, 7), (7, 4)])
def test_single_pixel_finds_the_pixel_of_a_rectangle(size: tuple[int, int], dark: bool) -> None:
    x = draw(5, 3, *size)
    result = SinglePixel(max_pixels=28).run(spot(3, 2, 0.1 if dark else 0.9, dark), x)
    assert result.success.all()
    expected = x.clone()
    expected[:, :, 3, 2] = 0.0 if dark else 1.0
    assert torch.equal(result.adversarial, expected)
    assert (result.distance == 3).all()


@pytest.mark.parametrize(("shape", "values"), [((9,), 1), ((2, 9), 2)])
def test_single_pixel_of_vectors_and_signals(shape: tuple[int, ...], values: int) -> None:
    x = draw(4, *shape)
    result = SinglePixel().run(by_sum(float(x.flatten(1).sum(1).max()) + 0.1), x)
    assert result.success.any()
    assert (result.distance[result.success] == values).all()


def test_single_pixel_uses_the_bounds_of_each_pixel() -> None:
    lower, upper = torch.full((1, 1, 4, 6), -1.0), torch.full((1, 1, 4, 6), 2.0)
    upper[0, 0, 2, 5] = 7.0
    result = SinglePixel(bounds=(lower, upper)).run(spot(2, 5, 6.5), draw(3, 1, 4, 6))
    assert result.success.all()
    assert (result.adversarial[:, 0, 2, 5] == 7).all()


def test_single_pixel_counts_what_it_tries_and_tries_no_more_than_it_may() -> None:
    x = draw(3, 1, 4, 6)
    x[0, 0, 0, 0] = 0.0  # has its least value already: nothing to ask
    result = SinglePixel(max_pixels=24, max_batch=1000).run(spot(1, 1, 5.0), x)
    assert not result.success.any()
    assert torch.equal(result.adversarial, x)
    assert result.distance.isinf().all()
    assert result.num_queries.tolist() == [1 + 48] * 3
    assert SinglePixel(max_pixels=24).run(spot(1, 1, 5.0), x[:1]).num_queries.tolist() == [1 + 47]
    assert SinglePixel(max_pixels=2).run(spot(1, 1, 5.0), x[1:]).num_queries.tolist() == [1 + 4] * 2


@pytest.mark.parametrize(
    ("kind", "arguments"), [(SinglePixel, {}), (LocalSearch, {"rounds": 5, "pixels": 2, "start": 0.5, "reach": 2})]
)
def test_asks_about_several_samples_and_pixels_at_once(kind: Any, arguments: dict[str, Any]) -> None:
    model = spot(0, 0, 9.0)
    kind(**arguments, max_batch=40)(model, draw(6, 1, 4, 7))
    assert max(map(len, model.asked)) == 36  # 6 versions of 6 images
    model = spot(0, 0, 9.0)
    kind(**arguments)(model, draw(6, 1, 4, 7))
    assert len(model.asked) <= 1 + 2 * 5


@pytest.mark.parametrize(("push", "least"), [(None, 5), (0.5, 1)])
@pytest.mark.parametrize("size", [(5, 9), (9, 5)])
def test_local_search_on_a_rectangle(size: tuple[int, int], push: float | None, least: int) -> None:
    x = draw(5, 2, *size)
    model = by_sum(float(x.flatten(1).sum(1).min()) - 1.0)
    result = LocalSearch(rounds=20, push=push).run(model, x)
    assert torch.equal(model(result.adversarial).argmax(1) == 0, result.success)
    assert result.success.sum() >= least
    assert torch.equal(result.adversarial[~result.success], x[~result.success])


def test_local_search_in_the_bounds_of_each_pixel() -> None:
    """The search in shifted and stretched bounds is the search in [0, 1], shifted and stretched."""
    x = (draw(4, 1, 5, 7) * 256).round() / 256  # exact in both
    low, wide = torch.full((1, 1, 5, 7), -2.0), torch.full((1, 1, 5, 7), 4.0)
    low[..., ::2], wide[..., ::2] = 1.0, 0.5
    plain, scaled = LocalSearch(rounds=8), LocalSearch(rounds=8, bounds=(low, low + wide))
    state = plain.prepare(by_sum(20.0), x, None, 0)
    moved = scaled.prepare(lambda z: by_sum(20.0)((z - low) / wide), x * wide + low, None, 0)
    moved.random = state.random.select(torch.arange(4))  # random numbers belong to the values of a sample
    first, second = plain.attack(state), scaled.attack(moved)
    assert torch.equal(first.success, second.success)
    torch.testing.assert_close(first.adversarial * wide + low, second.adversarial, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("value", "threshold", "moved"), [(0.9, 7.5, 0.1), (0.6, 5.44, 0.65)])
def test_local_search_moves_cyclically_within_the_bounds(value: float, threshold: float, moved: float) -> None:
    """0.9 lies 0.4 from the middle: times 1.5 is 0.6, which comes in again 0.4 below the middle, at 0.1."""
    x = torch.full((1, 1, 3, 3), value)
    y = torch.tensor([int(9 * value > threshold)])
    adversarial = LocalSearch(pixels=1, rounds=1, start=1.0)(by_sum(threshold), x, y)
    torch.testing.assert_close(adversarial[adversarial != x], torch.tensor([moved]))


def test_local_search_looks_near_the_last_pixels() -> None:
    """After the first round the pixels tried lie within the reach of those that were moved."""
    model, x = spot(0, 0, 9.0), draw(1, 1, 9, 11)
    LocalSearch(pixels=1, rounds=2, reach=1, start=1.0, max_candidates=99)(model, x)
    _, first, moved, second, _ = model.asked
    assert len(first) == 99
    row, column = (moved[0, 0] != x[0, 0]).nonzero()[0].tolist()
    tried = (second[:, 0] != moved[0, 0]).flatten(1).nonzero()[:, 1]
    assert torch.stack([tried // 11 - row, tried % 11 - column]).abs().max() <= 1
    assert len(second) == (min(row + 1, 8) - max(row - 1, 0) + 1) * (min(column + 1, 10) - max(column - 1, 0) + 1)


def test_local_search_push_of_the_paper_asks_beyond_the_bounds() -> None:
    model = spot(0, 0, 9.0)
    adversarial = LocalSearch(rounds=1, push=1.0)(model, draw(2, 1, 4, 7))
    points = torch.cat(model.asked)
    assert points.max() == 1.5
    assert points.min() >= -0.5
    assert adversarial.max() <= 1
