"""The L-BFGS attack: truth on linear models, with and without a target, and the optimisers that run side by side."""

import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import LBFGS
from lit_modules.attacks.lbfgs import bisect_segment, minimise_together
from tests.attacks.helpers import Recorder, images, linear


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 4)).eval()


def samples() -> Tensor:
    return images(16, 20) * 0.4 + 0.3


@pytest.mark.parametrize("loss", ["nearest", "cross_entropy", "margin"])
def test_every_sample_is_fooled_without_a_target(loss: Any) -> None:
    model, x = network(), samples()
    assert bool((model(LBFGS(loss=loss)(model, x)).argmax(1) != model(x).argmax(1)).all())


@pytest.mark.parametrize("loss", ["nearest", "cross_entropy"])
def test_every_sample_reaches_its_target_hardly_beyond_the_plane(loss: Any) -> None:
    model, x = linear(3, 20, scale=3), samples()
    label = model(x).argmax(1)
    target = (label + 1) % 3
    result = LBFGS(targeted=True, loss=loss).run(model, x, target)
    assert torch.equal(model(result.adversarial).argmax(1), target)
    gap = model(x).amax(1) - model(x).gather(1, target[:, None])[:, 0]
    plane = (gap / (model.weight[label] - model.weight[target]).norm(dim=1)).detach()
    assert bool((result.distance >= plane * 0.9999).all())
    assert float((result.distance / plane).median()) < 1.1


def test_bisection_shortens_and_each_point_was_asked_about() -> None:
    model, x = network(), samples()
    rough, fine = (LBFGS(refine_steps=n, search_steps=4).run(model, x) for n in (0, 10))
    both = rough.success & fine.success
    assert float((fine.distance - rough.distance)[both].max()) <= 1e-6
    assert float(fine.distance[both].median()) < float(rough.distance[both].median())
    recorder = Recorder(model)
    adversarial, points = LBFGS(search_steps=2)(recorder, x), torch.cat(recorder.asked)
    assert all(bool((points == point).all(1).any()) for point in adversarial)
    state = LBFGS().prepare(model, x, None, 0)
    assert torch.equal(bisect_segment(state, fine.adversarial, 0), fine.adversarial)


def test_chunks_give_what_the_whole_gives() -> None:
    model, x = network().double(), samples().double()
    assert torch.allclose(LBFGS(max_batch_size=3)(model, x), LBFGS()(model, x), atol=1e-6)


def test_optimisers_side_by_side_are_evaluated_together() -> None:
    sizes: list[int] = []
    last: dict[int, np.ndarray] = {}

    def evaluate(numbers: list[int], points: list[np.ndarray]) -> list[tuple[float, np.ndarray]]:
        sizes.append(len(numbers))
        last.update(zip(numbers, points, strict=True))
        return [(float((x - n) @ (x - n)), 2 * (x - n)) for n, x in zip(numbers, points, strict=True)]

    box = (np.full(3, 0.0), np.full(3, 1.5))
    minimise_together([np.ones(3)] * 4, [None, None, box, box], evaluate, 50)
    assert sizes[0] == 4
    for number, expected in enumerate([0.0, 1.0, 1.5, 1.5]):
        assert np.allclose(last[number], expected, atol=1e-3)


def test_no_thread_outlives_a_failure() -> None:
    before = threading.active_count()

    def evaluate(numbers: list[int], points: list[np.ndarray]) -> list[tuple[float, np.ndarray]]:
        raise ArithmeticError("broken")

    with pytest.raises(ArithmeticError, match="broken"):
        minimise_together([np.ones(3)] * 4, [None] * 4, evaluate, 5)
    with pytest.raises(ValueError, match="bound"):
        minimise_together([np.ones(3)], [(np.zeros(2), np.ones(2))], lambda numbers, points: [(0.0, np.ones(3))], 5)
    assert threading.active_count() == before
