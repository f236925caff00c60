from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lit_modules.coda import ClipEmbedder
from lit_modules.networks import attribute_accuracy, build_clip, train_clip
from lit_modules.networks.tiny_clip import normalised

PHRASES = [["a red disc", "a blue disc"], ["a light ground", "a dark ground"]]


def pictures(number: int = 64) -> tuple[Tensor, Tensor]:
    """Discs of two colours on two grounds, with noise."""
    draws = torch.Generator().manual_seed(0)
    values = torch.randint(0, 2, (number, 2), generator=draws)
    images = torch.zeros(number, 3, 32, 32)
    images[:] = torch.where(values[:, 1, None, None, None] == 0, 200.0, 40.0)
    for row, (colour, _) in enumerate(values.tolist()):
        images[row, :, 8:24, 8:24] = 20.0
        images[row, 2 * colour, 8:24, 8:24] = 230.0
    return (images + 10 * torch.rand(images.shape, generator=draws)).to(torch.uint8), values


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, str]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = build_clip([text for group in PHRASES for text in group], image_size=32, vocab_size=300)
    images, values = pictures()
    losses = train_clip(model, processor, images, values, PHRASES, num_steps=40, batch_size=16)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    folder = str(tmp_path_factory.mktemp("clip"))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor, folder


def test_it_learns_attributes_and_the_saved_one_sees_the_same(trained: tuple[Any, Any, str]) -> None:
    model, processor, folder = trained
    images, values = pictures()
    assert min(attribute_accuracy(model, processor, images, values, PHRASES)) > 0.95
    loaded = ClipEmbedder(folder, device="cpu")
    shown = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images[:16]]
    cosines = loaded.embed_images(shown) @ loaded.embed_texts(PHRASES[0]).T
    assert torch.equal(cosines.argmax(1), values[:16, 0])


def test_pictures_are_treated_as_the_processor_treats_them(trained: tuple[Any, Any, str]) -> None:
    processor = trained[1]
    images, _ = pictures(3)
    own = processor.image_processor([Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images])
    expected = torch.stack([torch.as_tensor(row) for row in own["pixel_values"]])
    torch.testing.assert_close(normalised(processor, images), expected, rtol=0, atol=1e-5)


def test_a_text_is_summed_up_at_its_end(trained: tuple[Any, Any, str]) -> None:
    model, processor, _ = trained
    tokens = processor.tokenizer(["a red disc", "a red disc, a dark ground"], padding=True, return_tensors="pt")
    summed = model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    assert not torch.allclose(summed.pooler_output[0], summed.pooler_output[1], atol=1e-3)
    assert model.config.text_config.eos_token_id == processor.tokenizer.eos_token_id != 2


def test_wrong_arguments_are_refused(trained: tuple[Any, Any, str], tmp_path: Path) -> None:
    model, processor, _ = trained
    with pytest.raises(ValueError, match="image_size must be a positive multiple of 16, got 40"):
        build_clip(["a"], image_size=40)
    images, values = pictures(4)
    with pytest.raises(ValueError, match=r"values must be of shape \(4, 2\), got \(4, 1\)"):
        train_clip(model, processor, images, values[:, :1], PHRASES)
