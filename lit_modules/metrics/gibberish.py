"""Share of generated texts that are no gibberish, by a classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_modules.utils.errors import first_line

__all__ = ["cleanness"]


def cleanness(
    texts: Sequence[str],
    classifier: str = "madhurjindal/autonlp-Gibberish-Detector-492513457",
    clean: str | int = 0,
    batch_size: int = 32,
    max_length: int = 512,
    device: str = "cpu",
) -> list[float]:
    """Return the probability that each text is no gibberish, which collapsed models make.

    Args:
        texts: Generated texts; an empty one has the probability 0.
        classifier: Name or folder of a model for sequence classification with its tokenizer; by default the detector
            that open-unlearning uses.
        clean: Name or number of the class of sensible texts.
        batch_size: Texts at a time.
        max_length: Tokens of a text that are looked at.
        device: Where to run, such as ``"cuda:0"``.

    Raises:
        ValueError: If the classifier does not load, or has no such class.

    References:
        Dorna et al., "OpenUnlearning: Accelerating LLM Unlearning via Unified Benchmarking of Methods and Metrics",
        arXiv 2506.12618.
    """
    if batch_size < 1 or max_length < 1:
        raise ValueError(f"batch_size and max_length must be at least 1, got {batch_size} and {max_length}.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(classifier)
        model = AutoModelForSequenceClassification.from_pretrained(classifier).to(device).eval()
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise ValueError(
            f"classifier must be the name or folder of a classifier, got {classifier!r}: {reason}"
        ) from error
    names = {str(name): int(number) for name, number in model.config.label2id.items()}
    index = names.get(clean, -1) if isinstance(clean, str) else clean
    if not 0 <= index < model.config.num_labels:
        raise ValueError(f"clean must be of {', '.join(names)} or a number below {len(names)}, got {clean!r}.")
    scores = [0.0] * len(texts)
    chosen = [number for number, text in enumerate(texts) if text.strip()]
    for start in range(0, len(chosen), batch_size):
        numbers = chosen[start : start + batch_size]
        inputs = tokenizer(
            [texts[number] for number in numbers],
            padding=True,
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        ).to(device)
        with torch.inference_mode():
            values = model(**inputs).logits.float().softmax(-1)[:, index].tolist()
        for number, value in zip(numbers, values, strict=True):
            scores[number] = value
    return scores
