import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_modules.metrics.few_shot import NWayAccuracy, PairAccuracy, retention_change, seed_statistics

# pair, label, prediction, first, index; pair 0: target 3 of 4, confusable 1 of 2; pair 1: target 0 of 2, one of them
# invalid, confusable 4 of 4
ROWS = [
    *[(0, 0, 0, 0, 0), (0, 0, 0, 1, 1), (0, 0, 0, 0, 2), (0, 0, 1, 1, 3)],
    *[(0, 1, 1, 0, 4), (0, 1, 0, 0, 5)],
    *[(1, 0, -1, 0, 6), (1, 0, 1, 1, 7)],
    *[(1, 1, 1, 0, 8), (1, 1, 1, 1, 9), (1, 1, 1, 0, 10), (1, 1, 1, 1, 11)],
]
COLUMN = torch.zeros(2, dtype=torch.int64)
pytestmark = pytest.mark.filterwarnings("ignore:The ``compute`` method")  # a metric without answers is NaN


def filled(*parts: list[tuple[int, int, int, int, int]], **arguments: Any) -> PairAccuracy:
    metric = PairAccuracy(**({"resamples": 0} | arguments))
    for rows in parts:
        metric.update(*torch.tensor(rows).unbind(1))
    return metric


def plain(numbers: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in numbers.items()}


def test_numbers_by_hand() -> None:
    metric = filled(ROWS, supercategories=[0, 1], supercategory_names=["Reptiles", "Birds"])
    assert plain(metric.compute()) == pytest.approx(
        {
            "acc_macro": (0.625 + 0.5) / 2,
            "acc_micro": 8 / 12,
            "acc_target": 0.375,
            "acc_confusable": 0.75,
            "invalid": 1 / 12,
            "position_bias": 7 / 11,
            "acc_supercategory/Reptiles": 0.625,
            "acc_supercategory/Birds": 0.5,
        }
    )
    # of a pair the rows sum to one, and an invalid answer is wrong
    assert metric.pair_table()[1].tolist() == [[0.0, 0.5, 0.5], [0.0, 1.0, 0.0]]
    assert metric.pair_table()[0].sum(1).tolist() == [1.0, 1.0]


def test_batches_their_order_and_repeated_rows_change_nothing() -> None:
    expected = plain(filled(ROWS, resamples=50).compute())
    assert plain(filled(ROWS[8:], ROWS[4:8], ROWS[:4], ROWS[:5], resamples=50).compute()) == pytest.approx(expected)
    unnamed = PairAccuracy(resamples=0)  # without an index each answer counts
    column = torch.zeros(3, dtype=torch.int64)
    unnamed.update(column, column, torch.tensor([0, 0, 1]), column)
    assert float(unnamed.compute()["acc_micro"]) == pytest.approx(2 / 3)


def test_both_orders_of_a_question_take_away_the_bias_of_position() -> None:
    rows = [(0, index % 2, first, first, index) for index in range(4) for first in (0, 1)]  # names the first option
    numbers = plain(filled(rows).compute())
    assert (numbers["acc_macro"], numbers["position_bias"]) == (0.5, 1.0)


def test_the_interval_covers_and_keeps_the_answers_on_an_image_together() -> None:
    right = torch.rand(200, generator=torch.Generator().manual_seed(0)) < 0.7
    pair, label, index = torch.zeros(200, dtype=torch.int64), torch.arange(200) % 2, torch.arange(200)
    prediction = torch.where(right, label, 1 - label)
    single, double = PairAccuracy(resamples=500), PairAccuracy(resamples=500)
    single.update(pair, label, prediction, pair, index)
    numbers = plain(single.compute())
    assert numbers["acc_macro_lower"] < numbers["acc_macro"] < numbers["acc_macro_upper"]
    width = numbers["acc_macro_upper"] - numbers["acc_macro_lower"]
    assert width == pytest.approx(4 * math.sqrt(0.21 / 200), rel=0.25)
    for first in (0, 1):  # the same answers to both orders are no further evidence
        double.update(pair, label, prediction, pair + first, index)
    for end in ("acc_macro_lower", "acc_macro_upper"):
        assert plain(double.compute())[end] == pytest.approx(numbers[end])


def test_nothing_counted_is_nan() -> None:
    assert all(math.isnan(value) for value in plain(PairAccuracy().compute()).values())
    half = filled(ROWS[:1])
    assert math.isnan(float(half.compute()["acc_macro"]))
    half.reset()
    half.update(*torch.tensor(ROWS).unbind(1))
    assert float(half.compute()["acc_macro"]) == pytest.approx(0.5625)


def test_many_way_numbers_by_hand() -> None:
    metric = NWayAccuracy([0, 0, 1], ["Frogs", "Birds"])
    metric.update(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 2, -1, 2]), torch.tensor([0, 1, 2, 3]))
    metric.update(torch.tensor([0]), torch.tensor([0]), torch.tensor([0]))
    expected = {"acc_macro": 0.5, "acc_micro": 0.5, "invalid": 0.25}
    expected |= {"acc_supercategory/Frogs": 0.25, "acc_supercategory/Birds": 1.0}
    assert plain(metric.compute()) == pytest.approx(expected)


def test_seeds_and_retention() -> None:
    statistics = seed_statistics([{"a": 0.5}, {"a": torch.tensor(0.7)}, {"a": 0.6}])["a"]
    assert statistics == pytest.approx({"mean": 0.6, "std": 0.1, "seeds": 3.0}, abs=1e-7)
    assert math.isnan(seed_statistics([{"a": 0.5}])["a"]["std"])
    assert retention_change({"a": torch.tensor(0.5)}, {"a": 0.25}) == {"a": -0.25}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: filled([(0, 2, 0, 0, 0)]), "label must be at least 0 and at most 1, got"),
        (lambda: filled([(0, 0, -2, 0, 0)]), "prediction must be at least -1 and at most 1"),
        (lambda: filled([(0, 0, 0, 0, -1)]), "index must be at least 0"),
        (
            lambda: filled([(2, 0, 0, 0, 0)], supercategories=[0, 0], supercategory_names=["x"]),
            "There are supercategories of 2 pairs, got number 2",
        ),
        (lambda: PairAccuracy().update(COLUMN, COLUMN, COLUMN[:1], COLUMN), r"prediction must be of shape \(2,\), got"),
        (lambda: PairAccuracy().update(COLUMN, COLUMN.float(), COLUMN, COLUMN), "label must be whole numbers, got"),
        (lambda: PairAccuracy(resamples=-1), "resamples must not be negative"),
        (lambda: PairAccuracy([0], ["x", "x"]), "must differ, got x, x"),
        (lambda: PairAccuracy([1], ["x"]), r"numbers from 0 to 0, one for each of the pairs, got \[1\]"),
        (lambda: NWayAccuracy(None, ["x"]), "supercategory_names need supercategories"),
        (lambda: seed_statistics([]), "at least one seed"),
        (lambda: seed_statistics([{"a": 0.5}, {"b": 0.5}]), "a, b are not in all"),
        (lambda: retention_change({}, {"b": 0.5}), "b are not in both"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
