"""Client of OpenAI-compatible endpoints of language and image models, with retries."""

import base64
import binascii
import json
import os
import random
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from lit_modules.utils.thoughts import without_thoughts

Answer = TypeVar("Answer")
_MAX_BYTES = 2**26
_SECRET_LENGTH = 8  # shorter keys, such as EMPTY for a local server, are no secrets and occur in texts by chance
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
_UNUSABLE = frozenset({401, 403, 404, 405})
_UNPAID = frozenset({"insufficient_quota", "billing_hard_limit_reached", "402"})
_CONTENT = frozenset({"content_filter", "content_policy_violation", "moderation_blocked"})
_THINKING = frozenset({"thinking", "reasoning"})


class RefusedError(ValueError):
    """The endpoint refuses this one request.

    Args:
        message: Its reason.
        content: Whether the reason is the content of the request, so that it would be refused again.
    """

    def __init__(self, message: str, content: bool = False) -> None:
        super().__init__(message)
        self.content = content


class AnswerError(ValueError):
    """The endpoint's answer is of no use, and asking again in this run would not help."""


class EndpointError(OSError):
    """The endpoint cannot be used: wrong key, address or model, or no answer."""


class Endpoint:
    """OpenAI-compatible endpoint.

    A request that fails for a while (HTTP 429 and 5xx, no connection, timeout), or whose answer cannot be read, is sent
    again after a pause that doubles, or that of ``Retry-After``; not so if the account is used up. Redirects are not
    followed, as they could lead the key elsewhere. The proxies of the environment (``HTTPS_PROXY``, ``NO_PROXY``) are
    used. Thoughts are no part of an answer, and an answer that was cut off is refused.

    Args:
        url: Address up to the version, such as ``"http://127.0.0.1:8000/v1"``.
        model: Name of the model.
        key_variable: Environment variable of the key; may be unset for endpoints that need none. The key is sent in a
            header, which is never logged, and stored nowhere; stars replace it where a server repeats it.
        timeout: Seconds to wait for an answer.
        attempts: Most times that a request is sent.
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
        self.model, self.key_variable = model, key_variable
        self.attempts, self.pause, self.longest_pause = attempts, pause, longest_pause
        self.stopped = threading.Event()
        self._client = httpx.Client(timeout=timeout, limits=httpx.Limits(max_connections=None))

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

        def read_text(data: Any) -> Answer:
            text, cut_off = read_chat(data)
            if cut_off:
                raise AnswerError(f"the answer was cut off at the longest length that there is: {text[-80:]!r}")
            return read(text)

        return self._ask("chat/completions", {"messages": messages, **options}, read_text)

    def image(self, prompt: str, size: int, read: Callable[[bytes], Answer]) -> Answer:
        """Ask an image model for one image of ``size`` x ``size`` pixels, until it can be read; see :meth:`chat`."""
        fields = {"prompt": prompt, "n": 1, "size": f"{size}x{size}", "response_format": "b64_json"}
        return self._ask("images/generations", fields, lambda data: read(read_image(data)))

    def stop(self) -> None:
        """Send nothing more; requests that wait for their next attempt end at once."""
        self.stopped.set()

    def without_key(self, text: str) -> str:
        """Return a text with stars in place of the key."""
        key = self._key()
        return text.replace(key, "***") if len(key) >= _SECRET_LENGTH else text

    def _ask(self, path: str, fields: dict[str, Any], read: Callable[[Any], Answer]) -> Answer:
        body = json.dumps({"model": self.model, **fields}).encode()
        for attempt in range(1, self.attempts + 1):
            if self.stopped.is_set():
                break
            last = attempt == self.attempts
            pause = min(self.longest_pause, self.pause * 2 ** (attempt - 1)) * random.uniform(0.75, 1.0)
            try:
                status, headers, content = self._send(path, body)
                if 200 <= status < 300:
                    return read(self._decode(content))
                failure = self._failure(status, content)
                if not isinstance(failure, str):
                    raise failure
                if last:
                    raise EndpointError(f"{failure}, {attempt} times; go on later with the same line.")
                pause = self._requested_pause(headers, pause)
            except (RefusedError, AnswerError):
                raise
            except ValueError as error:
                if last:
                    raise AnswerError(str(error)) from error
            except httpx.RequestError as error:
                if last:
                    raise EndpointError(
                        f"{self.url} does not answer ({str(error) or type(error).__name__}), {attempt} times; go on "
                        "later with the same line."
                    ) from None
            self.stopped.wait(pause)
        raise EndpointError(f"The request to {self.url} was given up, as the run was stopped.")

    def _send(self, path: str, body: bytes) -> tuple[int, Mapping[str, str], str]:
        """Return status, headers and content of the answer to one request, without the key."""
        headers = {"Content-Type": "application/json"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        content = bytearray()
        with self._client.stream("POST", f"{self.url}/{path}", content=body, headers=headers) as response:
            for part in response.iter_bytes():
                content += part
                if len(content) > _MAX_BYTES:
                    raise ValueError(f"the answer is longer than {_MAX_BYTES} bytes")
        text = content.decode(errors="strict" if response.is_success else "replace")
        return response.status_code, response.headers, self.without_key(text)

    def _key(self) -> str:
        key = os.environ.get(self.key_variable, "").strip()
        if not (key.isascii() and key.isprintable()):  # httpx would show it in its own error
            raise EndpointError(
                f"The key in the environment variable {self.key_variable} must be plain printable text."
            )
        return key

    def _decode(self, content: str) -> Any:
        """Parse an answer with HTTP 200.

        Raises:
            EndpointError: If it says that the account is used up.
            ValueError: If it is no JSON, or reports an error.
        """
        try:
            data = json.loads(content)
        except ValueError as error:
            raise ValueError(f"the answer is no JSON: it begins with {content[:80]!r}") from error
        if isinstance(data, dict) and data.get("error"):
            words, codes = _error_words(data["error"])
            if codes & _UNPAID:
                raise EndpointError(self._unpaid(f"answered: {words}"))
            raise ValueError(f"the provider reports an error: {words}")
        return data

    def _failure(self, status: int, content: str) -> Exception | str:
        """Return the error of an answer that is none, or a text if the request may be sent again."""
        words, codes = content, {str(status)}
        try:
            words, more = _error_words(json.loads(content)["error"])
            codes |= more
        except (ValueError, KeyError, TypeError):
            pass  # no JSON of the usual form: its own words
        words = self.without_key(" ".join(words.split()))
        answer = f"answered HTTP {status}" + (f" ({words[:200]})" if words else "")
        if codes & _UNPAID:
            return EndpointError(self._unpaid(answer))
        if status in _UNUSABLE or status < 400:
            return EndpointError(
                f"{self.url} {answer}. Check the address, the model {self.model!r} and the key, which is read from the "
                f"environment variable {self.key_variable} alone."
            )
        if status not in _RETRIED:
            return RefusedError(answer.removeprefix("answered "), bool(codes & _CONTENT))
        return f"{self.url} {answer}"

    def _unpaid(self, answer: str) -> str:
        return f"{self.url} {answer}. The account has nothing left; pay, and go on with the same line."

    def _requested_pause(self, headers: Mapping[str, str], pause: float) -> float:
        milliseconds, value = (headers.get(name, "") for name in ("retry-after-ms", "retry-after"))
        try:
            seconds = float(milliseconds) / 1000 if milliseconds else float(value)
        except ValueError:
            try:
                seconds = max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
            except (ValueError, TypeError):  # neither seconds nor a date
                return pause
        return min(self.longest_pause, seconds) if seconds >= 0 else pause


def read_chat(data: Any) -> tuple[str, bool]:
    """Return the text that a chat model answered, without its thoughts, and whether it was cut off.

    Args:
        data: Decoded answer of ``chat/completions``.

    Raises:
        RefusedError: If the model refuses, or a content filter removed the answer.
        AnswerError: If the answer was cut off before it had any text.
        ValueError: If there is no text; gives the provider's reason if there is one.

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
        words, _ = _error_words(choice.get("error") or "it does not say which")
        raise ValueError(f"the provider reports an error: {words}")
    text = without_thoughts(content) if isinstance(content, str) else ""
    if not text:
        thoughts = " but thoughts" if content or message.get("reasoning_content") or message.get("reasoning") else ""
        if reason == "length":
            raise AnswerError(f"the answer was cut off when it had no text{thoughts}; allow it more tokens")
        raise ValueError(f"the answer has no text{thoughts}")
    return text, reason == "length"


def read_image(data: Any) -> bytes:
    """Return the file of the first image in a decoded answer of ``images/generations``.

    The answer has a list ``data`` or ``images``, whose entries hold base64, with line breaks or as a ``data:`` URL too.

    Raises:
        AnswerError: If there is only the address of an image.
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


def checked_url(url: str) -> str:
    """Return the address of an endpoint without a slash at its end.

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


def _error_words(error: Any) -> tuple[str, set[str]]:
    """Return the words and the codes of a provider's error."""
    if not isinstance(error, dict):
        return str(error), set()
    codes = {str(error[name]) for name in ("code", "type") if error.get(name)}
    return str(error.get("message") or json.dumps(error)), codes


def _entry(data: Any, *path: str | int) -> Any:
    for step in path:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data
