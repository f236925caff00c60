"""Chat models and image generators behind OpenAI-compatible endpoints, with a budget and bounded concurrency."""

import base64
import json
import queue
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

from PIL import Image

from lit_modules.coda.backends.protocols import (
    BackendError,
    BudgetExhausted,
    Capabilities,
    ChatRequest,
    Counts,
    Message,
    Prices,
    Reply,
    Usage,
)
from lit_modules.utils.endpoints import AnswerError, Endpoint, EndpointError, RefusedError, read_chat, read_image
from lit_modules.utils.images import encoded, read_picture

Answer = TypeVar("Answer")
_FAILURES = 3  # in a row, after all attempts of each
_SECRET = re.compile(r"(^|_)(api_?key|key|secret|password|authorization|auth_token|access_token)$", re.IGNORECASE)


class Budget:
    """Bounds of a run's use; the back ends that share it stop at its end, and the run is resumed later with a new one.

    A request takes its call or image before it is sent, so that these are never exceeded; one that the endpoint answers
    with an error gives it back. Tokens and cost are known afterwards: no request is sent once they are used up, and the
    answers that are under way then may exceed them.

    Args:
        calls: Most answers of chat models; ``None`` for any number, as for all others.
        tokens: Most tokens of questions and answers together.
        images: Most images.
        cost: Most money, in the currency of ``prices``.
        prices: Prices; needed for ``cost``.

    Raises:
        ValueError: If a bound is negative, or there is one of cost without prices.
    """

    def __init__(
        self,
        calls: int | None = None,
        tokens: int | None = None,
        images: int | None = None,
        cost: float | None = None,
        prices: Prices | None = None,
    ) -> None:
        self.bounds = {"calls": calls, "tokens": tokens, "images": images, "cost": cost}
        for name, bound in self.bounds.items():
            if bound is not None and not bound >= 0:
                raise ValueError(f"{name} must not be negative, got {bound}; None sets no bound.")
        if cost is not None and prices is None:
            raise ValueError(f"A budget of cost {cost} needs the prices; give prices=Prices(...).")
        self.prices = prices or Prices()
        self._counts = Counts()
        self._lock = threading.Lock()

    @property
    def used(self) -> dict[str, float]:
        """Use so far, by the names of the bounds."""
        counts = self._counts
        tokens = counts.input_tokens + counts.output_tokens
        return {"calls": counts.calls, "tokens": tokens, "images": counts.images, "cost": self.prices.cost(counts)}

    @property
    def counts_tokens(self) -> bool:
        """Presence of a bound on tokens, or on their cost."""
        priced = self.prices.million_input_tokens or self.prices.million_output_tokens
        return self.bounds["tokens"] is not None or bool(self.bounds["cost"] is not None and priced)

    def take(self, kind: Literal["calls", "images"]) -> None:
        """Take one call or image.

        Raises:
            BudgetExhausted: If a bound that it counts for is reached.
        """
        with self._lock:
            used = self.used
            for name in (kind, "cost", *(("tokens",) if kind == "calls" else ())):
                bound = self.bounds[name]
                if bound is not None and used[name] >= bound:
                    raise BudgetExhausted(
                        f"The budget of {bound:g} {name} is used up ({used[name]:g}); go on later with a new one."
                    )
            self._counts.add(replace(Counts(), **{kind: 1}))

    def give_back(self, kind: Literal["calls", "images"]) -> None:
        """Give back a call or image that was refused."""
        with self._lock:
            self._counts.add(replace(Counts(), **{kind: -1}))

    def add(self, usage: Usage) -> None:
        """Count the tokens of an answer."""
        with self._lock:
            self._counts.add(Counts(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens))


class BoundedEndpoint(Endpoint):
    """Endpoint with few requests at a time and a budget, whoever uses it.

    Pauses, attempts and the key are those of :class:`lit_modules.utils.endpoints.Endpoint`.

    Args:
        url: Address up to the version, such as ``"http://127.0.0.1:8000/v1"``.
        model: Name of the model.
        max_concurrency: Most requests under way at the same time.
        budget: Bounds of its use; ``None`` sets none.
        more: Further arguments of ``Endpoint``: ``key_variable``, ``timeout``, ``attempts``, ``pause``,
            ``longest_pause``.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self, url: str, model: str, max_concurrency: int = 8, budget: Budget | None = None, **more: Any
    ) -> None:
        super().__init__(url, model, **more)
        if max_concurrency < 1:
            raise ValueError(f"max_concurrency must be at least 1, got {max_concurrency}.")
        self.max_concurrency, self.budget = max_concurrency, budget or Budget()
        self._slots = threading.BoundedSemaphore(max_concurrency)
        self._lock = threading.Lock()
        self._answered, self._failed = False, 0

    def request(self, path: str, fields: dict[str, Any], read: Callable[[Any], Answer]) -> Answer:
        """Send a request until its answer can be read.

        Args:
            path: Path of the request, such as ``"chat/completions"``.
            fields: Fields of the request beside the model.
            read: Reads the decoded answer; raises ``ValueError`` if it cannot.

        Raises:
            BackendError: If there is no answer to this one request.
            BudgetExhausted: If the budget is used up, or the endpoint cannot be used: at its first request, or three
                times in a row.
        """
        try:
            answer = self._ask(path, fields, read)
        except RefusedError as error:
            raise BackendError(f"{self.model} refuses the request: {error}.") from None
        except AnswerError as error:
            raise BackendError(f"{self.model} gave no answer that can be used: {error}.") from None
        except EndpointError as error:
            with self._lock:
                self._failed += 1
                hopeless = not self._answered or self._failed >= _FAILURES
            raise (BudgetExhausted if hopeless else BackendError)(str(error)) from None
        with self._lock:
            self._answered, self._failed = True, 0
        return answer

    def _send(self, path: str, body: bytes) -> tuple[int, Mapping[str, str], str]:
        kind: Literal["calls", "images"] = "images" if path.startswith("images/") else "calls"
        with self._slots:
            self.budget.take(kind)
            try:
                response = super()._send(path, body)
            except EndpointError:
                self.budget.give_back(kind)
                raise
            if not 200 <= response[0] < 300:
                self.budget.give_back(kind)
            return response


class RemoteChat:
    """Chat model behind an OpenAI-compatible endpoint; images travel in the request, without their metadata.

    Its identity holds the model's name and the settings, and neither the address nor the key: the answers that a store
    keeps stay valid when a server moves.

    Args:
        endpoint: Address, model, budget and number of requests at a time.
        revision: Distinguishes two models of the same name; part of the identity.
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
        self.identity = _identity(
            endpoint.model,
            revision=revision,
            max_side=max_side,
            image_format=image_format,
            schema_field=schema_field,
            omit=self.omit,
            extra_body=self.extra_body,
        )

    @property
    def capabilities(self) -> Capabilities:
        """Capabilities of the model."""
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
        return self._answer(
            ChatRequest(
                tuple(messages), tuple(images), max_new_tokens, temperature=temperature, schema=schema, seed=seed
            )
        )

    def chat_many(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Reply | BackendError]]:
        """Yield the number of a request with its answer, as soon as it is known; several are under way at a time.

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
                item = done.get()
                if item is None:
                    workers -= 1
                elif isinstance(item, Exception):
                    problem = problem or item
                else:
                    yield item
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
                content = [self._image(next(images)) if part["type"] == "image" else dict(part) for part in content]
            messages.append({**message, "content": content})
        return messages

    def _image(self, image: Image.Image) -> dict[str, Any]:
        copy = image.convert("RGB")
        copy.thumbnail((self.max_side, self.max_side), Image.Resampling.LANCZOS)
        coded = base64.b64encode(encoded(copy, self.image_format)).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/{self.image_format.lower()};base64,{coded}"}}

    def _read(self, data: Any) -> Reply:
        usage = self._usage(data)
        text, cut_off = read_chat(data)
        name = data.get("model")
        return Reply(text, name if isinstance(name, str) and name else self.endpoint.model, usage, cut_off=cut_off)

    def _usage(self, data: Any) -> Usage:
        usage = data.get("usage") if isinstance(data, dict) else None
        fields = usage if isinstance(usage, dict) else {}
        inputs, outputs = fields.get("prompt_tokens"), fields.get("completion_tokens")
        if not (isinstance(inputs, int) and isinstance(outputs, int) and min(inputs, outputs) >= 0):
            if self.endpoint.budget.counts_tokens:
                raise BudgetExhausted(
                    f"{self.endpoint.model} does not tell the tokens of its answers, so no budget of tokens or of "
                    "their cost can be kept; give one of calls."
                )
            return Usage()
        self.endpoint.budget.add(Usage(inputs, outputs))
        return Usage(inputs, outputs)


class RemoteImages:
    """Image generator behind an OpenAI-compatible endpoint.

    Many services know neither seeds nor steps, nor make the same image twice; ``fields`` names what this one knows.
    The image is of the size that the service gives it.

    Args:
        endpoint: Address, model, budget and number of requests at a time.
        revision: Distinguishes two models of the same name; part of the identity.
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
        self.identity = _identity(
            endpoint.model, revision=revision, fields=self.fields, omit=self.omit, extra_body=self.extra_body
        )

    def generate(
        self, prompt: str, negative: str | None, seed: int, width: int, height: int, steps: int, guidance: float
    ) -> Image.Image:
        """Return an image.

        Raises:
            BackendError: If the service makes no image for this prompt.
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
    fields = dict(extra or {})
    if own.intersection(fields):
        raise ValueError(f"extra_body must not hold {sorted(own.intersection(fields))}; these are the request's own.")
    text = json.dumps(fields)
    if any(map(_SECRET.search, _names(fields))) or endpoint.without_key(text) != text:
        raise ValueError(
            "extra_body must hold no key, as it is written down; put the key into the environment variable "
            f"{endpoint.key_variable}. Its fields are {sorted(fields)}."
        )
    return fields


def _names(value: Any) -> Iterator[str]:
    """Yield the names of all fields, nested ones too."""
    if isinstance(value, Mapping):
        yield from map(str, value)
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _names(inner)


def _identity(model: str, **settings: Any) -> str:
    given = {name: value for name, value in settings.items() if value not in (None, "", [], {})}
    return f"{model} {json.dumps(given, sort_keys=True, ensure_ascii=False)}"
