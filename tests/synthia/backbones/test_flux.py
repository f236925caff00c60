import diffusers
import pytest
import torch

from lit_modules.synthia.backbones.flux import Flux
from lit_modules.synthia.core.randomness import generator_of


@pytest.mark.parametrize("name", ["flux", "flux_schnell"])
def test_it_is_asked_as_by_its_pipeline(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    backbone = Flux(folder, image_size=16, precision="float32", prompt_length=16, guidance=2.0)
    backbone.load("text", "network")
    real = diffusers.FluxPipeline.from_pretrained(folder)
    condition = backbone.encode_prompt(["a cup"])
    embeds, pooled, text_ids = real.encode_prompt("a cup", max_sequence_length=16)
    torch.testing.assert_close(condition["prompt_embeds"], embeds)
    noised, times = torch.randn(1, 4, 8, 8, generator=generator_of(0)), torch.tensor([250.5])
    with torch.no_grad():
        tokens = real.transformer(
            hidden_states=real._pack_latents(noised, 1, 4, 8, 8),
            timestep=times / 1000,
            guidance=torch.tensor([2.0]) if name == "flux" else None,
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=text_ids,
            img_ids=real._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32),
        ).sample
        wanted = real._unpack_latents(tokens, 16, 16, real.vae_scale_factor)
        torch.testing.assert_close(backbone.denoise(noised, times, condition), wanted)


@pytest.mark.parametrize("name", ["flux", "flux_schnell"])
def test_the_sampler_with_gradients_goes_the_pipelines_way(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    backbone = Flux(folder, image_size=16, precision="float32", prompt_length=16)
    backbone.load("text", "network")
    real = diffusers.FluxPipeline.from_pretrained(folder)
    real.set_progress_bar_config(disable=True)
    tokens = real(
        "a cup",
        num_inference_steps=4,
        height=16,
        width=16,
        generator=generator_of(0),
        output_type="latent",
        max_sequence_length=16,
    ).images
    sampler = backbone.few_step_sampler(4)
    noise = sampler.draw_noise((1, *backbone.latent_shape()), generator_of(0))
    with torch.no_grad():
        found = sampler.sample(backbone.denoise, noise, backbone.encode_prompt(["a cup"]))
    wanted = real._unpack_latents(tokens, 16, 16, real.vae_scale_factor)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_a_distilled_network_takes_4_steps(flux: str, flux_schnell: str) -> None:
    guided, distilled = Flux(flux, image_size=16), Flux(flux_schnell, image_size=16)
    for backbone in (guided, distilled):
        backbone.load("network")
    assert (guided.usual_steps(), distilled.usual_steps()) == (28, 4)
    assert distilled.few_step_sampler().timesteps == (1000.0, 750.0, 500.0, 250.0)
    assert len(guided.few_step_sampler().timesteps) == 8
    assert Flux(flux, num_steps=3).usual_steps() == 3


def test_prompt_length_is_bounded() -> None:
    with pytest.raises(ValueError, match="prompt_length must be from 1 to 512 tokens, got 0"):
        Flux(prompt_length=0)
