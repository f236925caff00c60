"""Models for the benchmarks of CoDA, built from their configuration and saved as real ones are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from lit_modules.networks.tiny_clip import byte_level_bpe
from lit_modules.networks.tiny_llava import CHAT_TEMPLATE

PATCH = 14
COLOURS = {"red": (1.0, 0.1, 0.1), "blue": (0.1, 0.1, 1.0)}


def picture(seed: int, colour: str = "red", width: int = 96, height: int = 96) -> Image.Image:
    """Return a pattern of blocks in shades of a colour."""
    blocks = np.random.default_rng(seed).uniform(60, 250, (8, 8, 1)) * np.array(COLOURS[colour])
    return Image.fromarray(blocks.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)


def tokenizer(texts: Sequence[str]) -> Any:
    """Train a tokenizer on texts."""
    from tokenizers import AddedToken

    special = ["<s>", "</s>", "<pad>", "<image>", "<|user|>", "<|assistant|>"]
    fast = byte_level_bpe(texts, special, 2048, add_prefix_space=False)
    fast.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    made: Any = transformers.PreTrainedTokenizerFast
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return made(tokenizer_object=fast, **named, extra_special_tokens={"image_token": "<image>"})


def save_clip(folder: str) -> None:
    """Build a tiny CLIP from its configuration, and save it with its processors."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    words = tokenizer(["Red Blue object photo of a disc body long tail horns six legs"])
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = transformers.CLIPConfig(
        text_config={"vocab_size": len(words), "max_position_embeddings": 77, **sizes, **ids},
        vision_config={"image_size": 32, "patch_size": 8, **sizes},
        projection_dim=16,
    )
    torch.manual_seed(0)
    build: Any = transformers.CLIPModel
    build(config).save_pretrained(folder)
    side = {"height": 32, "width": 32}
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side).save_pretrained(folder)
    words.save_pretrained(folder)


def save_llava(folder: str, hidden: int, layers: int, texts: Sequence[str], tile: int = 112) -> int:
    """Build a LLaVA-NeXT from its configuration, save it, and return its number of parameters.

    A square image of two tiles or more is read as five tiles of ``(tile / 14) ** 2`` tokens.
    """
    pinpoints = [[tile, 2 * tile], [2 * tile, tile], [2 * tile, 2 * tile]]
    words = tokenizer(texts)
    heads = max(1, hidden // 64)
    vision = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": tile, "patch_size": PATCH, **vision},
        text_config={
            "model_type": "llama",
            "vocab_size": 4096,
            "hidden_size": hidden,
            "intermediate_size": 3 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 2048,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
        },
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    network: Any = transformers.LlavaNextForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)  # spreads the scores, so that answers differ and end at different places
    network.generation_config.eos_token_id = [1, *range(2048, 2112)]
    network.save_pretrained(folder)
    images = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": tile}, crop_size={"height": tile, "width": tile}, image_grid_pinpoints=pinpoints
    )
    made: Any = transformers.LlavaNextProcessor
    fields = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    made(images, words, chat_template=CHAT_TEMPLATE, **fields).save_pretrained(folder)
    return int(network.num_parameters())
