"""Losses against cases worked by hand and finite differences; scores of tokens, and a test run that logs them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

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

LABELS = torch.tensor([0, 2])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_npo_by_hand() -> None:
    # at the reference log 2 * 2 / beta; for r = e^-1, beta = 2: log(1 + e^-2)
    assert npo_loss(torch.zeros(1), 0.1).item() == pytest.approx(20 * math.log(2))
    assert npo_loss(torch.tensor([-1.0]), 2.0).item() == pytest.approx(math.log(1 + math.exp(-2)))


@pytest.mark.parametrize("beta", [0.1, 1.0, 4.0])
def test_npo_gradient_is_that_of_ascent_times_the_papers_factor(beta: float) -> None:
    ratio = torch.tensor([-3.0, -0.5, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(npo_loss(ratio, beta).sum(), ratio)
    power = ratio.detach().exp() ** beta
    torch.testing.assert_close(gradient, 2 * power / (1 + power))  # ascent minimises log p, of gradient 1


def test_npo_becomes_ascent_as_beta_vanishes() -> None:
    ratio = torch.tensor([-2.0, 1.0], dtype=torch.float64)
    constant = 2 / 1e-6 * math.log(2)
    torch.testing.assert_close(npo_loss(ratio, 1e-6) - constant, ratio, atol=1e-5, rtol=0)


def test_simnpo_by_hand_and_in_the_authors_form() -> None:
    nll = torch.tensor([2.0], dtype=torch.float64)
    assert simnpo_loss(nll, 0.5, 1.0).item() == pytest.approx(4 * math.log(1 + math.exp(-0.5)))
    gamma = 0.7
    authors = -2 / 2.5 * torch.nn.functional.logsigmoid(2.5 * nll - gamma)
    torch.testing.assert_close(simnpo_loss(nll, 2.5, gamma / 2.5), authors)


def test_dpo_by_hand() -> None:
    loss = dpo_loss(torch.tensor([1.0]), torch.tensor([-1.0]), beta=0.5)
    assert loss.item() == pytest.approx(4 * math.log(1 + math.exp(-1)))


def test_weighted_ascent_by_hand_and_its_weight_is_detached() -> None:
    nll = torch.tensor([math.log(4), 0.0], dtype=torch.float64, requires_grad=True)
    loss = sat_imp_loss(nll, 2.0, 1.0)
    assert loss.tolist() == pytest.approx([-(1 / 16) * (3 / 4) * math.log(4), 0.0])
    (gradient,) = torch.autograd.grad(loss.sum(), nll)
    assert gradient.tolist() == pytest.approx([-3 / 64, 0.0])
    assert wga_loss(nll, 0.0).tolist() == pytest.approx([-math.log(4), 0.0])


def test_kl_by_hand_and_zero_at_the_reference() -> None:
    reference = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    other = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log()
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert reference_kl(reference + 3, other - 1).item() == pytest.approx(expected)
    assert reference_kl(other, other).item() == pytest.approx(0)


def test_undial_by_hand() -> None:
    reference = torch.zeros(1, 3, dtype=torch.float64)
    probabilities = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    beta = math.log(2)  # the true token's share is halved: target 1/5, 2/5, 2/5
    loss = undial_loss(reference, probabilities.log(), torch.tensor([0]), beta)
    assert loss.item() == pytest.approx(-(math.log(0.2) + 2 * math.log(0.3) + 2 * math.log(0.5)) / 5)


def test_undial_gradient_vanishes_at_its_target() -> None:
    reference = draw(2, 4)
    target = reference.clone()
    target[[0, 1], LABELS] -= 10
    target.requires_grad_()
    (gradient,) = torch.autograd.grad(undial_loss(reference, target, LABELS).sum(), target)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


def test_ceu_by_hand_and_its_gradient_at_the_true_logit_is_its_probability() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log().requires_grad_()
    loss = ceu_loss(logits, torch.tensor([0]))
    assert loss.item() == pytest.approx(-(0.6 * math.log(0.3) + 0.4 * math.log(0.2)))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient[0].tolist() == pytest.approx([0.5, 0.3 - 0.6, 0.2 - 0.4])


def test_margin_and_activation_by_hand() -> None:
    assert logit_margin_loss(torch.tensor([[3.0, 0.0, 0.0], [1.0, 1.0, 1.0]])).tolist() == [4.0, 0.0]
    assert rmu_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([0.0, 1.0])).tolist() == [2.5]


LOSSES: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "npo": (npo_loss, (3,)),
    "simnpo": (lambda x: simnpo_loss(x, 2.5, 0.3), (3,)),
    "dpo": (lambda x: dpo_loss(x[:2], x[2:]), (4,)),
    "kl": (lambda x: reference_kl(draw(2, 4, seed=1), x), (2, 4)),
    "undial": (lambda x: undial_loss(draw(2, 4, seed=1), x, LABELS, 2.0), (2, 4)),
    "margin": (logit_margin_loss, (2, 4)),
    "activation": (lambda x: rmu_loss(x, draw(4, seed=1)), (2, 4)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_finite_differences(name: str) -> None:
    loss, shape = LOSSES[name]
    assert torch.autograd.gradcheck(loss, draw(*shape).requires_grad_())


@pytest.mark.parametrize("name", ["npo", "kl", "undial", "margin"])
def test_gradients_through_a_network_equal_finite_differences(name: str, bench: Any) -> None:
    torch.manual_seed(0)
    # not a Llama, whose normalisation computes in float32 whatever the weights are
    network = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=8, n_layer=1, n_head=2)).double().eval()
    batch = {key: value[:2] for key, value in bench.forget.items()}
    before = {
        "scored": scored_logits(network, batch)[0].detach() + 0.1,
        "all": attended_logits(network, batch).detach(),
    }

    def loss() -> Tensor:
        if name == "npo":
            nll, rows = token_nll(network, batch)
            return npo_loss(-torch.zeros(2, dtype=nll.dtype).index_add(0, rows, nll) + 42, 0.5).sum()
        if name == "kl":
            return reference_kl(before["all"] * 1.1, attended_logits(network, batch)).sum()
        logits, labels, _ = scored_logits(network, batch)
        return (logit_margin_loss(logits) if name == "margin" else undial_loss(before["scored"], logits, labels)).sum()

    parameters = list(network.parameters())
    direction = [draw(*p.shape, seed=number) / 36 for number, p in enumerate(parameters)]  # of length about 1
    exact = sum((g * d).sum() for g, d in zip(torch.autograd.grad(loss(), parameters), direction, strict=True))
    values, step = [], 1e-5
    for sign in (1, -2):  # one step up, then down from there to the other side
        with torch.no_grad():
            for parameter, d in zip(parameters, direction, strict=True):
                parameter.add_(d, alpha=sign * step)
            values.append(loss())
    numeric = (values[0] - values[1]) / (2 * step)
    assert torch.as_tensor(exact).item() == pytest.approx(numeric.item(), rel=1e-6)


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
