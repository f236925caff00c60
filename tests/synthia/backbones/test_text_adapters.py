"""Adapters on text encoders: trained through the prompts, and drawn with by the pipelines of diffusers."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import peft
import pytest
import torch
from lightning.pytorch import Trainer
from packaging.version import Version
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers.integrations.peft import MIN_PEFT_VERSION

from lit_modules.synthia import (
    Chroma,
    Flux2Klein,
    HiDream,
    Kandinsky3,
    Lumina2,
    PixArtSigma,
    PixelDiffusion,
    QwenImage,
    Sana,
    ZImage,
)
from lit_modules.synthia.backbones.pipeline import PipelineBackbone
from lit_modules.synthia.core.randomness import generator_of
from lit_modules.synthia.objectives import DenoiseDPO, LinearContrast
from lit_modules.synthia.synthia import Synthia
from tests.tiny_pipelines import BACKBONES, CALLS

KINDS: dict[str, type[PipelineBackbone]] = {
    name: BACKBONES[name][0] for name in ("stable_diffusion", "sdxl", "stable_diffusion3", "flux")
}
Open = Callable[..., Any]


@pytest.fixture
def opened(request: pytest.FixtureRequest) -> Open:
    def make(name: str, **more: Any) -> Any:
        kind: Any = KINDS[name]
        settings = {"image_size": 16, "precision": "float32", "num_steps": 2}
        return kind(request.getfixturevalue(name), **settings | more)

    return make


def batches(number: int = 2) -> DataLoader[Any]:
    pixels = torch.randint(0, 256, (3, 3, 16, 16), generator=generator_of("pixels")).float() / 127.5 - 1
    batch = {
        "prompt": ["a design to sit"],
        "pos": pixels[:1],
        "neg": pixels[None, 1:],
        "neg_mask": torch.tensor([[True, True]]),
        "pair_id": torch.tensor([7]),
    }
    return DataLoader([batch] * number, batch_size=None)  # type: ignore[arg-type]


def tuning(backbone: Any, text: Any = None, rate: float = 0.1, **more: Any) -> Synthia:
    text = LoraConfig(r=2, lora_alpha=6) if text is None else text
    optimizer = partial(torch.optim.AdamW, lr=rate)
    network = LoraConfig(r=2, lora_alpha=4)
    return Synthia(backbone, peft_config=network, text_peft_config=text, optimizer=optimizer, **more)


def fit(module: Synthia, folder: Path, epochs: int = 1, **more: Any) -> Trainer:
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_epochs=epochs, logger=False, default_root_dir=folder, **quiet)
    trainer.fit(module, batches(), **more)
    return trainer


def drawn_by_diffusers(name: str, module: Synthia, adapter: Path) -> torch.Tensor:
    backbone: Any = module.backbone
    pipeline = getattr(diffusers, backbone.pipeline_name).from_pretrained(backbone.model)
    if Version(peft.__version__) >= Version(MIN_PEFT_VERSION):
        pipeline.load_lora_weights(str(adapter))
    else:  # transformers 5.24 ask for a peft that is later than the last published one
        load_by_peft(pipeline, adapter)
    pipeline.set_progress_bar_config(disable=True)
    prompt = module.template.format(affordances="sit")
    settings = {"prompt": prompt, "num_inference_steps": 2, "output_type": "pt"} | CALLS[name]
    image = pipeline(height=16, width=16, generator=generator_of(4, "image", 0), **settings).images
    return torch.as_tensor(image).float()


def load_by_peft(pipeline: Any, folder: Path) -> None:
    """Load an adapter as ``load_lora_weights`` does: each part by its prefix, with its configuration."""
    with TemporaryDirectory() as other:
        pipeline.load_lora_weights(str(without_text(folder, Path(other) / "network")))
    weights, metadata = read(folder)
    settings = json.loads(metadata["lora_adapter_metadata"])
    for part in {key.partition(".")[0] for key in weights if key.startswith("text_")}:
        own = {key.removeprefix(f"{part}."): value for key, value in weights.items() if key.startswith(f"{part}.")}
        config = {key.removeprefix(f"{part}."): value for key, value in settings.items() if key.startswith(f"{part}.")}
        encoder = getattr(pipeline, part)
        inject_adapter_in_model(LoraConfig(**config), encoder)
        set_peft_model_state_dict(encoder, own)


def read(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    path = folder / "pytorch_lora_weights.safetensors"
    with safe_open(path, "pt") as file:
        return load_file(path), file.metadata()


def without_text(folder: Path, other: Path) -> Path:
    """Copy a saved adapter without the part of the text encoders."""
    weights, metadata = read(folder)
    other.mkdir()
    own = {key: value for key, value in weights.items() if not key.startswith("text_")}
    save_file(own, other / "pytorch_lora_weights.safetensors", metadata)
    return other


OTHERS: dict[str, type[PipelineBackbone]] = {
    "kandinsky3": Kandinsky3,
    "sana": Sana,
    "pixart_sigma": PixArtSigma,
    "lumina2": Lumina2,
    "z_image": ZImage,
    "qwen_image": QwenImage,
    "flux2_klein": Flux2Klein,
    "chroma": Chroma,
    "hidream": HiDream,
}


@pytest.mark.parametrize("name", [*KINDS, *OTHERS])
def test_text_adapters_in_diffusers(
    name: str, opened: Open, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    if name in OTHERS:
        with pytest.raises(ValueError, match="diffusers load no adapters of the text encoders of") as refusal:
            tuning(OTHERS[name]("nowhere"))
        record_property("refused", re.sub("of [A-Z][A-Za-z0-9]+;", "of this model;", str(refusal.value)))
        return
    module = tuning(opened(name), cache=str(tmp_path / "cache"))
    fit(module, tmp_path)
    tuned = module.generate(["sit"], 1, seed=4)
    parts = set(module.text_encoders)
    assert parts == set(KINDS[name].text_adapter_parts)
    module.save_pretrained(str(tmp_path / "saved"))
    weights = load_file(tmp_path / "saved" / "pytorch_lora_weights.safetensors")
    assert {key.partition(".")[0] for key in weights} == {KINDS[name].network_part, *parts}
    image = drawn_by_diffusers(name, module, tmp_path / "saved")
    torch.testing.assert_close(image, tuned, atol=2e-3, rtol=0)
    alone = drawn_by_diffusers(name, module, without_text(tmp_path / "saved", tmp_path / "alone"))
    assert (alone - tuned).abs().max() > 5e-3  # the text encoders' part matters


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "objective", [None, DenoiseDPO(scale=10.0), LinearContrast()], ids=["errors", "dpo", "samples"]
)
def test_gradients_reach_the_text_encoders_alone_and_no_encoding_is_kept(
    name: str, objective: Any, opened: Open, tmp_path: Path
) -> None:
    backbone = opened(name)
    module = tuning(backbone, objective=objective, num_steps=2, gradient_checkpointing=True)
    module.configure_model()
    before = {key: value.clone() for key, value in module.text_encoders.state_dict().items()}
    fit(module, tmp_path)
    after = module.text_encoders.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed
    assert all("lora_" in key for key in changed)
    for part in module.text_encoders:
        assert any(key.startswith(f"{part}.") for key in changed)
    cache = module.encoder.cache
    assert cache is not None
    assert all(set(encoding) == {"mean", "std"} for encoding in cache._memory.values())  # of images alone
    first = module.conditions({"prompt": ["a cup"]})[
        "pooled_prompt_embeds" if name != "stable_diffusion" else "prompt_embeds"
    ]
    assert first.requires_grad
    backbone.free("text")
    assert set(backbone._held["text"]) >= set(module.text_encoders)


def test_switched_off_adapters_give_the_untuned_text(opened: Open, tmp_path: Path) -> None:
    plain, backbone = opened("sdxl"), opened("sdxl")
    module = tuning(backbone, objective=DenoiseDPO(scale=10.0))
    fit(module, tmp_path)
    prompts = ["a cup", ""]
    with torch.no_grad():
        wanted, tuned = plain.encode_prompt(prompts), backbone.encode_prompt(prompts)
        with backbone.without_adapter():
            torch.testing.assert_close(backbone.encode_prompt(prompts), wanted)
    assert (tuned["prompt_embeds"] - wanted["prompt_embeds"]).abs().max() > 1e-3
    fresh = backbone.fresh()
    torch.testing.assert_close(fresh.encode_prompt(prompts), wanted)


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_text_adapters_are_in_checkpoints_and_resume(name: str, opened: Open, tmp_path: Path) -> None:
    whole = tuning(opened(name))
    torch.manual_seed(0)
    fit(whole, tmp_path, epochs=2)
    half = tuning(opened(name))
    torch.manual_seed(0)
    fit(half, tmp_path).save_checkpoint(tmp_path / "half.ckpt")
    state = torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"]
    assert all("lora_" in key for key in state)
    assert {key.partition(".")[0] for key in state} == {"network", "text_encoders"}
    tuned = half.generate(["sit"], 1, seed=4)
    loaded = Synthia.load_from_checkpoint(tmp_path / "half.ckpt", backbone=opened(name))
    assert set(loaded.text_encoders) == set(half.text_encoders)
    assert torch.equal(loaded.generate(["sit"], 1, seed=4), tuned)
    rests = [tuning(opened(name)), Synthia(opened(name), optimizer=whole.optimizer)]
    for rest in rests:
        fit(rest, tmp_path, epochs=2, ckpt_path=tmp_path / "half.ckpt")
        assert torch.equal(rest.generate(["sit"], 1, seed=4), whole.generate(["sit"], 1, seed=4))
    other = tuning(opened(name), LoraConfig(r=2, lora_alpha=8))
    with pytest.raises(ValueError, match="holds an adapter with lora_alpha=6, and lora_alpha=8 is asked for"):
        fit(other, tmp_path, epochs=2, ckpt_path=tmp_path / "half.ckpt")
    plain = Synthia(opened(name), peft_config=LoraConfig(r=2, lora_alpha=4))
    fit(plain, tmp_path).save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match="holds no adapters of the text encoders, and this module has some"):
        fit(tuning(opened(name)), tmp_path, epochs=2, ckpt_path=tmp_path / "plain.ckpt")


SETTINGS: list[dict[str, Any]] = [
    {
        "lora_dropout": 0.3,
        "use_rslora": True,
        "lora_alpha": 3.5,
        "rank_pattern": {"q_proj": 4},
        "alpha_pattern": {"q_proj": 1},
    },
    {"use_dora": True},
    {"lora_bias": True},
    {"target_modules": r".*\.(fc1|v_proj)", "exclude_modules": ["v_proj"]},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_text_adapters_of_other_settings_in_diffusers(settings: dict[str, Any], opened: Open, tmp_path: Path) -> None:
    module = tuning(opened("sdxl"), LoraConfig(**({"r": 2, "lora_alpha": 6} | settings)))
    fit(module, tmp_path)
    module.save_pretrained(str(tmp_path / "saved"))
    image = drawn_by_diffusers("sdxl", module, tmp_path / "saved")
    torch.testing.assert_close(image, module.generate(["sit"], 1, seed=4), atol=2e-3, rtol=0)


def test_encoders_of_16_bits_train_adapters_of_32(opened: Open, tmp_path: Path) -> None:
    module = tuning(opened("stable_diffusion", precision="bfloat16"), rate=1e-2)
    module.configure_model()
    kinds = {parameter.requires_grad: parameter.dtype for parameter in module.text_encoders.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    fit(module, tmp_path)
    assert module.generate(["sit"]).isfinite().all()


def test_what_diffusers_do_not_load_is_refused_at_once(opened: Open) -> None:
    text = LoraConfig(r=2)
    for backbone in (PixelDiffusion(image_size=16, widths=(8, 16)), Sana("nowhere")):
        with pytest.raises(ValueError, match=f"load no adapters of the text encoders of {type(backbone).__name__}; "):
            tuning(backbone)
    with pytest.raises(ValueError, match="text_peft_config goes with a peft_config"):
        Synthia(opened("sdxl"), text_peft_config=text)
    with pytest.raises(ValueError, match=r"with modules_to_save=.*out of the text_peft_config"):
        tuning(opened("sdxl"), LoraConfig(modules_to_save=["final_layer_norm"]))
