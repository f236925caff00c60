import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_modules.coda.augmentation.discriminability import (
    discriminability_scores,
    discriminability_values,
    select_discriminative,
)
from lit_modules.coda.augmentation.generability import (
    attribute_groups,
    generability_scores,
    select_generable,
    trial_count,
)
from lit_modules.coda.augmentation.ranking import rank_references, reference_scores, similarities


def cosines(images: int, attributes: int, seed: int) -> Tensor:
    return 0.2 + 0.02 * torch.randn(images, attributes, generator=torch.Generator().manual_seed(seed))


def pair_loop(target: Tensor, confusable: Tensor) -> list[float]:
    pairs = [
        [(x, y) for x in own for y in other]
        for own, other in zip(target.T.tolist(), confusable.T.tolist(), strict=True)
    ]
    return [
        sum(math.exp(100 * x) / (math.exp(100 * x) + math.exp(100 * y)) for x, y in both) / len(both) for both in pairs
    ]


def test_discriminability_is_the_mean_softmax_of_all_pairs() -> None:
    target, confusable = cosines(4, 3, 0), cosines(5, 3, 1)
    expected = torch.tensor(pair_loop(target, confusable), dtype=torch.float64)
    torch.testing.assert_close(discriminability_values(target, confusable), expected)
    turned = discriminability_values(confusable, target)  # both directions sum to 1
    torch.testing.assert_close(turned, 1 - expected)
    zero = torch.zeros(1, 1)
    below, above = (float(discriminability_values(zero + gap, zero)) for gap in (0.00405, 0.0041))
    assert below < 0.6 < above  # the threshold
    assert discriminability_values(torch.zeros(2, 0), torch.zeros(3, 0)).tolist() == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0.02, 3.0])  # with exponentials, and with differences too large for them
def test_more_images_than_a_block_holds(spread: float, dtype: torch.dtype) -> None:
    target, confusable = (
        (spread * torch.randn(number, 3, generator=torch.Generator().manual_seed(number))).to(dtype)
        for number in (700, 300)
    )
    shares = (100 * (target.double()[:, None] - confusable.double()[None])).sigmoid()
    found = discriminability_values(target, confusable)
    assert found.dtype == torch.float64
    tolerance = 1e-12 if dtype == torch.float64 else 1e-7
    torch.testing.assert_close(found, shares.mean((0, 1)), rtol=tolerance, atol=0)
    values = discriminability_scores(target[:20], confusable, resamples=2).values
    assert values == pytest.approx(shares[:20].mean((0, 1)).tolist(), rel=1e-12)


def test_intervals_hold_the_value_and_shrink_with_more_images() -> None:
    few = discriminability_scores(cosines(5, 8, 0), cosines(5, 8, 1), resamples=200)
    many = discriminability_scores(cosines(40, 8, 0), cosines(40, 8, 1), resamples=200)
    assert few.num_pairs == 25
    for found in (few, many):
        bounds = zip(found.lower, found.values, found.upper, strict=True)
        assert all(low <= value <= high for low, value, high in bounds)
    widths = [sum(high - low for low, high in zip(found.lower, found.upper, strict=True)) for found in (few, many)]
    assert widths[1] < widths[0]
    assert discriminability_scores(cosines(5, 8, 0), cosines(5, 8, 1), resamples=200) == few


def test_similarities_are_cosines_whatever_the_lengths() -> None:
    found = similarities(torch.tensor([[3.0, 4.0]]), torch.tensor([[10.0, 0.0], [0.0, 0.1]]))
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8]], dtype=torch.float64))
    with pytest.raises(ValueError, match="image embeddings must be finite and not zero, and row 1 is not"):
        similarities(torch.tensor([[1.0], [math.nan]]), torch.ones(1, 1))
    with pytest.raises(ValueError, match="share a space, got 2 and 3"):
        similarities(torch.ones(1, 2), torch.ones(1, 3))


def test_groups_hold_four_in_order_and_trials_are_counted() -> None:
    assert attribute_groups(9) == [(0, 1, 2, 3), (4, 5, 6, 7), (8,)]
    assert attribute_groups(0) == []
    shuffled = attribute_groups(9, shuffle_seed=1)
    assert sorted(sum(shuffled, ())) == list(range(9)) != list(sum(shuffled, ()))
    assert shuffled == attribute_groups(9, shuffle_seed=1)
    assert [trial_count(number) for number in (1, 4, 5, 8, 16)] == [5, 5, 10, 10, 20]
    with pytest.raises(ValueError, match="group_size at least 1, got 3 and 0"):
        attribute_groups(3, 0)


def test_generability_puts_the_trial_images_of_its_group_for_the_real_ones() -> None:
    trials, confusable = [cosines(5, 6, 3), cosines(5, 6, 4)], cosines(5, 6, 5)
    groups = [(0, 3, 5), (1, 2, 4)]
    found = generability_scores(trials, groups, confusable, resamples=10)
    for images, group in zip(trials, groups, strict=True):
        expected = discriminability_values(images, confusable)
        assert [found.values[number] for number in group] == pytest.approx(
            [float(expected[number]) for number in group]
        )
    with pytest.raises(ValueError, match="each of the 6 attributes once"):
        generability_scores(trials, [(0, 1), (1, 2)], confusable)
    with pytest.raises(ValueError, match="Each of the 1 groups must have trial images, got 2"):
        generability_scores(trials, [(0,)], confusable)


def test_the_threshold_is_exclusive_and_none_over_it_falls_back_with_a_flag() -> None:
    passed = select_discriminative([0.45, 0.98, 0.6, 0.61, 0.48])
    assert (passed.kept, passed.fallback) == ((1, 3), False)
    assert passed.reasons[2] == "0.6 is not over 0.6"
    fallen = select_discriminative([0.1, 0.5, 0.6, 0.5, 0.2])
    assert (fallen.kept, fallen.fallback) == ((1, 2, 3), True)
    assert select_discriminative([]).kept == ()


def test_the_best_five_are_kept_and_ties_stay_in_order() -> None:
    found = select_generable([0.7, 0.9, 0.7, 0.8, 0.7, 0.7, 0.7])
    assert found.kept == (1, 3, 0, 2, 4)
    assert found.reasons[5] == "not among the best 5"
    assert select_generable([0.86, 0.93, 0.14]).kept == (1, 0)
    assert select_generable([0.86, 0.93, 0.14], min_generability=None).kept == (1, 0, 2)
    fallen = select_generable([0.2, 0.5])
    assert (fallen.kept, fallen.fallback) == ((1,), True)


def test_reference_scores_are_products_of_softmaxes() -> None:
    generic, named = torch.tensor([0.20, 0.21, 0.19]), torch.tensor([0.25, 0.22, 0.30])
    expected = (100 * generic.double()).softmax(0) * (100 * named.double()).softmax(0)
    torch.testing.assert_close(reference_scores(generic, named), expected)
    assert rank_references(generic, named, ["a", "b", "c"], 3) == [2, 0, 1]
    # defect 6: equal ones come in the order of their names, whatever that of the folder
    for names in (["d", "b", "c", "a"], ["a", "d", "b", "c"]):
        best = rank_references(torch.full((4,), 0.2), torch.full((4,), 0.3), names, 2)
        assert [names[place] for place in best] == ["a", "b"]


ONE = torch.ones(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: discriminability_values(torch.zeros(2, 3), torch.zeros(2, 4)), r"same attributes, got \(2, 3\) and"),
        (lambda: discriminability_values(torch.zeros(0, 3), torch.zeros(2, 3)), "must have images, got 0 and 2"),
        (lambda: discriminability_values(torch.full((1, 1), math.nan), torch.zeros(1, 1)), "finite numbers"),
        (lambda: select_discriminative([0.5], threshold=60), r"threshold must be in \[0, 1\], got 60"),
        (lambda: rank_references(ONE, ONE, ["a", "a"]), "File names must differ"),
        (lambda: rank_references(ONE * math.nan, ONE, ["a", "b"]), "got NaN"),
    ],
)
def test_bad_numbers_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
