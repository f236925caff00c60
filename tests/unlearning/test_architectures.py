"""Every architecture of causal language model that transformers has and people use: a small one of each, in each role.

`docs/supported.py` makes the table of the documentation of the outcomes.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from peft import LoraConfig, PeftModel
from torch.utils.data import DataLoader
from transformers import AutoConfig, TorchAoConfig

from lit_modules import NGDiff
from lit_modules.unlearning.core.generation import greedy_generate
from lit_modules.unlearning.core.language_part import model_family
from lit_modules.unlearning.core.losses import sequence_nll
from tests.unlearning.conftest import make_task

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "biogpt": {},
    "bitnet": {},
    "bloom": {},
    "codegen": {"rotary_dim": 8},
    "cohere": {},
    "cohere2": {},
    "deepseek_v3": LATENT
    | {
        "num_key_value_heads": 4,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
    },
    "ernie4_5": {},
    "exaone4": {},
    "falcon": {},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64},
    "falcon_mamba": {},
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {},
    "glm": {},
    "glm4": {},
    "glm4_moe": EXPERTS | {"n_routed_experts": 4},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gptj": {"rotary_dim": 8},
    "granite": {},
    "granitemoe": {},
    "granitemoehybrid": MAMBA | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 64},
    "helium": {},
    "hunyuan_v1_dense": {},
    "jamba": {"num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama": {},
    "llama4_text": {"num_local_experts": 4, "intermediate_size_mlp": 64},
    "mamba": {},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1},
    "minimax": {},
    "ministral": {},
    "mistral": {},
    "mixtral": {"num_local_experts": 4},
    "mpt": {},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "olmoe": EXPERTS,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": {"num_local_experts": 4},
    "qwen2": {},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 32},
    "qwen3": {},
    "qwen3_5_text": HYBRID | LINEAR,
    "qwen3_moe": EXPERTS,
    "qwen3_next": HYBRID | LINEAR | EXPERTS | {"shared_expert_intermediate_size": 32},
    "rwkv": {"attention_hidden_size": 32},
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "xglm": {},
}
# peft adapts no convolution and no output projection of a Mamba block; the routers of Llama 4 and PhiMoE return tuples
TARGETS: dict[str, list[str]] = {
    "falcon_h1": ["q_proj", "v_proj", "in_proj"],
    "falcon_mamba": ["in_proj", "x_proj"],
    "llama4_text": ["q_proj", "v_proj"],
    "mamba": ["in_proj", "x_proj"],
    "mamba2": ["in_proj"],
    "phimoe": ["q_proj", "v_proj"],
}
WITHOUT_HEAD_DIM = {"falcon"}
ROTARY = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
PATCHES = {"depth": 2, "num_heads": 2, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32}
MULTIMODAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        {},
        SIZES
        | {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 28}
        | {"patch_size": 14, "model_type": "siglip_vision_model", "vision_use_head": False},
    ),
    "qwen2_5_vl": (ROTARY, PATCHES | {"fullatt_block_indexes": [1]}),
    "qwen3_vl": (ROTARY, PATCHES | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}),
}
"""What differs in the text, and the vision tower, of models that are used for text alone and kept whole."""
QUANTISED = (
    "gemma3",
    "gemma3_text",
    "gpt_neox",
    "llama",
    "mistral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen2_5_vl",
    "qwen3",
    "qwen3_vl",
)
Model = Any


def build(architecture: str) -> Model:
    """Return a model of two layers and width 32."""
    torch.manual_seed(0)
    if architecture in MULTIMODAL:
        text, vision = MULTIMODAL[architecture]
        config = AutoConfig.for_model(architecture, text_config=SIZES | text, vision_config=vision)
        return model_family(config).from_config(config)
    sizes = SIZES | ARCHITECTURES[architecture]
    if architecture in WITHOUT_HEAD_DIM:  # has it as a property
        del sizes["head_dim"]
    config = AutoConfig.for_model(architecture, **sizes)
    return model_family(config).from_config(config)


def reload(folder: Path) -> Model:
    """Return what transformers loads from a folder."""
    return model_family(AutoConfig.from_pretrained(folder)).from_pretrained(folder)


def fit(model: Model, **arguments: Any) -> NGDiff:
    """Take two steps of NGDiff."""
    module = NGDiff(model, optimizer=partial(torch.optim.AdamW, lr=1e-3), **arguments)
    pairs = [{"forget": make_task(2, seed), "retain": make_task(2, 10 + seed)} for seed in range(2)]
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", devices=1, max_epochs=1, enable_checkpointing=False, **quiet)
    trainer.fit(module, DataLoader(pairs, batch_size=None))  # type: ignore[arg-type]
    return module


def logits(model: Model) -> torch.Tensor:
    """Return the answers to four fixed rows."""
    model.eval()
    task = make_task(4, seed=30)
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=task["input_ids"], attention_mask=task["attention_mask"]).logits
    return result


def trains(architecture: str, folder: Path) -> None:
    """Two steps move the weights, and all stay finite."""
    del folder
    model = build(architecture)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = fit(model).model.state_dict()
    assert all(value.isfinite().all() for value in after.values() if value.is_floating_point())
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


def generates(architecture: str, folder: Path) -> None:
    """Rows of unequal length, padded on the left, are answered as each alone is."""
    del folder
    model = build(architecture).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)  # answers that wander
    rows = [torch.arange(3, 3 + length) for length in (4, 9, 6)]
    width = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(row), (width - len(row), 0)) for row in rows])
    together = greedy_generate(model, ids, mask, 6, eos_token_id=2, pad_token_id=0)
    for row, answer in zip(rows, together, strict=True):
        alone = greedy_generate(model, row[None], torch.ones_like(row)[None], 6, eos_token_id=2, pad_token_id=0)[0]
        assert answer.tolist() == alone.tolist()


def saves(architecture: str, folder: Path) -> None:
    """What is saved and loaded by transformers answers bit for bit as before."""
    module = fit(build(architecture))
    module.save_pretrained(folder)
    again = reload(folder)
    assert type(again) is type(module.model)
    torch.testing.assert_close(logits(again), logits(module.model), rtol=0, atol=0)


def adapts(architecture: str, folder: Path) -> None:
    """A LoRA adapter under gradient checkpointing trains, and is loaded by peft on the untouched base."""
    module = fit(
        build(architecture),
        peft_config=LoraConfig(r=2, target_modules=TARGETS.get(architecture, "all-linear"), task_type="CAUSAL_LM"),
        gradient_checkpointing=True,
    )
    module.save_pretrained(folder)
    loaded = PeftModel.from_pretrained(build(architecture), folder)
    assert not torch.equal(logits(loaded), logits(build(architecture)))
    torch.testing.assert_close(logits(loaded), logits(module.model))


def attends(architecture: str, folder: Path) -> None:
    """Eager attention and sdpa, which loading options choose, give equal losses."""
    model = build(architecture)
    if not model._supports_sdpa:
        pytest.skip("transformers has one implementation of its attention")
    model.save_pretrained(folder)
    losses = []
    for attention in ("eager", "sdpa"):
        module = NGDiff(str(folder), model_kwargs={"attn_implementation": attention})
        module.configure_model()
        assert module.model.config._attn_implementation == attention
        losses.append(sequence_nll(module.model.eval(), make_task(4, seed=30))[0])
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)


def quantises(architecture: str, folder: Path) -> None:
    """A LoRA adapter trains on a base of int8 weights, which stay as they are, and is loaded on it again."""
    if architecture not in QUANTISED:
        pytest.skip("tried for the most used architectures alone")
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig

    build(architecture).save_pretrained(folder / "base")
    options = {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
    adapter = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    module = fit(str(folder / "base"), peft_config=adapter, model_kwargs=options)
    module.save_pretrained(str(folder / "adapter"))
    again, base = (NGDiff(str(folder / name), model_kwargs=options) for name in ("adapter", "base"))
    for each in (again, base):
        each.configure_model()
        assert each.model.is_quantized
    assert not torch.equal(logits(again.model), logits(base.model))
    torch.testing.assert_close(logits(again.model), logits(module.model))


ROLES: dict[str, Callable[[str, Path], None]] = {
    "fit": trains,
    "generate": generates,
    "save and reload": saves,
    "LoRA and checkpointing": adapts,
    "eager and sdpa": attends,
    "int8 base": quantises,
}


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *MULTIMODAL])
def test_architecture(architecture: str, role: str, tmp_path: Path) -> None:
    ROLES[role](architecture, tmp_path)
