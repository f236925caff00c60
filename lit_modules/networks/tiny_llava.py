"""Tiny LLaVA-NeXT of transformers, trained on questions about pictures; an offline stand-in for a released one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_modules.networks.tiny_clip import byte_level_bpe, normalised

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ eos_token if message['role'] == 'assistant' else '' }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SPECIAL = ("<s>", "</s>", "<pad>", "<image>", "<|user|>", "<|assistant|>")
_IGNORED = -100
_RISE, _FALL = 0.05, 0.5  # shares of the updates in which the learning rate rises and falls


@dataclass(frozen=True)
class Lesson:
    """Question and its answer.

    Args:
        question: Text of the user's turn.
        answer: Text of the answer.
        image: Index of the picture that is asked about; ``None`` for a question without one.
    """

    question: str
    answer: str
    image: int | None = None


def build_llava(
    clip: Any, clip_processor: Any, texts: Sequence[str], whole: Sequence[str] = (), vocab_size: int = 640
) -> tuple[Any, Any]:
    """Build a LLaVA-NeXT around the vision tower of a CLIP, and its processor with a tokenizer trained on texts.

    The language model is a Llama of 3 layers of 128 features: about 0.6 million parameters with random weights.

    Args:
        clip: CLIP model, whose vision tower is copied.
        clip_processor: Its processor, whose treatment of pictures is taken.
        texts: Training texts of the tokenizer; it encodes any other text too.
        whole: Texts that are one token each wherever they stand, such as phrases and fixed parts of questions.
        vocab_size: Most tokens, beside those of ``whole``.
    """
    from tokenizers import AddedToken
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
        PreTrainedTokenizerFast,
    )

    fast = byte_level_bpe(texts, _SPECIAL, vocab_size, add_prefix_space=False)
    fast.add_special_tokens([AddedToken(token, normalized=False) for token in _SPECIAL])
    fast.add_tokens([AddedToken(text, normalized=False) for text in sorted(set(whole))])
    make: Any = PreTrainedTokenizerFast
    ends = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = make(tokenizer_object=fast, extra_special_tokens={"image_token": "<image>"}, **ends)
    settings = clip_processor.image_processor
    side = clip.config.vision_config.image_size
    images = LlavaNextImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_grid_pinpoints=[[side, side]],
        image_mean=settings.image_mean,
        image_std=settings.image_std,
    )
    make = LlavaNextProcessor
    processor = make(
        images,
        tokenizer,
        patch_size=clip.config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    config = LlavaNextConfig(
        vision_config=clip.config.vision_config.to_dict(),
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "initializer_range": 128**-0.5,  # with 0.02, that of wide models, so narrow a one takes twice the steps
            "intermediate_size": 320,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 2048,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=[[side, side]],
        vision_feature_layer=-2,
        tie_word_embeddings=True,  # an answer that repeats a name of the question is learned sooner
    )
    model = LlavaNextForConditionalGeneration(config)
    tower = model.model.vision_tower
    state = clip.vision_model.state_dict()
    own = set(tower.state_dict())
    tower.load_state_dict({name: value for name, value in state.items() if name in own}, strict=True)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, processor


def train_llava(
    model: Any,
    processor: Any,
    images: Tensor,
    lesson: Callable[[Random], Lesson],
    num_steps: int = 1000,
    batch_size: int = 64,
    learning_rate: float = 2.5e-3,
    seed: int = 0,
    watch: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Teach a LLaVA-NeXT by questions and answers, with AdamW.

    The learning rate rises over the first twentieth of the updates and falls over the last half. The vision tower stays
    as it is. The loss is the mean negative log-likelihood of the tokens of answers, each weighed by one over the root
    of the number of such tokens in its lesson, so that long answers do not drown short ones.

    Args:
        model: Changed in place, and left in evaluation mode.
        processor: Its processor.
        images: Pictures that lessons name, uint8, ``(n, 3, size, size)``.
        lesson: Draws a lesson.
        num_steps: Updates.
        batch_size: Lessons of an update.
        learning_rate: Greatest learning rate.
        seed: Seed of the lessons.
        watch: Takes the number of each update, from 1, and its loss.

    Returns:
        Loss of each update.
    """
    model.model.vision_tower.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (_RISE * num_steps), (num_steps - step) / (_FALL * num_steps))
    )
    random = Random(seed)
    model.train()
    losses = []
    for number in range(num_steps):
        lessons = [lesson(random) for _ in range(batch_size)]
        with_image = [each for each in lessons if each.image is not None]
        without = [each for each in lessons if each.image is None]
        batches = [encode_lessons(processor, part, images) for part in (with_image, without) if part]
        labels = [batch.pop("labels")[:, 1:] for batch in batches]
        weights = [_weights(right) for right in labels]
        whole = sum(float(weight.sum()) for weight in weights)
        total = 0.0
        optimizer.zero_grad()
        for batch, right, weight in zip(batches, labels, weights, strict=True):
            first = int((right != _IGNORED).any(0).nonzero()[0])  # logits before the first answer are not computed
            keep = right.shape[1] - first + 1
            logits = model(**batch, use_cache=False, logits_to_keep=keep).logits[:, :-1]
            losses_of = F.cross_entropy(logits.flatten(0, 1), right[:, first:].flatten(), reduction="none")
            loss = (losses_of * weight[:, first:].flatten()).sum() / whole
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(total)
        if watch is not None:
            watch(number + 1, total)
    model.eval()
    return losses


def _weights(labels: Tensor) -> Tensor:
    """Return the weight of each label, ``(lessons, tokens)``."""
    scored = (labels != _IGNORED).float()
    return scored / scored.sum(1, keepdim=True).clamp_min(1).sqrt()


def encode_lessons(processor: Any, lessons: Sequence[Lesson], images: Tensor) -> dict[str, Tensor]:
    """Return lessons, all with a picture or all without, as inputs of the model: padded on the right, with labels.

    The 8-bit pictures that lessons name are of the model's own size, and processed all at once.
    """
    tokenizer = processor.tokenizer
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    parts = (processor.image_processor.size["shortest_edge"] // processor.patch_size) ** 2
    side = int(parts**0.5)
    tokens_of_image = "<image>" * (2 * parts + side)  # the picture, its one tile, and the ends of the tile's lines
    start = "<s><|user|>" + (tokens_of_image if lessons[0].image is not None else "")
    questions = tokenizer([f"{start}{each.question}<|assistant|>" for each in lessons])["input_ids"]
    answers = tokenizer([each.answer for each in lessons])["input_ids"]
    rows = [
        ([*question, *answer, end], [*[_IGNORED] * len(question), *answer, end])
        for question, answer in zip(questions, answers, strict=True)
    ]
    width = max(len(own) for own, _ in rows)
    tokens = torch.tensor([own + [pad] * (width - len(own)) for own, _ in rows])
    labels = torch.tensor([right + [_IGNORED] * (width - len(right)) for _, right in rows])
    batch = {"input_ids": tokens, "attention_mask": (tokens != pad).long(), "labels": labels}
    if lessons[0].image is not None:
        pixels = normalised(processor, images[[each.image for each in lessons]])
        batch["pixel_values"] = pixels[:, None].expand(-1, 2, -1, -1, -1)
        batch["image_sizes"] = torch.tensor([list(pixels.shape[-2:])]).expand(len(lessons), -1)
    return batch
