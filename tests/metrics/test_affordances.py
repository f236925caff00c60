import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_modules.metrics.affordances import (
    BinnedMean,
    PartAffordanceRecall,
    PartNovelty,
    affordance_scores,
    nearest_concept,
)

# roll is seen by the wheel, hold by the box or the bag
SEEN_BY = [[True, False, False], [False, True, True]]


def test_recall_by_hand() -> None:
    recall = PartAffordanceRecall(SEEN_BY, bins=("easy", "hard"))
    scores = torch.tensor([[0.9, 0.1, 0.8], [0.9, 0.4, 0.2], [0.1, 0.9, 0.0]])
    requested = torch.tensor([[True, True], [True, True], [False, True]])
    recall.update(scores, requested, torch.tensor([0, 1, -1]))
    found = {name: round(float(value), 4) for name, value in recall.compute().items()}
    assert found == {
        "recall": round(2.5 / 3, 4),
        "recall/easy": 1.0,
        "recall/hard": 0.5,
        "all": round(2 / 3, 4),
        "all/easy": 1.0,
        "all/hard": 0.0,
        "min": round((0.8 + 0.4 + 0.9) / 3, 4),
        "min/easy": 0.8,
        "min/hard": 0.4,
    }


def test_batches_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, bins = torch.rand(20, 3, generator=generator), torch.arange(20) % 3
    requested = torch.ones(20, 2, dtype=torch.bool)
    whole, parts = PartAffordanceRecall(SEEN_BY), PartAffordanceRecall(SEEN_BY)
    whole.update(scores, requested, bins)
    for chosen in torch.arange(20).split(7):
        parts.update(scores[chosen], requested[chosen], bins[chosen])
    for name, value in whole.compute().items():
        torch.testing.assert_close(parts.compute()[name], value)


def test_an_empty_bin_is_nan() -> None:
    mean = BinnedMean("single", bins=("easy", "hard"))
    mean.update(torch.tensor([1.0, math.nan]), torch.tensor([0, 0]))
    found = mean.compute()
    assert float(found["single"]) == 1.0
    assert float(found["single/easy"]) == 1.0
    assert math.isnan(float(found["single/hard"]))


def test_novelty_by_hand() -> None:
    novelty = PartNovelty([[1, 1, 0], [0, 0, 1], [1, 0, 0]], bins=())
    scores = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    owners = torch.tensor([[True, False, False], [True, True, False], [True, False, False]])
    novelty.update(scores, owners)
    found = {name: float(value) for name, value in novelty.compute().items()}
    assert found["novelty"] == pytest.approx((0 + (1 - math.sqrt(0.5)) + 1) / 3, abs=1e-6)
    assert found["mean_novelty"] == pytest.approx((0 + 1 - (0.5 + math.sqrt(0.5)) / 2 + 1) / 3, abs=1e-6)
    assert found["shapeless"] == pytest.approx(1 / 3)
    counted = PartNovelty([[1, 1, 0], [0, 0, 1], [1, 0, 0]], bins=())
    counted.update(scores, owners, counted=torch.tensor([True, True, False]))
    assert float(counted.compute()["novelty"]) == pytest.approx((1 - math.sqrt(0.5)) / 2, abs=1e-6)
    assert nearest_concept(scores[1:2], counted.references, owners[1:2])[1].tolist() == [1]


def recall(scores: Tensor, requested: Tensor, *bins: Tensor) -> None:
    PartAffordanceRecall(SEEN_BY).update(scores, requested, *bins)


def novelty(owners: Tensor) -> None:
    PartNovelty([[1.0, 0.0]]).update(torch.ones(1, 2), owners)


ONE = torch.ones(1, 3), torch.ones(1, 2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PartAffordanceRecall([[True], [False]]), "at least one part for each affordance, got none for number"),
        (lambda: PartAffordanceRecall(SEEN_BY, threshold=1), r"threshold must be in \(0, 1\), got 1"),
        (lambda: PartAffordanceRecall(SEEN_BY, bins=("a", "a")), "bins must have different names, got a, a"),
        (lambda: affordance_scores(torch.ones(1, 2), torch.ones(2, 3)), r"part_scores must be \(n, parts\)"),
        (lambda: recall(2 * ONE[0], ONE[1]), "apply a sigmoid to logits"),
        (lambda: recall(ONE[0], 0 * ONE[1]), "at least one affordance for each image"),
        (lambda: recall(ONE[0], ONE[0]), r"requested must be of shape \(1, 2\), got \(1, 3\)"),
        (lambda: recall(*ONE, torch.tensor([3])), r"bin must be from 0 to 2, or -1 for none, got \[3\]"),
        (lambda: novelty(torch.zeros(1, 1)), "at least one concept to be compared with"),
        (lambda: novelty(torch.ones(1, 2)), r"must be of shape \(1, 1\), got \(1, 2\)"),
        (lambda: BinnedMean("x").update(torch.ones(1, 1)), r"value must be of shape \(n,\), got \(1, 1\)"),
    ],
)
def test_refuses_what_does_not_fit(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
