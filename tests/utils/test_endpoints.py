import logging
import threading
import time
from typing import Any

import httpx
import pytest

from lit_modules.synthia.pairs.images import EndpointImages, reread
from lit_modules.utils.endpoints import AnswerError, Endpoint, EndpointError, RefusedError, read_chat
from tests.scripted_server import ScriptedServer, chat, image

KEY = "sk-secret-4711"


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_MODULES_API_KEY", f" {KEY}\n")


def endpoint(server: ScriptedServer, **more: Any) -> Endpoint:
    return Endpoint(server.url, "tiny", **{"pause": 0.001, "timeout": 5.0, "attempts": 4, **more})


def ask(server: ScriptedServer, **more: Any) -> str:
    def read(answer: str) -> str:
        if answer == "bad":
            raise ValueError("it is bad")
        return answer

    return endpoint(server, **more).chat([{"role": "user", "content": "hello"}], read, temperature=0.5)


def script(*answers: tuple[Any, Any]) -> Any:
    return lambda request, number: answers[min(number, len(answers) - 1)]


@pytest.mark.usefixtures("key")
def test_a_request_is_patient() -> None:
    busy = ((429, {"Retry-After": "0"}), {"error": {"message": "slow down"}})
    with ScriptedServer(script(busy, (503, b"<html>"), chat("bad"), chat("good"))) as server:
        assert ask(server) == "good"
    assert server.paths == ["/v1/chat/completions"] * 4
    messages = [{"role": "user", "content": "hello"}]
    assert server.requests[3] == {"model": "tiny", "messages": messages, "temperature": 0.5}
    assert server.keys == [f"Bearer {KEY}"] * 4


QUOTA = {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}
CUT = {"choices": [{"message": {"content": "A wide dome"}, "finish_reason": "length"}]}


@pytest.mark.parametrize(
    ("answer", "kind", "message", "requests"),
    [
        ((500, {"error": "broken"}), EndpointError, r"answered HTTP 500 \(broken\), 4 times; go on later with", 4),
        ((401, {"error": {"message": f"Wrong {KEY}"}}), EndpointError, r"401 \(Wrong \*\*\*\)\. Check .*_API_KEY", 1),
        ((500, f"no {KEY}".encode()), EndpointError, r"HTTP 500 \(no \*\*\*\), 4 times", 4),
        ((400, {"error": {"message": "not allowed"}}), RefusedError, r"HTTP 400 \(not allowed\)", 1),
        ((429, QUOTA), EndpointError, r"You exceeded your quota.*The account has nothing left; pay", 1),
        ((200, QUOTA), EndpointError, r"You exceeded your quota.*The account has nothing left; pay", 1),
        ((200, CUT), AnswerError, "cut off at the longest length that there is: 'A wide dome'", 1),
        (chat("bad"), AnswerError, "it is bad", 4),
        ((200, [1]), AnswerError, "the answer has no message", 4),
        ((200, b"<html>"), AnswerError, "the answer is no JSON: it begins with '<html>'", 4),
    ],
)
@pytest.mark.usefixtures("key")
def test_no_answer_is_an_error_in_the_words_of_the_provider_without_the_key(
    answer: Any, kind: type[Exception], message: str, requests: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with ScriptedServer(script(answer)) as server:
        with pytest.raises(kind, match=message) as caught:
            ask(server)
        assert len(server.requests) == requests
    assert KEY not in f"{caught.value!r} {caught.value.__cause__!r} {caplog.text}"


def choice(content: Any, more: dict[str, Any] | None = None, **message: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"content": content, **message}, **(more or {})}]}


THOUGHTS = [{"type": "thinking", "thinking": [{"type": "text", "text": "no"}]}, {"type": "reasoning", "text": "Puff?"}]


@pytest.mark.parametrize(
    "content",
    [
        "<think>The options are Adder or Puff Adder; no horn, [0, 0].</think>\n\nAdder",
        [*THOUGHTS, {"type": "text", "text": "Ad"}, {"type": "text", "text": "der"}],
    ],
)
def test_thoughts_are_no_part_of_an_answer(content: Any) -> None:
    assert read_chat(choice(content, reasoning_content="Puff Adder?")) == ("Adder", False)


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (choice(""), ValueError, "the answer has no text$"),
        (choice(None, reasoning_content="no no"), ValueError, "the answer has no text but thoughts"),
        (choice("", {"error": {"message": "Upstream"}}), ValueError, "the provider reports an error: Upstream"),
        (choice("", {"finish_reason": "length"}), AnswerError, "cut off when it had no text; allow it more tokens"),
        (choice("<think>Is", {"finish_reason": "length"}), AnswerError, "cut off when it had no text but thoughts"),
        (choice(None, refusal="I can't\nhelp."), RefusedError, "it says \"I can't help"),
        (choice("par", {"finish_reason": "content_filter"}), RefusedError, "its content filter took the answer out"),
    ],
)
def test_why_there_is_no_text(data: Any, kind: type[ValueError], message: str) -> None:
    with pytest.raises(kind, match=message):
        read_chat(data)


def test_an_answer_that_repeats_the_key_has_stars(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer(script(chat(f"Bearer {KEY}, EMPTY"))) as server:
        monkeypatch.setenv("LIT_MODULES_API_KEY", KEY)
        assert ask(server) == "Bearer ***, EMPTY"
        monkeypatch.setenv("LIT_MODULES_API_KEY", "EMPTY")  # no secret
        assert ask(server) == f"Bearer {KEY}, EMPTY"
    monkeypatch.setenv("LIT_MODULES_API_KEY", "two\nlines")
    with pytest.raises(EndpointError, match="LIT_MODULES_API_KEY must be plain printable text") as caught:
        ask(server)
    assert "lines" not in str(caught.value)


def test_a_server_that_is_silent_or_away() -> None:
    release = threading.Event()

    def silent(request: dict[str, Any], number: int) -> Any:
        release.wait(10)
        return chat("late")

    with ScriptedServer(silent) as server:
        server.server.handle_error = lambda *given: None  # type: ignore[method-assign]
        try:
            with pytest.raises(EndpointError, match=r"does not answer \(.*timed out.*\), 2 times"):
                ask(server, timeout=0.05, attempts=2)
        finally:
            release.set()
    with pytest.raises(EndpointError, match=r"does not answer \(.*refused.*\), 2 times"):
        ask(server, attempts=2)


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ({"Retry-After": "0.4"}, 0.4),
        ({"retry-after-ms": "300"}, 0.3),
        ({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"Retry-After": "Thu, 01 Jan 2099 00:00:00 GMT"}, 0.5),
        ({"Retry-After": "soon"}, 9.0),
    ],
)
def test_a_pause_is_the_one_that_the_endpoint_asks_for(headers: dict[str, str], wanted: float) -> None:
    found = Endpoint("http://127.0.0.1", "m", longest_pause=0.5)._requested_pause(httpx.Headers(headers), 9.0)
    assert found == pytest.approx(wanted)


@pytest.mark.usefixtures("key")
def test_redirections_are_not_followed_and_proxies_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        ScriptedServer(script(chat("stolen"))) as other,
        ScriptedServer(script(((307, {"Location": other.url}), {}), chat("by proxy"))) as server,
    ):
        with pytest.raises(EndpointError, match="answered HTTP 307"):
            ask(server)
        assert other.requests == []
        monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/v1"))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        assert Endpoint("http://models.invalid/v1", "m", attempts=1).chat([], str) == "by proxy"
    assert server.paths[1] == "http://models.invalid/v1/chat/completions"


def test_stopping_ends_a_pause() -> None:
    with ScriptedServer(script((429, {}))) as server:
        waiting = endpoint(server, pause=60.0)
        threading.Timer(0.1, waiting.stop).start()
        start = time.monotonic()
        with pytest.raises(EndpointError, match="given up, as the run was stopped"):
            waiting.chat([], str)
        assert time.monotonic() - start < 30


def test_images() -> None:
    no_image = (200, {"data": [{"b64_json": "aGVsbG8="}]})
    none = (200, {"data": [{"url": None}]})
    with ScriptedServer(script(no_image, none, (200, {"data": [{"b64_json": "?"}]}), image({}))) as server:
        data = EndpointImages(endpoint(server), 64)("a ring", 5)
    assert data.startswith(b"\x89PNG")
    assert server.paths == ["/v1/images/generations"] * 4
    asked = {"model": "tiny", "prompt": "a ring", "n": 1, "size": "64x64", "response_format": "b64_json"}
    assert server.requests[0] == asked
    with pytest.raises(ValueError, match="what came cannot be decoded: its header is damaged or cut off"):
        reread(b"GIF89a")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"url": "file:///etc/hosts"}, "must begin with http:// or https:// and a host, got"),
        ({"url": "http://me:secret@127.0.0.1/v1"}, "must hold no user, password, query"),
        ({"model": ""}, "model must name the endpoint's model"),
        ({"attempts": 0}, "attempts at least 1"),
    ],
)
def test_bad_input_is_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Endpoint(**{"url": "http://127.0.0.1", "model": "m", **more})
    assert "secret" not in str(caught.value)
