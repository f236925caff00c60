"""Training on aspect-ratio buckets, with the real networks of small pipelines."""

import json
import math
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from PIL import Image
from torch.nn.functional import pixel_shuffle

from datamodules import AffordancePairs
from lit_modules.synthia import (
    PixelDiffusion,
)
from lit_modules.synthia.core.randomness import generator_of
from lit_modules.synthia.objectives import LinearContrast, Triplet
from lit_modules.synthia.synthia import Synthia
from tests.tiny_pipelines import BACKBONES, CALLS


class Sizes(Callback):
    """Sizes of the pictures that were trained on."""

    def __init__(self) -> None:
        self.seen: set[tuple[int, int]] = set()

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.add(tuple(batch["pos"].shape[2:]))


def pairs(folder: Path, size: int, step: int, batch_size: int = 2) -> AffordancePairs:
    rows = []
    for number, (height, width) in enumerate([(4, 1), (4, 1), (1, 4), (1, 1)]):
        for name, blue in (("pos", 0), ("neg", 200)):
            picture = Image.new("RGB", (8 * width, 8 * height), (60 * number, 99, blue))
            picture.save(folder / f"{name}{number}.png")
        row = {"pair_id": number, "pos_prompts": ["sit", f"use {number}"], "neg_prompts": ["jug"], "tdistance": 0.5}
        rows.append(row | {"pos_paths": [f"pos{number}.png"], "neg_paths": {"jug": [f"neg{number}.png"]}})
    (folder / "stage0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return AffordancePairs(str(folder), image_size=size, bucket_step=step, batch_size=batch_size, largest_ratio=4.0)


def fit(module: Synthia, data: AffordancePairs, folder: Path) -> set[tuple[int, int]]:
    sizes = Sizes()
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, callbacks=[sizes], default_root_dir=folder, **quiet
    )
    trainer.fit(module, data)
    assert math.isfinite(trainer.callback_metrics["train/loss"])
    return sizes.seen


@pytest.mark.parametrize("name", BACKBONES)
def test_every_network_takes_every_bucket(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    kind, step = BACKBONES[name]
    backbone = kind(request.getfixturevalue(name), image_size=2 * step, precision="float32", num_steps=2)
    assert step % backbone.multiple == 0
    seen = fit(Synthia(backbone), pairs(tmp_path, 2 * step, step, batch_size=1), tmp_path)
    assert seen == {(4 * step, step), (2 * step, 2 * step), (step, 4 * step)}


@pytest.mark.parametrize("name", ["sdxl", "flux", "qwen_image", "chroma", "z_image", "lumina2"])
def test_steps_on_a_bucket_are_those_of_the_pipeline(name: str, request: pytest.FixtureRequest) -> None:
    folder, (height, width) = request.getfixturevalue(name), (64, 16)
    kind, _ = BACKBONES[name]
    backbone = kind(folder, image_size=32, precision="float32", num_steps=2)  # of the same area
    backbone.load("text", "network")
    condition = backbone.encode_prompt(["a cup"])
    real: Any = getattr(diffusers, backbone.pipeline_name).from_pretrained(folder)
    real.set_progress_bar_config(disable=True)
    settings = dict(CALLS[name])
    if name != "flux":  # whose network takes the scale of guidance
        settings |= {backbone.guidance_argument: 1.0 - backbone.guidance_offset}
    settings |= {"num_inference_steps": 3, "output_type": "latent", "height": height, "width": width}
    wanted = real(prompt="a cup", generator=generator_of(0), **settings).images
    if name in ("flux", "qwen_image", "chroma"):  # squares of 2 x 2 as tokens
        rows = backbone.latent_shape((height, width))[1] // 2
        wanted = pixel_shuffle(wanted.transpose(1, 2).unflatten(-1, (rows, -1)), 2)
    scheduler = type(real.scheduler).from_config(real.scheduler.config)
    noise_levels = name == "sdxl"
    scheduler.set_timesteps(3, **{} if noise_levels else backbone.timestep_arguments(3))
    latents = torch.randn(backbone.latent_shape((height, width)), generator=generator_of(0))[None]
    latents = latents * scheduler.init_noise_sigma if noise_levels else latents
    with torch.no_grad():
        for time in scheduler.timesteps:
            seen = scheduler.scale_model_input(latents, time) if noise_levels else latents
            latents = scheduler.step(backbone.denoise(seen, time[None], condition), time, latents).prev_sample
    torch.testing.assert_close(latents, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("objective", "more"),
    [
        (LinearContrast(), {"num_steps": 2, "pixel_size": 8}),
        (LinearContrast(), {"num_steps": 2}),
        (Triplet(), {"num_steps": 2, "space": "latent"}),
    ],
)
def test_samples_have_the_shape_of_the_bucket(objective: Any, more: dict[str, Any], tmp_path: Path) -> None:
    backbone = PixelDiffusion(image_size=16, widths=(8, 16), num_steps=2)
    seen = fit(Synthia(backbone, objective=objective, **more), pairs(tmp_path, 16, 8), tmp_path)
    assert seen == {(32, 8), (8, 32)}  # the square fills no batch, and shares that of the wide one
    module = Synthia(backbone, objective=objective, **more)
    images = torch.rand(2, 3, 32, 8)
    compared = module.comparison._compared(images)
    assert compared.shape[2:] == ((16, 4) if "pixel_size" in more else (32, 8))


def test_a_step_that_the_model_does_not_take_is_refused_at_once(tmp_path: Path) -> None:
    backbone = PixelDiffusion(image_size=16, widths=(8, 16), num_steps=2)
    with pytest.raises(ValueError, match="takes images whose sides are multiples of 8 pixels, and a bucket"):
        fit(Synthia(backbone), pairs(tmp_path, 16, 4), tmp_path)
