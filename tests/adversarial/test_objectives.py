"""The losses against cases worked by hand."""

import math
from collections.abc import Callable

import pytest
import torch

from lit_modules.adversarial.core.losses import kl_divergence
from lit_modules.adversarial.mart import mart_loss
from lit_modules.adversarial.trades import trades_loss

CLEAN = torch.tensor([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]], dtype=torch.float64).log()
ADVERSARIAL = torch.tensor([[0.4, 0.5, 0.1], [0.2, 0.2, 0.6]], dtype=torch.float64).log()
LABEL = torch.tensor([0, 2])
DIVERGENCES = [
    0.7 * math.log(0.7 / 0.4) + 0.2 * math.log(0.2 / 0.5),
    0.5 * math.log(0.25 / 0.2) + 0.5 * math.log(0.5 / 0.6),
]


def test_divergence_is_from_the_clean_to_the_adversarial_answer() -> None:
    assert kl_divergence(CLEAN, ADVERSARIAL).tolist() == pytest.approx(DIVERGENCES, rel=1e-9)
    assert kl_divergence(CLEAN + 3, ADVERSARIAL - 7).tolist() == pytest.approx(DIVERGENCES, rel=1e-9)
    assert kl_divergence(CLEAN, CLEAN).abs().max() < 1e-12


@pytest.mark.parametrize("beta", [0, 2])
def test_trades_by_hand(beta: float) -> None:
    expected = -(math.log(0.7) + math.log(0.5)) / 2 + beta * sum(DIVERGENCES) / 2
    assert float(trades_loss(CLEAN, ADVERSARIAL, LABEL, beta=beta)) == pytest.approx(expected, rel=1e-9)


def test_mart_by_hand() -> None:
    # the largest other probability is 0.5 in the first row and 0.2 in the second
    boosted = [-math.log(0.4) - math.log(1.0001 - 0.5), -math.log(0.6) - math.log(1.0001 - 0.2)]
    doubt = [1 - 0.7, 1 - 0.5]
    rows = [b + 5 * k * d for b, k, d in zip(boosted, DIVERGENCES, doubt, strict=True)]
    assert float(mart_loss(CLEAN, ADVERSARIAL, LABEL)) == pytest.approx(sum(rows) / 2, rel=1e-9)


@pytest.mark.parametrize("loss", [trades_loss, mart_loss])
def test_gradients_reach_both_answers_and_stay_finite_for_sure_answers(loss: Callable[..., torch.Tensor]) -> None:
    both = [torch.tensor([[60.0, -60.0], [1.0, 2.0]]), torch.tensor([[-60.0, 60.0], [1.0, 0.0]])]
    loss(*(logits.requires_grad_() for logits in both), torch.tensor([0, 0])).backward()
    assert all(logits.grad is not None and bool(logits.grad.isfinite().all()) and logits.grad.any() for logits in both)
