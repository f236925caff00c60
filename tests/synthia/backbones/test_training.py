"""Every adapter through the module: fit, save, reload through diffusers, generate."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from peft import LoraConfig
from torch.utils.data import DataLoader

from lit_modules.synthia import (
    SDXL,
    Chroma,
    Flux,
    Flux2Klein,
    HiDream,
    Kandinsky3,
    Kandinsky3Flash,
    Lumina2,
    PixArtSigma,
    QwenImage,
    Sana,
    StableDiffusion,
    StableDiffusion3,
    ZImage,
)
from lit_modules.synthia.backbones.base import Backbone
from lit_modules.synthia.core.randomness import generator_of
from lit_modules.synthia.objectives import DenoiseDPO, LinearContrast
from lit_modules.synthia.synthia import Synthia
from tests.tiny_pipelines import CALLS, open_pipeline

ADAPTERS: dict[str, tuple[type[Backbone], str | None]] = {
    "stable_diffusion": (StableDiffusion, "StableDiffusionPipeline"),
    "stable_diffusion_v": (StableDiffusion, "StableDiffusionPipeline"),
    "sdxl": (SDXL, "StableDiffusionXLPipeline"),
    "stable_diffusion3": (StableDiffusion3, "StableDiffusion3Pipeline"),
    "flux": (Flux, "FluxPipeline"),
    "sana": (Sana, "SanaPipeline"),
    "lumina2": (Lumina2, "Lumina2Pipeline"),
    "z_image": (ZImage, "ZImagePipeline"),
    "qwen_image": (QwenImage, "QwenImagePipeline"),
    "flux2_klein": (Flux2Klein, "Flux2KleinPipeline"),
    "chroma": (Chroma, "ChromaPipeline"),
    "hidream": (HiDream, "HiDreamImagePipeline"),
    "pixart_sigma": (PixArtSigma, None),
    "kandinsky3": (Kandinsky3, None),
    "kandinsky3_flash": (Kandinsky3Flash, None),
}


FLASH = pytest.param("kandinsky3_flash", marks=pytest.mark.slow)


def make(name: str, request: pytest.FixtureRequest, precision: str = "float32") -> Any:
    kind, _ = ADAPTERS[name]
    folder = request.getfixturevalue(name)
    more = {} if name == "kandinsky3_flash" else {"num_steps": 2}
    made: Any = kind
    size = {"kandinsky3": 64, "kandinsky3_flash": 128, "sana": 32, "lumina2": 32}.get(name, 16)
    return made(folder[0] if isinstance(folder, tuple) else folder, image_size=size, precision=precision, **more)


def batches(side: int, number: int = 2) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 3, side, side), generator=generator).float() / 127.5 - 1
    batch = {
        "prompt": ["a design to sit"],
        "pos": pixels[:1],
        "neg": pixels[None, 1:],
        "neg_mask": torch.tensor([[True, True]]),
        "pair_id": torch.tensor([7]),
    }
    return DataLoader([batch] * number, batch_size=None)  # type: ignore[arg-type]


def fit(module: Synthia, folder: Path, **more: Any) -> Trainer:
    trainer = Trainer(
        **{"accelerator": "cpu", "max_epochs": 1, "gradient_clip_val": 1.0, "logger": False} | more,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, batches(module.backbone.image_size))
    return trainer


def rate(value: float) -> Any:
    return partial(torch.optim.AdamW, lr=value)


@pytest.mark.parametrize("name", [*list(ADAPTERS)[:-1], FLASH])
def test_fit_save_reload_generate(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    lora = LoraConfig(r=2, lora_alpha=4, init_lora_weights="gaussian")
    module = Synthia(make(name, request), peft_config=lora, cache=str(tmp_path / "cache"), optimizer=rate(0.05))
    frozen = module.generate(["sit"], 1, seed=4)
    trainer = fit(module, tmp_path)
    path = tmp_path / "tuned.ckpt"
    trainer.save_checkpoint(path)
    state = torch.load(path, weights_only=True)["state_dict"]
    assert {"lora" in key for key in state} == {True}
    tuned = module.generate(["sit"], 1, seed=4)
    assert (tuned - frozen).abs().max() > 1e-3
    again = Synthia.load_from_checkpoint(path, backbone=make(name, request), peft_config=lora)
    torch.testing.assert_close(again.generate(["sit"], 1, seed=4), tuned, atol=1e-5, rtol=1e-4)
    module.save_pretrained(str(tmp_path / "saved"))
    _, pipeline_name = ADAPTERS[name]
    if pipeline_name is None:
        fresh = Synthia(make(name, request))
        fresh.configure_model()
        fresh.backbone.load_adapter(str(tmp_path / "saved"))  # type: ignore[attr-defined]
        torch.testing.assert_close(fresh.generate(["sit"], 1, seed=4), tuned, atol=1e-5, rtol=1e-4)
        return
    image = drawn_by_diffusers(name, module, tmp_path / "saved")
    torch.testing.assert_close(image, tuned, atol=2e-3, rtol=0)


def drawn_by_diffusers(name: str, module: Synthia, adapter: Path) -> torch.Tensor:
    backbone: Any = module.backbone
    size = backbone.image_size
    pipeline = open_pipeline(str(ADAPTERS[name][1]), backbone.model, size)
    pipeline.load_lora_weights(str(adapter))
    prompt = module.template.format(affordances="sit")
    settings = {"prompt": prompt, "num_inference_steps": 2, "output_type": "pt"} | CALLS[name]
    image = pipeline(height=size, width=size, generator=generator_of(4, "image", 0), **settings).images
    return torch.as_tensor(image).float()


PATTERNS = {"rank_pattern": {"to_q": 4, "to_v": 3}, "alpha_pattern": {"to_q": 1}}
SETTINGS: list[dict[str, Any]] = [
    {"lora_dropout": 0.3, "use_rslora": True, "lora_alpha": 3.5, **PATTERNS},
    {"use_dora": True, "init_lora_weights": "orthogonal"},
    {"lora_bias": True, "init_lora_weights": False},
    {"target_modules": r".*\.to_(q|k)", "exclude_modules": ["to_k"], "init_lora_weights": "mica"},
]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *(("sdxl", settings) for settings in SETTINGS),
        *((name, SETTINGS[0]) for name, (_, pipeline) in ADAPTERS.items() if pipeline and name != "sdxl"),
    ],
    ids=str,
)
def test_what_is_trained_is_what_diffusers_draw(
    name: str, settings: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    config = LoraConfig(**({"r": 2, "lora_alpha": 6} | settings))
    module = Synthia(make(name, request), peft_config=config, optimizer=rate(0.5))
    untuned = Synthia(make(name, request)).generate(["sit"], 1, seed=4)
    fit(module, tmp_path)
    tuned = module.generate(["sit"], 1, seed=4)
    assert (tuned - untuned).abs().max() > 0.01
    module.save_pretrained(str(tmp_path / "saved"))
    pipeline_name = ADAPTERS[name][1]
    assert pipeline_name is not None
    image = drawn_by_diffusers(name, module, tmp_path / "saved")
    torch.testing.assert_close(image, tuned, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ["flux", FLASH])
def test_paper_objective_trains_the_whole_network(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    module = Synthia(
        make(name, request), objective=LinearContrast(), truncation=1, gradient_checkpointing=True, optimizer=rate(1e-3)
    )
    module.configure_model()
    before = {key: value.clone() for key, value in module.network.state_dict().items()}
    fit(module, tmp_path)
    changed = [key for key, value in module.network.state_dict().items() if not torch.equal(value, before[key])]
    assert len(changed) > len(before) / 2


def test_encoders_are_asked_once_and_freed(
    stable_diffusion: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    counts = []
    for _ in range(2):  # the second run finds everything in the folder
        backbone = make("stable_diffusion", request)
        module = Synthia(backbone, cache=str(tmp_path / "cache"), optimizer=rate(1e-3))
        fit(module, tmp_path, max_epochs=3)
        assert module.encoder.cache is not None
        counts.append((module.encoder.cache.misses, set(backbone._held)))
    assert counts[0][0] == 4  # a prompt and three images
    assert counts[1] == (0, set())  # nothing was loaded
    whole = Synthia(make("stable_diffusion", request), optimizer=rate(1e-3))
    fit(whole, tmp_path)
    assert not [key for key in whole.state_dict() if "vae" in key or "text" in key]


@pytest.mark.parametrize("objective", [DenoiseDPO(scale=10.0), LinearContrast()])
def test_frozen_weights_of_16_bits_and_trained_ones_of_32(
    objective: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    module = Synthia(
        make("stable_diffusion", request, "bfloat16"),
        objective=objective,
        num_steps=2,
        peft_config=LoraConfig(r=2),
        optimizer=rate(1e-3),
    )
    fit(module, tmp_path, precision="bf16-mixed").save_checkpoint(tmp_path / "tuned.ckpt")
    kinds = {parameter.requires_grad: parameter.dtype for parameter in module.network.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    backbone = make("stable_diffusion", request, "bfloat16")
    again = Synthia.load_from_checkpoint(tmp_path / "tuned.ckpt", backbone=backbone)
    torch.testing.assert_close(again.generate(["sit"], 1, seed=4), module.generate(["sit"], 1, seed=4))
    with pytest.raises(ValueError, match=r"can only be trained in float32, got precision 'bfloat16'.*'bf16-mixed'"):
        fit(Synthia(make("stable_diffusion", request, "bfloat16")), tmp_path)


@pytest.mark.parametrize("name", [name for name in ADAPTERS if not name.startswith(("stable_diffusion", "kandinsky3"))])
def test_adapters_train_in_mixed_precision_under_gradient_checkpointing(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    lora = LoraConfig(r=2, init_lora_weights="gaussian")
    module = Synthia(
        make(name, request, "bfloat16"), peft_config=lora, gradient_checkpointing=True, optimizer=rate(0.01)
    )
    module.configure_model()
    before = [parameter.detach().clone() for parameter in module.trainable_parameters()]
    fit(module, tmp_path, precision="bf16-mixed")
    kinds = {parameter.requires_grad: parameter.dtype for parameter in module.network.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    after = list(module.trainable_parameters())
    assert all(parameter.isfinite().all() for parameter in after)
    assert any(not torch.equal(parameter, old) for parameter, old in zip(after, before, strict=True))
    assert module.generate(["sit"], 1, seed=4).isfinite().all()


def test_compiled_blocks_train(request: pytest.FixtureRequest) -> None:
    module = Synthia(make("stable_diffusion", request), compile=True, peft_config=LoraConfig(r=2))
    module.configure_model()
    assert module.network.training
