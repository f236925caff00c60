"""Membership attacks against hand-worked cases and scikit-learn."""

import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from lit_modules.metrics.membership import (
    attack_auc,
    gradient_norm_attack,
    loss_attack,
    min_k_attack,
    min_k_plus_plus_attack,
    reference_attack,
    vocabulary_moments,
    zlib_attack,
)

ROWS = [torch.tensor([-1.0, -4.0, -2.0, -0.5]), torch.tensor([-3.0])]


def scores(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    member = torch.arange(rows) % 3 == 0
    drawn = torch.randn(rows, generator=generator, dtype=torch.float64)
    return ((drawn - 0.5 * member.double()) * 4).round() / 4, member  # with ties


def test_attacks_by_hand() -> None:
    assert loss_attack(ROWS).tolist() == [1.875, 3.0]
    assert zlib_attack(ROWS, ["an answer", "é"]).tolist() == pytest.approx(
        [1.875 / len(zlib.compress(b"an answer")), 3.0 / len(zlib.compress("é".encode()))]
    )
    assert reference_attack(ROWS, [torch.tensor([-1.0]), torch.tensor([-4.0, -1.0])]).tolist() == [0.875, 0.5]
    assert min_k_attack(ROWS).tolist() == [4.0, 3.0]  # at least one token
    assert min_k_attack(ROWS, 0.75).tolist() == [pytest.approx(7 / 3), 3.0]
    assert min_k_attack(ROWS, 1.0).tolist() == loss_attack(ROWS).tolist()
    ones = [torch.ones(4), torch.ones(1)]
    assert min_k_plus_plus_attack(ROWS, [-one for one in ones], [2 * one for one in ones], 0.5).tolist() == [1.0, 1.0]


def test_moments_over_the_vocabulary() -> None:
    probs = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)
    mean, deviation = vocabulary_moments(probs.log())
    assert float(mean) == pytest.approx(-1.5 * math.log(2))
    assert float(deviation) == pytest.approx(0.5 * math.log(2))
    certain = torch.tensor([[0.0, -math.inf, -math.inf]])
    assert [float(value) for value in vocabulary_moments(certain)] == pytest.approx([0.0, 1e-3])


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_gradient_norm(p: float) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 5).double()
    inputs, labels = torch.randn(2, 3, dtype=torch.float64), torch.tensor([1, 4])
    layer.weight.grad = torch.ones_like(layer.weight)
    rows = list(layer(inputs).log_softmax(-1)[range(2), labels].unsqueeze(1))
    whole = gradient_norm_attack(rows, layer.parameters(), p, over="all")
    assert torch.equal(layer.weight.grad, torch.ones_like(layer.weight))
    rows = list(layer(inputs).log_softmax(-1)[range(2), labels].unsqueeze(1))
    mean = gradient_norm_attack(rows, [*layer.parameters(), nn.Parameter(torch.ones(1))], p)
    for number in range(2):
        layer.zero_grad()
        nn.functional.cross_entropy(layer(inputs[number]), labels[number]).backward()  # type: ignore[no-untyped-call]
        grads = [parameter.grad for parameter in layer.parameters() if parameter.grad is not None]
        assert float(whole[number]) == pytest.approx(float(torch.cat([g.flatten() for g in grads]).norm(p)))
        assert float(mean[number]) == pytest.approx(float(torch.stack([g.norm(p) for g in grads]).mean()))


@pytest.mark.parametrize(("rows", "seed"), [(60, 0), (60, 1), (40, 7)])
def test_auc_equals_scikit_learn_and_delong_its_definition(rows: int, seed: int) -> None:
    values, member = scores(rows, seed)
    inner, outer = values[member].numpy(), values[~member].numpy()
    wins = (outer[:, None] > inner).astype(float) + 0.5 * (outer[:, None] == inner)
    variance = wins.mean(1).var(ddof=1) / len(outer) + wins.mean(0).var(ddof=1) / len(inner)
    result = attack_auc(values, member, level=0.9)
    assert result.auc == pytest.approx(roc_auc_score(~member.numpy(), values.numpy())) == pytest.approx(wins.mean())
    assert result.high - result.auc == pytest.approx(1.6448536 * np.sqrt(variance), rel=1e-6)
    assert result.auc - result.low == pytest.approx(result.high - result.auc)


def test_bootstrap_is_near_delong_and_seeded() -> None:
    values, member = scores(300, seed=3)
    exact = attack_auc(values, member)
    drawn = attack_auc(values, member, interval="bootstrap", samples=400)
    assert drawn == attack_auc(values, member, interval="bootstrap", samples=400)
    assert drawn.auc == exact.auc
    assert (drawn.low, drawn.high) == pytest.approx((exact.low, exact.high), abs=0.02)


def test_perfect_attack() -> None:
    assert attack_auc(torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([1, 1, 0, 0])) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: loss_attack([torch.empty(0)]), r"at least one token, got the shape \(0,\) in row 0"),
        (lambda: zlib_attack(ROWS, ["a"]), r"texts must have an entry for each of the 2 rows, got 1"),
        (lambda: min_k_attack(ROWS, 0.0), r"k must be a share in \(0, 1\], got 0\.0"),
        (
            lambda: min_k_plus_plus_attack(ROWS, ROWS, [ROWS[1], ROWS[1]]),
            "deviations must have a value for each token, 4 in a row, got 1",
        ),
        (lambda: gradient_norm_attack(ROWS, nn.Linear(1, 1).parameters()), "row 0 has none"),
        (lambda: gradient_norm_attack(ROWS, [], over="some"), "over must be 'tensors' or 'all', got 'some'"),  # type: ignore[arg-type]
        (lambda: attack_auc(torch.ones(3), torch.ones(2)), r"same shape \(rows,\), got \(3,\) and \(2,\)"),
        (lambda: attack_auc(torch.ones(3), torch.ones(3)), "2 members and 2 non-members, got 3 and 0"),
        (lambda: attack_auc(torch.tensor([math.nan] * 4), torch.tensor([1, 1, 0, 0])), "got NaN in 4 of 4 rows"),
        (lambda: attack_auc(torch.ones(4), torch.ones(4), level=95), "level must lie between 0 and 1, got 95"),
        (lambda: attack_auc(torch.ones(4), torch.ones(4), interval="normal"), "'delong' or 'bootstrap'"),  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_refused(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()
