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


def test_a_distilled_network_takes_4_steps(flux: str, flux_schnell: str) -> None:
    guided, distilled = Flux(flux, image_size=16), Flux(flux_schnell, image_size=16)
    for backbone in (guided, distilled):
        backbone.load("network")
    assert (guided.usual_steps(), distilled.usual_steps()) == (28, 4)
    assert distilled.few_step_sampler().timesteps == (1000.0, 750.0, 500.0, 250.0)
    assert len(guided.few_step_sampler().timesteps) == 8
    assert Flux(flux, num_steps=3).usual_steps() == 3
    with pytest.raises(ValueError, match="prompt_length must be from 1 to 512 tokens, got 0"):
        Flux(prompt_length=0)
