import base64
import io
import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from lit_modules.metrics.judge import CRITERIA, Judge, JudgeComparison, JudgeScore
from lit_modules.synthia.core.images import as_array, data_uri
from lit_modules.synthia.judge.asking import (
    AskingJudge,
    NoAnswerError,
    comparison_question,
    read_scores,
    read_verdicts,
    score_question,
)
from lit_modules.synthia.judge.models import EndpointJudge, LocalJudge
from lit_modules.utils.endpoints import Endpoint, EndpointError
from tests.scripted_server import ScriptedServer, chat

FINE = json.dumps({"faithfulness": 5, "novelty": 4, "practicality": 3, "coherence": 1})


class Brightness(AskingJudge):
    """Rates by brightness, prefers the first of two equal pictures in practicality, and answers a bad way at first."""

    def __init__(self, bad: int = 0, bias: bool = False, retries: int = 2, workers: int = 1) -> None:
        super().__init__(retries, workers)
        self.bad, self.bias = bad, bias
        self.questions: list[str] = []

    def answer(self, question: str, images: Sequence[Tensor]) -> str:
        self.questions.append(question)
        if self.bad:
            self.bad -= 1
            return "It is a fine chair."
        light = [float(image.mean()) for image in images]
        if len(light) == 1:
            return json.dumps(dict.fromkeys(CRITERIA, 1 + round(4 * light[0])))
        better = "tie" if light[0] == light[1] else "first" if light[0] > light[1] else "second"
        return json.dumps({name: "first" if self.bias and name == "practicality" else better for name in CRITERIA})


def grey(*lights: float) -> Tensor:
    return torch.tensor(lights)[:, None, None, None].expand(-1, 3, 8, 8)


ASKED = [("sit", "keep_warm"), ("fly",)]


def test_scores_by_hand_with_the_affordances_in_the_question() -> None:
    judge = Brightness(workers=2)
    assert isinstance(judge, Judge)
    found = judge.score(grey(0.0, 0.75), ASKED)
    assert {name: value.tolist() for name, value in found.items()} == {name: [1.0, 4.0] for name in CRITERIA}
    assert sorted('["sit", "keep warm"]' in question for question in judge.questions) == [False, True]
    assert sorted('["fly"]' in question for question in judge.questions) == [False, True]
    assert '["sit", "keep warm"]' in comparison_question(ASKED[0])
    for name in CRITERIA:
        assert name in score_question(["sit"])


def test_both_orders_remove_a_liking_for_the_first_place() -> None:
    judge = Brightness(bias=True)
    found = judge.compare(grey(0.2, 0.5), grey(0.9, 0.5), ASKED)
    assert found["novelty"].tolist() == [0.0, 0.5]
    assert found["practicality"].tolist() == [0.5, 0.5]  # each order says first
    assert found["consistency"].tolist() == [0.75, 0.75]
    assert len(judge.questions) == 4
    assert Brightness().compare(grey(0.9), grey(0.2), ASKED[:1])["practicality"].tolist() == [1.0]


def test_a_useless_answer_is_asked_for_again_and_then_is_nan() -> None:
    judge = Brightness(bad=2)
    assert judge.score(grey(1.0), [("sit",)])["novelty"].tolist() == [5.0]
    assert "could not be read: it must hold a JSON object" in judge.questions[1]
    assert (judge.asked, judge.unanswered) == (1, 0)
    judge = Brightness(bad=2, retries=1)
    with pytest.warns(UserWarning, match="Brightness gave no useful answer, asked 2 times, which leaves NaN: it must"):
        found = judge.score(grey(1.0, 1.0), ASKED)
    assert math.isnan(float(found["novelty"][0]))
    assert float(found["novelty"][1]) == 5
    assert (judge.asked, judge.unanswered) == (2, 1)


def test_mean_scores_per_bin() -> None:
    score = JudgeScore(Brightness(bad=1, retries=0))
    with pytest.warns(UserWarning, match="no useful answer"):
        score.update(grey(0.0, 0.5, 1.0), {"affordances": [("sit",)] * 3, "stage": torch.tensor([0, 0, 2])})
    found = {name: float(value) for name, value in score.compute().items()}
    assert found["judge_novelty"] == 4
    assert found["judge_novelty/easy"] == 3
    assert found["judge_novelty/hard"] == 5
    assert found["judge_unanswered"] == pytest.approx(1 / 3)
    assert math.isnan(found["judge_coherence/medium"])


def test_shares_of_wins_per_bin() -> None:
    compared = JudgeComparison(Brightness())
    batch = {
        "affordances": [("sit",)] * 4,
        "pos": 2 * grey(0.5, 0.5, 0.5, 0.5) - 1,
        "stage": torch.tensor([0, 0, 1, 1]),
    }
    compared.update(grey(0.9, 0.5, 0.1, 0.1), batch)
    found = {name: float(value) for name, value in compared.compute().items()}
    assert [found[f"{kind}_coherence"] for kind in ("win", "tie", "loss")] == [0.25, 0.25, 0.5]
    assert found["preference_coherence"] == 0.375
    assert found["preference_coherence/easy"] == 0.75
    assert found["judge_unanswered"] == 0


@pytest.mark.parametrize(
    "answer",
    [
        FINE,
        f"```json\n{FINE}\n```",
        f'<think>{{"faithfulness": 1}} {{ hm }}</think> So: {FINE.replace("5", "5.0")} Done.',
        FINE.replace("4", '"4"'),
    ],
)
def test_scores_are_read_from_what_stands_around_them(answer: str) -> None:
    assert list(read_scores(answer).values()) == [5, 4, 3, 1]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "must hold a JSON object with faithfulness, novelty, practicality, coherence, got ''"),
        (FINE.replace("5", "6"), "faithfulness must be a whole number from 1 to 5, got '6'"),
        (FINE.replace("4", "4.5"), "novelty must be a whole number from 1 to 5, got '4.5'"),
        (FINE.replace("3", "true"), "practicality must be a whole number from 1 to 5, got 'True'"),
        (FINE.replace("coherence", "coherent"), "must hold a JSON object"),
        ("{" * 5000, "must hold a JSON object"),
    ],
)
def test_bad_scores_are_refused(answer: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_scores(answer)


def test_verdicts() -> None:
    text = json.dumps({"faithfulness": "First", "novelty": "second", "practicality": "tie", "coherence": "tie"})
    assert list(read_verdicts(text).values()) == [1, 0, 0.5, 0.5]
    with pytest.raises(ValueError, match='novelty must be "first", "second" or "tie", got \'A\''):
        read_verdicts(text.replace("second", "A"))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="retries must not be negative and workers at least 1, got -1 and 1"):
        Brightness(retries=-1)
    with pytest.raises(ValueError, match="affordances for each image, got 2 for 1 images"):
        Brightness().score(grey(1.0), ASKED)
    with pytest.raises(ValueError, match="got 2 for 2 and 1 images"):
        Brightness().compare(grey(1.0, 1.0), grey(1.0), ASKED)
    with pytest.raises(ValueError, match="a sequence of at least one name for each image, got"):
        Brightness().score(grey(1.0), ["sit"])
    with pytest.raises(ValueError, match="A judge needs batches with pos, got one with affordances"):
        JudgeComparison(Brightness()).update(grey(1.0), {"affordances": [("sit",)]})
    with pytest.raises(ValueError, match="A judge needs batches with affordances, got one with prompt"):
        JudgeScore(Brightness()).update(grey(1.0), {"prompt": ["a"]})


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("vlm")
    words = ["[PAD]", "<image>", "[UNK]", "User", "Assistant", ":", "sit", "novelty", "faithfulness", "5", "4"]
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(image_size=16, patch_size=8, **sizes),
            text_config=LlamaConfig(vocab_size=len(words), bos_token_id=None, eos_token_id=None, **sizes),
            image_token_index=1,
            vision_feature_layer=-1,
        )
        LlavaForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special: Any = {"pad_token": "[PAD]", "unk_token": "[UNK]", "additional_special_tokens": ["<image>"]}
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)  # type: ignore[no-untyped-call]
    template = (
        "{% for message in messages %}User: {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %} {% endfor %}Assistant:"
    )
    processor: Any = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        fast,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=template,
    )
    processor.save_pretrained(folder)
    return str(folder)


def test_a_local_model_is_asked_greedily(vlm: str) -> None:
    judge = LocalJudge(vlm, max_new_tokens=4, retries=0)
    told = judge.answer("sit", grey(0.2, 0.9))
    assert told == judge.answer("sit", grey(0.2, 0.9))
    assert len(told.split()) == 4
    with pytest.warns(UserWarning, match="LocalJudge gave no useful answer, asked 1 times"):
        assert judge.score(grey(0.5), [("sit",)])["novelty"].isnan().all()
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        LocalJudge(vlm, max_new_tokens=0)


def test_an_endpoint_sees_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    with ScriptedServer(lambda request, number: chat(FINE if number else "hm")) as server:
        judge = EndpointJudge(Endpoint(server.url, "vlm", "JUDGE_KEY"), enlarge_to=16, workers=1)
        scores = judge.score(grey(0.5), [("sit", "fly")])
    assert float(scores["practicality"]) == 3
    first, second = server.requests
    assert (first["model"], first["temperature"], server.keys[0]) == ("vlm", 0.0, "Bearer secret")
    words, picture = second["messages"][0]["content"]
    assert '["sit", "fly"]' in words["text"]
    head, coded = picture["image_url"]["url"].split(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(coded))) as image:
        assert image.size == (16, 16)
        assert image.getpixel((0, 0)) == (128, 128, 128)


def test_what_an_endpoint_refuses_is_nan_and_a_wrong_key_stops() -> None:
    def answer(request: dict[str, Any], number: int) -> tuple[int, Any]:
        return (400, {"error": {"message": "not this"}}) if "fly" in str(request["messages"]) else chat(FINE)

    refused = r"asked 1 times, .* the endpoint refuses the question \(HTTP 400 \(not this\)"
    with ScriptedServer(answer) as server:
        judge = EndpointJudge(Endpoint(server.url, "vlm"), temperature=None)
        with pytest.warns(UserWarning, match=refused):
            scores = judge.score(grey(0.5, 0.5), ASKED)
    assert scores["novelty"].isnan().tolist() == [False, True]
    assert judge.unanswered == 1
    with ScriptedServer(lambda *_: (401, {})) as server, pytest.raises(EndpointError, match="HTTP 401"):
        EndpointJudge(Endpoint(server.url, "vlm")).score(grey(0.5), [("sit",)])


def test_an_endpoint_that_stops_answering_is_given_up_after_three_questions() -> None:
    with ScriptedServer(lambda request, number: chat(FINE) if number == 0 else (503, {})) as server:
        judge = EndpointJudge(Endpoint(server.url, "vlm", attempts=2, pause=0.0), workers=1)
        assert judge.answer("?", grey(0.5)) == FINE
        for _ in range(2):
            with pytest.raises(NoAnswerError, match="HTTP 503"):
                judge.answer("?", grey(0.5))
        with pytest.raises(EndpointError, match="HTTP 503"):
            judge.answer("?", grey(0.5))
    with pytest.raises(ValueError, match="enlarge_to must be at least 1 pixel, got 0"):
        EndpointJudge(judge.endpoint, enlarge_to=0)


def test_images_as_arrays() -> None:
    image = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(0))
    array = as_array(image)
    assert (array == as_array(image.permute(1, 2, 0).numpy())).all()
    assert (as_array(array) == array).all()
    assert (as_array(torch.from_numpy(array).permute(2, 0, 1)) == array).all()
    with Image.open(io.BytesIO(base64.b64decode(data_uri(image, 5).split(",")[1]))) as opened:
        assert opened.size == (12, 6)
    with pytest.raises(ValueError, match=r"shape \(3, height, width\), got \(2, 4\)"):
        as_array(image[0])
    with pytest.raises(ValueError, match=r"An image must be in \[0, 1\], got -1 to"):
        as_array(image * 0 - 1)
