from pathlib import Path

import diffusers
import pytest
import torch

from lit_modules.synthia.backbones.qwen_image import QwenImage
from lit_modules.synthia.backbones.z_image import ZImage
from lit_modules.synthia.core.encodings import Encoder
from lit_modules.synthia.core.randomness import generator_of

PROMPTS = ["a cup", "", "a new design that pours"]


def test_guidance_is_in_the_usual_notation(z_image: str) -> None:
    backbone = ZImage(z_image, image_size=16, precision="float32", num_steps=2)
    backbone.load("text", "network")
    real = diffusers.ZImagePipeline.from_pretrained(z_image)
    real.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "np"}
    images = backbone.generate(backbone.encode_prompt(["a cup"]), [generator_of(4)], guidance=3.0)
    plain = backbone.generate(backbone.encode_prompt(["a cup"]), [generator_of(4)], guidance=1.0)
    drawn = real("a cup", generator=generator_of(4), guidance_scale=2.0, **settings).images
    torch.testing.assert_close(images, torch.from_numpy(drawn).permute(0, 3, 1, 2), atol=1e-4, rtol=1e-3)
    assert (images - plain).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "kind"), [("z_image", ZImage), ("qwen_image", QwenImage)])
def test_prompts_keep_their_length_in_the_cache_and_do_not_depend_on_their_batch(
    name: str, kind: type[ZImage | QwenImage], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    backbone = kind(request.getfixturevalue(name), image_size=16, precision="float32")
    backbone.load("network")
    mask = str(backbone.length_mask)
    together = Encoder(backbone, str(tmp_path)).conditions(PROMPTS)
    lengths = together[mask].sum(1)
    assert lengths.tolist() == [int(lengths[1]) + len(prompt) for prompt in PROMPTS]
    assert together["prompt_embeds"].shape[1] == int(lengths.max())
    assert not together["prompt_embeds"][~together[mask].bool()].any()
    again = Encoder(backbone, str(tmp_path)).conditions(PROMPTS[:1])  # of the folder
    assert again["prompt_embeds"].shape[1] == int(lengths[0])
    latents = torch.stack([torch.randn(backbone.latent_shape(), generator=generator_of(row)) for row in range(3)])
    times = torch.tensor([100.0, 500.0, 900.0])
    with torch.no_grad():
        answers = backbone.denoise(latents, times, together)
        for row, prompt in enumerate(PROMPTS):
            alone = backbone.encode_prompt([prompt])
            assert {name: value.shape[:2] for name, value in alone.items()} == dict.fromkeys(alone, (1, lengths[row]))
            answer = backbone.denoise(latents[row : row + 1], times[row : row + 1], alone)
            torch.testing.assert_close(answers[row : row + 1], answer, atol=1e-5, rtol=1e-4)
