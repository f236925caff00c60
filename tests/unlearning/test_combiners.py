"""Combiners of two gradients: worked cases, and what each promises for any two gradients."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_modules.cli import main
from lit_modules.cli.lightning_cli import ProjectCLI
from lit_modules.unlearning.core.aggregators import (
    IMTLG,
    MGDA,
    GradientAggregator,
    LinearScalarisation,
    LossNormalised,
    Normalised,
    PCGrad,
    Projected,
)
from lit_modules.unlearning.core.gradients import PairStatistics, combine_
from lit_modules.unlearning.core.losses import summed_nll, target_tokens
from lit_modules.unlearning.gradient_difference import GradientDifference
from lit_modules.unlearning.ngdiff import NGDiff
from tests.unlearning.conftest import normalised_difference, pair_statistics

ALL = [LinearScalarisation(), Normalised(), PCGrad(), MGDA(), IMTLG(), Projected(), Projected("retain")]
pairs = st.tuples(st.integers(0, 2**31), st.floats(-2, 2), st.floats(-2, 2), st.floats(-1, 1))


def draw(seed: int, log_retain: float, log_forget: float, share: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))
    return a * 10**log_retain, (share * a + (1 - abs(share)) * b + 1e-3) * 10**log_forget


def direction(combiner: GradientAggregator, retain: Tensor, forget: Tensor) -> Tensor:
    weights = combiner.weights(pair_statistics([retain], [forget]))
    (combined,) = combine_([retain.clone()], [forget], *weights)
    assert combined is not None
    return combined


@pytest.mark.parametrize(
    ("combiner", "expected"),
    [  # g1 = g_R = (1, 0), g2 = -g_F = (-1, 1): in conflict, g1 . g2 = -1
        (LinearScalarisation(), (0.0, 1.0)),
        (LinearScalarisation(0.75), (1.0, 0.5)),
        (PCGrad(), (0.5, 1.5)),  # (1/2, 1/2) + (0, 1)
        (MGDA(), (0.2, 0.4)),  # t = (g2 - g1) . g2 / |g1 - g2|^2 = 3 / 5
        (IMTLG(), (math.sqrt(2) / (1 + math.sqrt(2)) - 1 / (1 + math.sqrt(2)), 1 / (1 + math.sqrt(2)))),
        (Normalised(), (1 - math.sqrt(0.5), math.sqrt(0.5))),
        (Projected("forget"), (-0.5, 1.5)),  # g2 + g1 + g2 / 2
        (Projected("retain"), (1.0, 1.0)),  # g1 + (0, 1)
    ],
)
def test_golden_case(combiner: GradientAggregator, expected: tuple[float, float]) -> None:
    retain, forget = torch.tensor([1.0, 0.0]).double(), torch.tensor([1.0, -1.0]).double()
    assert direction(combiner, retain, forget).tolist() == pytest.approx(expected)


def test_gradients_that_agree() -> None:
    retain, forget = torch.tensor([1.0, 0.0]).double(), torch.tensor([-1.0, -1.0]).double()  # g2 = (1, 1)
    assert direction(PCGrad(), retain, forget).tolist() == [2.0, 1.0]
    assert direction(MGDA(), retain, forget).tolist() == [1.0, 0.0]  # the shorter of the two is the nearest point


@given(pairs)
@settings(max_examples=60, deadline=None)
def test_promises_hold_for_any_two_gradients(drawn: tuple[int, float, float, float]) -> None:
    retain, forget = draw(*drawn)
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
    ours = normalised_difference([retain], [forget])[0]
    assert ours is not None
    length = g1.norm() * g2.norm() / (g1.norm() + g2.norm())
    torch.testing.assert_close(d, length * ours, atol=1e-9 * size, rtol=0)
    for primary, p in (("forget", g2), ("retain", g1)):
        d = direction(Projected(primary), retain, forget)  # type: ignore[arg-type]
        assert (p @ d).item() == pytest.approx((p @ p).item(), abs=1e-9 * size)


def test_loss_normalised_is_the_gradient_of_the_logarithms() -> None:
    statistics = PairStatistics(1.0, 1.0, 0.0, retain_loss=2.0, forget_loss=-4.0)
    assert LossNormalised().weights(statistics) == (0.5, 0.25)
    assert LossNormalised().weights(PairStatistics(1.0, 1.0, 0.0, retain_loss=0.0, forget_loss=math.inf)) == (0.0, 0.0)
    assert LossNormalised().weights(PairStatistics(1.0, 1.0, 0.0)) == (0.0, 0.0)


@pytest.mark.parametrize("combiner", ALL, ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_broken_gradient_is_dropped(combiner: GradientAggregator, bad: float) -> None:
    retain, forget = combiner.weights(PairStatistics(retain_norm=2.0, forget_norm=bad, inner=bad))
    assert forget == 0
    assert 0 < retain < math.inf
    assert combiner.weights(PairStatistics(bad, bad, bad)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearScalarisation(1.5), r"share must lie in \[0, 1\], got 1.5"),
        (lambda: Normalised(0.0), "eps must be positive, got 0.0"),
        (lambda: LossNormalised(-1.0), "eps must be positive, got -1.0"),
        (lambda: Projected("both"), "primary must be 'forget' or 'retain', got 'both'"),  # type: ignore[arg-type]
    ],
)
def test_absurd_arguments_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("combiner", [*ALL, LossNormalised()], ids=lambda c: type(c).__name__)
def test_gradient_difference_moves_along_any_rule(combiner: GradientAggregator, bench: Any) -> None:
    network = bench.network()
    before, (pair,) = bench.vector(network), bench.pairs(24)
    parameters, gradients, losses = list(network.parameters()), [], []
    for task, weight in (("retain", 0.5), ("forget", 2.0)):
        loss = weight * summed_nll(network, pair[task]) / target_tokens(pair[task])
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
        losses.append(float(loss))
    statistics = replace(pair_statistics([gradients[0]], [gradients[1]]), retain_loss=losses[0], forget_loss=losses[1])
    retain_weight, forget_weight = combiner.weights(statistics)
    expected = before - 0.01 * (retain_weight * gradients[0] - forget_weight * gradients[1])
    module = GradientDifference(
        network,
        retain_weight=0.5,
        forget_weight=2.0,
        aggregator=combiner,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.01),
    )
    bench.fit(module, bench.pairs(24))
    torch.testing.assert_close(bench.vector(network), expected, atol=1e-6, rtol=0)


def test_gradient_difference_with_normalised_is_ngdiff_and_with_linear_itself(bench: Any) -> None:
    def trained(module: Any) -> Tensor:
        bench.fit(module, bench.pairs(8))
        return bench.vector(module.model)  # type: ignore[no-any-return]

    assert torch.equal(
        trained(GradientDifference(bench.network(), aggregator=Normalised())), trained(NGDiff(bench.network()))
    )
    assert torch.equal(
        trained(GradientDifference(bench.network(), aggregator=LinearScalarisation())),
        trained(GradientDifference(bench.network())),
    )


def test_gradient_difference_takes_a_rule_in_one_line_of_configuration(ngdiff: list[str]) -> None:
    arguments = [argument.replace("--model=NGDiff", "--model=GradientDifference") for argument in ngdiff]
    combine = "--model.aggregator=lit_modules.unlearning.core.aggregators.PCGrad"
    cli = main(["fit", *arguments, combine, "--trainer.fast_dev_run=2", "--trainer.limit_val_batches=0"])
    assert isinstance(cli, ProjectCLI)
    assert type(cli.model.aggregator) is PCGrad
    assert cli.trainer.global_step == 2


def test_what_is_no_rule_is_refused(bench: Any) -> None:
    with pytest.raises(
        TypeError, match=r"aggregator must be a GradientAggregator, such as Normalised\(\), or None, got str"
    ):
        GradientDifference(bench.network(), aggregator="pcgrad")  # type: ignore[arg-type]
