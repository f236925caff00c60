"""Interfaces of the models that the stages use: chat with images, image generation, embeddings."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from PIL.Image import Image

if TYPE_CHECKING:
    from torch import Tensor  # torch takes seconds to import, and most stages need none

Message = Mapping[str, Any]
"""``{"role": "user", "content": parts}``; a part is ``{"type": "image"}`` or ``{"type": "text", "text": ...}``."""


class BudgetExhausted(RuntimeError):
    """A back end has used up its calls, tokens or money; the run stops and can be resumed later."""


class BackendError(RuntimeError):
    """A back end could not answer a request, after its own retries."""


@dataclass(frozen=True)
class Usage:
    """Tokens of a call: of the question, images included, and of the answer."""

    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True)
class Reply:
    """Answer of a chat model.

    Args:
        text: The answer.
        model: Name of the model that gave it.
        usage: Tokens of the call.
        cached: Whether it was read from a store and no model was asked.
        cut_off: Whether the service ended it at its longest length; such an answer is not kept in a store.
    """

    text: str
    model: str
    usage: Usage = Usage()
    cached: bool = False
    cut_off: bool = False


@dataclass(frozen=True)
class Capabilities:
    """Capabilities of a chat model.

    Args:
        images_per_message: Most images in one message; 0 for a model without vision.
        structured_output: Whether ``schema`` is obeyed.
        thinks: Whether it may think before it answers, so that short answers need room too.
    """

    images_per_message: int = 1
    structured_output: bool = False
    thinks: bool = False


@dataclass(frozen=True)
class ChatRequest:
    """One question to a chat model: the arguments of ``ChatModel.chat``.

    Args:
        messages: The conversation.
        images: Images in the order of their parts in the messages.
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 for the likeliest answer.
        schema: JSON schema of the answer, for models with ``structured_output``.
        seed: Seed of sampling.

    Raises:
        ValueError: If there are not as many images as parts for them, or a number is out of its range.
    """

    messages: tuple[Message, ...]
    images: tuple[Image, ...] = ()
    max_new_tokens: int = 1000
    temperature: float = 0.0
    schema: Mapping[str, Any] | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        turns = [message["content"] for message in self.messages if not isinstance(message["content"], str)]
        places = sum(part["type"] == "image" for turn in turns for part in turn)
        if places != len(self.images):
            raise ValueError(
                f"The messages have {places} places for images and {len(self.images)} images were given; the model "
                "would not see what has no place."
            )
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}.")
        if not self.temperature >= 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}.")

    def record(self) -> dict[str, Any]:
        """Return all that shapes the answer but the model, as plain values; images by the hash of their pixels."""
        return {
            "messages": [dict(message) for message in self.messages],
            "images": [pixel_hash(image) for image in self.images],
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "schema": None if self.schema is None else dict(self.schema),
            "seed": self.seed,
        }


@dataclass(frozen=True)
class ImageRequest:
    """One image to generate: the arguments of ``ImageGenerator.generate``.

    Args:
        prompt: Content of the image.
        negative: Negative prompt; ``None`` sends nothing.
        seed: Seed of the noise.
        width: Width in pixels.
        height: Height in pixels.
        steps: Number of denoising steps.
        guidance: Scale of classifier-free guidance; it is off up to 1.

    Raises:
        ValueError: If a negative prompt would have no effect, or a number is out of its range.
    """

    prompt: str
    negative: str | None
    seed: int
    width: int = 1024
    height: int = 1024
    steps: int = 4
    guidance: float = 0.0

    def __post_init__(self) -> None:
        if self.negative is not None and self.guidance <= 1:
            raise ValueError(
                f"A negative prompt has no effect with guidance {self.guidance}; send None, or guidance above 1."
            )
        if min(self.width, self.height, self.steps) < 1:
            raise ValueError(
                f"width, height and steps must be at least 1, got {self.width}, {self.height} and {self.steps}."
            )

    def record(self) -> dict[str, Any]:
        """Return all that shapes the image but the generator, as plain values."""
        return asdict(self)


class ChatModel(Protocol):
    """A model that answers messages with images.

    It may have ``chat_many(requests)`` too, see :class:`BatchChatModel`.
    """

    @property
    def identity(self) -> str:
        """Name and revision, and all settings of the model that shape an answer; it holds no secret."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """Capabilities of the model."""
        ...

    def chat(
        self,
        messages: Sequence[Message],
        images: Sequence[Image],
        max_new_tokens: int,
        temperature: float,
        schema: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> Reply:
        """Answer, without thoughts.

        Raises:
            BackendError: For this question alone, such as when there is no text in its answer.
            BudgetExhausted: To stop the run.
        """
        ...


@runtime_checkable
class BatchChatModel(Protocol):
    """A chat model that answers many questions faster together, in batches or at the same time."""

    def chat_many(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Reply | BackendError]]:
        """Yield the number of a request with its answer, in any order, as soon as it is known.

        Each is recorded at once, so a run that is killed asks only what was under way again.
        """
        ...


class ImageGenerator(Protocol):
    """A text-to-image model."""

    @property
    def identity(self) -> str:
        """Name and revision, and all settings of the generator that shape an image; it holds no secret."""
        ...

    def generate(
        self, prompt: str, negative: str | None, seed: int, width: int, height: int, steps: int, guidance: float
    ) -> Image:
        """Return an image; the same arguments give the same one."""
        ...


class ImageEditor(Protocol):
    """A model that changes an image as an instruction says."""

    @property
    def identity(self) -> str:
        """Name and revision, and all settings of the editor that shape an image; it holds no secret."""
        ...

    def edit(
        self, image: Image, instruction: str, seed: int, steps: int, guidance: float, image_guidance: float
    ) -> Image:
        """Return the changed image; the same arguments give the same one."""
        ...


class Embedder(Protocol):
    """A model that maps images and texts into one space, such as CLIP.

    It may have ``count_tokens(text)``, for the warning about texts that its encoder cuts off.
    """

    @property
    def identity(self) -> str:
        """Name and revision."""
        ...

    def embed_images(self, images: Sequence[Image]) -> "Tensor":
        """Return embeddings ``(n, d)``, of any length."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> "Tensor":
        """Return embeddings ``(n, d)``, of any length."""
        ...


@dataclass
class Counts:
    """Use of models by a stage or a run; ``cached`` are questions whose answers an earlier run left in the store."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    images: int = 0
    seconds: float = field(default=0.0, compare=False)
    cached: int = 0

    def add(self, other: "Counts") -> None:
        """Add other counts."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class Prices:
    """Prices of models, in one currency; those that are 0 cost nothing.

    Args:
        call: Price of a call of a chat model.
        million_input_tokens: Price of a million tokens of questions.
        million_output_tokens: Price of a million tokens of answers.
        image: Price of an image.
        input_tokens_per_call: Tokens of a question with its image, for the estimate.

    Raises:
        ValueError: If one is negative.
    """

    call: float = 0.0
    million_input_tokens: float = 0.0
    million_output_tokens: float = 0.0
    image: float = 0.0
    input_tokens_per_call: int = 1500

    def __post_init__(self) -> None:
        check_not_negative(self, *(each.name for each in fields(self)))

    def cost(self, counts: Counts) -> float:
        """Return the price of calls, tokens and images."""
        tokens = counts.input_tokens * self.million_input_tokens + counts.output_tokens * self.million_output_tokens
        return counts.calls * self.call + counts.images * self.image + tokens / 1e6

    def estimate(self, calls: int, output_tokens: int, images: int) -> float:
        """Return the expected price of calls, the tokens of all their answers, and images."""
        return self.cost(Counts(calls, calls * self.input_tokens_per_call, output_tokens, images=images))


def check_positive(settings: object, *names: str) -> None:
    """Raise a ``ValueError`` for the first of some fields that is less than 1."""
    for name in names:
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(settings, name)}.")


def check_not_negative(settings: object, *names: str) -> None:
    """Raise a ``ValueError`` for the first of some fields that is negative or NaN."""
    for name in names:
        if not getattr(settings, name) >= 0:
            raise ValueError(f"{name} must not be negative, got {getattr(settings, name)}.")


def user_message(text: str, num_images: int = 0) -> dict[str, Any]:
    """Return a user's message with parts for images before its text."""
    images: list[dict[str, Any]] = [{"type": "image"} for _ in range(num_images)]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


def answers(model: ChatModel, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Reply | BackendError]]:
    """Yield the number of a request with its answer or error, together where the model answers many at once."""
    if isinstance(model, BatchChatModel):
        if requests:
            yield from model.chat_many(requests)
        return
    for number, request in enumerate(requests):
        try:
            reply = model.chat(
                request.messages,
                request.images,
                request.max_new_tokens,
                temperature=request.temperature,
                schema=request.schema,
                seed=request.seed,
            )
        except BackendError as error:
            yield number, error
        else:
            yield number, reply


def answered(reply: Reply | BackendError) -> Reply:
    """Return a reply, or raise the error in its place."""
    if isinstance(reply, BackendError):
        raise reply
    return reply


def refuse_cut_off(replies: Sequence[Reply], setting: str) -> None:
    """Raise a ``BackendError`` for an unreadable answer that was cut off at the length that a setting allows."""
    for reply in replies:
        if reply.cut_off:
            raise BackendError(
                f"The answer of {reply.model} was cut off before it could be read, at {reply.text[-80:]!r}; raise "
                f"{setting}."
            )


def pixel_hash(image: Image) -> str:
    """Return the SHA-256 of an image's mode, size and pixels."""
    digest = hashlib.sha256(f"{image.mode} {image.width} {image.height} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
