"""Models that think before they answer: what they are asked and trained on, and what is read of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_modules.coda.backends.local import LocalChat
from lit_modules.coda.backends.protocols import BackendError, ChatRequest, Reply, user_message
from lit_modules.coda.core.conversations import encode, render
from lit_modules.coda.core.image_text_models import generate
from lit_modules.metrics.few_shot import PairAccuracy
from lit_modules.synthia.judge.models import LocalJudge
from tests.coda.test_updating import Data, make, rows, scores_of, trainer
from tests.coda.tiny_llava import TEMPLATE, picture, processor, write

ALWAYS = "<|assistant|><think>\n"
SWITCH = (
    "<|assistant|>{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}"
)
CLOSED = "<|assistant|><think>\n\n</think>\n\n"


def template(opening: str) -> str:
    return TEMPLATE.replace("<|assistant|>{% endif %}", opening + "{% endif %}")


@pytest.mark.parametrize("opening", [ALWAYS, SWITCH])
def test_no_answer_is_trained_or_asked_for_inside_an_open_thought(opening: str) -> None:
    tools = processor()
    tools.chat_template = template(opening)
    question, tail = render(tools, "Adder or Puff Adder?", "Adder")
    assert question.endswith(CLOSED)
    assert tail == "Adder</s>"
    assert render(tools, "Adder or Puff Adder?") == (question, "")
    batch = encode(tools, [picture("red")], ["Which?"], answers=["Adder"])
    assert tools.tokenizer.decode(batch["input_ids"][0]).endswith(f"{CLOSED}Adder</s>")
    assert tools.tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100]) == "Adder</s>"


@pytest.mark.slow
@pytest.mark.parametrize("opening", [ALWAYS, SWITCH])
def test_an_answer_is_learnt_and_read_after_the_thought(opening: str, tmp_path: Path) -> None:
    model = write(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(template(opening))
    module = make(
        model, tuning="full", learning_rate=1e-2, projector_learning_rate=1e-2, metric=PairAccuracy(resamples=0)
    )
    trainer(tmp_path, max_epochs=1).fit(module, Data([rows()] * 80))
    assert module.answer(rows()["image"], rows()["prompt"]) == rows()["answer"]
    assert scores_of(tmp_path, module)["acc_macro"] == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("thinking"))


def scripted(folder: str, opening: str, *said: str) -> LocalChat:
    """Return a model with a template that begins answers, and if any are given, with these answers."""
    chat = LocalChat(folder, device="cpu")
    tools, network = chat._loaded
    tools.chat_template = template(opening)
    if said:
        texts = [f"{text}</s>" for text in said]
        settings = {"padding": True, "padding_side": "right", "add_special_tokens": False, "return_tensors": "pt"}
        tokens = tools.tokenizer(texts, **settings)["input_ids"]
        network.generate = lambda **inputs: torch.cat([inputs["input_ids"], tokens], 1)
    return chat


def test_thoughts_of_a_local_model_are_no_answers(folder: str) -> None:
    asked = [ChatRequest((user_message(f"Which {number}?"),), (), 9) for number in range(3)]
    chat = scripted(folder, ALWAYS, "Adder? No.</think>Puff Adder", "Adder? Or", "</think>Adder")
    first, open_, last = (reply for _, reply in sorted(chat.chat_many(asked), key=lambda pair: pair[0]))
    assert isinstance(first, Reply)
    assert isinstance(last, Reply)
    assert (first.text, last.text) == ("Puff Adder", "Adder")
    assert isinstance(open_, BackendError)
    assert "did not come to an answer; allow longer ones" in str(open_)
    chat = scripted(folder, "<|assistant|>", "<think>Adder?</think>Puff Adder", "Adder", "[THINK]no[/THINK]Adder")
    texts = [reply.text for _, reply in sorted(chat.chat_many(asked)) if isinstance(reply, Reply)]
    assert texts == ["Puff Adder", "Adder", "Adder"]


def test_answers_of_a_tuned_model_are_without_thoughts() -> None:
    words = processor().tokenizer
    said = words("<think>Adder?</think>Puff Adder</s>", add_special_tokens=False, return_tensors="pt")["input_ids"]

    class Network:
        generation_config = type("Settings", (), {"eos_token_id": words.eos_token_id})

        def generate(self, **given: Any) -> torch.Tensor:
            return torch.cat([given["input_ids"], said], 1)

    batch = {"input_ids": torch.ones(1, 4, dtype=torch.long)}
    assert generate(Network(), words, batch, max_new_tokens=9, temperature=0.0) == ["Puff Adder"]


def test_a_judge_on_this_machine_does_not_think_aloud(folder: str, tmp_path: Path) -> None:
    judge = LocalJudge(folder, max_new_tokens=3)
    tools, network = judge._load()
    tools.chat_template = template(SWITCH)
    asked = []

    def answer(**given: Any) -> torch.Tensor:
        asked.append(tools.tokenizer.decode(given["input_ids"][0]))
        said = tools.tokenizer("<think>a {}</think>{}", add_special_tokens=False, return_tensors="pt")["input_ids"]
        return torch.cat([given["input_ids"], said], 1)

    network.generate = answer
    assert judge.answer("?", [torch.rand(3, 30, 30)]) == "{}"
    assert asked[0].endswith(CLOSED)


def test_a_template_that_can_is_asked_not_to_think(folder: str) -> None:
    switched = scripted(folder, SWITCH)
    request = ChatRequest((user_message("Which?"),), ())
    assert switched._processor.tokenizer.decode(switched._inputs([request])["input_ids"][0]).endswith(CLOSED)
    assert switched.capabilities.thinks
    assert not scripted(folder, "<|assistant|>").capabilities.thinks
