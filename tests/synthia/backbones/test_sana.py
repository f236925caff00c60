from pathlib import Path

import diffusers
import pytest
import torch

from lit_modules.synthia.backbones.sana import Sana
from lit_modules.synthia.core.randomness import generator_of


def test_an_empty_prompt_goes_without_the_instruction_alone_and_among_others(sana: str) -> None:
    backbone = Sana(sana, image_size=32, precision="float32")
    backbone.load("text")
    real = diffusers.SanaPipeline.from_pretrained(sana)
    _, _, wanted, mask = real.encode_prompt("a cup", True)
    for prompts in ([""], ["a cup", ""]):
        condition = backbone.encode_prompt(prompts)
        torch.testing.assert_close(condition["prompt_embeds"][-1:], wanted)
        assert torch.equal(condition["prompt_attention_mask"][-1:], mask)
    assert int(mask.sum()) == 1
    assert backbone.unconditional is not None
    torch.testing.assert_close(backbone.unconditional["prompt_embeds"], wanted)


def test_any_scheduler_of_a_flow_is_taken(sana: str, sana_heun: str, tmp_path: Path) -> None:
    backbone = Sana(sana_heun, image_size=32, precision="float32", num_steps=3)
    backbone.load("text", "network")
    images = backbone.generate(backbone.encode_prompt(["a cup"]), [generator_of(4)])
    real = diffusers.SanaPipeline.from_pretrained(sana_heun)
    real.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 3, "height": 32, "width": 32, "use_resolution_binning": False}
    drawn = real("a cup", generator=generator_of(4), output_type="np", **settings).images
    torch.testing.assert_close(images, torch.from_numpy(drawn).permute(0, 3, 1, 2), atol=1e-4, rtol=1e-3)
    assert len(backbone.few_step_sampler(3).timesteps) == 3  # each is asked once, not twice as by Heun's method
    for number, (kind, settings) in enumerate(
        [
            (diffusers.DPMSolverMultistepScheduler, {}),
            (diffusers.DPMSolverMultistepScheduler, {"prediction_type": "flow_prediction"}),
            (diffusers.EDMEulerScheduler, {}),
        ]
    ):
        folder = tmp_path / str(number)
        diffusers.SanaPipeline.from_pretrained(sana, scheduler=kind(**settings)).save_pretrained(folder)
        with pytest.raises(ValueError, match=rf"Sana needs a scheduler of flow matching, got {kind.__name__} in .*"):
            Sana(str(folder), image_size=32).load("network")


def test_arguments_are_checked(sana: str) -> None:
    with pytest.raises(ValueError, match="prompt_length must be from 1 to 300 tokens, got 301"):
        Sana(prompt_length=301)
    with pytest.raises(ValueError, match="image_size must be a multiple of 32 for Sana, got 48"):
        Sana(sana, image_size=48).load("images")
