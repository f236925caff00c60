from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lit_modules.coda import ChatRequest, LocalChat
from lit_modules.coda.backends.protocols import user_message
from lit_modules.coda.core.conversations import encode
from lit_modules.networks import Lesson, build_clip, build_llava, train_llava
from lit_modules.networks.tiny_llava import encode_lessons

LESSONS = [
    Lesson("Which colour?", "light", 0),
    Lesson("Which colour?", "dark", 1),
    Lesson("Name it.", '["unknown"]'),
]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.stack([torch.full((3, 32, 32), 230), torch.full((3, 32, 32), 20)]).to(torch.uint8)


@pytest.fixture(scope="module")
def built() -> tuple[Any, Any]:
    texts = [text for lesson in LESSONS for text in (lesson.question, lesson.answer)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_llava(*build_clip(texts, image_size=32, vocab_size=300), texts, ["Which colour?"], 300)


def as_picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def test_lessons_are_what_the_processor_and_the_update_make_of_them(built: tuple[Any, Any], images: Tensor) -> None:
    model, processor = built
    own = encode_lessons(processor, [Lesson("Which colour?", "light", 0), Lesson("It?", "dark", 1)], images)
    shown = [as_picture(image) for image in images]
    expected = encode(processor, shown, ["Which colour?", "It?"], answers=["light", "dark"], config=model.config)
    assert set(own) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(own[name], value, rtol=0, atol=1e-5)


def test_the_tower_is_that_of_the_clip_and_phrases_are_whole(built: tuple[Any, Any]) -> None:
    _, processor = built
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip, seen = build_clip(["a"], image_size=32, vocab_size=300)
        llava, _ = build_llava(clip, seen, ["a"])
    own = dict(llava.model.vision_tower.named_parameters())
    given = dict(clip.vision_model.named_parameters())
    assert own.keys() == given.keys()
    assert all(torch.equal(own[name], value) for name, value in given.items())
    assert processor.tokenizer.tokenize("Which colour?") == ["Which colour?"]
    assert processor.tokenizer.decode(processor.tokenizer("Which colour? Any.")["input_ids"]) == "Which colour? Any."


def test_it_learns_its_lessons_and_the_saved_one_answers(
    built: tuple[Any, Any], images: Tensor, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model, processor = built
    numbers: list[int] = []
    settings: dict[str, Any] = {"num_steps": 60, "batch_size": 8, "watch": lambda number, _: numbers.append(number)}
    losses = train_llava(model, processor, images, lambda random: random.choice(LESSONS), **settings)
    assert numbers == list(range(1, 61))
    assert losses[-1] < 0.05
    assert not any(parameter.requires_grad for parameter in model.model.vision_tower.parameters())
    folder = str(tmp_path_factory.mktemp("llava"))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    chat = LocalChat(folder, device="cpu")
    asked = [(user_message("Which colour?", 1), (as_picture(image),)) for image in images]
    asked.append((user_message("Name it."), ()))
    requests = [ChatRequest((message,), shown, 8) for message, shown in asked]
    answers = dict(chat.chat_many(requests))
    assert [answers[number].text for number in range(3)] == ["light", "dark", '["unknown"]']  # type: ignore[union-attr]
