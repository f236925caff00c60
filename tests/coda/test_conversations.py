import re
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
from tests.coda.families import FAMILIES
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


@pytest.mark.parametrize(
    ("template", "question", "answer", "message"),
    [
        (None, "Is it an <image>?", None, "exactly one place '<image>' for its image, got 2"),
        (None, "Which?", "Adder</s>", "must hold neither '<image>' nor '</s>'"),
        (None, "Which?", " ", "must not be empty"),
        ("{{ messages[0]['content'][1]['text'] }}", "Which?", None, "exactly one place '<image>' for its image, got 0"),
        ("", "Which?", None, "no chat template"),
    ],
)
def test_text_cannot_bring_an_image_or_an_end(
    template: str | None, question: str, answer: str | None, message: str
) -> None:
    tools = processor()
    if template is not None:
        tools.chat_template = template
    with pytest.raises(ValueError, match=message):
        render(tools, question, answer)


@pytest.mark.parametrize("size", [(40, 40), (10, 90), (90, 10), (33, 57), (57, 33), (28, 28), (200, 140)])
def test_image_tokens_are_as_many_as_the_model_makes_features(tools: Any, config: Any, size: tuple[int, int]) -> None:
    batch = encode(tools, [picture("red", size)], ["Which?"], config=config)
    network = model(tools.tokenizer)
    features = network.get_image_features(batch["pixel_values"], batch["image_sizes"]).pooler_output
    assert sum(len(feature) for feature in features) == llava_next_tokens(config, size[1], size[0])
    assert int((batch["input_ids"] == tools.image_token_id).sum()) == llava_next_tokens(config, size[1], size[0])


def test_a_batch_that_does_not_fit_is_refused(tools: Any, config: Any) -> None:
    batch = encode(tools, pictures(), PROMPTS)
    blind = torch.where(batch["input_ids"] == tools.image_token_id, 5, batch["input_ids"])
    cases: list[tuple[Any, str]] = [
        (lambda: encode(tools, pictures()[:1], PROMPTS), "one image for each question, got 1 for 2"),
        (lambda: encode(tools, pictures(), PROMPTS, answers=ANSWERS[:1]), "one answer for each question, got 1 for 2"),
        (
            lambda: encode(processor(patch_size=7), pictures(), PROMPTS, config=config),
            r"image tokens of image 0 and th",
        ),
        (lambda: check_images(tools, {**batch, "image_sizes": batch["image_sizes"][:1]}, 2), "1 images of 2; see its"),
        (lambda: check_images(tools, {**batch, "input_ids": blind}, 2), "Row 0 of the batch has no image token"),
    ]
    for build, message in cases:
        with pytest.raises(ValueError, match=message):
            build()
    with pytest.raises(TypeError, match="must be PIL images, got Tensor; leave the datamodule's image_size"):
        encode(tools, [torch.zeros(3, 4, 4)] * 2, PROMPTS)  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("patch_size", 7),
        ("image_grid_pinpoints", PINPOINTS[:1]),
        ("vision_feature_select_strategy", None),
        ("num_additional_image_tokens", 0),
    ],
)
def test_a_processor_of_another_model_is_refused_by_field(config: Any, field: str, value: Any) -> None:
    check_processor(processor(), config)
    wrong = processor()
    setattr(wrong.image_processor if field == "image_grid_pinpoints" else wrong, field, value)
    with pytest.raises(ValueError, match=rf"^{field} of the processor is {re.escape(repr(value))} and the model needs"):
        check_processor(wrong, config)


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
    assert words.decode(answer_tokens(words, question, tail, special=False)) == " Adder</s>"


def test_a_row_without_its_answer_is_refused_and_not_left_out_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = processor()
    original = type(tools).__call__

    def cut(self: Any, **given: Any) -> Any:
        batch = original(self, **given)
        return {**batch, "attention_mask": batch["attention_mask"][:, :-3], "input_ids": batch["input_ids"][:, :-3]}

    monkeypatch.setattr(type(tools), "__call__", cut)
    with pytest.raises(ValueError, match="does not end with the tokens of its answer"):
        encode(tools, pictures(), PROMPTS, answers=ANSWERS)


def test_a_long_question_is_refused_with_its_length_and_never_cut_off(tools: Any) -> None:
    length = encode(tools, pictures(), PROMPTS, answers=ANSWERS)["input_ids"].shape[1]
    encode(tools, pictures(), PROMPTS, answers=ANSWERS, max_length=length)
    with pytest.raises(ValueError, match=rf"takes {length} tokens, and the model takes {length - 1}; it is never cut"):
        encode(tools, pictures(), PROMPTS, answers=ANSWERS, max_length=length - 1)
    short = processor()
    short.tokenizer.backend_tokenizer.enable_truncation(4)
    short.tokenizer.model_max_length = 4
    assert encode(short, pictures(), PROMPTS, answers=ANSWERS)["input_ids"].shape[1] == length


@pytest.mark.parametrize(
    ("family", "begin", "question", "gap", "end"),
    [
        ("PaliGemma", "<bos>", "answer en {}\n", "", "<eos>"),
        ("BLIP-2 (OPT)", "</s>", "Question: {} Answer:", " ", "</s>"),
        ("InstructBLIP", "<s>", "Question: {} Short answer:", " ", "</s>"),
    ],
)
def test_models_without_a_template_are_asked_as_their_cards_say(
    family: str, begin: str, question: str, gap: str, end: str
) -> None:
    _, tools = FAMILIES[family]()
    words = tools.tokenizer

    def said(tokens: Any) -> str:
        return str(words.decode(tokens, clean_up_tokenization_spaces=False))

    batch = encode(tools, pictures(), PROMPTS, answers=ANSWERS)
    asked = encode(tools, pictures(), PROMPTS)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        wanted = "<image>" * 4 + begin + question.format(prompt)
        assert said(batch["input_ids"][row][batch["attention_mask"][row] == 1]) == f"{wanted}{gap}{answer}{end}"
        assert said(asked["input_ids"][row][asked["attention_mask"][row] == 1]) == wanted
        assert said(batch["labels"][row][batch["labels"][row] != IGNORED]) == f"{gap}{answer}{end}"
    assert "labels" not in asked
    if family == "PaliGemma":  # the prefix is read both ways, and the answer from the left
        assert torch.equal(batch["token_type_ids"] == 1, batch["labels"] != IGNORED)
        assert not bool(asked["token_type_ids"].any())
    if family == "InstructBLIP":  # its Q-Former is not told the answer, and reads from the same place always
        names = ("qformer_input_ids", "qformer_attention_mask")
        assert all(torch.equal(batch[name], asked[name]) for name in names)
        read = tools.qformer_tokenizer.decode(batch["qformer_input_ids"][0], skip_special_tokens=True)
        assert read.replace(" ", "") == question.format(PROMPTS[0]).lower().replace(" ", "")
        assert bool((batch["qformer_attention_mask"][:, 0] == 1).all())
    with pytest.raises(ValueError, match="exactly one place '<image>' for its image, got 2"):
        render(tools, "Is it an <image>?")


def test_an_encoder_decoder_is_refused(tools: Any) -> None:
    from transformers import T5Config

    with pytest.raises(ValueError, match=r"'t5' is an encoder-decoder, .* give a model whose text part is a decoder"):
        check_processor(tools, T5Config())
