import base64
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lit_modules.metrics.judge import CRITERIA, Judge, JudgeComparison, JudgeScore
from lit_modules.synthia.core.images import as_array
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
from tests.coda.tiny_llava import write
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


def test_mean_scores_and_shares_of_wins_per_bin() -> None:
    score = JudgeScore(Brightness(bad=1, retries=0))
    with pytest.warns(UserWarning, match="no useful answer"):
        score.update(grey(0.0, 0.5, 1.0), {"affordances": [("sit",)] * 3, "stage": torch.tensor([0, 0, 2])})
    found = {name: float(value) for name, value in score.compute().items()}
    assert found["judge_novelty"] == 4
    assert found["judge_novelty/easy"] == 3
    assert found["judge_novelty/hard"] == 5
    assert found["judge_unanswered"] == pytest.approx(1 / 3)
    assert math.isnan(found["judge_coherence/medium"])
    compared = JudgeComparison(Brightness())
    batch = {"affordances": [("sit",)] * 4, "pos": 2 * grey(*[0.5] * 4) - 1, "stage": torch.tensor([0, 0, 1, 1])}
    compared.update(grey(0.9, 0.5, 0.1, 0.1), batch)
    found = {name: float(value) for name, value in compared.compute().items()}
    assert [found[f"{kind}_coherence"] for kind in ("win", "tie", "loss")] == [0.25, 0.25, 0.5]
    assert (found["preference_coherence"], found["preference_coherence/easy"]) == (0.375, 0.75)
    assert found["judge_unanswered"] == 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "must hold a JSON object with faithfulness, novelty, practicality, coherence, got ''"),
        (FINE.replace("5", "6"), "faithfulness must be a whole number from 1 to 5, got '6'"),
        (FINE.replace("3", "true"), "practicality must be a whole number from 1 to 5, got 'True'"),
        ("{" * 5000, "must hold a JSON object"),
    ],
)
def test_bad_scores_are_refused(answer: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_scores(answer)


def test_answers_are_read_from_what_stands_around_them() -> None:
    thought = f'<think>{{"faithfulness": 1}} {{ hm }}</think> So: {FINE.replace("5", "5.0")} Done.'
    for answer in (FINE, f"```json\n{FINE}\n```", thought, FINE.replace("4", '"4"')):
        assert list(read_scores(answer).values()) == [5, 4, 3, 1]
    text = json.dumps({"faithfulness": "First", "novelty": "second", "practicality": "tie", "coherence": "tie"})
    assert list(read_verdicts(text).values()) == [1, 0, 0.5, 0.5]
    with pytest.raises(ValueError, match='novelty must be "first", "second" or "tie", got \'A\''):
        read_verdicts(text.replace("second", "A"))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="affordances for each image, got 2 for 1 images"):
        Brightness().score(grey(1.0), ASKED)
    with pytest.raises(ValueError, match="a sequence of at least one name for each image, got"):
        Brightness().score(grey(1.0), ["sit"])
    with pytest.raises(ValueError, match="A judge needs batches with pos, got one with affordances"):
        JudgeComparison(Brightness()).update(grey(1.0), {"affordances": [("sit",)]})
    with pytest.raises(ValueError, match=r"An image must be in \[0, 1\], got -1 to"):
        as_array(torch.full((3, 2, 4), -1.0))


def test_a_local_model_is_asked_greedily(tmp_path: Path) -> None:
    judge = LocalJudge(write(tmp_path, spread=0.3), max_new_tokens=4, retries=0)
    answers = [judge.answer("sit", grey(*lights)) for lights in ((0.2, 0.9), (0.2, 0.9), (0.9, 0.1))]
    assert answers[0] == answers[1] != answers[2]
    with pytest.warns(UserWarning, match="LocalJudge gave no useful answer, asked 1 times"):
        assert judge.score(grey(0.5), [("sit",)])["novelty"].isnan().all()


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
