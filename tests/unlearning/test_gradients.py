"""Plain mathematics of two gradients: NGDiff's rule section by section, and the other aggregators."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_modules.cli import main
from lit_modules.unlearning.core.aggregators import (
    IMTLG,
    MGDA,
    LinearScalarisation,
    LossNormalised,
    Normalised,
    PCGrad,
    Projected,
)
from lit_modules.unlearning.core.gradients import GradientAggregator, PairStatistics, combine_, global_norm
from lit_modules.unlearning.gradient_difference import GradientDifference
from lit_modules.unlearning.ngdiff import normalised_weights
from tests.unlearning.conftest import gradient_of, mean_nll, normalised_difference, pair_statistics

GOLDEN = [  # g_R, g_F, d, g_R . d, g_F . d
    ((3.0, 4.0), (0.0, 2.0), (0.6, -0.2), 1.0, -0.4),
    ((1.0, 0.0), (0.0, 5.0), (1.0, -1.0), 1.0, -5.0),
    ((1.0, 0.0), (-2.0, 0.0), (2.0, 0.0), 2.0, -4.0),
    ((1.0, 0.0), (7.0, 0.0), (0.0, 0.0), 0.0, 0.0),
    ((1.0, 0.0), (10.0, 1.0), (0.004963, -0.099504), 0.004963, -0.049876),
]
ALL = [LinearScalarisation(), Normalised(), PCGrad(), MGDA(), IMTLG(), Projected(), Projected("retain")]
pairs = st.tuples(st.integers(0, 2**31), st.floats(-3, 3), st.floats(-3, 3))


def draw(seed: int, log_retain: float, log_forget: float) -> tuple[list[Tensor], list[Tensor]]:
    """Draw two correlated gradients of several tensors and different lengths."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 4), (5,), (1, 2, 2)]
    common = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    share = torch.rand((), generator=generator, dtype=torch.float64) * 2 - 1
    other = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    retain = [tensor * 10**log_retain for tensor in common]
    forget = [(share * a + (1 - share.abs()) * b) * 10**log_forget for a, b in zip(common, other, strict=True)]
    return retain, forget


def flat(gradient: list[Tensor | None] | list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in gradient if tensor is not None])


@pytest.mark.parametrize(("retain", "forget", "direction", "retain_descent", "forget_descent"), GOLDEN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_cases_of_ngdiff(
    retain: Any, forget: Any, direction: Any, retain_descent: float, forget_descent: float, dtype: torch.dtype
) -> None:
    g_r, g_f = torch.tensor(retain, dtype=dtype), torch.tensor(forget, dtype=dtype)
    d = flat(normalised_difference([g_r[:1], g_r[1:]], [g_f[:1], g_f[1:]]))
    assert d.tolist() == pytest.approx(direction, abs=1e-6)
    descents = (retain_descent, forget_descent)
    assert ((g_r @ d).item(), (g_f @ d).item()) == pytest.approx(descents, abs=1e-5)
    statistics = pair_statistics([g_r], [g_f])
    assert statistics.descent(*normalised_weights(statistics)) == pytest.approx(descents, abs=1e-5)
    if retain_descent == 0.004963:  # where fixed weights raise the retain loss
        assert statistics.descent(1.0, 1.0)[0] < 0


@given(pairs, st.floats(-6, 6), st.floats(-6, 6))
@settings(max_examples=60, deadline=None)
def test_direction_of_ngdiff_for_any_two_gradients(drawn: tuple[int, float, float], a: float, b: float) -> None:
    """It lowers the retain loss, raises the forget loss and bisects; scales do not count, swapping negates."""
    retain, forget = draw(*drawn)
    d, r, f = flat(normalised_difference(retain, forget)), flat(retain), flat(forget)
    cosine = (r @ f / r.norm() / f.norm()).item()
    assert (r @ d).item() == pytest.approx(r.norm().item() * (1 - cosine), rel=1e-6, abs=1e-9 * r.norm().item())
    assert (f @ d).item() == pytest.approx(-f.norm().item() * (1 - cosine), rel=1e-6, abs=1e-9 * f.norm().item())
    assert (d @ d).item() == pytest.approx(2 * (1 - cosine), rel=1e-6, abs=1e-9)
    if cosine < 0.999:
        half = math.sqrt((1 - cosine) / 2)
        assert (r @ d / r.norm() / d.norm()).item() == pytest.approx(half, abs=1e-6)
        assert (f @ d / f.norm() / d.norm()).item() == pytest.approx(-half, abs=1e-6)
    scaled = normalised_difference([t * 10**b for t in retain], [t * 10**a for t in forget])
    torch.testing.assert_close(flat(scaled), d, atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(flat(normalised_difference(forget, retain)), -d, atol=1e-12, rtol=0)


@pytest.mark.parametrize("bad", [0.0, 1e-13, math.inf, math.nan])
def test_vanishing_or_broken_term_is_dropped_not_divided(bad: float) -> None:
    healthy, broken = torch.tensor([3.0, 4.0]), torch.full((2,), bad)
    assert flat(normalised_difference([healthy], [broken])).tolist() == pytest.approx([0.6, 0.8])
    assert flat(normalised_difference([broken], [healthy])).tolist() == pytest.approx([-0.6, -0.8])
    assert flat(normalised_difference([broken], [broken])).tolist() == [0.0, 0.0]


def test_norm_is_taken_in_float32_for_bfloat16_gradients() -> None:
    gradient = [torch.full((10_000_000,), 0.01, dtype=torch.bfloat16)]
    assert global_norm(gradient).dtype == torch.float64
    assert global_norm(gradient).item() == pytest.approx(gradient[0].double().norm().item(), rel=1e-5)


def test_missing_tensors_are_zero() -> None:
    retain, forget = [torch.tensor([3.0]), None], [None, torch.tensor([2.0])]
    assert pair_statistics(retain, forget) == PairStatistics(retain_norm=3.0, forget_norm=2.0, inner=0.0)
    assert [t.tolist() if t is not None else None for t in normalised_difference(retain, forget)] == [[1.0], [-1.0]]
    assert global_norm([]).item() == 0
    assert forget[1] is not None
    assert forget[1].tolist() == [2.0]  # left as it was


def direction(aggregator: GradientAggregator, retain: Tensor, forget: Tensor) -> Tensor:
    weights = aggregator.weights(pair_statistics([retain], [forget]))
    return flat(combine_([retain.clone()], [forget], *weights))


@pytest.mark.parametrize(
    ("aggregator", "forget", "expected"),
    [  # g1 = g_R = (1, 0), g2 = -g_F = (-1, 1): in conflict, g1 . g2 = -1
        (LinearScalarisation(), (1.0, -1.0), (0.0, 1.0)),
        (LinearScalarisation(0.75), (1.0, -1.0), (1.0, 0.5)),
        (PCGrad(), (1.0, -1.0), (0.5, 1.5)),  # (1/2, 1/2) + (0, 1)
        (MGDA(), (1.0, -1.0), (0.2, 0.4)),  # t = (g2 - g1) . g2 / |g1 - g2|^2 = 3 / 5
        (IMTLG(), (1.0, -1.0), ((math.sqrt(2) - 1) / (1 + math.sqrt(2)), 1 / (1 + math.sqrt(2)))),
        (Normalised(), (1.0, -1.0), (1 - math.sqrt(0.5), math.sqrt(0.5))),
        (Projected("forget"), (1.0, -1.0), (-0.5, 1.5)),  # g2 + g1 + g2 / 2
        (Projected("retain"), (1.0, -1.0), (1.0, 1.0)),  # g1 + (0, 1)
        (PCGrad(), (-1.0, -1.0), (2.0, 1.0)),  # g2 = (1, 1): they agree
        (MGDA(), (-1.0, -1.0), (1.0, 0.0)),  # the shorter of the two is the nearest point
    ],
)
def test_golden_cases_of_aggregators(aggregator: GradientAggregator, forget: Any, expected: Any) -> None:
    retain, forget = torch.tensor([1.0, 0.0]).double(), torch.tensor(forget).double()
    assert direction(aggregator, retain, forget).tolist() == pytest.approx(expected)


@given(pairs)
@settings(max_examples=60, deadline=None)
def test_promises_of_aggregators_for_any_two_gradients(drawn: tuple[int, float, float]) -> None:
    retain, forget = map(flat, draw(*drawn))
    g1, g2 = retain, -forget
    size = float(g1.norm() * g2.norm() + g1 @ g1 + g2 @ g2)
    d = direction(PCGrad(), retain, forget)
    assert min(g1 @ d, g2 @ d) >= -1e-9 * size
    d = direction(MGDA(), retain, forget)
    assert min(g1 @ d, g2 @ d) >= d @ d - 1e-9 * size
    for t in (0.0, 0.3, 1.0):
        assert d.norm() <= (t * g1 + (1 - t) * g2).norm() + 1e-9 * size
    d = direction(IMTLG(), retain, forget)
    assert (g1 @ d / g1.norm()).item() == pytest.approx((g2 @ d / g2.norm()).item(), abs=1e-9 * size)
    length = g1.norm() * g2.norm() / (g1.norm() + g2.norm())
    torch.testing.assert_close(d, length * flat(normalised_difference([retain], [forget])), atol=1e-9 * size, rtol=0)
    for primary, p in (("forget", g2), ("retain", g1)):
        d = direction(Projected(primary), retain, forget)  # type: ignore[arg-type]
        assert (p @ d).item() == pytest.approx((p @ p).item(), abs=1e-9 * size)


def test_loss_normalised_is_the_gradient_of_the_logarithms() -> None:
    assert LossNormalised().weights(PairStatistics(1.0, 1.0, 0.0, 2.0, -4.0)) == (0.5, 0.25)
    assert LossNormalised().weights(PairStatistics(1.0, 1.0, 0.0, 0.0, math.inf)) == (0.0, 0.0)
    assert LossNormalised().weights(PairStatistics(1.0, 1.0, 0.0)) == (0.0, 0.0)


@pytest.mark.parametrize("aggregator", ALL, ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_broken_gradient_is_dropped(aggregator: GradientAggregator, bad: float) -> None:
    retain, forget = aggregator.weights(PairStatistics(retain_norm=2.0, forget_norm=bad, inner=bad))
    assert forget == 0
    assert 0 < retain < math.inf
    assert aggregator.weights(PairStatistics(bad, bad, bad)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearScalarisation(1.5), r"share must lie in \[0, 1\], got 1.5"),
        (lambda: Normalised(0.0), "eps must be positive, got 0.0"),
        (lambda: Projected("both"), "primary must be 'forget' or 'retain', got 'both'"),  # type: ignore[arg-type]
    ],
)
def test_absurd_arguments_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("aggregator", [None, *ALL, LossNormalised()], ids=lambda c: type(c).__name__)
def test_gradient_difference_moves_along_any_rule(aggregator: GradientAggregator | None, bench: Any) -> None:
    network, (pair,) = bench.network(), bench.pairs(24)
    losses = [weight * mean_nll(network, pair[task]) for task, weight in (("retain", 0.5), ("forget", 2.0))]
    retain, forget = (gradient_of(network, loss) for loss in losses)
    statistics = pair_statistics([retain], [forget])
    statistics = replace(statistics, retain_loss=losses[0].item(), forget_loss=losses[1].item())
    retain_weight, forget_weight = (1.0, 1.0) if aggregator is None else aggregator.weights(statistics)
    sgd = partial(torch.optim.SGD, lr=0.01)
    module = GradientDifference(network, retain_weight=0.5, forget_weight=2.0, aggregator=aggregator, optimizer=sgd)
    expected = -0.01 * (retain_weight * retain - forget_weight * forget)
    torch.testing.assert_close(bench.change(module, [pair]), expected, atol=1e-6, rtol=0)


def test_gradient_difference_takes_a_rule_in_one_line_of_configuration(ngdiff: list[str]) -> None:
    arguments = [argument.replace("--model=NGDiff", "--model=GradientDifference") for argument in ngdiff]
    arguments.append("--model.aggregator=lit_modules.unlearning.core.aggregators.PCGrad")
    cli: Any = main(["fit", *arguments, "--trainer.fast_dev_run=2", "--trainer.limit_val_batches=0"])
    assert type(cli.model.aggregator) is PCGrad
    assert cli.trainer.global_step == 2
