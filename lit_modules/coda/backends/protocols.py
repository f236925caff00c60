"""What the stages ask of models: chat with images, image generation and embeddings, wherever a model runs."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from PIL.Image import Image

if TYPE_CHECKING:
    from torch import Tensor  # torch takes seconds to import, and most stages need none

Message = Mapping[str, Any]
"""``{"role": "user", "content": parts}``; a part is ``{"type": "image"}`` or ``{"type": "text", "text": ...}``."""


class BudgetExhausted(RuntimeError):
    """A back end has used up its calls, tokens or money; the run stops, and goes on later where it was."""


class BackendError(RuntimeError):
    """A back end could not answer a request, after its own retries."""


@dataclass(frozen=True)
class Usage:
    """Tokens that a call took.

    Args:
        input_tokens: Tokens of the question, images included.
        output_tokens: Tokens of the answer.
    """

    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True)
class Reply:
    """Answer of a chat model.

    Args:
        text: The answer.
        model: Name of the model that gave it.
        usage: Tokens that it took.
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
    """What a chat model can do.

    Args:
        images_per_message: Most images in one message; 0 for a model without vision.
        structured_output: Whether ``schema`` is obeyed.
        option_scores: Whether it has ``score_options``.
        trainable: Whether its weights can be updated here.
        thinks: Whether it may think before it answers, so that short answers need room too.
    """

    images_per_message: int = 1
    structured_output: bool = False
    option_scores: bool = False
    trainable: bool = False
    thinks: bool = False


@dataclass(frozen=True)
class ChatRequest:
    """One question to a chat model: the arguments of ``ChatModel.chat``.

    Args:
        messages: The conversation.
        images: Images in the order of their places in the messages.
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 for the likeliest answer.
        schema: JSON schema of the answer, for models with ``structured_output``.
        seed: Seed of sampling.

    Raises:
        ValueError: If there are not as many images as places for them, or a number is out of its range.
    """

    messages: tuple[Message, ...]
    images: tuple[Image, ...] = ()
    max_new_tokens: int = 1000
    temperature: float = 0.0
    schema: Mapping[str, Any] | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        check_image_places(self.messages, len(self.images))
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
    """One picture to make: the arguments of ``ImageGenerator.generate``.

    Args:
        prompt: What the picture shows.
        negative: What it must not show; ``None`` sends nothing.
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
        """Return all that shapes the picture but the generator, as plain values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class ChatModel(Protocol):
    """A model that answers messages with images.

    A model may have ``chat_many(requests)`` too, as :class:`BatchChatModel` says.
    """

    @property
    def identity(self) -> str:
        """Name and revision, and all settings of the model that shape an answer; it holds no secret."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What the model can do."""
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
        """Yield the number of a request with its answer, in any order, as soon as it is there.

        What was yielded is recorded at once, so a run that is killed asks only what was under way again.
        """
        ...


class ImageGenerator(Protocol):
    """A model that makes a picture from a text."""

    @property
    def identity(self) -> str:
        """Name and revision, and all settings of the generator that shape a picture; it holds no secret."""
        ...

    def generate(
        self, prompt: str, negative: str | None, seed: int, width: int, height: int, steps: int, guidance: float
    ) -> Image:
        """Return a picture; the same arguments give the same one."""
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
    """What a stage or a run took.

    Args:
        calls: Calls of a chat model.
        input_tokens: Tokens of the questions.
        output_tokens: Tokens of the answers.
        images: Images made.
        seconds: Time that the models took, in seconds.
        cached: Questions that an earlier run had asked already; its answers were read from the store.
    """

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    images: int = 0
    seconds: float = field(default=0.0, compare=False)
    cached: int = 0

    def add(self, other: "Counts") -> None:
        """Add other counts."""
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


def user_message(text: str, num_images: int = 0) -> dict[str, Any]:
    """Return a user's message with places for images before its text."""
    places: list[dict[str, Any]] = [{"type": "image"} for _ in range(num_images)]
    return {"role": "user", "content": [*places, {"type": "text", "text": text}]}


def check_image_places(messages: Sequence[Message], num_images: int) -> None:
    """Refuse images without a place in the messages, which a model would not see, and places without an image.

    Raises:
        ValueError: If the numbers differ.
    """
    parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
    places = sum(part["type"] == "image" for part in parts)
    if places != num_images:
        raise ValueError(
            f"The messages have {places} places for images and {num_images} images were given; the model would not see "
            "what has no place."
        )


def refuse_cut_off(replies: Sequence[Reply], setting: str) -> None:
    """Refuse answers that were cut off, where they could not be read: a later run asks again.

    Args:
        replies: Replies.
        setting: Name of the setting of their longest length.

    Raises:
        BackendError: If one was cut off.
    """
    cut = next((reply for reply in replies if reply.cut_off), None)
    if cut is not None:
        raise BackendError(
            f"The answer of {cut.model} was cut off before it could be read, at {cut.text[-80:]!r}; raise {setting}."
        )


def pixel_hash(image: Image) -> str:
    """Return the SHA-256 of an image's mode, size and pixels."""
    found = hashlib.sha256(f"{image.mode} {image.width} {image.height} ".encode())
    found.update(image.tobytes())
    return found.hexdigest()
