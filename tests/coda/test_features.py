import pytest
from PIL import Image

from lit_modules.coda.augmentation.features import (
    KINDS,
    FeatureAnswer,
    FeatureKind,
    base_kinds,
    extract_features,
    feature_request,
    join_answers,
)
from lit_modules.coda.backends.protocols import Capabilities, ChatRequest, Reply
from lit_modules.coda.core.concepts import Concept

TARGET = Concept("Red Disc", knowledge_text="Rings [bright] of <image> red.")
OTHER = Concept("Blue Disc", aliases=("Azure Disc",))
PICTURE = Image.new("RGB", (8, 8))
TWO = Capabilities(images_per_message=2)


def text_of(request: ChatRequest) -> str:
    return str(request.messages[0]["content"][-1]["text"])


class Scripted:
    def __init__(self, *answers: str) -> None:
        self.answers, self.requests = list(answers), list[ChatRequest]()

    def __call__(self, request: ChatRequest) -> Reply:
        self.requests.append(request)
        return Reply(self.answers.pop(0), "scripted")


@pytest.mark.parametrize("kind", ["textual_plain", "visual_plain", "textual_contrastive", "visual_contrastive"])
def test_only_contrastive_questions_name_the_other_concept(kind: FeatureKind) -> None:
    request = feature_request(kind, TARGET, OTHER, PICTURE, PICTURE, TWO)
    assert '"Red Disc"' in text_of(request)
    assert ('"Blue Disc"' in text_of(request)) == kind.endswith("contrastive")
    images = {"textual_plain": 0, "textual_contrastive": 0, "visual_plain": 1, "visual_contrastive": 2}[kind]
    assert len(request.images) == images
    assert (request.temperature, request.max_new_tokens) == (0.5, 1000)


def test_the_other_image_is_shown_only_to_a_model_that_takes_two() -> None:
    one = feature_request("visual_contrastive", TARGET, OTHER, PICTURE, PICTURE, Capabilities(1))
    assert len(one.images) == 1
    assert "second picture" not in text_of(one)
    with pytest.raises(ValueError, match="needs a model that takes images"):
        feature_request("visual_plain", TARGET, OTHER, PICTURE, capabilities=Capabilities(0))
    able = feature_request("textual_plain", TARGET, OTHER, capabilities=Capabilities(structured_output=True))
    assert able.schema is not None
    assert one.schema is None


def test_markup_in_names_and_knowledge_adds_no_image_to_a_question() -> None:
    text = text_of(feature_request("textual_contrastive", TARGET, Concept("<image>\n[INST]{x}")))
    assert not set("<>{}\n") & set(text)
    assert "Rings (bright) of" in text
    assert '["unknown"]' in text  # the model may say that it does not know


def test_malformed_answers_are_asked_again_with_another_seed_three_times_at_most() -> None:
    ask = Scripted("I cannot help.", "", '["red rim"]')
    found = extract_features(ask, "textual_contrastive", TARGET, OTHER, seed_parts=(0, "pair"))
    assert (found.features, found.failure, len(found.raw)) == (("red rim",), None, 3)
    assert len({request.seed for request in ask.requests}) == 3
    assert "could not be read" in text_of(ask.requests[1])
    assert "could not be read" not in text_of(ask.requests[0])
    for answer, message in (("no", "holds no list of features"), ('["unknown"]', "no feature that can be used (unkno")):
        failing = Scripted(*[answer] * 9)
        failed = extract_features(failing, "textual_contrastive", TARGET, OTHER)
        assert (len(failing.requests), failed.features) == (4, ())
        assert message in str(failed.failure)
    ask = Scripted('["red disc rim", "unlike an azure disc", "thin rim"]')  # names and aliases do not leak
    assert extract_features(ask, "textual_contrastive", TARGET, OTHER).features == ("thin rim",)


def test_both_is_the_union_of_textual_and_visual() -> None:
    ask = Scripted('["red rim", "thin edge"]', '["Red rim", "dark core"]')
    found = extract_features(ask, "both_contrastive", TARGET, OTHER, PICTURE)
    assert found.features == ("red rim", "thin edge", "dark core")
    assert [base for kind in KINDS[:3] for base in base_kinds(kind)] == ["textual_plain", "visual_plain"] * 2
    half = extract_features(Scripted(*["?"] * 4, '["dark core"]'), "both_plain", TARGET, OTHER, PICTURE)
    assert (half.features, half.failure) == (("dark core",), None)
    answers = [FeatureAnswer("textual_plain", features) for features in (("a", "b", "c"), ("d", "e", "f"))]
    full = join_answers("both_plain", answers, max_features=4)  # which takes from both in turn
    assert full.features == ("a", "b", "d", "e")
    assert full.dropped == (("c", "after the first 4"), ("f", "after the first 4"))
