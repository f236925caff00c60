"""OpenAI-compatible endpoints of language and image models, asked with patience and with few requests at a time."""

import base64
import binascii
import http.client
import json
import os
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

from lit_modules.utils.keys import without_key
from lit_modules.utils.thoughts import without_thoughts

Answer = TypeVar("Answer")
_MOST_BYTES = 2**26
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
_STOP = frozenset({401, 403, 404, 405})
_UNPAID = frozenset({"insufficient_quota", "billing_hard_limit_reached", "402"})
_THINKING = frozenset({"thinking", "reasoning"})
_CONTENT = frozenset({"content_filter", "content_policy_violation", "moderation_blocked"})


class RefusedError(ValueError):
    """The endpoint refuses this one request.

    Args:
        message: Its reason.
        content: Whether the reason is what the request is about, so that it would be refused again.
    """

    def __init__(self, message: str, content: bool = False) -> None:
        super().__init__(message)
        self.content = content


class AnswerError(ValueError):
    """What the endpoint answered could not be used, and asking again in this run is of no use."""


class EndpointError(OSError):
    """The endpoint cannot be used: wrong key, address or model, or it does not answer."""


class Endpoint:
    """An OpenAI-compatible endpoint.

    A request that fails for a while (HTTP 429 and 5xx, no connection, no answer in time) is sent again after a pause
    that doubles, or the one that ``Retry-After`` asks for; so is one whose answer cannot be used, but not one for which
    the account has nothing left. Redirections are not followed, as they could lead the key elsewhere. What a model
    thinks before it answers is no part of the answer, and an answer that was cut off is none.

    Args:
        url: Address up to the version, such as ``"http://127.0.0.1:8000/v1"``.
        model: Name of the model.
        key_variable: Environment variable that holds the key; it may be unset for endpoints that need none. The key is
            kept nowhere else; where an answer or an error says it back, stars stand, see :mod:`lit_modules.utils.keys`.
        timeout: Seconds to wait for an answer.
        attempts: Times that a request is sent at most.
        pause: Seconds before the second attempt.
        longest_pause: Seconds of the longest pause.

    Raises:
        ValueError: If an argument is out of its range, or the address holds a password or a query.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_variable: str = "LIT_MODULES_API_KEY",
        timeout: float = 120.0,
        attempts: int = 6,
        pause: float = 1.0,
        longest_pause: float = 60.0,
    ) -> None:
        self.url = checked_url(url)
        if not model:
            raise ValueError("model must name the endpoint's model, got an empty name.")
        if timeout <= 0 or attempts < 1 or pause < 0 or longest_pause < 0:
            raise ValueError(
                "timeout must be positive, attempts at least 1 and pauses not negative, "
                f"got {timeout}, {attempts}, {pause} and {longest_pause}."
            )
        self.model = model
        self.key_variable = key_variable
        self.timeout, self.attempts, self.pause, self.longest_pause = timeout, attempts, pause, longest_pause
        self.stopped = threading.Event()
        self._opener = urllib.request.build_opener(_NoRedirect)

    def chat(self, messages: list[dict[str, str]], read: Callable[[str], Answer], **options: Any) -> Answer:
        """Ask a language model, until its answer can be read.

        Args:
            messages: Messages with ``role`` and ``content``.
            read: Reads the answer; raises ``ValueError`` if it cannot.
            options: Further fields of the request, such as ``temperature``.

        Raises:
            RefusedError: If the endpoint refuses the request.
            AnswerError: If the last answer could not be read.
            EndpointError: If the endpoint cannot be used.
        """

        def text(data: Any) -> Answer:
            told, cut_off = read_chat(data)
            if cut_off:
                raise AnswerError(f"the answer was cut off at the longest length that there is: {told[-80:]!r}")
            return read(told)

        return self._ask("chat/completions", {"messages": messages, **options}, text)

    def image(self, prompt: str, size: int, read: Callable[[bytes], Answer]) -> Answer:
        """Ask an image model for one image.

        Args:
            prompt: What the image shows.
            size: Side in pixels.
            read: Reads the file; raises ``ValueError`` if it cannot.

        Raises:
            RefusedError: If the endpoint refuses the request.
            AnswerError: If the last answer could not be read.
            EndpointError: If the endpoint cannot be used.
        """
        fields = {"prompt": prompt, "n": 1, "size": f"{size}x{size}", "response_format": "b64_json"}
        return self._ask("images/generations", fields, lambda data: read(read_image(data)))

    def stop(self) -> None:
        """Send nothing any more: requests that wait for their next attempt end at once."""
        self.stopped.set()

    def _ask(self, path: str, fields: dict[str, Any], read: Callable[[Any], Answer]) -> Answer:
        body = json.dumps({"model": self.model, **fields}).encode()
        for attempt in range(1, self.attempts + 1):
            if self.stopped.is_set():
                raise EndpointError(f"The request to {self.url} was given up, as the run was stopped.")
            last = attempt == self.attempts
            wait = min(self.longest_pause, self.pause * 2 ** (attempt - 1)) * random.uniform(0.75, 1.0)
            try:
                return read(self._data(self._send(path, body)))
            except (EndpointError, RefusedError, AnswerError):
                raise
            except urllib.error.HTTPError as error:
                said, codes = self._said(error)
                if codes & _UNPAID:
                    raise EndpointError(self._unpaid(f"answered HTTP {error.code}{said}")) from None
                if error.code in _STOP or 300 <= error.code < 400:
                    raise EndpointError(
                        f"{self.url} answered HTTP {error.code}{said}. Check the address, the model {self.model!r} and "
                        f"the key, which is read from the environment variable {self.key_variable} alone."
                    ) from None
                if error.code not in _AGAIN:
                    raise RefusedError(f"HTTP {error.code}{said}", bool(codes & _CONTENT)) from None
                if last:
                    raise EndpointError(
                        f"{self.url} answered HTTP {error.code}{said}, {attempt} times; go on later with the same line."
                    ) from None
                wait = self._asked_pause(error, wait)
            except ValueError as error:
                if last:
                    raise AnswerError(str(error)) from error
            except (OSError, http.client.HTTPException) as error:
                if last:
                    reason = getattr(error, "reason", error)
                    raise EndpointError(
                        f"{self.url} does not answer ({reason or type(error).__name__}), {attempt} times; go on later "
                        "with the same line."
                    ) from None
            self.stopped.wait(wait)
        raise EndpointError(f"{self.url} was not asked.")  # attempts is at least 1

    def _data(self, body: bytes) -> Any:
        """Return what an answer with HTTP 200 holds.

        Raises:
            EndpointError: If it says that the account is used up.
            ValueError: If it is no JSON, or says that something went wrong.
        """
        try:
            data = json.loads(body)
        except ValueError as error:
            raise ValueError(f"the answer is no JSON: it begins with {body[:80]!r}") from error
        if isinstance(data, dict) and data.get("error"):
            said, codes = _told(data["error"])
            if codes & _UNPAID:
                raise EndpointError(self._unpaid(f"answered: {said}"))
            raise ValueError(f"the provider reports an error: {said}")
        return data

    def _unpaid(self, said: str) -> str:
        return f"{self.url} {said}. The account has nothing left; pay, and go on with the same line."

    def _send(self, path: str, body: bytes) -> bytes:
        request = urllib.request.Request(f"{self.url}/{path}", body, {"Content-Type": "application/json"})
        key = self._key()
        if key:
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        with self._opener.open(request, timeout=self.timeout) as response:
            data: bytes = response.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError(f"the answer is longer than {_MOST_BYTES} bytes")
        return without_key(data, key)

    def _key(self) -> str:
        key = os.environ.get(self.key_variable, "").strip()
        if not (key.isascii() and key.isprintable()):
            # the library would show it in its own error
            raise EndpointError(
                f"The key in the environment variable {self.key_variable} must be plain printable text."
            )
        return key

    def _said(self, error: urllib.error.HTTPError) -> tuple[str, set[str]]:
        """Return what an answer says about its error, without the key, and the codes that it gives."""
        key, codes = self._key(), {str(error.code)}
        try:
            # before it is decoded or cut off, either of which may hide the key from a search
            text = without_key(error.read(4096), key).decode(errors="replace")
        except (OSError, http.client.HTTPException):
            return "", codes
        try:
            text, more = _told(json.loads(text)["error"])
            codes |= more
        except (ValueError, KeyError, TypeError):
            pass
        text = " ".join(text.split())
        text = without_key(text.encode(errors="replace"), key).decode(errors="replace")
        text = text.replace(key, "***") if key else text  # a short one too, as nothing hangs on the words of an error
        return (f" ({text[:200]})" if text else ""), codes

    def _asked_pause(self, error: urllib.error.HTTPError, wait: float) -> float:
        milliseconds, given = (error.headers.get(name, "") for name in ("retry-after-ms", "Retry-After"))
        try:
            asked = float(milliseconds) / 1000 if milliseconds else float(given)
        except ValueError:
            try:
                asked = max(0.0, (parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds())
            except (ValueError, TypeError):  # neither seconds nor a date
                return wait
        return min(self.longest_pause, asked) if asked >= 0 else wait


def read_chat(data: Any) -> tuple[str, bool]:
    """Return the text that a chat model answered, without its thoughts, and whether it was cut off.

    Args:
        data: Decoded answer of ``chat/completions``.

    Raises:
        RefusedError: If the model refuses, or a content filter took the answer out.
        AnswerError: If the answer was cut off before it said anything.
        ValueError: If there is no text; says the provider's reason where it gives one.

    Example:
        >>> read_chat({"choices": [{"message": {"content": "<think>A tail?</think>yes"}, "finish_reason": "stop"}]})
        ('yes', False)
    """
    choice, message = _entry(data, "choices", 0), _entry(data, "choices", 0, "message")
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise ValueError("the answer has no message")
    reason, refusal, content = choice.get("finish_reason"), message.get("refusal"), message.get("content")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict)]
        refusal = refusal or next((part["refusal"] for part in parts if part.get("refusal")), None)
        content = "".join(str(part.get("text", "")) for part in parts if part.get("type") not in _THINKING)
    if refusal:
        raise RefusedError(f"it says {' '.join(str(refusal).split())[:200]!r}", content=True)
    if reason == "content_filter":
        raise RefusedError("its content filter took the answer out", content=True)
    if reason == "error" or choice.get("error"):
        raise ValueError(f"the provider reports an error: {_told(choice.get('error') or 'it does not say which')[0]}")
    text = without_thoughts(content) if isinstance(content, str) else ""
    if not text:
        thoughts = " but thoughts" if content or message.get("reasoning_content") or message.get("reasoning") else ""
        if reason == "length":
            raise AnswerError(f"the answer was cut off when it had no text{thoughts}; allow it more tokens")
        raise ValueError(f"the answer has no text{thoughts}")
    return text, reason == "length"


def read_image(data: Any) -> bytes:
    """Return the file of the first image in an answer.

    Args:
        data: Decoded answer of ``images/generations``: a list ``data`` or ``images``, whose entries hold base64, with
            line breaks or as a ``data:`` URL too.

    Raises:
        AnswerError: If there is the address of an image alone.
        ValueError: If there is no image or no base64.
    """
    entry = _entry(data, "data", 0) or _entry(data, "images", 0)
    coded = (entry.get("b64_json") or entry.get("url")) if isinstance(entry, dict) else entry
    if not isinstance(coded, str):
        raise ValueError("the answer has no image as b64_json")
    if coded.startswith(("http://", "https://")):
        raise AnswerError(
            "it sends the address of an image and not the image; addresses are not followed, as an answer could name "
            "any. Set the endpoint to answer with b64_json"
        )
    if coded.startswith("data:"):
        coded = coded.partition(",")[2]
    try:
        return base64.b64decode("".join(coded.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"the image is no base64: {error}") from error


def _told(error: Any) -> tuple[str, set[str]]:
    """Return the words and the codes of a provider's error."""
    if not isinstance(error, dict):
        return str(error), set()
    codes = {str(error[name]) for name in ("code", "type") if error.get(name)}
    return str(error.get("message") or json.dumps(error)), codes


def checked_url(url: str) -> str:
    """Return an address of an endpoint without a slash at its end.

    Raises:
        ValueError: If it is none of HTTP, or holds a password, a query or a fragment, where keys may stand.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"The address of an endpoint must begin with http:// or https:// and a host, got {url!r}.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "The address of an endpoint must hold no user, password, query or fragment, as it is written down; give "
            f"the key by the environment variable. The host is {parts.hostname!r}."
        )
    return url.rstrip("/")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        """Follow no redirection, so that it becomes an error."""
        return


def _entry(data: Any, *path: str | int) -> Any:
    for step in path:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data
