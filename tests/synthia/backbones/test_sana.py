from pathlib import Path
from typing import Any

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


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


@pytest.mark.parametrize(
    ("scheduler", "settings"),
    [
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
        ("UniPCMultistepScheduler", FLOW),
        ("DPMSolverMultistepScheduler", FLOW | {"algorithm_type": "sde-dpmsolver++"}),
    ],
)
def test_any_scheduler_of_a_flow_is_taken(scheduler: str, settings: dict[str, Any], sana: str, tmp_path: Path) -> None:
    kind = getattr(diffusers, scheduler)
    diffusers.SanaPipeline.from_pretrained(sana, scheduler=kind(**settings)).save_pretrained(tmp_path)
    backbone = Sana(str(tmp_path), image_size=32, precision="float32", num_steps=3)
    backbone.load("text", "network")
    images = backbone.generate(backbone.encode_prompt(["a cup"]), [generator_of(4)])
    real = diffusers.SanaPipeline.from_pretrained(tmp_path)
    real.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 3, "height": 32, "width": 32, "use_resolution_binning": False, "output_type": "np"}
    drawn = real("a cup", generator=[generator_of(4)], **call).images
    torch.testing.assert_close(images, torch.from_numpy(drawn).permute(0, 3, 1, 2), atol=1e-4, rtol=1e-3)
    assert len(backbone.few_step_sampler(3).timesteps) == 3  # each is asked once, not twice as by Heun's method


@pytest.mark.parametrize(
    ("scheduler", "settings"),
    [
        ("DPMSolverMultistepScheduler", {}),
        ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction"}),
        ("EDMEulerScheduler", {}),
    ],
)
def test_a_scheduler_of_no_flow_is_refused(scheduler: str, settings: dict[str, Any], sana: str, tmp_path: Path) -> None:
    kind = getattr(diffusers, scheduler)
    diffusers.SanaPipeline.from_pretrained(sana, scheduler=kind(**settings)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"Sana needs a scheduler of flow matching, got {scheduler} in .*FlowMatch"):
        Sana(str(tmp_path), image_size=32).load("network")


def test_arguments_are_checked(sana: str) -> None:
    with pytest.raises(ValueError, match="prompt_length must be from 1 to 300 tokens, got 301"):
        Sana(prompt_length=301)
    with pytest.raises(ValueError, match="image_size must be a multiple of 32 for Sana, got 48"):
        Sana(sana, image_size=48).load("images")
