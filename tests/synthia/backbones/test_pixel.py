import os
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


def test_fewer_frequencies_are_the_nearest_image() -> None:
    backbone, images = small(), torch.rand(2, 3, 16, 16) * 2 - 1
    latents, _ = backbone.encode_image(images)
    near = backbone.decode(latents)
    torch.testing.assert_close(backbone.encode_image(near)[0], latents, atol=1e-5, rtol=0)  # a projection
    moved = backbone.decode(latents + 0.1 * torch.randn_like(latents))
    assert (near - images).square().sum() < (moved - images).square().sum()


def test_smooth_images_lose_little() -> None:
    ramp = torch.linspace(-1, 1, 16).expand(1, 3, 16, 16)
    backbone = small()
    assert (backbone.decode(backbone.encode_image(ramp)[0]) - ramp).abs().max() < 0.03


def test_words_are_the_same_everywhere_and_order_matters_not() -> None:
    backbone = small()
    one = backbone.encode_prompt(["sit, store", "store sit", ""])
    assert one["prompt_mask"].sum(1).tolist() == [2, 2, 1]
    assert torch.equal(one["prompt_embeds"][0, 0], word_vector("sit", 64))
    times, noised = torch.tensor([500, 500]), torch.randn(1, 16, 4, 4).repeat(2, 1, 1, 1)
    with torch.no_grad():
        predicted = backbone.denoise(noised, times, {name: value[:2] for name, value in one.items()})
    torch.testing.assert_close(predicted[0], predicted[1], atol=1e-5, rtol=1e-4)


def test_padding_is_not_attended_to() -> None:
    backbone, noised = small(), torch.randn(1, 16, 4, 4)
    condition = backbone.encode_prompt(["sit store"])
    spoiled = {**condition, "prompt_embeds": condition["prompt_embeds"].clone()}
    spoiled["prompt_embeds"][:, 2:] = 9.0
    with torch.no_grad():
        both = [backbone.denoise(noised, torch.tensor([5]), given) for given in (condition, spoiled)]
    torch.testing.assert_close(both[0], both[1])


def test_same_seed_same_image_in_any_batch() -> None:
    backbone = small()
    condition = backbone.encode_prompt(["sit", "sit"])
    two = backbone.generate(condition, [generator_of(0), generator_of(1)])
    one = backbone.generate({name: value[:1] for name, value in condition.items()}, [generator_of(1)])
    assert two.shape == (2, 3, 16, 16)
    assert two.min() >= 0
    assert two.max() <= 1
    torch.testing.assert_close(two[1:], one, atol=1e-5, rtol=1e-4)


def test_save_and_load(tmp_path: Path) -> None:
    backbone = small(seed=3)
    backbone.save_pretrained(str(tmp_path), adapter=False)
    again = PixelDiffusion(str(tmp_path), num_steps=3)
    again.load("network", "text", "images")
    assert (again.image_size, again.widths, again.word_width) == (16, (8, 16), 64)
    condition = backbone.encode_prompt(["pour"])
    first, second = (each.generate(condition, [generator_of(5)]) for each in (backbone, again))
    assert torch.equal(first, second)


def test_new_network_depends_on_its_seed_alone() -> None:
    torch.manual_seed(1)
    first = small().network.state_dict()
    torch.manual_seed(2)
    second = small().network.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], value) for name, value in small(seed=1).network.state_dict().items())


def test_identity_changes_with_the_folder(tmp_path: Path) -> None:
    small().save_pretrained(str(tmp_path), adapter=False)
    first = PixelDiffusion(str(tmp_path)).identity("images")
    small(seed=9).save_pretrained(str(tmp_path), adapter=False)
    second = PixelDiffusion(str(tmp_path)).identity("images")
    assert second != first
    path = next(tmp_path.glob("unet/*.safetensors"))
    data, before = bytearray(path.read_bytes()), path.stat()
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as copying tools leave it
    assert PixelDiffusion(str(tmp_path)).identity("images") != second
    assert PixelDiffusion().version == "new"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 18}, "image_size must be a multiple of the block_size, 4, .* got 18"),
        ({"widths": (4, 16)}, r"widths must be multiples of 8 and of num_heads, 4, got \(4, 16\)"),
        ({"brightness": 17}, "brightness must be from 1 to 16, the pixels of a block, got 17"),
        ({"colour": 0}, "colour must be from 1 to 16"),
        ({"widths": ()}, "image_size must be"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"guidance": -1.0}, "guidance must not be negative, got -1.0"),
        ({"precision": "bfloat16"}, "'float32', got 'bfloat16'"),
        ({"max_words": 0}, "max_words must be at least 1"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelDiffusion(**arguments)  # type: ignore[arg-type]


def test_too_many_words() -> None:
    with pytest.raises(ValueError, match="at most 2 words, got 3: 'a b c'"):
        small(max_words=2).encode_prompt(["a b c"])


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must hold unet and scheduler.*unet is missing"):
        PixelDiffusion(str(tmp_path)).load("network")


def test_folder_of_another_network(tmp_path: Path) -> None:
    small().save_pretrained(str(tmp_path), adapter=False)
    with pytest.raises(ValueError, match="takes 16 channels, and block_size 4, brightness 16 and colour 3 give 22"):
        PixelDiffusion(str(tmp_path), brightness=16).load("network")
