from typing import Any

import pytest
import torch

from lit_modules.coda.core.conversations import (
    IGNORED,
    answer_tokens,
    check_conversation,
    check_images,
    check_processor,
    conversation,
    encode,
    llava_next_tokens,
    render,
)
from tests.coda.tiny_llava import PINPOINTS, model, picture, processor

PROMPTS = ["Puff Adder or Adder?", "Adder?"]
ANSWERS = ["Adder", "Puff Adder"]


@pytest.fixture(scope="module")
def tools() -> Any:
    return processor()


@pytest.fixture(scope="module")
def config(tools: Any) -> Any:
    return model(tools.tokenizer).config


def pictures() -> list[Any]:
    return [picture("red"), picture("blue", (60, 30))]


# --- exactly one image


@pytest.mark.parametrize(
    ("role", "images", "number", "message"),
    [
        ("user", 0, 1, "turn of the user must have exactly one image, got 0"),
        ("user", 2, 2, "turn of the user must have exactly one image, got 2"),
        ("assistant", 1, 1, "turn of the assistant must have no image, got 1"),
        ("user", 1, 2, "1 user turns must come with as many images, got 2"),
    ],
)
def test_a_user_turn_has_exactly_one_image(role: str, images: int, number: int, message: str) -> None:
    check_conversation(conversation("Which?", "Adder"), 1)
    with pytest.raises(ValueError, match=message):
        check_conversation([{"role": role, "content": [{"type": "image"}] * images}], number)


def test_text_cannot_bring_an_image_or_an_end(tools: Any) -> None:
    other = processor()
    for template, message in (
        ("{{ messages[0]['content'][1]['text'] }}", "exactly one place '<image>' for its image, got 0"),
        (None, "no chat template"),
    ):
        other.chat_template = template
        with pytest.raises(ValueError, match=message):
            render(other, "Which?")
    with pytest.raises(ValueError, match="exactly one place '<image>' for its image, got 2"):
        render(tools, "Is it an <image>?")
    with pytest.raises(ValueError, match="must hold neither '<image>' nor '</s>'"):
        render(tools, "Which?", "Adder</s>")
    with pytest.raises(ValueError, match="must not be empty"):
        render(tools, "Which?", " ")
    endless = processor()
    endless.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no eos_token"):
        render(endless, "Which?", "Adder")


def test_each_row_has_the_tokens_of_one_image(tools: Any, config: Any) -> None:
    batch = encode(tools, pictures(), PROMPTS, answers=ANSWERS, config=config)
    counts = (batch["input_ids"] == tools.image_token_id).sum(1).tolist()
    assert counts == [llava_next_tokens(config, 40, 40), llava_next_tokens(config, 30, 60)]
    assert len(batch["pixel_values"]) == 2


@pytest.mark.parametrize("size", [(40, 40), (10, 90), (90, 10), (33, 57), (57, 33), (28, 28), (200, 140)])
def test_image_tokens_are_as_many_as_the_model_makes_features(tools: Any, config: Any, size: tuple[int, int]) -> None:
    batch = encode(tools, [picture("red", size)], ["Which?"], config=config)
    network = model(tools.tokenizer)
    features = network.get_image_features(batch["pixel_values"], batch["image_sizes"]).pooler_output
    assert sum(len(feature) for feature in features) == llava_next_tokens(config, size[1], size[0])


def test_an_image_expanded_to_another_number_of_tokens_is_refused(config: Any) -> None:
    wrong = processor(patch_size=7)
    with pytest.raises(ValueError, match=r"image tokens of image 0 and the model \d+ features; patch_size"):
        encode(wrong, pictures(), PROMPTS, answers=ANSWERS, config=config)


def test_a_batch_with_another_number_of_images_is_refused(tools: Any) -> None:
    with pytest.raises(ValueError, match="one image for each question, got 1 for 2"):
        encode(tools, pictures()[:1], PROMPTS, answers=ANSWERS)
    batch = encode(tools, pictures(), PROMPTS)
    with pytest.raises(ValueError, match="made 1 images of 2; see its image_sizes"):
        check_images(tools, {**batch, "image_sizes": batch["image_sizes"][:1]}, 2)
    with pytest.raises(ValueError, match="made 1 images of 2; see its pixel_values"):
        check_images(tools, {"input_ids": batch["input_ids"], "pixel_values": torch.zeros(1, 3, 4, 4)}, 2)
    check_images(tools, {"input_ids": batch["input_ids"], "pixel_values": torch.zeros(7, 3, 4, 4)}, 2)  # tiles
    blind = torch.where(batch["input_ids"] == tools.image_token_id, 5, batch["input_ids"])
    with pytest.raises(ValueError, match="Row 0 of the batch has no image token"):
        check_images(tools, {**batch, "input_ids": blind}, 2)
    with pytest.raises(ValueError, match="one answer for each question, got 1 for 2"):
        encode(tools, pictures(), PROMPTS, answers=ANSWERS[:1])
    with pytest.raises(TypeError, match="must be PIL images, got Tensor; leave the datamodule's image_size"):
        encode(tools, [torch.zeros(3, 4, 4)] * 2, PROMPTS)  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("patch_size", None),
        ("patch_size", 7),
        ("vision_feature_select_strategy", None),
        ("num_additional_image_tokens", 0),
    ],
)
def test_a_processor_of_another_model_is_refused_by_field(config: Any, field: str, value: Any) -> None:
    check_processor(processor(), config)
    wrong = processor()
    setattr(wrong, field, value)
    with pytest.raises(ValueError, match=rf"^{field} of the processor is {value!r} and the model needs"):
        check_processor(wrong, config)
    wrong = processor()
    wrong.image_processor.image_grid_pinpoints = PINPOINTS[:1]
    with pytest.raises(ValueError, match="image_grid_pinpoints of the processor is"):
        check_processor(wrong, config)


# --- labels


def test_the_loss_is_on_the_answer_and_its_end_alone(tools: Any) -> None:
    batch = encode(tools, pictures(), PROMPTS, answers=ANSWERS)
    for labels, mask, answer in zip(batch["labels"], batch["attention_mask"], ANSWERS, strict=True):
        kept = labels != IGNORED
        assert tools.tokenizer.decode(labels[kept]) == f"{answer}</s>"
        assert bool((mask[kept] == 1).all())
        assert labels[int(mask.sum()) - 1] == tools.tokenizer.eos_token_id
    assert (batch["input_ids"] == tools.tokenizer.bos_token_id).sum(1).tolist() == [1, 1]
    training, asking = (each["attention_mask"] for each in (batch, encode(tools, pictures(), PROMPTS)))
    assert not bool(training.all() | asking.all())
    assert bool((training[:, 0] == 1).all() & (asking[:, -1] == 1).all())  # padded on the right, and on the left


def test_a_token_over_the_border_counts_to_the_answer(tools: Any) -> None:
    words = tools.tokenizer
    question, tail = "Puff Ad", "der</s>"
    assert words("Adder")["input_ids"] != words("Ad")["input_ids"] + words("der")["input_ids"]
    found = answer_tokens(words, question, tail, special=False)
    assert words.decode(found) == " Adder</s>"


def test_a_row_without_its_answer_is_refused_and_not_left_out_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    found = processor()
    original = type(found).__call__

    def cut(self: Any, **given: Any) -> Any:
        batch = original(self, **given)
        return {**batch, "attention_mask": batch["attention_mask"][:, :-3], "input_ids": batch["input_ids"][:, :-3]}

    monkeypatch.setattr(type(found), "__call__", cut)
    with pytest.raises(ValueError, match="does not end with the tokens of its answer"):
        encode(found, pictures(), PROMPTS, answers=ANSWERS)


# --- never cut off


def test_a_long_question_is_refused_with_the_length_that_it_needs(tools: Any) -> None:
    length = encode(tools, pictures(), PROMPTS, answers=ANSWERS)["input_ids"].shape[1]
    encode(tools, pictures(), PROMPTS, answers=ANSWERS, max_length=length)
    with pytest.raises(ValueError, match=rf"takes {length} tokens, and the model takes {length - 1}; it is never cut"):
        encode(tools, pictures(), PROMPTS, answers=ANSWERS, max_length=length - 1)


def test_a_tokenizer_that_cuts_off_does_not_here() -> None:
    found = processor()
    whole = encode(found, pictures(), PROMPTS, answers=ANSWERS)
    found.tokenizer.backend_tokenizer.enable_truncation(4)
    found.tokenizer.model_max_length = 4
    assert torch.equal(encode(found, pictures(), PROMPTS, answers=ANSWERS)["input_ids"], whole["input_ids"])
