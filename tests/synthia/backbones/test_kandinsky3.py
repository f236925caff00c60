from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from lit_modules.synthia.backbones.kandinsky3 import Kandinsky3, Kandinsky3Flash
from lit_modules.synthia.core.randomness import generator_of
from lit_modules.synthia.core.sampling import cosine_alphas_cumprod

PROMPTS = ["a cup", "a new design that pours and stores", ""]


def small(folder: str, **more: Any) -> Kandinsky3:
    backbone = Kandinsky3(folder, image_size=64, precision="float32", num_steps=2, **more)
    backbone.load("text", "network")
    return backbone


def noised(rows: int) -> Tensor:
    return torch.randn(rows, 4, 8, 8, generator=generator_of(0))


def test_each_row_is_asked_as_by_the_pipeline_alone(kandinsky3: str) -> None:
    backbone = small(kandinsky3)
    condition = backbone.encode_prompt(PROMPTS)
    assert condition["prompt_embeds"].shape == (3, 128, 8)
    assert condition["prompt_mask"].sum(1).tolist()[2] == 0
    times = torch.tensor([10, 500, 900])
    real = diffusers.Kandinsky3Pipeline.from_pretrained(kandinsky3)
    with torch.no_grad():
        found = backbone.denoise(noised(3), times, condition)
        for row, prompt in enumerate(PROMPTS):
            embeds, empty, mask, no_mask = real.encode_prompt(prompt or "a cup", _cut_context=True)
            if not prompt:
                embeds, mask = empty, no_mask
            assert embeds.shape[1] < 128
            wanted = real.unet(noised(3)[row : row + 1], times[row], embeds, mask).sample
            torch.testing.assert_close(found[row : row + 1], wanted)


def test_an_adapter_is_loaded_again(kandinsky3: str, tmp_path: Path) -> None:
    backbone, again = small(kandinsky3), small(kandinsky3)
    backbone.network.requires_grad_(False)
    backbone.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_v"], init_lora_weights=False))
    backbone.save_pretrained(str(tmp_path), adapter=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    again.load_adapter(str(tmp_path))
    condition = backbone.encode_prompt(PROMPTS)
    with torch.no_grad():
        both = [each.denoise(noised(3), torch.tensor([500] * 3), condition) for each in (backbone, again)]
    torch.testing.assert_close(*both)
    with pytest.raises(FileNotFoundError, match=r"holds no adapter that save_pretrained\(\) wrote: no adapter_config"):
        again.load_adapter(kandinsky3)


def test_guidance_that_the_pipeline_would_leave_out_is_refused(kandinsky3: str) -> None:
    with pytest.raises(ValueError, match=r"guided by a scale of more than 2, or by 1 for none, got 1\.5"):
        Kandinsky3(kandinsky3, guidance=1.5)
    backbone = small(kandinsky3)
    condition = backbone.encode_prompt(PROMPTS[:1])
    with pytest.raises(ValueError, match="got 2"):
        backbone.generate(condition, [generator_of(0)], guidance=2.0)
    assert backbone.generate(condition, [generator_of(0)], guidance=1.0).isfinite().all()
    with pytest.raises(ValueError, match="image_size must be a multiple of 64 for Kandinsky3, got 72"):
        Kandinsky3(kandinsky3, image_size=72).load("images")


def flash(folder: str, **more: Any) -> Kandinsky3Flash:
    backbone = Kandinsky3Flash(folder, image_size=64, encoder_precision=None, **more)
    backbone.load("text", "images", "network")
    return backbone


def test_published_weights_become_the_networks_of_diffusers(kandinsky3_flash: tuple[str, Any, Any]) -> None:
    folder, network, images = kandinsky3_flash
    backbone = flash(folder)
    for found, wanted in ((backbone.network, network), (backbone.held("images", "vae"), images)):
        state = wanted.state_dict()
        assert found.state_dict().keys() == state.keys()
        for name, value in found.state_dict().items():
            assert name.startswith("quantize") or torch.equal(value, state[name]), name
    assert backbone.latent_shape() == (4, 8, 8)
    picture = torch.rand(1, 3, 64, 64, generator=generator_of(0)) * 2 - 1
    with torch.no_grad():
        latents, std = backbone.encode_image(picture)
        torch.testing.assert_close(latents, images.encode(picture).latents)
        wanted = images.decode(latents, force_not_quantize=True).sample
        torch.testing.assert_close(backbone.decode(latents), wanted)
    assert not std.any()


def test_flash_pools_zeros_beside_the_tokens(kandinsky3_flash: tuple[str, Any, Any]) -> None:
    folder, network, _ = kandinsky3_flash
    backbone = flash(folder)
    condition = backbone.encode_prompt(PROMPTS)
    lengths = condition["prompt_mask"].sum(1)
    assert lengths[2] == 1  # the end of an empty prompt
    seen = []
    network.add_time_condition.attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backbone.network.add_time_condition.attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        backbone.denoise(noised(3), torch.tensor([979] * 3), condition)
        context = network.encoder_hid_proj(condition["prompt_embeds"])
    for row, length in enumerate(lengths.tolist()):
        wanted = context[row, :length].sum(0) / (length + 1)
        torch.testing.assert_close(seen[0][row, 0], wanted, atol=1e-5, rtol=1e-4)


def test_flash_samples_by_its_own_steps(kandinsky3_flash: tuple[str, Any, Any]) -> None:
    backbone = flash(kandinsky3_flash[0])
    sampler = backbone.few_step_sampler()
    assert (sampler.timesteps, sampler.step, sampler.full_precision_steps) == ((979, 729, 479, 229), "renoise", 1)
    condition = backbone.encode_prompt(PROMPTS[:2])
    images = backbone.generate(condition, [generator_of(0), generator_of(1)])
    noise = torch.cat([torch.randn(5, 1, 4, 8, 8, generator=generator_of(row)) for row in range(2)], 1)
    level, clean = cosine_alphas_cumprod(), noise[0]
    with torch.no_grad():
        for step, fresh in zip((979, 729, 479, 229), noise[1:], strict=True):
            signal, spread = level[step].sqrt().float(), (1 - level[step]).sqrt().float()
            mixed = signal * clean + spread * fresh
            clean = (mixed - spread * backbone.denoise(mixed, torch.tensor([step] * 2), condition)) / signal
        wanted = (backbone.decode(clean).clamp(-1, 1) + 1) / 2
    # the first step divides by 0.03, and amplifies rounding
    assert (images - wanted).abs().mean() < 1e-4
    torch.testing.assert_close(images, wanted, atol=0.05, rtol=0)
    with pytest.raises(ValueError, match="draws without guidance, which is a scale of 1, got 4"):
        backbone.generate(condition, [generator_of(0), generator_of(1)], guidance=4.0)


def test_flash_takes_the_format_of_diffusers_and_its_own_saved_network(
    kandinsky3: str, kandinsky3_flash: tuple[str, Any, Any], tmp_path: Path
) -> None:
    assert flash(kandinsky3).few_step_sampler(2).timesteps == (979, 479)
    backbone = flash(kandinsky3_flash[0])
    with torch.no_grad():
        backbone.network.conv_in.weight.add_(0.1)
    backbone.save_pretrained(str(tmp_path), adapter=False)
    again = flash(kandinsky3_flash[0], trained_network=str(tmp_path))
    assert torch.equal(again.network.conv_in.weight, backbone.network.conv_in.weight)


def test_missing_weights_are_named(kandinsky3_flash: tuple[str, Any, Any], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must hold kandinsky3_flash\.pt, movq\.pt and .* movq\.pt is missing"):
        Kandinsky3Flash(str(tmp_path)).load("network")
    with pytest.raises(FileNotFoundError, match=r"The unet of .* cannot be loaded"):
        Kandinsky3Flash(kandinsky3_flash[0], image_size=64, trained_network=str(tmp_path)).load("network")
