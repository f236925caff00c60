import threading
import time
from typing import Any

import httpx
import pytest

from lit_modules.synthia.pairs.images import EndpointImages, reread
from lit_modules.utils.endpoints import AnswerError, Endpoint, EndpointError, RefusedError
from tests.scripted_server import ScriptedServer, chat, image

KEY = "sk-secret-4711"


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


def test_a_request_is_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_MODULES_API_KEY", f" {KEY}\n")
    busy = ((429, {"Retry-After": "0"}), {"error": {"message": "slow down"}})
    with ScriptedServer(script(busy, (503, b"<html>"), chat("bad"), chat("good"))) as server:
        assert ask(server) == "good"
    assert server.paths == ["/v1/chat/completions"] * 4
    assert server.requests[3] == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0.5,
    }
    assert server.keys == [f"Bearer {KEY}"] * 4


def test_patience_ends() -> None:
    with ScriptedServer(script((500, {"error": "broken"}))) as server:
        with pytest.raises(
            EndpointError, match=r"answered HTTP 500 \(broken\), 4 times; go on later with the same line"
        ):
            ask(server)
        assert len(server.requests) == 4
        assert server.keys[0] is None
    with pytest.raises(EndpointError, match=r"does not answer \(.*refused.*\), 2 times"):
        ask(server, attempts=2)


@pytest.mark.parametrize(
    "answer",
    [chat("bad"), (200, {"choices": []}), (200, [1]), (200, b"no json"), (200, b"\xff"), (200, {"choices": {}})],
)
def test_answers_that_cannot_be_read_are_asked_for_again(answer: Any) -> None:
    with ScriptedServer(script(answer)) as server:
        with pytest.raises(AnswerError):
            ask(server)
        assert len(server.requests) == 4


def test_a_server_that_is_silent() -> None:
    release = threading.Event()

    def silent(request: dict[str, Any], number: int) -> Any:
        release.wait(10)
        return chat("late")

    with ScriptedServer(silent) as server:
        try:
            with pytest.raises(EndpointError, match=r"does not answer \(.*timed out.*\), 2 times"):
                ask(server, timeout=0.05, attempts=2)
        finally:
            release.set()


def test_errors_that_will_not_go_away_and_the_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_MODULES_API_KEY", KEY)
    wrong = {"error": {"message": f"Incorrect key {KEY} provided"}}
    with ScriptedServer(script((401, wrong))) as server:
        with pytest.raises(
            EndpointError, match=r"HTTP 401 \(Incorrect key \*\*\* provided\)\. Check .*LIT_MODULES_API_KEY"
        ):
            ask(server)
        assert len(server.requests) == 1
    with ScriptedServer(script((400, {"error": {"message": "not allowed"}}))) as server:
        with pytest.raises(RefusedError, match=r"HTTP 400 \(not allowed\)"):
            ask(server)
        assert len(server.requests) == 1
    monkeypatch.setenv("LIT_MODULES_API_KEY", "two\nlines")
    with pytest.raises(EndpointError, match="LIT_MODULES_API_KEY must be plain printable text") as caught:
        ask(server)
    assert "lines" not in str(caught.value).replace("printable", "")


def test_an_account_that_is_used_up_is_not_asked_again() -> None:
    quota = {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}
    for answer in ((429, quota), (402, {"error": {"message": "You exceeded your quota"}}), (200, quota)):
        with ScriptedServer(script(answer)) as server:
            with pytest.raises(EndpointError, match=r"You exceeded your quota.*The account has nothing left; pay"):
                ask(server)
            assert len(server.requests) == 1


def test_an_answer_that_is_cut_off_is_none() -> None:
    cut = (200, {"choices": [{"message": {"content": "A wide dome"}, "finish_reason": "length"}]})
    with ScriptedServer(script(cut)) as server:
        with pytest.raises(AnswerError, match="cut off at the longest length that there is: 'A wide dome'"):
            ask(server)
        assert len(server.requests) == 1


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
    endpoint = Endpoint("http://127.0.0.1", "m", longest_pause=0.5)
    found = endpoint._requested_pause(httpx.Headers(headers), 9.0)
    assert found == pytest.approx(wanted)


def test_redirections_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_MODULES_API_KEY", KEY)
    with (
        ScriptedServer(script(chat("stolen"))) as other,
        ScriptedServer(script(((307, {"Location": other.url}), {}))) as server,
    ):
        with pytest.raises(EndpointError, match="answered HTTP 307"):
            ask(server)
        assert other.requests == []


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


def test_bad_input_is_refused() -> None:
    for url in ("file:///etc/hosts", "127.0.0.1:8000", "http://"):
        with pytest.raises(ValueError, match="must begin with http:// or https:// and a host, got"):
            Endpoint(url, "m")
    for url in ("http://me:secret@127.0.0.1/v1", "http://127.0.0.1/v1?key=secret"):
        with pytest.raises(ValueError, match="must hold no user, password, query") as caught:
            Endpoint(url, "m")
        assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="model must name the endpoint's model"):
        Endpoint("http://127.0.0.1", "")
    with pytest.raises(ValueError, match="attempts at least 1"):
        Endpoint("http://127.0.0.1", "m", attempts=0)
