"""Asking a chat model for edits of a picture: settings and questions."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from string import Formatter
from typing import Any

from PIL import Image

from lit_modules.coda.backends.protocols import ChatRequest, user_message
from lit_modules.coda.core.concepts import Concept, prompt_text
from lit_modules.utils.hashing import stable_seed

PROMPT = (
    "The picture shows {target}. Propose {count} different edits of it, each of one attribute that may vary while it "
    "still shows {target}: the surroundings, the weather, the light, the season, the distance or the pose. Leave alone "
    "what {target} is recognised by."
)
"""Question for edits; a run may give its own, with these places."""
_FORM = (
    " Each edit is one instruction of at most {max_words} words that begins with a verb, such as "
    '"put it on wet sand at dusk". Answer with a JSON list of strings and nothing else.'
)
_REMINDER = " The last answer could not be read. Answer only with a JSON list of strings."


@dataclass(frozen=True)
class EditSettings:
    """All that shapes the edits, but the models.

    Args:
        seed: Seed of the run.
        num_images: Edited images of each concept; its support images take turns.
        prompt: Question for edits, with the places ``{target}`` and ``{count}``.
        temperature: Temperature of sampling the edits.
        max_new_tokens: Longest answer, in tokens.
        max_words: Longest instruction, in words.
        retries: Further tries after an answer that cannot be read or has too few edits.
        steps: Denoising steps.
        guidance: Scale of the instruction, above 1.
        image_guidance: Scale of the likeness to the picture, at least 1.
        min_change: Least mean difference of an edit from its picture, of 255; one below it changed nothing.
        min_side: Shortest side of an image, in pixels.
        max_attempts: Seeds that are tried for an image before it fails.

    Raises:
        ValueError: If a value is out of its range.
    """

    seed: int = 0
    num_images: int = 5
    prompt: str = PROMPT
    temperature: float = 0.5
    max_new_tokens: int = 500
    max_words: int = 20
    retries: int = 3
    steps: int = 20
    guidance: float = 7.5
    image_guidance: float = 1.5
    min_change: float = 2.0
    min_side: int = 64
    max_attempts: int = 3

    def __post_init__(self) -> None:
        for name in ("num_images", "max_new_tokens", "max_words", "steps", "min_side", "max_attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("temperature", "retries", "min_change"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if not (self.guidance > 1 and self.image_guidance >= 1):
            raise ValueError(
                "guidance must be above 1 and image_guidance at least 1, as neither has an effect otherwise; got "
                f"{self.guidance:g} and {self.image_guidance:g}."
            )
        places = {name for _, name, _, _ in Formatter().parse(self.prompt) if name is not None}
        if places != {"target", "count"}:
            raise ValueError(f"prompt must have the places {{target}} and {{count}}, got {self.prompt!r}.")

    def record(self) -> dict[str, Any]:
        """Return the values, as plain ones."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


def edit_request(
    concept: Concept, image: Image.Image, count: int, settings: EditSettings, seed_parts: Sequence[object], attempt: int
) -> ChatRequest:
    """Return the question for edits of a picture.

    Args:
        concept: What the picture shows.
        image: The picture.
        count: Number of edits.
        settings: Settings of the run.
        seed_parts: What the seed of sampling belongs to.
        attempt: Number of the try from 0; later ones remind of the form and have another seed.
    """
    text = settings.prompt.format(target=f'"{prompt_text(concept.name)}"', count=count)
    text += _FORM.format(max_words=settings.max_words) + (_REMINDER if attempt else "")
    seed = stable_seed(*seed_parts, "edits", attempt)
    return ChatRequest((user_message(text, 1),), (image,), settings.max_new_tokens, settings.temperature, seed=seed)
