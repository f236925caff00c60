"""The gibberish detector, on a tiny classifier that is loaded from a folder."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from lit_modules.metrics.gibberish import cleanness


@pytest.fixture
def classifier(tiny_causal_lm: Path, tmp_path: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_lm)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        id2label={0: "clean", 1: "noise"},
        label2id={"clean": 0, "noise": 1},
    )
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_probabilities_of_both_classes_add_up(classifier: Path) -> None:
    texts = ["a sentence", "", "q q q q q", "another sentence that is longer"]
    clean, noise = (cleanness(texts, str(classifier), name, batch_size=2) for name in ("clean", "noise"))
    assert clean[1] == noise[1] == 0.0
    assert [c + n for c, n in zip(clean, noise, strict=True) if c] == pytest.approx([1.0] * 3)
    assert cleanness(texts, str(classifier)) == pytest.approx(clean, abs=1e-6)


def test_what_is_no_classifier(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="clean must be of clean, noise or a number below 2, got 'mild'"):
        cleanness(["a"], str(classifier), "mild")
    with pytest.raises(ValueError, match="classifier must be the name or folder"):
        cleanness(["a"], str(tmp_path / "none"))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        cleanness(["a"], str(classifier), batch_size=0)
