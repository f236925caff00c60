"""Adapters on a network that diffusers have quantised: trained, saved, and drawn with on the quantised base."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from peft import LoraConfig
from torch.utils.data import DataLoader

from lit_modules.synthia import (
    Kandinsky3,
    PixArtSigma,
    PixelDiffusion,
)
from lit_modules.synthia.core.randomness import generator_of
from lit_modules.synthia.objectives import DenoiseDPO
from lit_modules.synthia.synthia import Synthia
from tests.tiny_pipelines import BACKBONES, CALLS, open_pipeline

LORA = LoraConfig(r=2, lora_alpha=4, init_lora_weights="gaussian")


def int8() -> dict[str, Any]:
    pytest.importorskip("torchao")
    weights = {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}  # as a file of options has it
    return {"quant_method": "torchao", "quant_type": {"default": weights}}


def nf4() -> dict[str, Any]:
    pytest.importorskip("bitsandbytes")
    return {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"}


WAYS = [(int8, "cpu"), *(pytest.param(way, "cuda", marks=pytest.mark.gpu) for way in (int8, nf4))]
ON_GPU = WAYS[1:]


def batches(side: int) -> DataLoader[Any]:
    pixels = torch.randint(0, 256, (3, 3, side, side), generator=generator_of("pixels")).float() / 127.5 - 1
    batch = {
        "prompt": ["a design to sit"],
        "pos": pixels[:1],
        "neg": pixels[None, 1:],
        "neg_mask": torch.tensor([[True, True]]),
        "pair_id": torch.tensor([7]),
    }
    return DataLoader([batch] * 2, batch_size=None)  # type: ignore[arg-type]


def fit(module: Synthia, folder: Path, accelerator: str = "cpu", epochs: int = 1, **more: Any) -> Trainer:
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator=accelerator, devices=1, max_epochs=epochs, logger=False, default_root_dir=folder, **quiet
    )
    trainer.fit(module, batches(module.backbone.image_size), **more)
    return trainer


@pytest.fixture
def tuning(request: pytest.FixtureRequest) -> Callable[..., Synthia]:
    def make(name: str, quantization: Any, peft_config: Any = LORA, **more: Any) -> Synthia:
        kind, size = BACKBONES[name]
        settings = {"image_size": size, "precision": "float32", "num_steps": 2, "quantization_config": quantization}
        backbone = kind(request.getfixturevalue(name), **settings)
        return Synthia(backbone, peft_config=peft_config, optimizer=partial(torch.optim.AdamW, lr=0.05), **more)

    return make


def drawn_by_diffusers(name: str, module: Synthia, quantization: dict[str, Any], folder: Path) -> torch.Tensor:
    from diffusers.quantizers.auto import DiffusersAutoQuantizer

    backbone: Any = module.backbone
    config, part = DiffusersAutoQuantizer.from_dict(quantization), backbone.network_part
    network = type(backbone.network).from_pretrained(
        backbone.model, subfolder=part, quantization_config=config, torch_dtype=torch.float32
    )
    size = backbone.image_size
    pipeline = open_pipeline(backbone.pipeline_name, backbone.model, size, **{part: network})
    pipeline.load_lora_weights(str(folder))
    pipeline.to(backbone.device)
    prompt = module.template.format(affordances="sit")
    settings = {"prompt": prompt, "num_inference_steps": 2, "output_type": "pt"} | CALLS[name]
    image = pipeline(height=size, width=size, generator=generator_of(4, "image", 0), **settings).images
    return torch.as_tensor(image).float()


def weights(network: Any) -> dict[str, torch.Tensor]:
    """Return copies of all weights but the adapter's."""
    state = {name: value for name, value in network.state_dict().items() if "lora_" not in name}
    torchao = {name for name, value in state.items() if hasattr(value, "__tensor_flatten__")}
    return {name: value.dequantize() if name in torchao else value.clone() for name, value in state.items()}


@pytest.mark.parametrize("name", BACKBONES)
def test_quantised_base(name: str, tuning: Any, tmp_path: Path) -> None:
    check_quantised_base(name, int8(), "cpu", tuning, tmp_path)


@pytest.mark.parametrize(("way", "accelerator"), ON_GPU)
@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_quantised_base_on_a_gpu(name: str, way: Any, accelerator: str, tuning: Any, tmp_path: Path) -> None:
    check_quantised_base(name, way(), accelerator, tuning, tmp_path)


def check_quantised_base(
    name: str, quantization: dict[str, Any], accelerator: str, tuning: Any, tmp_path: Path
) -> None:
    module = tuning(name, quantization)
    untuned = module.generate(["sit"], 1, seed=4)
    kinds = {type(parameter).__name__ for parameter in module.network.parameters()}
    assert kinds > {"Parameter"}  # some are of the library that quantises
    before = weights(module.network)
    trainer = fit(module, tmp_path, accelerator)
    tuned = module.generate(["sit"], 1, seed=4)
    assert (tuned - untuned).abs().max() > 1e-3
    after = weights(module.network)
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    trainer.save_checkpoint(tmp_path / "tuned.ckpt")
    state = torch.load(tmp_path / "tuned.ckpt", weights_only=True)["state_dict"]
    assert all("lora_" in key for key in state)
    again = tuning(name, quantization, None)
    loaded = Synthia.load_from_checkpoint(tmp_path / "tuned.ckpt", backbone=again.backbone)
    torch.testing.assert_close(loaded.generate(["sit"], 1, seed=4), tuned, atol=1e-5, rtol=1e-4)
    module.save_pretrained(str(tmp_path / "saved"))
    if BACKBONES[name][0] in (Kandinsky3, PixArtSigma):
        fresh = tuning(name, quantization, None)
        fresh.backbone.load_adapter(str(tmp_path / "saved"))
        image = fresh.generate(["sit"], 1, seed=4)
    else:
        image = drawn_by_diffusers(name, module, quantization, tmp_path / "saved")
    torch.testing.assert_close(image, tuned, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("way", "accelerator"), WAYS)
def test_a_stopped_run_goes_on(way: Any, accelerator: str, tuning: Any, tmp_path: Path) -> None:
    make = partial(tuning, "sdxl", way(), objective=DenoiseDPO(scale=10.0), gradient_checkpointing=True)
    torch.manual_seed(0)
    whole = make()
    fit(whole, tmp_path, accelerator, epochs=2)
    torch.manual_seed(0)
    fit(make(), tmp_path, accelerator).save_checkpoint(tmp_path / "half.ckpt")
    rests = [make(), make(peft_config=None, objective=None)]
    wanted = {name: value for name, value in whole.network.state_dict().items() if "lora_" in name}
    for rest in rests[:1]:
        fit(rest, tmp_path, accelerator, epochs=2, ckpt_path=tmp_path / "half.ckpt")
        for name, value in rest.network.state_dict().items():
            assert "lora_" not in name or torch.equal(value, wanted[name])
    fit(rests[1], tmp_path, accelerator, epochs=2, ckpt_path=tmp_path / "half.ckpt")  # the adapter comes with it
    assert rests[1].backbone.adapter is not None


def test_class_pictures_are_drawn_by_the_quantised_base(tuning: Any, tmp_path: Path) -> None:
    prior = {"prior_weight": 1.0, "prior_prompts": ["a photo of a jug"], "prior_images": 1}
    module, plain = tuning("sdxl", int8(), **prior), tuning("sdxl", None, **prior)
    fit(module, tmp_path)
    assert module.backbone.drawing_identity() != plain.backbone.drawing_identity()
    base = tuning("sdxl", int8(), None).backbone
    drawn = base.generate(base.encode_prompt(["a photo of a jug"]), [generator_of(0, "prior", "a photo of a jug", 0)])
    assert (module.prior.pictures([0]).int() - (drawn * 255).round().int()).abs().max() <= 1


def test_what_cannot_be_quantised_or_trained_is_refused(tuning: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights of the network are quantised, so Synthia cannot train them; give a"):
        fit(tuning("sdxl", int8(), None), tmp_path)
    with pytest.raises(ValueError, match=r"must be a mapping, such as \{'load_in_4bit': True\}, or what to_dict"):
        tuning("sdxl", "int8")
    with pytest.raises(ValueError, match=r"diffusers take no quantization_config .*unknown"):
        tuning("sdxl", {"quant_method": "unknown"}).configure_model()
    with pytest.raises(TypeError, match="quantization_config"):
        PixelDiffusion(quantization_config=int8())  # type: ignore[call-arg]
