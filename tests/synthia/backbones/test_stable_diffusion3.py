from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from lit_modules.synthia.backbones.flux import Flux
from lit_modules.synthia.backbones.stable_diffusion3 import StableDiffusion3
from lit_modules.synthia.core.randomness import generator_of


def test_it_is_asked_as_by_its_pipeline(stable_diffusion3: str) -> None:
    backbone = StableDiffusion3(stable_diffusion3, image_size=16, precision="float32", prompt_length=16)
    backbone.load("text", "network")
    real = diffusers.StableDiffusion3Pipeline.from_pretrained(stable_diffusion3)
    condition = backbone.encode_prompt(["a cup", ""])
    embeds, empty, pooled, _ = real.encode_prompt(["a cup"] * 2, None, None, max_sequence_length=16)
    torch.testing.assert_close(condition["prompt_embeds"], torch.stack([embeds[0], empty[0]]))
    noised, times = torch.randn(1, 4, 8, 8, generator=generator_of(0)), torch.tensor([333.25])
    with torch.no_grad():
        wanted = real.transformer(noised, embeds[:1], pooled[:1], times).sample
        given = {name: value[:1] for name, value in condition.items()}
        torch.testing.assert_close(backbone.denoise(noised, times, given), wanted)


@pytest.mark.parametrize(
    ("name", "kind", "steps"),
    [("stable_diffusion3", StableDiffusion3, 3), ("flux", Flux, 4), ("flux_schnell", Flux, 4)],
)
def test_the_sampler_with_gradients_goes_the_way_of_flow_matching_pipelines(
    name: str, kind: Any, steps: int, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(name)
    backbone = kind(folder, image_size=16, precision="float32", prompt_length=16)
    backbone.load("text", "network")
    real = getattr(diffusers, kind.pipeline_name).from_pretrained(folder)
    real.set_progress_bar_config(disable=True)
    settings = {"height": 16, "width": 16, "output_type": "latent", "max_sequence_length": 16}
    settings |= {"guidance_scale": 1.0} if kind is StableDiffusion3 else {}
    wanted = real("a cup", num_inference_steps=steps, generator=generator_of(0), **settings).images
    if kind is Flux:
        wanted = real._unpack_latents(wanted, 16, 16, real.vae_scale_factor)
    sampler = backbone.few_step_sampler(steps)
    noise = sampler.draw_noise((1, *backbone.latent_shape()), generator_of(0))
    with torch.no_grad():
        sample = sampler.sample(backbone.denoise, noise, backbone.encode_prompt(["a cup"]))
    torch.testing.assert_close(sample, wanted, atol=1e-5, rtol=1e-4)
    if kind is StableDiffusion3:
        assert sampler.timesteps[1] > 600  # shifted, which the schedule of the training is not
    both = backbone.draw_timesteps([generator_of(0), generator_of(1)])  # of a row are its own
    torch.testing.assert_close(both[1:], backbone.draw_timesteps([generator_of(1)]))


@pytest.mark.parametrize("saved_without", [False, True])
def test_without_t5_it_draws_as_its_pipeline(stable_diffusion3: str, tmp_path: Path, saved_without: bool) -> None:
    absent = {"text_encoder_3": None, "tokenizer_3": None}
    real = diffusers.StableDiffusion3Pipeline.from_pretrained(stable_diffusion3, **absent)
    real.set_progress_bar_config(disable=True)
    folder = stable_diffusion3
    if saved_without:
        folder = str(tmp_path)
        real.save_pretrained(folder)
    backbone = StableDiffusion3(folder, image_size=16, precision="float32", num_steps=2, t5=saved_without)
    assert StableDiffusion3(folder).identity("text") != StableDiffusion3(folder, t5=False).identity("text")
    backbone.load("text")
    assert "text_encoder_3" not in backbone._held["text"]
    condition = backbone.encode_prompt(["a cup"])
    assert condition["prompt_embeds"].shape[1] == 12 + 256
    images = backbone.generate(condition, [generator_of(4)])
    settings = {"num_inference_steps": 2, "height": 16, "width": 16, "guidance_scale": 4.5, "output_type": "np"}
    drawn = real("a cup", generator=generator_of(4), **settings).images
    torch.testing.assert_close(images, torch.from_numpy(drawn).permute(0, 3, 1, 2), atol=1e-4, rtol=1e-3)
