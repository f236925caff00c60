import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from lit_modules.synthia.backbones.stable_diffusion import SDXL, StableDiffusion
from lit_modules.synthia.core.randomness import generator_of

PROMPTS = ["a cup", "", "a vase"]


def changed(folder: str, copy: Path, file: str, **values: Any) -> str:
    """Copy a model with other values in one of its files, and return its folder."""
    shutil.copytree(folder, copy)
    path = copy / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return str(copy)


def test_stable_diffusion_is_asked_as_by_its_pipeline(stable_diffusion: str) -> None:
    backbone = StableDiffusion(stable_diffusion, image_size=16, precision="float32")
    backbone.load("text", "network")
    real = diffusers.StableDiffusionPipeline.from_pretrained(stable_diffusion)
    condition = backbone.encode_prompt(PROMPTS)
    embeds, empty = real.encode_prompt(PROMPTS, "cpu", 1, True)
    torch.testing.assert_close(condition["prompt_embeds"], embeds)
    torch.testing.assert_close(condition["prompt_embeds"][1], empty[0])  # what guidance leads away from
    noised, times = torch.randn(3, 4, 8, 8, generator=generator_of(0)), torch.tensor([0, 500, 999])
    with torch.no_grad():
        wanted = torch.cat([real.unet(noised[i : i + 1], times[i], embeds[i : i + 1]).sample for i in range(3)])
        torch.testing.assert_close(backbone.denoise(noised, times, condition), wanted)


def test_sdxl_is_asked_as_by_its_pipeline(sdxl: str) -> None:
    backbone = SDXL(sdxl, image_size=24, precision="float32")
    backbone.load("text", "network")
    real = diffusers.StableDiffusionXLPipeline.from_pretrained(sdxl, add_watermarker=False)
    condition = backbone.encode_prompt(PROMPTS)
    embeds, _, pooled, _ = real.encode_prompt(["a vase"], do_classifier_free_guidance=False)
    torch.testing.assert_close(condition["prompt_embeds"][2:], embeds)
    torch.testing.assert_close(condition["pooled_prompt_embeds"][2:], pooled)
    noised = torch.randn(1, 4, 12, 12, generator=generator_of(0))
    sizes = real._get_add_time_ids((24, 24), (0, 0), (24, 24), torch.float32, 6)
    with torch.no_grad():
        wanted = real.unet(noised, 300, embeds, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}).sample
        given = {name: value[2:] for name, value in condition.items()}
        torch.testing.assert_close(backbone.denoise(noised, torch.tensor([300]), given), wanted)


def test_one_step_of_a_distilled_model_needs_no_guidance(sdxl: str) -> None:
    backbone = SDXL(sdxl, image_size=16, precision="float32", num_steps=1, guidance=0.0)
    backbone.load("network")
    condition = backbone.encode_prompt(["a cup"])
    backbone.unconditional = None  # which is not asked for
    backbone.free("text")
    images = backbone.generate(condition, [generator_of(0)])
    assert images.isfinite().all()
    assert backbone.unconditional is None


def test_settings_that_early_autoencoders_leave_out_have_their_defaults(stable_diffusion: str, tmp_path: Path) -> None:
    folder = Path(changed(stable_diffusion, tmp_path / "early", "vae/config.json"))
    config = json.loads((folder / "vae" / "config.json").read_text())
    early = {key: value for key, value in config.items() if key not in ("scaling_factor", "shift_factor")}
    assert len(early) < len(config)
    (folder / "vae" / "config.json").write_text(json.dumps(early))
    images = torch.rand(1, 3, 16, 16, generator=generator_of(0)) * 2 - 1
    backbone = StableDiffusion(str(folder), image_size=16, precision="float32")
    mean, _ = backbone.encode_image(images)
    torch.testing.assert_close(mean, backbone.held("images", "vae").encode(images).latent_dist.mean * 0.18215)


@pytest.mark.parametrize("zeros", [True, False])
def test_an_empty_prompt_of_sdxl_is_what_guidance_leads_away_from(sdxl: str, tmp_path: Path, zeros: bool) -> None:
    folder = changed(sdxl, tmp_path / "copy", "model_index.json", force_zeros_for_empty_prompt=zeros)
    backbone = SDXL(folder, precision="float32")
    condition = backbone.encode_prompt(PROMPTS)
    real = diffusers.StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    _, empty, _, pooled = real.encode_prompt(PROMPTS, do_classifier_free_guidance=True)
    torch.testing.assert_close(condition["prompt_embeds"][1], empty[1])
    torch.testing.assert_close(condition["pooled_prompt_embeds"][1], pooled[1])
    assert bool((empty == 0).all()) == zeros
    assert backbone.unconditional is not None
    torch.testing.assert_close(backbone.unconditional["prompt_embeds"], empty[:1])


def test_the_settings_of_the_autoencoder_and_the_scheduler_are_obeyed(sdxl: str, tmp_path: Path) -> None:
    moments = {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0]}
    folder = changed(sdxl, tmp_path / "vae", "vae/config.json", **moments)
    images = torch.rand(1, 3, 16, 16, generator=generator_of(0)) * 2 - 1
    plain, scaled = SDXL(sdxl, image_size=16), SDXL(folder, image_size=16)
    (mean, std), (other_mean, other_std) = plain.encode_image(images), scaled.encode_image(images)
    shift, spread = (torch.tensor(value).view(1, 4, 1, 1) for value in moments.values())
    torch.testing.assert_close(other_mean, (mean / 0.13025 - shift) * 0.13025 / spread)
    torch.testing.assert_close(other_std, std / spread)
    torch.testing.assert_close(plain.decode(mean), scaled.decode(other_mean), atol=1e-5, rtol=1e-4)
    half = changed(sdxl, tmp_path / "half", "vae/config.json", force_upcast=False)  # 16 bits only if it can
    kinds = [SDXL(name, image_size=16).held("images", "vae").dtype for name in (sdxl, half)]
    assert kinds == [torch.float32, torch.bfloat16]
    other = changed(sdxl, tmp_path / "scheduler", "scheduler/scheduler_config.json", prediction_type="sample")
    with pytest.raises(ValueError, match=r"needs a scheduler with alphas_cumprod .* got \w+ with 'sample'"):
        SDXL(other, image_size=16).load("network")
