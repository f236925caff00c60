import base64
import io
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lit_modules.coda.augmentation.pipeline import PipelineResult
from lit_modules.coda.augmentation.report import write_report
from lit_modules.coda.backends.protocols import (
    BackendError,
    BatchChatModel,
    BudgetExhausted,
    ChatModel,
    ChatRequest,
    ImageGenerator,
    Prices,
    Reply,
    Usage,
    user_message,
)
from lit_modules.coda.backends.recorded import RecordedChat
from lit_modules.coda.backends.remote import BoundedEndpoint, Budget, RemoteChat, RemoteImages
from lit_modules.coda.core.store import Store
from tests.coda.fakes import FakeChat, FakeGenerator, discs, run_pipeline
from tests.scripted_server import ScriptedServer

KEY = "sk-secret-4711"
CUT_OFF = (200, {"Transfer-Encoding": "chunked"}), b'ff\r\n{"choices": [{"mess'
BUSY = (429, {"Retry-After": "0"}), {"error": {"message": "slow down"}}
THOUGHT = "<think>The options are Adder or Puff Adder; no horn, [0, 0].</think>\n\n"
HERE: dict[str, Any] = {"url": "http://127.0.0.1:1/v1", "model": "llava"}


def choice(message: dict[str, Any], **more: Any) -> tuple[int, Any]:
    return 200, {"choices": [{"message": message, **more}]}


def told(content: Any, inputs: int = 7, outputs: int = 3, **more: Any) -> tuple[int, Any]:
    status, data = choice({"content": content}, **more)
    return status, {**data, "model": "llava-1", "usage": {"prompt_tokens": inputs, "completion_tokens": outputs}}


def painted(picture: Image.Image) -> tuple[int, Any]:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return 200, {"data": [{"b64_json": base64.b64encode(file.getvalue()).decode()}]}


def script(*answers: tuple[Any, Any]) -> Callable[[dict[str, Any], int], tuple[Any, Any]]:
    return lambda request, number: answers[min(number, len(answers) - 1)]


def endpoint(server: ScriptedServer, **more: Any) -> BoundedEndpoint:
    return BoundedEndpoint(server.url, "llava", **{"pause": 0.001, "timeout": 5.0, "attempts": 4, **more})


def question(text: str = "What is it?", **more: Any) -> ChatRequest:
    return ChatRequest((user_message(text),), **more)


def ask(chat: RemoteChat, text: str = "What is it?") -> Reply:
    return chat.chat([user_message(text)], [], 5, 0.0)


def asked_text(request: dict[str, Any]) -> str:
    return str(request["messages"][-1]["content"][-1]["text"])


def shown(part: dict[str, Any]) -> Image.Image:
    head, _, coded = part["image_url"]["url"].partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return Image.open(io.BytesIO(base64.b64decode(coded, validate=True)))


def images_in(request: dict[str, Any]) -> list[Image.Image]:
    return [shown(part) for part in request["messages"][-1]["content"] if part["type"] == "image_url"]


def test_a_question_with_images_travels_in_one_request() -> None:
    first, second = Image.new("RGBA", (60, 30), "red"), Image.new("RGB", (4, 4), "blue")
    first.info["comment"] = "taken at home"
    text = {"type": "text", "text": "and"}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, text, {"type": "image"}]},
    ]
    with ScriptedServer(script(told("a disc"))) as server:
        chat: ChatModel = RemoteChat(endpoint(server), images_per_message=2, max_side=20, extra_body={"top_k": 1})
        reply = chat.chat(messages, [first, second], 9, 0.5, {"type": "array"}, 3)
    assert reply == Reply("a disc", "llava-1", Usage(7, 3))
    (request,) = server.requests
    parts = request["messages"][1]["content"]
    assert (server.paths, request["messages"][0], parts[1]) == (["/v1/chat/completions"], messages[0], text)
    assert (shown(parts[0]).size, shown(parts[0]).info, shown(parts[2]).size) == ((20, 10), {}, (4, 4))
    assert np.asarray(shown(parts[2])).tolist() == np.asarray(second).tolist()
    fields = {name: value for name, value in request.items() if name != "messages"}
    assert fields == {"model": "llava", "max_tokens": 9, "temperature": 0.5, "seed": 3, "top_k": 1}
    assert (chat.capabilities.images_per_message, chat.capabilities.structured_output) == (2, False)


def test_fields_follow_what_the_server_knows() -> None:
    schema = {"type": "array"}
    with ScriptedServer(script(told([{"type": "text", "text": "[1"}, {"type": "text", "text": "]"}]))) as server:
        usual = RemoteChat(endpoint(server), schema_field="response_format", omit=("temperature", "seed"))
        own = RemoteChat(endpoint(server), schema_field="guided_json", token_field="max_completion_tokens")
        replies = [reply for chat in (usual, own) for _, reply in chat.chat_many([question(schema=schema, seed=1)])]
        jpeg = RemoteChat(endpoint(server), image_format="JPEG")
        jpeg.chat([user_message("Which?", 1)], [Image.new("RGB", (8, 8))], 5, 0.0)
    assert [reply.text for reply in replies if isinstance(reply, Reply)] == ["[1]", "[1]"]
    first, second, third = server.requests
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    assert (first["response_format"], first["max_tokens"]) == (form, 1000)
    assert not {"temperature", "seed"} & set(first)
    assert (second["guided_json"], second["max_completion_tokens"], second["seed"]) == (schema, 1000, 1)
    assert images_in(third)[0].format == "JPEG"


def test_a_question_without_an_answer_fails_alone() -> None:
    def answer(request: dict[str, Any], number: int) -> Any:
        text = asked_text(request)
        filtered = told("", finish_reason="content_filter")
        refused = (400, {"error": {"message": "not allowed"}})
        return {"refused": refused, "unreadable": (200, [1]), "filtered": filtered}.get(text, told(text))

    with ScriptedServer(answer) as server:
        chat = RemoteChat(endpoint(server, max_concurrency=1))
        texts = ["one", "refused", "unreadable", "filtered", "two"]
        replies = [str(getattr(reply, "text", reply)) for _, reply in sorted(chat.chat_many([*map(question, texts)]))]  # type: ignore[arg-type]
        with pytest.raises(BackendError, match=r"llava refuses the request: HTTP 400 \(not allowed\)"):
            ask(chat, "refused")
    assert isinstance(chat, BatchChatModel)
    assert replies == [
        "one",
        "llava refuses the request: HTTP 400 (not allowed).",
        "llava gave no answer that can be used: the answer has no message.",
        "llava refuses the request: its content filter took the answer out.",
        "two",
    ]


def test_only_whole_answers_are_kept_and_what_was_refused_costs_nothing(tmp_path: Path) -> None:
    cut = told('["red", "bl', finish_reason="length")
    refusal = choice({"content": None, "refusal": "I can't\nhelp."})
    overloaded = (200, {"error": {"message": "Overloaded"}})
    answers = script(refusal, *[overloaded] * 4, cut, BUSY, CUT_OFF, told("yes"))
    with ScriptedServer(answers) as server, Store(tmp_path) as store:
        chat = RemoteChat(endpoint(server))
        replies = [RecordedChat(chat, store).ask_many([question()])[0] for _ in range(5)]
    assert "refuses the request: it says \"I can't help" in str(replies[0])
    assert "no answer that can be used: the provider reports an error: Overloaded" in str(replies[1])
    assert replies[2] == Reply('["red", "bl', "llava-1", Usage(7, 3), cut_off=True)  # used, and asked again
    assert [getattr(reply, "text", "") for reply in replies[3:]] == ["yes", "yes"]
    assert len(server.requests) == 9
    assert chat.endpoint.budget.used == {"calls": 8, "tokens": 20, "images": 0, "cost": 0.0}  # without the one too many


def test_answers_come_as_they_are_ready_and_few_are_under_way() -> None:
    release = threading.Event()

    def answer(request: dict[str, Any], number: int) -> Any:
        text = asked_text(request)
        if text == "0":
            release.wait(10)
        else:
            time.sleep(0.01)
        return told(text)

    with ScriptedServer(answer) as server:
        chat = RemoteChat(endpoint(server, max_concurrency=3))
        found = []
        for number, reply in chat.chat_many([question(str(number)) for number in range(12)]):
            assert isinstance(reply, Reply)
            assert reply.text == str(number)
            found.append(number)
            if len(found) == 11:
                release.set()  # the slow one holds up no other
        assert (server.most_busy, list(chat.chat_many([]))) == (3, [])
        shared = endpoint(server, max_concurrency=2)  # whoever uses it
        chats = [RemoteChat(shared), RemoteChat(shared)]
        threads = [threading.Thread(target=lambda c=chat: list(c.chat_many([question()] * 4))) for chat in chats]
        server.most_busy = 0
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (sorted(found), found[-1], server.most_busy, len(server.requests)) == (list(range(12)), 0, 2, 20)


def test_an_outage_fails_a_question_and_a_lasting_one_stops_the_run() -> None:
    with ScriptedServer(script(told("yes"), (503, {}))) as server:
        chat = RemoteChat(endpoint(server, attempts=2, max_concurrency=1))
        replies: list[Reply | BackendError] = []
        with pytest.raises(BudgetExhausted, match=r"answered HTTP 503 \({}\), 2 times"):
            replies.extend(reply for _, reply in chat.chat_many([question(str(number)) for number in range(20)]))
    assert [type(reply) for reply in replies] == [Reply, BackendError, BackendError]
    assert len(server.requests) == 1 + 3 * 2


@pytest.mark.parametrize(
    ("bounds", "requests", "message"),
    [
        ({"calls": 6}, 6, r"The budget of 6 calls is used up \(6\); go on later"),
        ({"tokens": 25}, 3, r"budget of 25 tokens is used up \(30\)"),
        ({"cost": 2.5, "prices": Prices(0.3, 0.0, 2e5)}, 3, r"budget of 2.5 cost is used up \(2.7"),
        ({"calls": 0}, 0, r"budget of 0 calls is used up \(0\)"),
    ],
)
def test_a_budget_stops_the_run_and_keeps_what_came(
    bounds: dict[str, Any], requests: int, message: str, tmp_path: Path
) -> None:
    asked = [question(str(number)) for number in range(10)]
    with ScriptedServer(script(told("yes"))) as server, Store(tmp_path) as store:
        poor = RemoteChat(endpoint(server, budget=Budget(**bounds), max_concurrency=1))
        with pytest.raises(BudgetExhausted, match=message):
            RecordedChat(poor, store).ask_many(asked)
        assert len(server.requests) == requests
        rich = RecordedChat(RemoteChat(endpoint(server)), store)
        assert {reply.text for reply in rich.ask_many(asked) if isinstance(reply, Reply)} == {"yes"}
        assert (rich.calls, len(server.requests)) == (10 - requests, 10)
    untold = pytest.raises(BudgetExhausted, match="llava does not tell the tokens of its answers")
    with ScriptedServer(script(choice({"content": "yes"}))) as server, untold:
        ask(RemoteChat(endpoint(server, budget=Budget(tokens=100))))


def test_images() -> None:
    picture = Image.new("RGB", (16, 8), "teal")
    cut = base64.b64decode(painted(picture)[1]["data"][0]["b64_json"])[:-45]
    damaged = (200, {"data": [{"b64_json": base64.b64encode(cut).decode()}]})
    answers = (*[damaged] * 3, CUT_OFF, painted(picture))
    request: tuple[Any, ...] = (5, 16, 8, 4)
    with ScriptedServer(script(*answers)) as server:
        budget = Budget(images=5, cost=10, prices=Prices(image=0.5))
        plain: ImageGenerator = RemoteImages(endpoint(server, attempts=5, budget=budget))
        made = plain.generate("a disc", None, *request, 0.0)
        assert np.asarray(made).tolist() == np.asarray(picture).tolist()
        assert (budget.used["images"], budget.used["cost"]) == (5, 2.5)
        with pytest.raises(BudgetExhausted, match="budget of 5 images is used up"):
            plain.generate("a disc", None, *request, 0.0)
        with pytest.raises(ValueError, match="llava takes no negative prompt, got 'text'; set guidance to 0"):
            plain.generate("a disc", "text", *request, 4.5)
        names = {"seed": "seed", "negative": "negative_prompt", "steps": "num_inference_steps"}
        more: dict[str, Any] = {"omit": ("response_format", "n"), "extra_body": {"style": "photo"}}
        able = RemoteImages(endpoint(server), fields=names, **more)
        able.generate("a disc", "text", *request, 4.5)
        able.generate("a disc", None, *request, 0.0)
    assert server.paths == ["/v1/images/generations"] * 7
    usual = {"model": "llava", "prompt": "a disc", "n": 1, "size": "16x8", "response_format": "b64_json"}
    own = {"model": "llava", "prompt": "a disc", "size": "16x8", "seed": 5, "num_inference_steps": 4, "style": "photo"}
    assert server.requests[0] == usual
    assert server.requests[5:] == [{**own, "negative_prompt": "text"}, own]


def test_images_come_in_several_forms_and_neither_addresses_nor_bombs_are_taken() -> None:
    picture = Image.new("RGB", (16, 8), "teal")
    coded = painted(picture)[1]["data"][0]["b64_json"]
    broken = "\n".join(coded[start : start + 20] for start in range(0, len(coded), 20))
    for form in ({"data": [{"b64_json": broken}]}, {"images": [f"data:image/png;base64,{coded}"]}):
        with ScriptedServer(script((200, form))) as server:
            made = RemoteImages(endpoint(server, attempts=1)).generate("a disc", None, 5, 16, 8, 4, 0.0)
        assert np.array_equal(np.asarray(made), np.asarray(picture))
    link = (200, {"data": [{"b64_json": None, "url": "http://127.0.0.1/image.png"}]})
    bomb = painted(Image.new("1", (10000, 9000)))
    for answer, message in (
        (link, "sends the address of an image and not the image; addresses are not"),
        (bomb, "what came is a decompression bomb: it has 10000 x 9000 pixels"),
    ):
        with ScriptedServer(script(answer)) as server:
            with pytest.raises(BackendError, match=message):
                RemoteImages(endpoint(server, attempts=1)).generate("a disc", None, 5, 16, 8, 4, 0.0)
            assert len(server.requests) == 1


@pytest.mark.parametrize("verifying", [False, True], ids=["features", "verification"])
@pytest.mark.parametrize("bad", ["Let me see, is it a", ""], ids=["cut off", "empty"])
def test_the_same_line_asks_again_when_the_provider_is_well(bad: str, verifying: bool, tmp_path: Path) -> None:
    task, fake = discs(tmp_path), FakeChat()

    def answer(request: dict[str, Any], ill: bool) -> Any:
        if ill and asked_text(request).startswith("Does this picture") == verifying:
            return choice({"content": bad}, finish_reason="length")
        if request["max_tokens"] < 200:  # a verifier that thinks first has room to
            return choice({"content": ""}, finish_reason="length")
        reply = fake.chat(request["messages"], images_in(request), request["max_tokens"], 0.0)
        return told(THOUGHT + reply.text)

    results = []
    for ill in (True, False):
        with ScriptedServer(lambda request, _, ill=ill: answer(request, ill)) as server:  # type: ignore[misc]
            chat = RemoteChat(endpoint(server, attempts=1), images_per_message=2)
            results.append(
                run_pipeline(tmp_path / "store", [task], chat=chat, kinds=("textual_contrastive",), retries=1)
            )
    assert [unit.accepted for unit in results[0].units] == [0, 0]
    assert all(unit.failure for unit in results[0].units)
    assert [unit.accepted for unit in results[1].units] == [2, 2]


def test_identities_tell_settings_apart_and_hold_no_address() -> None:
    one, moved = BoundedEndpoint(**HERE), BoundedEndpoint("http://127.0.0.2/v1", "llava")
    assert RemoteChat(one).identity == RemoteChat(moved).identity
    changed: list[dict[str, Any]] = [{}, {"revision": "b"}, {"extra_body": {"max_key_frames": 1}}]
    images = [*changed, {"fields": {"seed": "seed"}}]
    changed += [{"max_side": 9}, {"image_format": "JPEG"}, {"schema_field": "guided_json"}, {"omit": ["temperature"]}]
    for kind, given in ((RemoteChat, changed), (RemoteImages, images)):
        assert len({kind(one, **more).identity for more in given}) == len(given)
    with pytest.raises(ValueError, match=r"extra_body must hold no key, .* variable LIT_MODULES_API_KEY") as refused:
        RemoteChat(one, extra_body={"nested": [{"Authorization": KEY}]})
    assert KEY not in str(refused.value)
    with pytest.raises(ValueError, match=r"omit may name seed, temperature, got \('model',\)"):
        RemoteChat(one, omit=("model",))


def as_the_fakes(request: dict[str, Any], number: int) -> Any:
    """Answer as the fakes do, with troubles in between, and repeat the key."""
    troubles = {0: BUSY, 3: (500, {"error": f"broken for {KEY}"}), 5: CUT_OFF, 11: (200, b"nothing")}
    if number in troubles:
        return troubles[number]
    if "prompt" in request:
        width, height = map(int, request["size"].split("x"))
        return painted(FakeGenerator().generate(request["prompt"], None, request["seed"], width, height, 4, 0.0))
    images = images_in(request)
    reply = FakeChat().chat(request["messages"], images, request["max_tokens"], request["temperature"])
    return told(f"{reply.text} (for {KEY})" if images == [] else reply.text)


def test_the_pipeline_on_remote_models_stops_at_its_budget_goes_on_and_shows_no_key(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LIT_MODULES_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    task = discs(tmp_path)

    def run(server: ScriptedServer, folder: Path, budget: Budget | None = None) -> PipelineResult:
        shared = endpoint(server, max_concurrency=2, budget=budget)
        chat, images = RemoteChat(shared, images_per_message=2), RemoteImages(shared, fields={"seed": "seed"})
        result = run_pipeline(folder, [task], chat=chat, generator=images)
        write_report(Store(folder, writable=False), folder / "report.html")
        return result

    with ScriptedServer(as_the_fakes) as server:
        stopped = run(server, tmp_path / "store", Budget(calls=6))
        assert "budget of 6 calls is used up" in str(stopped.stopped)
        rest = run(server, tmp_path / "store")
    with ScriptedServer(as_the_fakes) as other:
        whole = run(other, tmp_path / "whole")
    assert (rest.stopped, whole.stopped, rest.units) == (None, None, whole.units)
    assert [(unit.accepted, unit.failure) for unit in rest.units] == [(2, None)] * 4
    assert set(server.keys) == {f"Bearer {KEY}"}
    reports = [(tmp_path / name / "report.html").read_bytes() for name in ("store", "whole")]
    for name in ("store", "whole"):
        (tmp_path / name / "report.html").unlink()
    hashes = [Store(tmp_path / name, writable=False).content_hashes() for name in ("store", "whole")]
    assert hashes[0] == hashes[1]
    written = b"".join([*reports, *(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())])
    assert b"(for ***)" in written
    assert KEY.encode() not in written
    assert "Request" in caplog.text  # httpx tells of its requests
    for text in (KEY, "authorization"):
        assert text not in f"{caplog.text} {''.join(capfd.readouterr())}".lower()
