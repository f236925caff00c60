"""Tiny CLIP of transformers, trained on the attributes of pictures; an offline stand-in for a released one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_SPECIAL = ("<|unk|>", "<|pad|>", "<|start|>", "<|end|>")
"""``<|end|>`` is not token 2: with that number CLIP would summarise a text at its largest token, not at its end."""
_TEMPERATURE = 30.0


def build_clip(texts: Sequence[str], image_size: int = 64, vocab_size: int = 640) -> tuple[Any, Any]:
    """Build a CLIP model with random weights, and its processor with a byte-level tokenizer trained on texts.

    A vision tower of 4 layers of 128 features on patches of 16 pixels and a text tower of 2 layers of 64: about 0.75
    million parameters. Both are saved by ``save_pretrained`` and loaded through the Auto classes.

    Args:
        texts: Training texts of the tokenizer; it encodes any other text too.
        image_size: Side of the pictures in pixels, a multiple of 16.
        vocab_size: Most tokens.

    Raises:
        ValueError: If ``image_size`` is no positive multiple of 16.
    """
    from tokenizers import processors
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

    if image_size < 16 or image_size % 16:
        raise ValueError(f"image_size must be a positive multiple of 16, got {image_size}.")
    fast = byte_level_bpe(texts, _SPECIAL, vocab_size, add_prefix_space=True)
    unknown, pad, start, end = _SPECIAL
    fast.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(token, fast.token_to_id(token)) for token in (start, end)]
    )
    make: Any = PreTrainedTokenizerFast
    tokens = {"unk_token": unknown, "pad_token": pad, "bos_token": start, "eos_token": end}
    tokenizer = make(tokenizer_object=fast, model_max_length=77, **tokens)
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    size = {"num_attention_heads": 4, "hidden_act": "gelu"}
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "max_position_embeddings": 77,
            **size,
            **ends,
        },
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "image_size": image_size,
            "patch_size": 16,
            **size,
        },
        projection_dim=64,
    )
    images = CLIPImageProcessor(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    processor: Any = CLIPProcessor
    return CLIPModel(config), processor(images, tokenizer)


def byte_level_bpe(texts: Sequence[str], special: Sequence[str], vocab_size: int, add_prefix_space: bool) -> Any:
    """Return a byte-level BPE, which encodes any text, trained on texts; the special tokens come first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_clip(
    model: Any,
    processor: Any,
    images: Tensor,
    values: Tensor,
    phrases: Sequence[Sequence[str]],
    num_steps: int = 1200,
    batch_size: int = 96,
    learning_rate: float = 1.5e-3,
    seed: int = 0,
    watch: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train a CLIP so that a picture is nearest to the phrases of what it shows, with AdamW and a one-cycle schedule.

    The loss is contrastive within each attribute: the cross-entropy of the softmax, over the phrases of the attribute's
    values, of the cosines times a scale that is kept at 30 to begin with and learned.

    Args:
        model: CLIP model, changed in place and left in evaluation mode.
        processor: Its processor.
        images: uint8, ``(n, 3, size, size)``.
        values: Place of the value of each attribute, ``(n, attributes)``.
        phrases: Phrases of the values of each attribute.
        num_steps: Updates.
        batch_size: Pictures of an update; half are mirrored.
        learning_rate: Greatest learning rate.
        seed: Seed of order and mirroring.
        watch: Takes the number of each update, from 1, and its loss.

    Returns:
        Loss of each update.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if tuple(values.shape) != (len(images), len(phrases)):
        raise ValueError(f"values must be of shape {(len(images), len(phrases))}, got {tuple(values.shape)}.")
    tokens = processor.tokenizer([text for group in phrases for text in group], padding=True, return_tensors="pt")
    sizes = [len(group) for group in phrases]
    with torch.no_grad():
        model.logit_scale.fill_(torch.tensor(_TEMPERATURE).log())
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    plain = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=num_steps, pct_start=0.15)
    draws = torch.Generator().manual_seed(seed)
    losses = []
    model.train()
    for number in range(num_steps):
        chosen = torch.randint(len(images), (batch_size,), generator=draws)
        mirrored = torch.rand(batch_size, generator=draws) < 0.5
        pictures = images[chosen]
        pictures = torch.where(mirrored[:, None, None, None], pictures.flip(-1), pictures)
        cosines = _cosines(model, normalised(processor, pictures), tokens)
        scores = torch.split(model.logit_scale.exp() * cosines, sizes, dim=1)
        rows = [F.cross_entropy(row, values[chosen, index]) for index, row in enumerate(scores)]
        loss = torch.stack(rows).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if watch is not None:
            watch(number + 1, losses[-1])
    model.eval()
    return losses


@torch.no_grad()
def attribute_accuracy(
    model: Any, processor: Any, images: Tensor, values: Tensor, phrases: Sequence[Sequence[str]], batch_size: int = 256
) -> list[float]:
    """Return the share of pictures that are nearest to the right phrase, for each attribute.

    Takes what :func:`train_clip` takes.
    """
    tokens = processor.tokenizer([text for group in phrases for text in group], padding=True, return_tensors="pt")
    rows = [_cosines(model, normalised(processor, part), tokens) for part in torch.split(images, batch_size)]
    groups = torch.split(torch.cat(rows), [len(group) for group in phrases], dim=1)
    nearest = torch.stack([scores.argmax(1) for scores in groups], 1)
    return (nearest == values).float().mean(0).tolist()


def normalised(processor: Any, images: Tensor) -> Tensor:
    """Return 8-bit pictures of the model's own size as its image processor gives them, but all at once."""
    settings = processor.image_processor
    mean, std = (torch.tensor(value)[:, None, None] for value in (settings.image_mean, settings.image_std))
    return (images.float() / 255 - mean) / std


def _cosines(model: Any, pixels: Tensor, tokens: Any) -> Tensor:
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    pictures = model.get_image_features(pixel_values=pixels).pooler_output
    texts = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    cosines: Tensor = F.normalize(pictures, dim=1) @ F.normalize(texts, dim=1).T
    return cosines
