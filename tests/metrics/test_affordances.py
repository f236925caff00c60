import math
from typing import Any

import pytest
import torch

from lit_modules.metrics.affordances import (
    BinnedMean,
    PartAffordanceRecall,
    PartNovelty,
    affordance_scores,
    nearest_concept,
)

SEEN_BY = [[True, False, False], [False, True, True]]  # roll by the wheel, hold by the box or the bag
REFERENCES = [[1, 1, 0], [0, 0, 1], [1, 0, 0]]
ONE = torch.ones(1, 3), torch.ones(1, 2)


def test_recall_by_hand_in_batches() -> None:
    recall = PartAffordanceRecall(SEEN_BY, bins=("easy", "hard"))
    scores = torch.tensor([[0.9, 0.1, 0.8], [0.9, 0.4, 0.2], [0.1, 0.9, 0.0]])
    requested, bins = torch.tensor([[True, True], [True, True], [False, True]]), torch.tensor([0, 1, -1])
    for rows in (slice(0, 2), slice(2, 3)):
        recall.update(scores[rows], requested[rows], bins[rows])
    expected = {"recall": 2.5 / 3, "recall/easy": 1.0, "recall/hard": 0.5, "all": 2 / 3, "all/easy": 1.0}
    expected |= {"all/hard": 0.0, "min": (0.8 + 0.4 + 0.9) / 3, "min/easy": 0.8, "min/hard": 0.4}
    assert {name: float(value) for name, value in recall.compute().items()} == pytest.approx(expected)


def test_nan_does_not_count_and_an_empty_bin_is_nan() -> None:
    mean = BinnedMean("single", bins=("easy", "hard"))
    mean.update(torch.tensor([1.0, math.nan]), torch.tensor([0, 0]))
    numbers = {name: float(value) for name, value in mean.compute().items()}
    assert numbers == pytest.approx({"single": 1.0, "single/easy": 1.0, "single/hard": math.nan}, nan_ok=True)


def test_novelty_by_hand() -> None:
    novelty, counted = (PartNovelty(REFERENCES, bins=()) for _ in range(2))
    scores = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    owners = torch.tensor([[True, False, False], [True, True, False], [True, False, False]])
    novelty.update(scores, owners)
    numbers = {name: float(value) for name, value in novelty.compute().items()}
    assert numbers["novelty"] == pytest.approx((0 + (1 - math.sqrt(0.5)) + 1) / 3, abs=1e-6)
    assert numbers["mean_novelty"] == pytest.approx((0 + 1 - (0.5 + math.sqrt(0.5)) / 2 + 1) / 3, abs=1e-6)
    assert numbers["shapeless"] == pytest.approx(1 / 3)
    counted.update(scores, owners, counted=torch.tensor([True, True, False]))
    assert float(counted.compute()["novelty"]) == pytest.approx((1 - math.sqrt(0.5)) / 2, abs=1e-6)
    assert nearest_concept(scores[1:2], counted.references, owners[1:2])[1].tolist() == [1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PartAffordanceRecall([[True], [False]]), "at least one part for each affordance, got none for number"),
        (lambda: PartAffordanceRecall(SEEN_BY, threshold=1), r"threshold must be in \(0, 1\), got 1"),
        (lambda: PartAffordanceRecall(SEEN_BY, bins=("a", "a")), "bins must have different names, got a, a"),
        (lambda: affordance_scores(torch.ones(1, 2), torch.ones(2, 3)), r"part_scores must be \(n, parts\)"),
        (lambda: PartAffordanceRecall(SEEN_BY).update(2 * ONE[0], ONE[1]), "apply a sigmoid to logits"),
        (lambda: PartAffordanceRecall(SEEN_BY).update(ONE[0], 0 * ONE[1]), "at least one affordance for each image"),
        (lambda: PartAffordanceRecall(SEEN_BY).update(*ONE, torch.tensor([3])), "bin must be from 0 to 2, or -1"),
        (lambda: PartNovelty(REFERENCES).update(ONE[0], torch.zeros(1, 3)), "one concept to be compared with"),
    ],
)
def test_bad_input_is_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
