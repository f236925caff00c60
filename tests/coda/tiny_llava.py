"""A tiny LLaVA-NeXT, built from configurations and written as real ones are."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import AddedToken
from transformers import (
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)

from lit_modules.networks.tiny_clip import byte_level_bpe

PINPOINTS = [[28, 56], [56, 28], [56, 56]]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ eos_token if message['role'] == 'assistant' else '' }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WORDS = "Does the picture show Puff Adder or Adder? Answer with exactly one of these options. red green blue"
SPECIAL = ("<s>", "</s>", "<pad>", "<image>", "<|user|>", "<|assistant|>")
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def processor(**more: Any) -> Any:
    fast = byte_level_bpe([WORDS] * 4, SPECIAL, 360, add_prefix_space=False)
    fast.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    make: Any = PreTrainedTokenizerFast
    names = dict(zip(("bos_token", "eos_token", "pad_token"), SPECIAL, strict=False))
    tokenizer = make(tokenizer_object=fast, **names, extra_special_tokens={"image_token": "<image>"})
    side = {"height": 28, "width": 28}
    images = LlavaNextImageProcessor(size={"shortest_edge": 28}, crop_size=side, image_grid_pinpoints=PINPOINTS)
    fields = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    make = LlavaNextProcessor
    return make(images, tokenizer, chat_template=TEMPLATE, **fields | more)


def model(words: Any) -> Any:
    ids = {name: getattr(words, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {"model_type": "llama", "vocab_size": len(words), "num_key_value_heads": 2, "max_position_embeddings": 512}
    vision = {"model_type": "clip_vision_model", "projection_dim": 16, "image_size": 28, "patch_size": 14}
    config = LlavaNextConfig(
        vision_config={**vision, **SIZES},
        text_config={**text, **SIZES, **ids},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    return LlavaNextForConditionalGeneration(config)


def write(folder: Path, spread: float | None = None) -> str:
    """Write model and processor of one seed, weights of a given spread if any, and return their folder."""
    tools = processor()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = model(tools.tokenizer)
        if spread is not None:
            for parameter in network.parameters():
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, std=spread)
        network.save_pretrained(folder)
    tools.save_pretrained(folder)
    return str(folder)


def picture(colour: str, size: tuple[int, int] = (40, 40)) -> Image.Image:
    return Image.new("RGB", size, colour)
