"""Attacks that change few values."""

from typing import Any

import pytest
import torch
from torch import nn

from lit_modules.attacks import FMN, JSMA, VFGA, CarliniWagnerL0, SigmaZero
from tests.attacks.helpers import Recorder, curved, images, opposed


def least_count(model: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """The least number of values: those that gain most when they go to a bound, until the margin is used up."""
    logits, label = model(x), model(x).argmax(1)
    slope = (model.weight[1 - label] - model.weight[label]).detach()
    gain = torch.where(slope > 0, slope * (1 - x), -slope * x).sort(1, descending=True).values.cumsum(1)
    lead = (logits.gather(1, label[:, None]) - logits.gather(1, 1 - label[:, None])).detach()
    return (gain <= lead).sum(1) + 1


@pytest.mark.parametrize(
    ("attack", "most"),
    [
        (SigmaZero(steps=300), 1.2),
        (VFGA(samples=30), 1.3),
        (FMN(norm="l0", steps=300), 1.2),
        (CarliniWagnerL0(steps=50, step_size=0.05, initial_const=1.0), 1.5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_count_of_a_linear_model_is_near_the_least(attack: Any, most: float) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(40, 2), torch.rand(20, 40)
    least, result = least_count(model, x), attack.run(model, x)
    assert result.success.all()
    assert (result.distance >= least).all()
    assert result.distance.mean() <= most * least.double().mean()


def test_threshold_of_sigma_zero_undoes_small_changes() -> None:
    """The first step of Adam moves all values by ``step_size``; the next is smaller where the gradient has fallen."""
    model = Recorder(opposed(torch.tensor([1.0, 1e-3])))
    x = torch.tensor([[0.9, 0.5]])
    SigmaZero(steps=1, step_size=0.2, threshold=0.19)(model, x)
    torch.testing.assert_close(model.asked[-1], torch.tensor([[0.7, 0.3]]), atol=1e-4, rtol=0)
    model.asked.clear()
    SigmaZero(steps=1, step_size=0.2, threshold=0.25)(model, x)
    assert torch.equal(model.asked[-1], x)


def test_threshold_of_sigma_zero_follows_success() -> None:
    thresholds, fooled = [], []

    class Watched(SigmaZero):
        def step(self, active: Any, at: Any, step: int, carry: Any) -> Any:
            x = super().step(active, at, step, carry)
            thresholds.append(float(carry["threshold"]))
            fooled.append(bool(at.fooled))
            return x

    Watched(steps=40, final_share=1.0, threshold_step=0.02)(opposed(torch.tensor([1.0, 1.0]), -0.9), torch.rand(1, 2))
    assert set(fooled) == {False, True}
    expected = 0.3
    for threshold, hit in zip(thresholds, fooled, strict=True):
        expected = min(1.0, max(0.0, expected + (0.02 if hit else -0.02)))
        assert threshold == pytest.approx(expected, abs=1e-5)


def test_vfga_changes_one_value_a_step_and_asks_about_all_amounts() -> None:
    model, x = Recorder(opposed(torch.tensor([1.0, 2.0, 0.1]), -0.9)), torch.tensor([[0.6, 0.5, 0.5]])
    attack = VFGA(samples=7, seed=1)
    result = attack.run(model, x)
    assert bool(result.success)
    candidates = model.asked[2]
    assert len(candidates) == 14
    changed = candidates != x
    assert bool((changed.sum(1) == 1).all())
    assert bool(changed[7:, 1].all())  # the fall of the second value gains most
    assert bool((candidates[7:, 1] < 0.5).all())


def test_vfga_changes_no_value_twice() -> None:
    model, x = curved(5, seed=3), images(6, 3, 4, 4, seed=0)
    result = VFGA(samples=2, gamma=0.1).run(model, x)
    assert float(result.distance[result.success].max()) <= 4
    assert int(result.num_queries.max()) <= 1 + 4 * (1 + 4)


def test_fewer_values_than_the_saliency_map() -> None:
    model, x = curved(5, seed=1), images(16, 3, 4, 4, seed=0)
    known = JSMA().run(model, x).distance.median()
    for attack in (SigmaZero(steps=200), FMN(norm="l0"), VFGA()):
        assert attack.run(model, x).distance.median() <= known


def test_masked_values_of_carlini_wagner_stay() -> None:
    """What is taken out of the mask comes back to the sample, and the result changes nothing else."""
    masks = []

    class Watched(CarliniWagnerL0):
        def confine(self, state: Any, carry: Any, x: Any) -> Any:
            result = super().confine(state, carry, x)
            masks.append(carry["mask"].clone())
            assert torch.equal(result[~carry["mask"]], state.x[~carry["mask"]])
            return result

    model, x = curved(5, seed=1), images(1, 3, 4, 4, seed=0)
    result = Watched(steps=30, step_size=0.05, initial_const=1.0).run(model, x)
    counts = [int(mask.sum()) for mask in masks]
    assert bool(result.success)
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < 10
    assert float(result.distance) <= counts[0]
