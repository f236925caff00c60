"""Losses against cases worked by hand and finite differences; scores of tokens, and a test run that logs them."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from transformers import AutoTokenizer

from datamodules.tofu.tofu import TOFU
from lit_modules import NGDiff
from lit_modules.metrics.tofu import TOFUScore
from lit_modules.networks import small_llama
from lit_modules.unlearning.ceu import ceu_loss
from lit_modules.unlearning.core.losses import (
    attended_logits,
    reference_kl,
    scored_logits,
    sequence_nll,
    token_nll,
    token_scores,
)
from lit_modules.unlearning.dpo import dpo_loss
from lit_modules.unlearning.npo import npo_loss
from lit_modules.unlearning.pdu import logit_margin_loss
from lit_modules.unlearning.rmu import rmu_loss
from lit_modules.unlearning.sat_imp import sat_imp_loss
from lit_modules.unlearning.simnpo import simnpo_loss
from lit_modules.unlearning.undial import undial_loss
from lit_modules.unlearning.wga import wga_loss


def float64(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (npo_loss(float64(0.0), 0.1), 20 * math.log(2)),  # at the reference log 2 * 2 / beta
        (npo_loss(float64(-1.0), 2.0), math.log(1 + math.exp(-2))),
        (npo_loss(float64(-2.0), 1e-6) - 2 / 1e-6 * math.log(2), -2.0),  # becomes ascent as beta vanishes
        (simnpo_loss(float64(2.0), 0.5, 1.0), 4 * math.log(1 + math.exp(-0.5))),
        (simnpo_loss(float64(2.0), 2.5, 0.7 / 2.5), -2 / 2.5 * math.log(1 / (1 + math.exp(-(2.5 * 2.0 - 0.7))))),
        (dpo_loss(float64(1.0), float64(-1.0), beta=0.5), 4 * math.log(1 + math.exp(-1))),
        (wga_loss(float64(math.log(4)), 0.0), -math.log(4)),
        (wga_loss(float64(math.log(4)), 2.0), -math.log(4) / 16),
        (sat_imp_loss(float64(math.log(4)), 2.0, 1.0), -(1 / 16) * (3 / 4) * math.log(4)),
        (ceu_loss(float64([0.5, 0.3, 0.2]).log(), torch.tensor([0])), -(0.6 * math.log(0.3) + 0.4 * math.log(0.2))),
        (
            reference_kl(float64([0.5, 0.5]).log() + 3, float64([0.25, 0.75]).log() - 1),
            0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75),
        ),
        (reference_kl(float64([0.25, 0.75]), float64([0.25, 0.75])), 0.0),
        (  # the true token's share is halved: target 1/5, 2/5, 2/5
            undial_loss(float64([0.0] * 3), float64([0.2, 0.3, 0.5]).log(), torch.tensor([0]), math.log(2)),
            -(math.log(0.2) + 2 * math.log(0.3) + 2 * math.log(0.5)) / 5,
        ),
        (logit_margin_loss(float64([3.0, 0.0, 0.0])), 4.0),
        (logit_margin_loss(float64([1.0, 1.0, 1.0])), 0.0),
        (rmu_loss(float64([1.0, 3.0]), float64(0.0, 1.0)), 2.5),
    ],
)
def test_losses_by_hand(loss: Tensor, expected: float) -> None:
    assert loss.tolist() == pytest.approx([expected], abs=1e-5)


RATIO = float64(-3.0, -0.5, 0.0, 1.0)
REFERENCE = float64([0.3, -1.0, 2.0, 0.1], [1.0, 0.2, -0.4, 0.0])
LOWERED = REFERENCE - 10 * torch.eye(4)[[0, 2]]


@pytest.mark.parametrize(
    ("loss", "at", "expected"),
    [
        # ascent minimises log p, of gradient 1; the paper's factor is 2 r^beta / (1 + r^beta)
        *((partial(npo_loss, beta=beta), RATIO, 2 / (1 + (-beta * RATIO).exp())) for beta in (0.1, 4.0)),
        (partial(sat_imp_loss, beta1=2.0, beta2=1.0), float64(math.log(4), 0.0), float64(-3 / 64, 0.0)),
        (partial(wga_loss, beta=1.0), float64(math.log(4)), float64(-1 / 4)),
        # the target is detached: at the true logit its probability
        (
            lambda x: ceu_loss(x, torch.tensor([0])),
            float64([0.5, 0.3, 0.2]).log(),
            float64([0.5, 0.3 - 0.6, 0.2 - 0.4]),
        ),
        (lambda x: undial_loss(REFERENCE, x, torch.tensor([0, 2])), LOWERED, torch.zeros(2, 4).double()),
    ],
)
def test_gradients_by_hand(loss: Callable[[Tensor], Tensor], at: Tensor, expected: Tensor) -> None:
    at = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(at).sum(), at)
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=1e-7)


def test_selected_logits_are_those_that_predict_the_scored_tokens(bench: Any) -> None:
    network = bench.network()
    logits, labels, rows = scored_logits(network, bench.forget)
    nll, where = token_nll(network, bench.forget)
    torch.testing.assert_close(torch.nn.functional.cross_entropy(logits, labels, reduction="none"), nll)
    assert rows.tolist() == where.tolist()
    masked = {**bench.forget, "attention_mask": bench.forget["attention_mask"].clone()}
    masked["attention_mask"][:, -3:] = 0
    assert len(attended_logits(network, masked)) == masked["attention_mask"].sum()


def test_token_scores_are_those_of_the_losses() -> None:
    torch.manual_seed(0)
    model = small_llama(vocab_size=32, hidden_size=16, num_layers=1, num_heads=2)
    ids = torch.randint(1, 32, (3, 7))
    labels = ids.masked_fill(torch.arange(7) < torch.tensor([[1], [3], [7]]), -100)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    scores = token_scores(model, batch)
    sums, counts = sequence_nll(model, batch)
    assert [len(row) for row in scores["log_probs"]] == counts.tolist() == [6, 4, 0]
    assert torch.allclose(torch.stack([-row.sum() for row in scores["log_probs"]]), sums)
    logits = model(input_ids=ids[1:2]).logits[0, 2:6]
    assert scores["correct"][1].tolist() == (logits.argmax(-1) == ids[1, 3:]).tolist()
    log_probs = logits.log_softmax(-1)
    assert torch.allclose(scores["means"][1], (log_probs.exp() * log_probs).sum(-1), atol=1e-5)


def run(tmp_path: Path, repository: Path, tiny_causal_lm: Path, **arguments: Any) -> tuple[dict[str, float], Any]:
    torch.manual_seed(0)
    data = TOFU(str(tiny_causal_lm), str(repository / "tests" / "data" / "tofu"), num_workers=0)
    module = NGDiff(str(tiny_causal_lm), metric=TOFUScore(**arguments), max_new_tokens=3)
    settings: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = Trainer(**settings, enable_model_summary=False, default_root_dir=tmp_path, enable_checkpointing=False)
    return dict(trainer.test(module, datamodule=data, verbose=False)[0]), module.results()


def test_a_test_run_writes_a_log_that_another_compares_with(
    tmp_path: Path, repository: Path, tiny_causal_lm: Path
) -> None:
    log = str(tmp_path / "logs" / "retain90.json")
    numbers, record = run(tmp_path, repository, tiny_causal_lm, log_file=log)
    assert numbers["test/model_utility"] == pytest.approx(record["model_utility"])
    assert 0 < record["forget/probability"] < 1
    assert record["forget_quality"] is None
    assert 0 <= record["mia/min_k_plus_plus"] <= 1
    assert AutoTokenizer.from_pretrained(tiny_causal_lm).eos_token not in Path(log).read_text(encoding="utf-8")
    again, compared = run(tmp_path, repository, tiny_causal_lm, retain_log=log, memorisation=False)
    assert compared["forget_quality"] == 1
    assert again["test/forget/probability"] == pytest.approx(numbers["test/forget/probability"], rel=1e-6)
