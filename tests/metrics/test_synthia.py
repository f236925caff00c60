import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torchvision.utils import save_image

from lit_modules.metrics.concept_images import read_concept_images
from lit_modules.metrics.drift import Drift
from lit_modules.metrics.image_text import ImageTextEncoder
from lit_modules.metrics.synthia import (
    AffordanceCLIPScore,
    AffordanceRecall,
    Diversity,
    NoveltyDistance,
    PositiveNegativeGap,
    SingleObject,
    SynthiaScore,
)
from lit_modules.utils.ontology import Ontology

ONTOLOGY = {
    "schema_version": 1,
    "name": "few",
    "superordinates": {
        "furniture": {
            "sofa": {"affordances": {"main": ["sit"]}, "parts": {"leg": ["hold"]}},
            "night_stand": {"affordances": {"main": ["store"]}, "parts": {}},
        },
        "vehicle": {"drone": {"affordances": {"main": ["fly"]}, "parts": {}}},
    },
}


class FirstPixels(ImageTextEncoder):
    """An encoder whose vectors of an image are its first pixels, and that counts what it encodes."""

    scale = 2.0  # type: ignore[assignment]
    num_features = 3  # type: ignore[assignment]
    takes_phrases = True  # type: ignore[assignment]
    axes: ClassVar = {"sit": 0, "store": 1, "fly": 2, "hold": 2, "one object": 0, "several objects": 1}

    def __init__(self) -> None:
        self.seen = 0

    def features(self, images: Any) -> Tensor:
        self.seen += len(images)
        return torch.stack([image[:, 0, 0].float() for image in images]) if len(images) else torch.empty(0, 3)

    def images(self, images: Any, remember: bool = False) -> Tensor:
        return torch.nn.functional.normalize(self.features(images), dim=1)

    def texts(self, phrases: Any) -> Tensor:
        return torch.stack([torch.eye(3)[next(a for w, a in self.axes.items() if p.endswith(w))] for p in phrases])


def drawn(*vectors: tuple[float, float, float]) -> Tensor:
    return torch.tensor(vectors)[:, :, None, None].expand(-1, 3, 4, 4)


def ontology() -> Ontology:
    return Ontology.from_dict(ONTOLOGY)


def concept_images() -> dict[str, Tensor]:
    return {"sofa": drawn((1, 0, 0), (0.6, 0.8, 0)), "night stand": drawn((0, 1, 0))}


def batch(**more: Any) -> dict[str, Any]:
    rows = [("sit", "store"), ("fly",), ("sit",)]
    return {"affordances": rows, "stage": torch.tensor([0, 1, 2]), "pair_id": torch.tensor([4, 5, 6]), **more}


IMAGES = drawn((0.6, 0.8, 0), (1, 0, 0), (0, 0, 1))


pytestmark = pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")  # a metric without images is NaN


def numbers(metric: Any) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


def test_clip_score_and_recall_by_hand() -> None:
    encoder = FirstPixels()
    score, recall = AffordanceCLIPScore(encoder), AffordanceRecall(encoder, ontology(), k=2)
    for metric in (score, recall):
        metric.update(IMAGES, batch())
    found = numbers(score)
    assert found["clip_mean"] == pytest.approx((0.7 + 0 + 0) / 3)
    assert found["clip_min/easy"] == pytest.approx(0.6)
    assert found["clip_min/medium"] == pytest.approx(0)
    # fly, hold, sit, store: the second image is most like sit
    assert numbers(recall)["recall_at_2/easy"] == 1
    assert numbers(recall)["recall_at_2/hard"] == 0


def test_novelty_by_hand() -> None:
    encoder = FirstPixels()
    novelty = NoveltyDistance(encoder, ontology(), concept_images())
    with pytest.warns(UserWarning, match="No concept with images has fly"):
        novelty.update(IMAGES, batch())
    found = numbers(novelty)
    # compared with sofas and night stands, with nothing, with sofas
    assert found["novelty/easy"] == pytest.approx(0, abs=1e-6)
    assert found["mean_novelty/easy"] == pytest.approx(1 - (0.6 + 1 + 0.8) / 3)
    assert math.isnan(found["novelty/medium"])
    assert found["novelty/hard"] == pytest.approx(1)
    assert found["novelty"] == pytest.approx(0.5)
    nearest = novelty.nearest(drawn((0, 1, 0), (0, 1, 0), (0, 1, 0)), batch())
    assert [name for name, _ in nearest] == ["night_stand", "", "sofa"]
    assert nearest[2][1] == pytest.approx(0.8)
    by_part = NoveltyDistance(encoder, ontology(), concept_images(), level="all")
    by_part.update(IMAGES[2:], {"affordances": [("hold",)]})
    assert numbers(by_part)["novelty"] == pytest.approx(1)


def test_gap_and_single_object_by_hand() -> None:
    encoder = FirstPixels()
    gap, single = PositiveNegativeGap(encoder, bins=()), SingleObject(encoder, bins=())
    images = IMAGES[:1]
    pictures = {
        "pos": 2 * drawn((1, 0, 0)) - 1,
        "neg": 2 * drawn((0, 1, 0), (0, 0, 1))[None] - 1,
        "neg_mask": torch.ones(1, 2).bool(),
    }
    gap.update(images, {"affordances": [("sit",)], **pictures})
    gap.update(images, {"affordances": [("sit",)]})  # without pictures it does not count
    single.update(images, {})
    assert numbers(gap)["gap"] == pytest.approx(0.6 - 0.8)
    assert numbers(single)["single"] == pytest.approx(1 / (1 + math.exp(2 * (0.8 - 0.6))))


def test_diversity_joins_the_seeds_of_a_prompt() -> None:
    encoder = FirstPixels()
    diversity = Diversity(encoder)
    assert math.isnan(numbers(Diversity(encoder))["diversity"])
    diversity.update(IMAGES, batch())
    diversity.update(drawn((0.6, 0.8, 0), (0, 1, 0), (0, 0.6, 0.8)), batch())
    found = numbers(diversity)
    assert found["diversity/easy"] == pytest.approx(0, abs=1e-6)
    assert found["diversity/medium"] == pytest.approx(1)
    assert found["diversity/hard"] == pytest.approx(0.2)
    assert found["diversity"] == pytest.approx(0.4)


def test_all_numbers_from_one_encoding() -> None:
    encoder = FirstPixels()
    other = FirstPixels()
    pictures = {"pos": 2 * IMAGES - 1, "neg": 2 * IMAGES[:, None] - 1, "neg_mask": torch.ones(3, 1).bool()}
    rows = batch(affordances=[("sit", "store"), ("sit",), ("store",)], **pictures)
    score = SynthiaScore(encoder, ontology(), concept_images(), novelty_encoder=other, k=1)
    score.update(IMAGES, rows)
    score.update(IMAGES, rows)
    assert encoder.seen == 6
    assert other.seen == 6 + 12 + 3  # with positives and negatives, which this encoder does not remember, and concepts
    found = numbers(score)
    names = ("clip_mean", "clip_min", "recall_at_1", "single", "gap", "diversity", "novelty", "mean_novelty")
    assert set(found) == {f"{name}{bin}" for name in names for bin in ("", "/easy", "/medium", "/hard")}
    alone: Any
    for alone in (AffordanceCLIPScore(encoder), NoveltyDistance(encoder, ontology(), concept_images())):
        alone.update(IMAGES, rows)
        assert numbers(alone).items() <= found.items()
    score.reset()
    assert all(math.isnan(value) for value in numbers(score).values())
    assert not score.state_dict()


def test_with_a_model_of_images_and_texts(clip: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for name in ("furniture/sofa", "drone"):
        (tmp_path / name).mkdir(parents=True)
        save_image(torch.rand(3, 20, 20, generator=generator), tmp_path / name / "1.png")
    encoder = ImageTextEncoder(clip)
    score = SynthiaScore(encoder, ontology(), str(tmp_path), k=1)
    images = torch.rand(2, 3, 20, 20, generator=generator)
    rows = {"affordances": [("sit",), ("fly",)], "pair_id": torch.tensor([0, 0]), "stage": torch.tensor([0, 0])}
    score.update(images, rows)
    found = numbers(score)
    vectors = encoder.images(images)
    assert found["diversity"] == pytest.approx(1 - float(vectors[0] @ vectors[1]), abs=1e-5)
    texts = encoder.texts(["an object used to sit", "an object used to fly"])
    assert found["clip_mean"] == pytest.approx(float((vectors * texts).sum(1).mean()), abs=1e-5)
    assert 0 < found["novelty"] < 2


def test_drift_is_that_of_torchmetrics(clip: str) -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = torch.rand(8, 3, 16, 16, generator=generator), torch.rand(8, 3, 16, 16, generator=generator) ** 4
    encoder = ImageTextEncoder(clip)
    same, other = (Drift(encoder, before, subset_size=8, subsets=2) for _ in range(2))
    prompts = {"prompt": ["a photo of objects"] * 8}
    for metric, images in ((same, before), (other, after)):
        metric.update(images[:5], {"prompt": prompts["prompt"][:5]})
        metric.update(images[5:], {"prompt": prompts["prompt"][5:]})
    state = torch.random.get_rng_state()
    found = numbers(same)
    assert found["fid"] == pytest.approx(0, abs=1e-3)
    assert numbers(other)["fid"] > 10 * abs(found["fid"])
    assert numbers(other)["kid"] > found["kid"]
    assert torch.equal(state, torch.random.get_rng_state())
    fits = (encoder.images(before) @ encoder.texts(prompts["prompt"][:1])[0]).clamp(min=0).mean()
    assert found["clip"] == pytest.approx(100 * float(fits), abs=1e-3)
    assert all(math.isnan(value) for value in numbers(Drift(encoder, before)).values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: AffordanceRecall(FirstPixels(), ontology(), k=1).update(IMAGES[:1], {"affordances": [("sitt",)]}),
            "There is no affordance 'sitt' in the ontology; did you mean 'sit'",
        ),
        (
            lambda: SynthiaScore(FirstPixels(), ontology(), k=5),
            "k must be from 1 to the 4 affordances of the ontology, got 5",
        ),
        (
            lambda: AffordanceCLIPScore(FirstPixels()).update(IMAGES, {"affordances": ["sit", "store", "fly"]}),
            "a sequence of names for each of the 3 images",
        ),
        (lambda: Diversity(FirstPixels()).update(IMAGES, {}), "a pair_id for each of the 3 images"),
        (
            lambda: NoveltyDistance(FirstPixels(), ontology(), concept_images(), level="whole"),
            "level must be 'concept', 'part' or 'all', got 'whole'",
        ),
        (
            lambda: read_concept_images({"soffa": IMAGES}, ["sofa", "drone"]),
            "There is no concept 'soffa' in the ontology; did you mean 'sofa'",
        ),
        (lambda: read_concept_images({}, ["sofa"]), "at least one image of an existing concept, got none"),
        (lambda: read_concept_images("nowhere", ["sofa"]), "There is no folder nowhere of images"),
        (lambda: Drift(FirstPixels(), IMAGES[:1]), "reference must be at least 2 images, got 1"),
        (
            lambda: Drift(FirstPixels(), IMAGES, subsets=0),
            "subsets must be at least 1 and subset_size 2, got 0 and 100",
        ),
        (lambda: Drift(FirstPixels(), IMAGES).update(IMAGES, {"prompt": ["a"]}), "a prompt for each of the 3 images"),
    ],
)
def test_bad_input_is_refused(call: Any, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        call()
