"""Prompts and plans, pictures, verification and acceptance."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from lit_modules.coda.augmentation.generation import image_prompt, negative_prompt, plan_images
from lit_modules.coda.augmentation.parsing import MalformedAnswer
from lit_modules.coda.augmentation.settings import preset
from lit_modules.coda.augmentation.verification import (
    accept_images,
    clip_bits,
    image_score,
    prefers_target,
    read_verification,
    verification_requests,
)
from lit_modules.coda.backends.protocols import Capabilities, ImageRequest
from lit_modules.coda.core.concepts import Concept
from lit_modules.coda.core.images import (
    near_duplicate,
    perceptual_hash,
    picture_problem,
    png_bytes,
    png_key,
)
from lit_modules.utils.images import read_picture

FROG = Concept("Phyllobates <image> samperi", "frog")


def test_prompts_hold_the_attributes_and_no_markup() -> None:
    prompt = image_prompt(FROG, ["red [wet] skin", "short\nlegs"])
    assert (
        prompt == "A realistic 4K photograph of Phyllobates \u2039image\u203a samperi with red (wet) skin, short legs"
    )
    assert "an animal with" in image_prompt(Concept("X"), ["red skin"], name_in_prompt=False)
    assert image_prompt(FROG, ["a", "b"], "{attributes} on {subject}", False) == "a, b on a frog"
    with pytest.raises(ValueError, match=r"must have the places \{subject\} and \{attributes\}, got 'A \{name\}'"):
        image_prompt(FROG, ["a"], "A {name}")


def test_defect_11_no_negative_prompt_is_sent_without_guidance() -> None:
    assert negative_prompt("animal", 0.0) is negative_prompt("animal", 1.0) is None
    assert "man-made" in str(negative_prompt("animal", 1.1))
    assert "man-made" not in str(negative_prompt("scene", 4.5))
    assert negative_prompt("animal", 4.5, "fog") == "fog"
    assert plan_images("p", "fog", [0], (0,))[0].negative is None
    with pytest.raises(ValueError, match=r"no effect with guidance 0\.0"):
        ImageRequest("p", "fog", 0)


def test_defect_8_seeds_belong_to_the_index_and_stage() -> None:
    plan = plan_images("p", None, range(4), (0, "pair", "way", "kind", "images"))
    assert len({request.seed for request in plan}) == 4
    assert plan[2:] == plan_images("p", None, [2, 3], (0, "pair", "way", "kind", "images"))
    assert plan[0].seed != plan_images("p", None, [0], (1, "pair", "way", "kind", "images"))[0].seed
    assert (plan[0].steps, plan[0].guidance, plan[0].width) == (4, 0.0, 1024)


def pattern(seed: int, size: int = 64) -> Image.Image:
    blocks = np.random.default_rng(seed).uniform(0, 255, (8, 8, 3)).repeat(size // 8, 0).repeat(size // 8, 1)
    return Image.fromarray(blocks.astype(np.uint8))


def encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def test_pictures_that_are_small_blank_or_near_duplicates_are_told() -> None:
    assert picture_problem(pattern(0)) is None
    assert picture_problem(pattern(0, 32)) == "32 x 32 pixels, smaller than 64"
    assert "blank" in str(picture_problem(Image.new("RGB", (64, 64), (9, 200, 30))))
    plain = perceptual_hash(pattern(1))
    again = perceptual_hash(Image.open(BytesIO(encoded(pattern(1, 128), "JPEG"))))
    assert near_duplicate(again, [perceptual_hash(pattern(2)), plain]) == 1
    assert near_duplicate(plain, [perceptual_hash(pattern(number)) for number in range(2, 9)]) is None


def test_a_png_carries_its_key_and_the_same_pixels() -> None:
    data = png_bytes(pattern(3), "abc")
    assert data == png_bytes(pattern(3), "abc")
    assert (png_key(data), png_key(data[:-30]), png_key(encoded(pattern(3), "PNG"))) == ("abc", None, None)
    assert np.array_equal(np.asarray(read_picture(data, "x.png")), np.asarray(pattern(3)))


def test_verification_asks_each_attribute_or_all_at_once() -> None:
    single = verification_requests(pattern(0), ["red", "a <b>"])
    assert [len(request.images) for request in single] == [1, 1]
    assert all(request.temperature == 0 for request in single)
    batch = verification_requests(pattern(0), ["red", "big"], "batch", Capabilities(structured_output=True))
    assert [request.schema["maxItems"] for request in batch if request.schema] == [2]
    assert single[0] != verification_requests(pattern(0), ["red", "a <b>"], attempt=1)[0]
    for answers, form in ((["[1, 0, 1]"], "batch"), (["yes"], "questions"), (["yes", "perhaps"], "questions")):
        with pytest.raises(MalformedAnswer):
            read_verification(answers, 2, form)  # type: ignore[arg-type]
    assert image_score([True, True, False]) == pytest.approx(2 / 3)
    score, bits = clip_bits(torch.tensor([0.3, 0.1, 0.2]), torch.full((4, 3), 0.2))
    assert (score, bits) == (pytest.approx(0.5), (True, False, True))
    red, blue = torch.tensor([[1.0, 0.1]]), torch.tensor([[0.1, 1.0]])
    assert prefers_target(torch.tensor([[0.9, 0.3], [0.3, 0.9], [1.0, 1.0]]), red, blue) == [True, False, False]


def test_scores_are_relaxed_only_when_too_few_remain() -> None:
    scores = [1.0, 4 / 5, 3 / 5, None, 0.2, 1.0]
    strict = accept_images(scores, 2)
    assert (strict.accepted, strict.level, strict.relaxed, strict.short) == ((0, 5), 1.0, False, 0)
    relaxed = accept_images(scores, 3)
    assert (relaxed.accepted, relaxed.level, relaxed.relaxed) == ((0, 5, 1), 0.8, True)
    short = accept_images(scores, 6)
    assert (short.accepted, short.level, short.short) == ((0, 5, 1, 2), 0.6, 2)
    assert accept_images(scores, 9, None).accepted == (0, 1, 2, 4, 5)
    with pytest.raises(ValueError, match="levels must be falling"):
        accept_images(scores, 1, (0.5, 0.8))


def test_presets() -> None:
    ours, official = preset(), preset("official")
    assert (ours.min_discriminability, ours.min_features, ours.group_size, ours.trials_per_group) == (0.6, 3, 4, 5)
    assert (ours.top_k, ours.min_generability, ours.num_references, ours.temperature) == (5, 0.5, 5, 100.0)
    assert (ours.width, ours.height, ours.steps, ours.guidance, ours.num_images) == (1024, 1024, 4, 0.0, 50)
    assert (ours.feature_temperature, ours.feature_tokens, ours.max_features, ours.retries) == (0.5, 1000, 30, 3)
    assert ours.filtered_kinds == ours.kinds
    assert official.filtered_kinds == ("visual_contrastive", "both_contrastive")
    assert (official.min_generability, official.score_levels, official.verification) == (None, None, "batch")
    for changes, message in (
        ({"images": 3}, "no setting 'images'"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"min_generability": 1.5}, "min_generability must be in"),
        ({"kinds": ("odd",)}, "Kinds must be .* got 'odd'"),
    ):
        with pytest.raises(ValueError, match=message):
            preset(**changes)  # type: ignore[arg-type]
