"""Chat models and image generators behind OpenAI-compatible endpoints; images travel in the requests."""

import base64
import io
import json
import queue
import re
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

from PIL import Image

from lit_modules.coda.backends.bounded_endpoint import BoundedEndpoint, Budget
from lit_modules.coda.backends.protocols import (
    BackendError,
    BudgetExhausted,
    Capabilities,
    ChatRequest,
    Message,
    Reply,
    Usage,
)
from lit_modules.utils.endpoints import read_chat, read_image
from lit_modules.utils.images import read_picture

__all__ = ["BoundedEndpoint", "Budget", "RemoteChat", "RemoteImages"]

_SECRET = re.compile(r"(^|_)(api_?key|key|secret|password|authorization|auth_token|access_token)$", re.IGNORECASE)


class RemoteChat:
    """A chat model behind an OpenAI-compatible endpoint; images travel in the request, without their metadata.

    Its identity holds the model's name and the settings, and neither the address nor the key: the answers that a store
    keeps stay valid when a server moves.

    Args:
        endpoint: Address, model, budget and number of requests at a time.
        revision: What tells two models of the same name apart; part of the identity.
        images_per_message: Most images in a message that the model takes; 0 for one without vision.
        max_side: Longer images are scaled down to this longest side in pixels.
        image_format: ``"PNG"`` keeps every pixel, ``"JPEG"`` (quality 95) is smaller.
        schema_field: Field for the JSON schema of an answer; ``"response_format"`` sends it in the form of OpenAI, and
            any other name, such as ``"guided_json"``, as it is. ``None`` for servers that cannot obey one.
        token_field: Field for the longest answer; some models demand ``"max_completion_tokens"``.
        omit: Fields not to send, such as ``("temperature", "seed")`` for models that refuse them.
        extra_body: Further fields of each request; they hold no secret.

    Raises:
        ValueError: If an argument is out of its range, or a further field is one of the request or looks like a key.

    Example:
        >>> chat = RemoteChat(BoundedEndpoint("http://127.0.0.1:8000/v1", "llava"), omit=("seed",))
        >>> chat.identity.startswith("llava {"), "127.0.0.1" in chat.identity
        (True, False)
    """

    def __init__(
        self,
        endpoint: BoundedEndpoint,
        revision: str = "",
        images_per_message: int = 1,
        max_side: int = 1024,
        image_format: Literal["PNG", "JPEG"] = "PNG",
        schema_field: str | None = None,
        token_field: str = "max_tokens",
        omit: Collection[str] = (),
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        if images_per_message < 0 or max_side < 1:
            raise ValueError(
                f"images_per_message must not be negative and max_side at least 1, got {images_per_message} and "
                f"{max_side}."
            )
        if image_format not in ("PNG", "JPEG"):
            raise ValueError(f"image_format must be 'PNG' or 'JPEG', got {image_format!r}.")
        self.endpoint, self.images_per_message = endpoint, images_per_message
        self.max_side, self.image_format = max_side, image_format
        self.schema_field, self.token_field = schema_field, token_field
        self.omit = _omitted(omit, {"temperature", "seed"})
        self.extra_body = _checked_extra(endpoint, extra_body, {"model", "messages", token_field})
        self._identity = _identity(
            endpoint.model,
            revision=revision,
            max_side=max_side,
            image_format=image_format,
            schema_field=schema_field,
            omit=self.omit,
            extra_body=self.extra_body,
        )

    @property
    def identity(self) -> str:
        """Name of the model and all settings that shape an answer."""
        return self._identity

    @property
    def capabilities(self) -> Capabilities:
        """What the model can do."""
        return Capabilities(self.images_per_message, structured_output=self.schema_field is not None, thinks=True)

    def chat(
        self,
        messages: Sequence[Message],
        images: Sequence[Image.Image],
        max_new_tokens: int,
        temperature: float,
        schema: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> Reply:
        """Return the answer to one question.

        Raises:
            BackendError: If the model does not answer this question.
            BudgetExhausted: If the budget is used up or the endpoint cannot be used.
        """
        return self._answer(ChatRequest(tuple(messages), tuple(images), max_new_tokens, temperature, schema, seed))

    def chat_many(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Reply | BackendError]]:
        """Yield the number of a request with its answer, as soon as it is there; several are under way at a time.

        Raises:
            BudgetExhausted: If the budget is used up or the endpoint cannot be used, after the answers under way.
        """
        waiting = iter(enumerate(requests))
        done: queue.SimpleQueue[tuple[int, Reply | BackendError] | Exception | None] = queue.SimpleQueue()
        lock, halted = threading.Lock(), threading.Event()

        def work() -> None:
            while not halted.is_set():
                with lock:
                    number, request = next(waiting, (-1, None))
                if request is None:
                    break
                try:
                    done.put((number, self._answer(request)))
                except BackendError as error:
                    done.put((number, error))
                except Exception as error:
                    halted.set()
                    done.put(error)
            done.put(None)

        workers = min(self.endpoint.max_concurrency, len(requests))
        for _ in range(workers):  # daemons: an interrupted run need not wait for answers
            threading.Thread(target=work, daemon=True).start()
        problem: Exception | None = None
        try:
            while workers:
                found = done.get()
                if found is None:
                    workers -= 1
                elif isinstance(found, Exception):
                    problem = problem or found
                else:
                    yield found
        finally:
            halted.set()
        if problem is not None:
            raise problem

    def _answer(self, request: ChatRequest) -> Reply:
        fields: dict[str, Any] = {
            **self.extra_body,
            "messages": self._messages(request),
            self.token_field: request.max_new_tokens,
            "temperature": request.temperature,
        }
        if request.seed is not None:
            fields["seed"] = request.seed
        if request.schema is not None and self.schema_field is not None:
            schema = dict(request.schema)
            form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
            fields[self.schema_field] = form if self.schema_field == "response_format" else schema
        for name in self.omit:
            fields.pop(name, None)
        return self.endpoint.request("chat/completions", fields, self._read)

    def _messages(self, request: ChatRequest) -> list[dict[str, Any]]:
        images = iter(request.images)
        messages = []
        for message in request.messages:
            content = message["content"]
            if not isinstance(content, str):
                content = [self._picture(next(images)) if part["type"] == "image" else dict(part) for part in content]
            messages.append({**message, "content": content})
        return messages

    def _picture(self, image: Image.Image) -> dict[str, Any]:
        picture = image.convert("RGB")
        picture.info.clear()
        picture.thumbnail((self.max_side, self.max_side), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        picture.save(file, self.image_format, **({"quality": 95} if self.image_format == "JPEG" else {}))
        coded = base64.b64encode(file.getvalue()).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/{self.image_format.lower()};base64,{coded}"}}

    def _read(self, data: Any) -> Reply:
        usage = self._usage(data)
        text, cut_off = read_chat(data)
        name = data.get("model")
        model = name if isinstance(name, str) and name else self.endpoint.model
        return Reply(text, model, usage, cut_off=cut_off)

    def _usage(self, data: Any) -> Usage:
        told = data.get("usage") if isinstance(data, dict) else None
        counts = [told.get(name) if isinstance(told, dict) else None for name in ("prompt_tokens", "completion_tokens")]
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            if self.endpoint.budget.counts_tokens:
                raise BudgetExhausted(
                    f"{self.endpoint.model} does not tell the tokens of its answers, so no budget of tokens or of "
                    "their cost can be kept; give one of calls."
                )
            return Usage()
        usage = Usage(*(int(count or 0) for count in counts))
        self.endpoint.budget.add(usage)
        return usage


class RemoteImages:
    """An image generator behind an OpenAI-compatible endpoint.

    Many services know neither seeds nor steps, nor make the same picture twice; ``fields`` names what this one knows.
    The picture is of the size that the service gives it.

    Args:
        endpoint: Address, model, budget and number of requests at a time.
        revision: What tells two models of the same name apart; part of the identity.
        fields: The service's names of ``"negative"``, ``"seed"``, ``"steps"`` and ``"guidance"``, such as
            ``{"seed": "seed", "steps": "num_inference_steps"}``; what has no name is not sent.
        omit: Fields not to send: ``"size"``, ``"n"`` or ``"response_format"``, for services that refuse them.
        extra_body: Further fields of each request, such as a style; they hold no secret.

    Raises:
        ValueError: If an argument is out of its range, or a further field is one of the request or looks like a key.
    """

    def __init__(
        self,
        endpoint: BoundedEndpoint,
        revision: str = "",
        fields: Mapping[str, str] | None = None,
        omit: Collection[str] = (),
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        known = {"negative", "seed", "steps", "guidance"}
        self.fields = dict(fields or {})
        if not known.issuperset(self.fields):
            raise ValueError(f"fields may name {', '.join(sorted(known))}, got {sorted(self.fields)}.")
        self.endpoint = endpoint
        self.omit = _omitted(omit, {"size", "n", "response_format"})
        self.extra_body = _checked_extra(endpoint, extra_body, {"model", "prompt", *self.fields.values()})
        self._identity = _identity(
            endpoint.model, revision=revision, fields=self.fields, omit=self.omit, extra_body=self.extra_body
        )

    @property
    def identity(self) -> str:
        """Name of the model and all settings that shape a picture."""
        return self._identity

    def generate(
        self, prompt: str, negative: str | None, seed: int, width: int, height: int, steps: int, guidance: float
    ) -> Image.Image:
        """Return a picture.

        Raises:
            BackendError: If the service makes no picture for this prompt.
            BudgetExhausted: If the budget is used up or the endpoint cannot be used.
            ValueError: If there is a negative prompt and the service takes none.
        """
        if negative is not None and "negative" not in self.fields:
            raise ValueError(
                f"{self.endpoint.model} takes no negative prompt, got {negative!r}; set guidance to 0, or name the "
                "service's field in fields={'negative': ...}."
            )
        values = {"negative": negative, "seed": seed, "steps": steps, "guidance": guidance}
        request: dict[str, Any] = {
            "n": 1,
            "size": f"{width}x{height}",
            "response_format": "b64_json",
            **self.extra_body,
            "prompt": prompt,
            **{name: values[ours] for ours, name in self.fields.items() if values[ours] is not None},
        }
        for name in self.omit:
            request.pop(name, None)
        return self.endpoint.request(
            "images/generations", request, lambda data: read_picture(read_image(data), "what came")
        )


def _omitted(omit: Collection[str], allowed: set[str]) -> list[str]:
    if isinstance(omit, str) or not allowed.issuperset(omit):
        raise ValueError(f"omit may name {', '.join(sorted(allowed))}, got {omit!r}.")
    return sorted(omit)


def _checked_extra(endpoint: BoundedEndpoint, extra: Mapping[str, Any] | None, own: set[str]) -> dict[str, Any]:
    """Return further fields, which are part of the identity and so are written down."""
    found = dict(extra or {})
    if own.intersection(found):
        raise ValueError(f"extra_body must not hold {sorted(own.intersection(found))}; these are the request's own.")
    text = json.dumps(found).encode()
    if any(map(_SECRET.search, _names(found))) or endpoint.without_key(text) != text:
        raise ValueError(
            "extra_body must hold no key, as it is written down; put the key into the environment variable "
            f"{endpoint.key_variable}. Its fields are {sorted(found)}."
        )
    return found


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield str(name)
            yield from _names(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _names(inner)


def _identity(model: str, **settings: Any) -> str:
    given = {name: value for name, value in settings.items() if value not in (None, "", [], {})}
    return f"{model} {json.dumps(given, sort_keys=True, ensure_ascii=False)}"
