import base64
import json
import time
import urllib.parse
from html import escape
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lit_modules.coda.backends.protocols import BackendError, BudgetExhausted, user_message
from lit_modules.coda.backends.remote import BoundedEndpoint, RemoteChat
from lit_modules.utils.endpoints import Endpoint, EndpointError
from lit_modules.utils.keys import without_key
from tests.scripted_server import ScriptedServer
from tests.scripted_server import chat as said

KEY = 'sk-"Zq/9+\\w-4711&x%2<Yb7_kkP'
PLAIN = "sk-secret-4711"


def unicode(key: str) -> str:
    return "".join(f"\\u{ord(letter):04x}" for letter in key)


SPELLINGS = {
    "as it is": lambda key: key,
    "JSON": lambda key: json.dumps(key)[1:-1],
    "JSON in JSON": lambda key: json.dumps(json.dumps(key))[1:-1],
    "slashes": lambda key: json.dumps(key)[1:-1].replace("/", "\\/"),
    "unicode": unicode,
    "unicode in JSON": lambda key: json.dumps(unicode(key))[1:-1],
    "some unicode": lambda key: "".join(unicode(letter) if place % 3 else letter for place, letter in enumerate(key)),
    "address": lambda key: urllib.parse.quote(key, safe=""),
    "all of an address": lambda key: "".join(f"%{ord(letter):02X}" for letter in key),
    "address twice": lambda key: urllib.parse.quote(urllib.parse.quote(key, safe=""), safe=""),
    "HTML": escape,
    "HTML numbers": lambda key: "".join(f"&#{ord(letter)};" for letter in key),
    "base64": lambda key: base64.b64encode(key.encode()).decode(),
    "base64 of the header": lambda key: base64.b64encode(f"Bearer {key}".encode()).decode(),
    "base64 of user and key": lambda key: base64.b64encode(f"me:{key} ".encode()).decode(),
    "base64 of addresses": lambda key: base64.urlsafe_b64encode(f" {key}?".encode()).decode(),
    "base64 in lines": lambda key: "\\n".join(
        base64.b64encode(key.encode()).decode()[at : at + 5] for at in range(0, 60, 5)
    ),
    "hexadecimal": lambda key: key.encode().hex(),
    "hexadecimal bytes": lambda key: key.encode().hex(":").upper(),
    "two parts": lambda key: f'{key[:9]}", "{key[9:]}',
    "three lines": lambda key: f"{key[:5]}\\n{key[5:9]}\\r\\n\\t{key[9:]}",
    "letters": " ".join,
    "folded header": lambda key: f"Bearer {key[:4]}\r\n  {key[4:]}",
}


def letters_of(text: bytes) -> bytes:
    return bytes(letter for letter in text if bytes([letter]).isalnum())


@pytest.mark.parametrize("key", [KEY, PLAIN])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_usual_spelling_of_a_key_is_let_through(key: str, spelling: str) -> None:
    spelled = SPELLINGS[spelling](key)
    found = without_key(f"got {spelled} here".encode(), key)
    assert b"***" in found
    assert found.startswith(b"got ")
    assert found.endswith(b" here")
    left = letters_of(found[4:-5])
    whole = letters_of(spelled.encode())
    assert len(left) <= 13  # a header around the key, or line ends
    assert whole not in left


@pytest.mark.parametrize("cut", [(0, 8), (3, 11), (6, 14), (0, 13), (1, 14)])
def test_parts_of_a_key_are_hidden_too(cut: tuple[int, int]) -> None:
    part = PLAIN[slice(*cut)]
    assert without_key(f"Authorization: Bearer {part}".encode(), PLAIN) == b"Authorization: Bearer ***"
    assert without_key(f"<{part}...>".encode(), PLAIN) == b"<***...>"


def test_other_text_is_left_as_it_is_and_short_keys_too() -> None:
    text = rb'{"answer": "a \"secret\" of sk-47 \u0041 100%20 &amp; ***"}'
    assert without_key(text, PLAIN) == text
    assert without_key(b"abc abc", "abc") == b"abc abc"
    assert without_key(b"", PLAIN) == b""


@given(
    st.text(max_size=60),
    st.text(max_size=60),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40),
)
@example("\\", '"', KEY)
@settings(max_examples=80, deadline=None)
def test_json_stays_json_and_text_around_stays(before: str, after: str, key: str) -> None:
    answer = {"answer": [f"{before} {key} {after}", key]}
    for ascii_only in (True, False):
        data = json.dumps(answer, ensure_ascii=ascii_only).encode(errors="surrogatepass")
        found = without_key(data, key).decode(errors="surrogatepass")
        assert key not in json.loads(found)["answer"][0]
        assert json.loads(found)["answer"][1] == "***"


def test_large_pictures_take_no_long_time() -> None:
    coded = base64.b64encode(bytes(range(256)) * 4_000).replace(b"/", b"\\/")
    started = time.process_time()
    assert without_key(b'{"b64_json": "' + coded + b'"}', PLAIN) == b'{"b64_json": "' + coded + b'"}'
    assert time.process_time() - started < 10


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_echo_reaches_no_answer_and_no_error(spelling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_MODULES_API_KEY", PLAIN)
    spelled = SPELLINGS[spelling](PLAIN)
    forbidden = {letters_of(spelled.encode()).decode(), letters_of(PLAIN.encode()).decode()}

    def check(text: str) -> None:
        for form in (text, str(text).encode().decode("unicode_escape", errors="replace"), urllib.parse.unquote(text)):
            assert not any(own in letters_of(form.encode()).decode() for own in forbidden)
        assert "***" in text

    for raw in (True, False):
        # as part of the JSON that is sent, or as a text that JSON spells once more
        message = json.dumps(f"got {spelled} here") if not raw else f'"got {spelled} here"'
        answer = f'{{"choices": [{{"message": {{"content": {message}}}}}], "model": "m"}}'.encode()
        try:
            json.loads(answer, strict=True)
        except ValueError:
            continue  # not JSON when it is put there as it is
        if isinstance(json.loads(answer)["choices"][0]["message"]["content"], str):
            with ScriptedServer(lambda request, number, answer=answer: (200, answer)) as server:  # type: ignore[misc]
                chat = RemoteChat(BoundedEndpoint(server.url, "m", attempts=1))
                check(chat.chat([user_message("a")], [], 5, 0.0).text)
    errors: dict[int, Any] = {400: BackendError, 401: BudgetExhausted, 500: BudgetExhausted}
    for body in ({"error": {"message": f"got {spelled} here"}}, f"got {spelled} here".encode()):
        for status, kind in errors.items():
            with ScriptedServer(lambda request, number, one=(status, body): one) as server:  # type: ignore[misc]
                chat = RemoteChat(BoundedEndpoint(server.url, "m", attempts=1))
                with pytest.raises(kind) as caught:
                    chat.chat([user_message("a")], [], 5, 0.0)
                check(str(caught.value))
    with ScriptedServer(lambda request, number: said(f"got {spelled} here")) as server:
        check(Endpoint(server.url, "m", attempts=1).chat([], str))
    with ScriptedServer(lambda request, number: (403, {"error": f"got {spelled} here"})) as server:
        with pytest.raises(EndpointError) as refused:
            Endpoint(server.url, "m", attempts=1).chat([], str)
        check(str(refused.value))
