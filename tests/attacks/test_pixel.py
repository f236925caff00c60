"""Single pixel and local search: images of any size, bounds of any kind, no sample alone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import LocalSearch, SinglePixel


class Spot(nn.Module):
    """Two classes; one pixel of the image decides when it passes a threshold."""

    def __init__(self, row: int, column: int, threshold: float, dark: bool = False) -> None:
        super().__init__()
        self.place, self.threshold, self.way = (row, column), threshold, -1.0 if dark else 1.0
        self.largest = 0
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.largest = max(self.largest, len(x))
        self.asked.append(x.clone())
        over = self.way * (x[:, :, self.place[0], self.place[1]].mean(1) - self.threshold)
        return torch.stack([-over, over], 1) * 3


class Sum(nn.Module):
    """Two classes by the sum of all values."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        over = x.flatten(1).sum(1) - self.threshold
        return torch.stack([-over, over], 1)


def images(count: int, *shape: int) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(2)) * 0.4 + 0.3


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [(4, 7), (7, 4)])
def test_single_pixel_finds_the_pixel_of_a_rectangle(size: tuple[int, int], dark: bool) -> None:
    x = images(5, 3, *size)
    before = x.clone()
    model = Spot(3, 2, 0.1 if dark else 0.9, dark)
    result = SinglePixel(max_pixels=28).run(model, x)
    assert torch.equal(x, before)
    assert result.success.all()
    with torch.no_grad():
        assert (model(result.adversarial).argmax(1) == 1).all()
    expected = x.clone()
    expected[:, :, 3, 2] = 0.0 if dark else 1.0
    assert torch.equal(result.adversarial, expected)
    assert (result.distance == 3).all()


def test_single_pixel_of_vectors_and_signals() -> None:
    x = images(4, 9)
    result = SinglePixel().run(Sum(float(x.sum(1).max()) + 0.1), x)
    assert result.success.any()
    assert (result.distance[result.success] == 1).all()
    signal = images(4, 2, 9)
    result = SinglePixel().run(Sum(float(signal.flatten(1).sum(1).max()) + 0.1), signal)
    assert result.success.any()
    assert (result.distance[result.success] == 2).all()


def test_single_pixel_uses_the_bounds_of_each_pixel() -> None:
    x = images(3, 1, 4, 6)
    lower, upper = torch.full((1, 1, 4, 6), -1.0), torch.full((1, 1, 4, 6), 2.0)
    upper[0, 0, 2, 5] = 7.0
    result = SinglePixel(bounds=(lower, upper)).run(Spot(2, 5, 6.5), x)
    assert result.success.all()
    assert (result.adversarial[:, 0, 2, 5] == 7).all()


def test_single_pixel_fails_unchanged_and_counts() -> None:
    x = images(3, 1, 4, 6)
    x[0, 0, 0, 0] = 0.0  # has its least value already: nothing to ask
    result = SinglePixel(max_pixels=24, max_batch=1000).run(Spot(1, 1, 5.0), x)
    assert not result.success.any()
    assert torch.equal(result.adversarial, x)
    assert result.distance.isinf().all()
    assert result.num_queries.tolist() == [1 + 48] * 3
    alone = SinglePixel(max_pixels=24).run(Spot(1, 1, 5.0), x[:1])
    assert alone.num_queries.tolist() == [1 + 47]


def test_single_pixel_tries_no_more_than_it_may() -> None:
    result = SinglePixel(max_pixels=2).run(Spot(1, 1, 5.0), images(3, 1, 4, 6))
    assert (result.num_queries == 1 + 4).all()


def pixel_attack(name: str, **arguments: Any) -> SinglePixel | LocalSearch:
    if name == "single":
        return SinglePixel(**arguments)
    return LocalSearch(**{"rounds": 5, "pixels": 2, "start": 0.5, "reach": 2, **arguments})


NAMES = ["single", "local"]


@pytest.mark.parametrize("name", NAMES)
def test_asks_about_several_samples_and_pixels_at_once(name: str) -> None:
    model = Spot(0, 0, 9.0)
    pixel_attack(name, max_batch=40)(model, images(6, 1, 4, 7))
    assert model.largest == 36  # 6 versions of 6 images
    model = Spot(0, 0, 9.0)
    pixel_attack(name)(model, images(6, 1, 4, 7))
    assert len(model.asked) <= 1 + 2 * 5


@pytest.mark.parametrize("push", [None, 0.5])
@pytest.mark.parametrize("size", [(5, 9), (9, 5)])
def test_local_search_on_a_rectangle(size: tuple[int, int], push: float | None) -> None:
    x = images(5, 2, *size)
    before = x.clone()
    model = Sum(float(x.flatten(1).sum(1).min()) - 1.0)
    result = LocalSearch(rounds=20, push=push).run(model, x)
    assert torch.equal(x, before)
    assert torch.equal(model(result.adversarial).argmax(1) == 0, result.success)
    assert result.success.sum() >= (5 if push is None else 1)
    assert torch.equal(result.adversarial[~result.success], x[~result.success])
    assert result.adversarial.min() >= 0
    assert result.adversarial.max() <= 1


def test_local_search_in_the_bounds_of_each_pixel() -> None:
    """The search in shifted and stretched bounds is the search in [0, 1], shifted and stretched."""

    class Within(nn.Module):
        def __init__(self, low: Tensor, wide: Tensor) -> None:
            super().__init__()
            self.low, self.wide = low, wide

        def forward(self, x: Tensor) -> Tensor:
            return Sum(20.0)((x - self.low) / self.wide)

    x = (images(4, 1, 5, 7) * 256).round() / 256  # exact in both
    low, wide = torch.full((1, 1, 5, 7), -2.0), torch.full((1, 1, 5, 7), 4.0)
    low[..., ::2], wide[..., ::2] = 1.0, 0.5
    plain = LocalSearch(rounds=8, seed=0)
    scaled = LocalSearch(rounds=8, seed=0, bounds=(low, low + wide))
    state = plain.prepare(Within(torch.zeros(1), torch.ones(1)), x, None, 0)
    moved = scaled.prepare(Within(low, wide), x * wide + low, None, 0)
    moved.random = state.random  # random numbers belong to the values of a sample
    state.random = type(state.random)(moved.random.keys.clone())
    first, second = plain.attack(state), scaled.attack(moved)
    assert torch.equal(first.success, second.success)
    torch.testing.assert_close(first.adversarial * wide + low, second.adversarial, atol=1e-5, rtol=0)


def test_local_search_moves_cyclically_within_the_bounds() -> None:
    """0.9 lies 0.4 from the middle: times 1.5 is 0.6, which comes in again 0.4 below the middle, at 0.1."""
    x = torch.full((1, 1, 3, 3), 0.9)
    adversarial = LocalSearch(pixels=1, rounds=1, start=1.0)(Sum(7.5), x)
    assert int((adversarial != x).sum()) == 1
    torch.testing.assert_close(adversarial.min(), torch.tensor(0.1))
    inner = torch.full((1, 1, 3, 3), 0.6)
    adversarial = LocalSearch(pixels=1, rounds=1, start=1.0)(Sum(5.44), inner, torch.tensor([0]))
    torch.testing.assert_close(adversarial.max(), torch.tensor(0.65))


def test_local_search_looks_near_the_last_pixels() -> None:
    """After the first round the pixels tried lie within the reach of those that were moved."""
    model = Spot(0, 0, 9.0)
    x = images(1, 1, 9, 11)
    LocalSearch(pixels=1, rounds=2, reach=1, start=1.0, max_candidates=99)(model, x)
    _, first, moved, second, _ = model.asked
    assert len(first) == 99
    place = (moved[0, 0] != x[0, 0]).nonzero()[0]
    tried = (second[:, 0] != moved[0, 0]).flatten(1).nonzero()[:, 1]
    distance = torch.stack([tried // 11 - place[0], tried % 11 - place[1]]).abs().amax(0)
    assert distance.max() <= 1
    rows = min(int(place[0]) + 1, 8) - max(int(place[0]) - 1, 0) + 1
    columns = min(int(place[1]) + 1, 10) - max(int(place[1]) - 1, 0) + 1
    assert len(second) == rows * columns


def test_local_search_push_of_the_paper_asks_beyond_the_bounds() -> None:
    model = Spot(0, 0, 9.0)
    result = LocalSearch(rounds=1, push=1.0).run(model, images(2, 1, 4, 7))
    asked = torch.cat(model.asked)
    assert asked.max() == 1.5
    assert asked.min() >= -0.5
    assert result.adversarial.max() <= 1
