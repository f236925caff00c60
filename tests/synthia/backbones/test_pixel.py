from pathlib import Path

import pytest
import torch

from lit_modules.synthia.backbones.pixel import PixelDiffusion, word_vector
from lit_modules.synthia.core.randomness import generator_of


def small(**more: object) -> PixelDiffusion:
    backbone = PixelDiffusion(**{"image_size": 16, "widths": (8, 16), "num_steps": 3} | more)
    backbone.load("text", "images", "network")
    return backbone


def test_blocks_hold_the_pixels() -> None:
    backbone, images = small(brightness=16, colour=16), torch.rand(2, 3, 16, 16) * 2 - 1
    mean, std = backbone.encode_image(images)
    assert mean.shape[1:] == backbone.latent_shape() == (48, 4, 4)
    assert not std.any()
    torch.testing.assert_close(backbone.decode(mean), images, atol=1e-5, rtol=0)
    fewer = small()
    latents, _ = fewer.encode_image(images)
    near = fewer.decode(latents)  # the nearest image of fewer frequencies
    torch.testing.assert_close(fewer.encode_image(near)[0], latents, atol=1e-5, rtol=0)  # a projection
    moved = fewer.decode(latents + 0.1 * torch.randn_like(latents))
    assert (near - images).square().sum() < (moved - images).square().sum()
    ramp = torch.linspace(-1, 1, 16).expand(1, 3, 16, 16)
    assert (fewer.decode(fewer.encode_image(ramp)[0]) - ramp).abs().max() < 0.03


def test_words_are_the_same_everywhere_and_order_matters_not() -> None:
    backbone = small()
    one = backbone.encode_prompt(["sit, store", "store sit", ""])
    assert one["prompt_mask"].sum(1).tolist() == [2, 2, 1]
    assert torch.equal(one["prompt_embeds"][0, 0], word_vector("sit", 64))
    times, noised = torch.tensor([500, 500]), torch.randn(1, 16, 4, 4).repeat(2, 1, 1, 1)
    with torch.no_grad():
        predicted = backbone.denoise(noised, times, {name: value[:2] for name, value in one.items()})
        one["prompt_embeds"][:, 2:] = 9.0  # padding, which is not attended to
        spoiled = backbone.denoise(noised, times, {name: value[:2] for name, value in one.items()})
    torch.testing.assert_close(predicted[0], predicted[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(predicted, spoiled)


def test_save_and_load(tmp_path: Path) -> None:
    backbone = small(seed=3)
    backbone.save_pretrained(str(tmp_path), adapter=False)
    again = PixelDiffusion(str(tmp_path), num_steps=3)
    again.load("network", "text", "images")
    assert (again.image_size, again.widths, again.word_width) == (16, (8, 16), 64)
    condition = backbone.encode_prompt(["pour"])
    first, second = (each.generate(condition, [generator_of(5)]) for each in (backbone, again))
    assert torch.equal(first, second)
    before = again.identity("images")
    small(seed=9).save_pretrained(str(tmp_path), adapter=False)
    assert PixelDiffusion(str(tmp_path)).identity("images") != before
    assert PixelDiffusion().version == "new"


def test_new_network_depends_on_its_seed_alone() -> None:
    torch.manual_seed(1)
    first = small().network.state_dict()
    torch.manual_seed(2)
    second = small().network.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], value) for name, value in small(seed=1).network.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 18}, "image_size must be a multiple of the block_size, 4, .* got 18"),
        ({"widths": (4, 16)}, r"widths must be multiples of 8 and of num_heads, 4, got \(4, 16\)"),
        ({"brightness": 17}, "brightness must be from 1 to 16, the pixels of a block, got 17"),
        ({"precision": "bfloat16"}, "'float32', got 'bfloat16'"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelDiffusion(**arguments)  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most 2 words, got 3: 'a b c'"):
        small(max_words=2).encode_prompt(["a b c"])
    with pytest.raises(FileNotFoundError, match=r"must hold unet and scheduler.*unet is missing"):
        PixelDiffusion(str(tmp_path)).load("network")
    small().save_pretrained(str(tmp_path), adapter=False)
    with pytest.raises(ValueError, match="takes 16 channels, and block_size 4, brightness 16 and colour 3 give 22"):
        PixelDiffusion(str(tmp_path), brightness=16).load("network")
