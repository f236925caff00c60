import diffusers
import pytest
import torch

from lit_modules.synthia.backbones.flux2 import Flux2Klein
from lit_modules.synthia.core.randomness import generator_of


def test_a_distilled_network_draws_in_4_steps_without_guidance(flux2_klein: str, flux2_klein_distilled: str) -> None:
    folders = (flux2_klein, flux2_klein_distilled)
    base, distilled = (Flux2Klein(folder, image_size=16, precision="float32") for folder in folders)
    for backbone in (base, distilled):
        backbone.load("network")
    assert (base.usual_steps(), distilled.usual_steps()) == (50, 4)
    assert [len(backbone.few_step_sampler().timesteps) for backbone in (base, distilled)] == [8, 4]
    assert Flux2Klein(flux2_klein, num_steps=3).usual_steps() == 3
    condition = distilled.encode_prompt(["a cup"])
    images = distilled.generate(condition, [generator_of(4)])
    assert torch.equal(images, distilled.generate(condition, [generator_of(4)], guidance=7.0))
    real = diffusers.Flux2KleinPipeline.from_pretrained(flux2_klein_distilled)
    real.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 4, "height": 16, "width": 16, "output_type": "np"}
    drawn = real(prompt="a cup", generator=generator_of(4), **settings).images
    torch.testing.assert_close(images, torch.from_numpy(drawn).permute(0, 3, 1, 2), atol=1e-4, rtol=1e-3)


def test_arguments_are_checked(flux2_klein: str) -> None:
    with pytest.raises(ValueError, match="prompt_length must be from 1 to 512 tokens, got 513"):
        Flux2Klein(prompt_length=513)
    with pytest.raises(ValueError, match="image_size must be a multiple of 16 for Flux2Klein, got 24"):
        Flux2Klein(flux2_klein, image_size=24).load("images")
