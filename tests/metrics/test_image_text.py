import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, CLIPModel, Dinov2Model

from lit_modules.metrics.image_text import (
    ImageTextEncoder,
    affordance_alignment,
    as_bytes,
    pairwise_distance,
    positive_negative_gap,
    recall_at_k,
    single_object_probability,
)


def pictures(count: int = 3, size: int = 20) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_clip_gives_the_unit_features_of_the_pictures_as_saved(clip: str) -> None:
    images = pictures()
    encoder = ImageTextEncoder(clip, batch_size=2)
    saved = [Image.fromarray(np.asarray(as_bytes(image).permute(1, 2, 0))) for image in images]
    pixels = AutoImageProcessor.from_pretrained(clip)(images=saved, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(clip).eval().get_image_features(pixel_values=pixels).pooler_output
    assert expected.shape == (3, encoder.num_features)
    torch.testing.assert_close(encoder.features(images), expected)
    unit = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(encoder.images(images), unit)
    torch.testing.assert_close(encoder.images([images[0], pictures(1, 24)[0]])[0], unit[0])
    torch.testing.assert_close(encoder.images(images, remember=True), unit)
    encoder.features = None  # type: ignore[method-assign, assignment]
    torch.testing.assert_close(encoder.images(images.flip(0), remember=True), unit.flip(0))  # encoded once


@pytest.mark.parametrize("remember", [True, False])
def test_no_image_is_an_empty_row(remember: bool, clip: str) -> None:
    assert ImageTextEncoder(clip).images(torch.empty(0, 3, 20, 20), remember).shape == (0, 6)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_phrases_do_not_depend_on_their_neighbours(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    together = ImageTextEncoder(folder, batch_size=2).texts(["sit", "an object used to store", "sit", "fly"])
    encoder = ImageTextEncoder(folder)
    assert together.shape == (4, encoder.num_features)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(together[0], together[2])
    for vector, phrase in zip(together, ["sit", "an object used to store", "sit", "fly"], strict=True):
        torch.testing.assert_close(encoder.texts([phrase])[0], vector, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[0], together[3], atol=1e-2)
    assert encoder.scale > 0


def test_long_texts_are_cut_off_with_a_warning(clip: str) -> None:
    with pytest.warns(UserWarning, match=r"reads 12 tokens and cuts off the rest of 1 longer texts, such as 'sit sit"):
        ImageTextEncoder(clip).texts(["sit " * 30, "sit"])


def test_dino_encodes_images_alone(dino: str) -> None:
    encoder, images = ImageTextEncoder(dino), pictures()
    pixels = AutoImageProcessor.from_pretrained(dino)(images=list(map(as_bytes, images)), return_tensors="pt")
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(dino).eval()(**pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(encoder.features(images), expected)
    assert (encoder.num_features, encoder.takes_phrases) == (8, False)
    with pytest.raises(ValueError, match=r"\(dinov2\) encodes images alone; this needs a model for images and texts"):
        encoder.texts(["sit"])


def test_alignment_and_recall_by_hand() -> None:
    images = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
    requested = torch.tensor([[True, True, False], [False, True, True]])
    mean, least = affordance_alignment(images, torch.eye(3), requested)
    torch.testing.assert_close(mean, torch.tensor([0.7, 0.5]))
    torch.testing.assert_close(least, torch.tensor([0.6, 0.0]))
    similarity = torch.tensor([[0.1, 0.9, 0.5], [0.9, 0.2, 0.1]])
    assert recall_at_k(similarity, requested, 1).tolist() == [0.5, 0.0]
    assert recall_at_k(similarity, requested, 2).tolist() == [0.5, 0.5]
    assert recall_at_k(similarity, requested, 3).tolist() == [1.0, 1.0]


def test_gap_and_single_object_by_hand() -> None:
    image = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    positives = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).expand(2, 2, 2)
    negatives = torch.tensor([[[0.6, 0.8], [1.0, 0.0]]]).expand(2, 2, 2)
    gap = positive_negative_gap(image, positives, negatives, torch.tensor([[True, False], [False, False]]))
    assert gap.tolist() == pytest.approx([0.5 - 0.6, math.nan], nan_ok=True)
    one, several = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    probability = single_object_probability(torch.tensor([[3.0, 4.0]]), one, several, scale=10.0)
    assert float(probability) == pytest.approx(1 / (1 + math.exp(2.0)))


def test_pairwise_distance_is_the_mean_over_pairs() -> None:
    vectors = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    group = torch.tensor([5, 2, 5, 5, 9, 2, 5])
    names, distance = pairwise_distance(vectors, group)
    expected = [
        [1 - torch.cosine_similarity(a, b, dim=0) for a, b in combinations(vectors[group == name], 2)]
        for name in (2, 5, 9)
    ]
    assert names.tolist() == [2, 5, 9]
    means = [float(sum(pairs) / len(pairs)) if pairs else math.nan for pairs in expected]
    assert distance.tolist() == pytest.approx(means, abs=1e-6, nan_ok=True)
    same = pairwise_distance(torch.ones(3, 2), torch.zeros(3, dtype=torch.int64))[1]
    assert float(same) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ImageTextEncoder("x", batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: as_bytes(-torch.ones(3, 2, 2)), r"An image must be in \[0, 1\], got -1 to -1; halve one"),
        (lambda: as_bytes(torch.ones(1, 2, 2)), r"of shape \(3, height, width\), got \(1, 2, 2\)"),
        (
            lambda: affordance_alignment(torch.ones(1, 2), torch.eye(2), torch.ones(1, 3)),
            r"requested must be of shape \(1, 2\), got \(1, 3\)",
        ),
        (lambda: recall_at_k(torch.ones(1, 2), torch.zeros(1, 2), 1), "at least one affordance for each image"),
        (lambda: recall_at_k(torch.ones(1, 2), torch.ones(1, 2), 3), "k must be from 1 to the 2 affordances, got 3"),
        (lambda: single_object_probability(torch.ones(1, 2), torch.ones(2), torch.ones(2), 0.0), "must be positive"),
    ],
)
def test_bad_input_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
