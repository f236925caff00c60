import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_modules.metrics.few_shot import NWayAccuracy, PairAccuracy, retention_change, seed_statistics


def add(metric: PairAccuracy, rows: list[tuple[int, int, int, int, int]]) -> None:
    pair, label, prediction, first, index = torch.tensor(rows).unbind(1)
    metric.update(pair, label, prediction, first, index)


def plain(found: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in found.items()}


# pair 0: target 3 of 4, confusable 1 of 2; pair 1: target 0 of 2, one of them invalid, confusable 4 of 4
ROWS = [
    *[(0, 0, 0, 0, 0), (0, 0, 0, 1, 1), (0, 0, 0, 0, 2), (0, 0, 1, 1, 3)],
    *[(0, 1, 1, 0, 4), (0, 1, 0, 0, 5)],
    *[(1, 0, -1, 0, 6), (1, 0, 1, 1, 7)],
    *[(1, 1, 1, 0, 8), (1, 1, 1, 1, 9), (1, 1, 1, 0, 10), (1, 1, 1, 1, 11)],
]


def test_numbers_by_hand() -> None:
    metric = PairAccuracy([0, 1], ["Reptiles", "Birds"], resamples=0)
    add(metric, ROWS)
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


def test_defect_7_rows_of_a_pair_sum_to_one_and_invalid_answers_are_wrong() -> None:
    metric = PairAccuracy(resamples=0)
    add(metric, ROWS)
    table = metric.pair_table()
    assert table[1].tolist() == [[0.0, 0.5, 0.5], [0.0, 1.0, 0.0]]
    assert all(row.sum() == 1 for one in table.values() for row in one)


def test_batches_and_order_change_nothing() -> None:
    whole, parts = PairAccuracy(resamples=50), PairAccuracy(resamples=50)
    add(whole, ROWS)
    for start in (8, 4, 0):
        add(parts, ROWS[start : start + 4])
    assert plain(parts.compute()) == pytest.approx(plain(whole.compute()))


def test_what_a_distributed_sampler_repeats_counts_once() -> None:
    once, twice = PairAccuracy(resamples=0), PairAccuracy(resamples=0)
    add(once, ROWS)
    add(twice, [*ROWS, *ROWS[:5]])
    assert plain(twice.compute()) == plain(once.compute())
    free = PairAccuracy(resamples=0)
    column = torch.zeros(3, dtype=torch.int64)
    free.update(column, column, torch.tensor([0, 0, 1]), column)
    assert float(free.compute()["acc_micro"]) == pytest.approx(2 / 3)


def test_both_orders_of_a_question_take_away_the_bias_of_position() -> None:
    metric = PairAccuracy(resamples=0)
    # a model that always names the first option
    add(metric, [(0, label, first, first, index) for index in range(4) for label in (index % 2,) for first in (0, 1)])
    found = plain(metric.compute())
    assert (found["acc_macro"], found["position_bias"]) == (0.5, 1.0)


def test_the_interval_covers_and_keeps_the_answers_on_an_image_together() -> None:
    generator = torch.Generator().manual_seed(0)
    right = torch.rand(200, generator=generator) < 0.7
    pair = torch.zeros(200, dtype=torch.int64)
    label = torch.arange(200) % 2
    prediction = torch.where(right, label, 1 - label)
    single = PairAccuracy(resamples=500)
    single.update(pair, label, prediction, pair, torch.arange(200))
    found = plain(single.compute())
    assert found["acc_macro_lower"] < found["acc_macro"] < found["acc_macro_upper"]
    assert found["acc_macro_upper"] - found["acc_macro_lower"] == pytest.approx(4 * math.sqrt(0.21 / 200), rel=0.25)
    # the same answers to both orders are no further evidence
    double = PairAccuracy(resamples=500)
    for first in (0, 1):
        double.update(pair, label, prediction, pair + first, torch.arange(200))
    again = plain(double.compute())
    assert again["acc_macro_upper"] == pytest.approx(found["acc_macro_upper"])
    assert again["acc_macro_lower"] == pytest.approx(found["acc_macro_lower"])


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_counted_is_nan() -> None:
    assert all(math.isnan(value) for value in plain(PairAccuracy().compute()).values())
    half = PairAccuracy()
    add(half, [(0, 0, 0, 0, 0)])
    assert math.isnan(float(half.compute()["acc_macro"]))
    half.reset()
    add(half, ROWS)
    assert float(half.compute()["acc_macro"]) == pytest.approx(0.5625)


def test_many_way_numbers_by_hand() -> None:
    metric = NWayAccuracy([0, 0, 1], ["Frogs", "Birds"])
    metric.update(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 2, -1, 2]), torch.tensor([0, 1, 2, 3]))
    metric.update(torch.tensor([0]), torch.tensor([0]), torch.tensor([0]))
    assert plain(metric.compute()) == pytest.approx(
        {
            "acc_macro": 0.5,
            "acc_micro": 0.5,
            "invalid": 0.25,
            "acc_supercategory/Frogs": 0.25,
            "acc_supercategory/Birds": 1.0,
        }
    )


def test_seeds_and_retention() -> None:
    found = seed_statistics([{"a": 0.5}, {"a": torch.tensor(0.7)}, {"a": 0.6}])["a"]
    assert found == pytest.approx({"mean": 0.6, "std": 0.1, "seeds": 3.0}, abs=1e-7)
    assert math.isnan(seed_statistics([{"a": 0.5}])["a"]["std"])
    assert retention_change({"a": torch.tensor(0.5)}, {"a": 0.25}) == {"a": -0.25}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((0, 2, 0, 0, 0), "label must be at least 0 and at most 1, got"),
        ((0, 0, 2, 0, 0), "prediction must be at least -1 and at most 1"),
        ((0, 0, 0, -1, 0), "first must be at least 0"),
        ((-1, 0, 0, 0, 0), "pair must be at least 0"),
        ((0, 0, 0, 0, -1), "index must be at least 0"),
        ((2, 0, 0, 0, 0), "There are supercategories of 2 pairs, got number 2"),
    ],
)
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_bad_answers_are_refused_and_do_not_count(row: tuple[int, int, int, int, int], message: str) -> None:
    metric = PairAccuracy([0, 0], ["x"], resamples=0)
    with pytest.raises(ValueError, match=message):
        add(metric, [row])
    assert math.isnan(float(metric.compute()["acc_micro"]))


COLUMN = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PairAccuracy().update(COLUMN, COLUMN, COLUMN[:1], COLUMN), r"prediction must be of shape \(2,\), got"),
        (
            lambda: PairAccuracy().update(COLUMN, COLUMN.float(), COLUMN, COLUMN),
            "label must be whole numbers, got torch",
        ),
        (lambda: PairAccuracy(resamples=-1), "resamples must not be negative"),
        (lambda: PairAccuracy([0], ["x", "x"]), "must differ, got x, x"),
        (lambda: PairAccuracy([1], ["x"]), r"numbers from 0 to 0, one for each of the pairs, got \[1\]"),
        (lambda: NWayAccuracy(None, ["x"]), "supercategory_names need supercategories"),
        (lambda: seed_statistics([]), "at least one seed"),
        (lambda: seed_statistics([{"a": 0.5}, {"b": 0.5}]), "a, b are not in all"),
        (lambda: retention_change({}, {"b": 0.5}), "b are not in both"),
    ],
)
def test_bad_arguments_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
