"""Scores of tokens, and a test run that feeds them to the TOFU score."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from transformers import AutoTokenizer

from datamodules.tofu.tofu import TOFU
from lit_modules import NGDiff
from lit_modules.metrics.tofu import TOFUScore
from lit_modules.networks import small_llama
from lit_modules.unlearning.core.losses import sequence_nll, token_scores


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
