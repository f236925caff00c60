from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from lit_modules.metrics.gibberish import cleanness


@pytest.fixture
def classifier(tiny_causal_lm: Path, tmp_path: Path) -> str:
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_lm)
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    labels = {"id2label": {0: "clean", 1: "noise"}, "label2id": {"clean": 0, "noise": 1}}
    config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes, **labels)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


def test_probabilities_of_both_classes_add_up(classifier: str) -> None:
    texts = ["a sentence", "", "q q q q q", "another sentence that is longer"]
    clean, noise = (cleanness(texts, classifier, name, batch_size=2) for name in ("clean", "noise"))
    assert clean[1] == noise[1] == 0.0
    assert [c + n for c, n in zip(clean, noise, strict=True) if c] == pytest.approx([1.0] * 3)
    assert cleanness(texts, classifier) == pytest.approx(clean, abs=1e-6)


def test_bad_input_is_refused(classifier: str) -> None:
    with pytest.raises(ValueError, match="clean must be of clean, noise or a number below 2, got 'mild'"):
        cleanness(["a"], classifier, "mild")
    with pytest.raises(ValueError, match="classifier must be the name or folder"):
        cleanness(["a"], f"{classifier}/none")
    with pytest.raises(ValueError, match="at least 1, got 0"):
        cleanness(["a"], classifier, batch_size=0)
