from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

WORDS = ["[PAD]", "[BOS]", "[UNK]", "[EOS]", "an", "object", "used", "to", "a", "photo", "of", "one", "several"]
WORDS += ["objects", "sit", "store", "fly"]
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
TEXT = {
    "vocab_size": len(WORDS),
    "max_position_embeddings": 12,
    "bos_token_id": 1,
    "eos_token_id": 3,
    "pad_token_id": 0,
    "projection_size": 8,
    **SIZES,
}
VISION = {"image_size": 16, "patch_size": 8, **SIZES}


def save_model(folder: Path, kind: str) -> str:
    """Save a tiny CLIP, SigLIP or DINOv2 as transformers load them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any
        if kind == "clip":
            model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=6))
        elif kind == "siglip":
            model = SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION))
        else:
            model = Dinov2Model(Dinov2Config(**VISION))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)  # so that images differ
        model.save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.25] * 3
    ).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[BOS] $A [EOS]", None, [("[BOS]", 1), ("[EOS]", 3)])
    special = {"pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)  # type: ignore[no-untyped-call]
    fast.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("clip"), "clip")


@pytest.fixture(scope="session")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("siglip"), "siglip")


@pytest.fixture(scope="session")
def dino(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("dino"), "dino")
