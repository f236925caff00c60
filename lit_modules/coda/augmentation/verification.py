"""Verification of synthetic images: questions on their attributes, scores, acceptance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL.Image import Image
from torch import Tensor

from lit_modules.coda.augmentation.scores import TEMPERATURE, discriminability_values, unit_rows
from lit_modules.coda.backends.protocols import Capabilities, ChatRequest, user_message
from lit_modules.coda.core.answers import MalformedAnswer, parse_bits, parse_yes_no
from lit_modules.coda.core.concepts import prompt_text

VerificationForm = Literal["questions", "batch", "clip", "none"]
"""A question per attribute, one question for all, the likeness of embeddings, or no check."""

SHORT_ANSWER = 16
"""Tokens for yes or no; a model that may think first gets more."""
_BITS = {"type": "array", "items": {"type": "integer", "enum": [0, 1]}}


@dataclass(frozen=True)
class Acceptance:
    """Accepted images, the best first, and the least score that was required, if one was.

    ``relaxed`` if it is lower than the first level; ``short`` is the number of missing images.
    """

    accepted: tuple[int, ...]
    level: float | None
    relaxed: bool
    short: int


def verification_requests(
    image: Image,
    attributes: Sequence[str],
    form: Literal["questions", "batch"] = "questions",
    capabilities: Capabilities | None = None,
    attempt: int = 0,
    thought_tokens: int = 1000,
) -> list[ChatRequest]:
    """Return the questions on an image: one per attribute to be answered yes or no, or one for all (``"batch"``).

    Later attempts remind of the form; a model that may think before its short answer gets ``thought_tokens`` more.

    Raises:
        ValueError: If there are no attributes or the form is unknown.
    """
    if form not in ("questions", "batch"):
        raise ValueError(f"form must be 'questions' or 'batch', got {form!r}.")
    if not attributes:
        raise ValueError("There must be at least one attribute to look for.")
    capabilities = capabilities or Capabilities()
    length = SHORT_ANSWER + (thought_tokens if capabilities.thinks else 0)
    if form == "questions":
        reminder = " Your answer must be the word yes or the word no." if attempt else ""
        texts = [
            f'Does this picture show the attribute "{prompt_text(attribute)}"? Answer only yes or no.{reminder}'
            for attribute in attributes
        ]
        return [ChatRequest((user_message(text, 1),), (image,), length, seed=attempt) for text in texts]
    listed = "; ".join(f'{number}. "{prompt_text(text)}"' for number, text in enumerate(attributes, 1))
    text = (
        f"Which of these attributes does this picture show? {listed}. Answer only with a JSON list of "
        f"{len(attributes)} numbers in this order: 1 for an attribute that is shown, 0 for one that is not."
    )
    if attempt:
        text += f" Your answer must be a list of exactly {len(attributes)} zeros and ones."
    number = len(attributes)
    schema = {**_BITS, "minItems": number, "maxItems": number} if capabilities.structured_output else None
    return [ChatRequest((user_message(text, 1),), (image,), length + 4 * number, schema=schema, seed=attempt)]


def read_verification(
    answers: Sequence[str], num_attributes: int, form: Literal["questions", "batch"] = "questions"
) -> tuple[bool, ...]:
    """Return whether each attribute is shown, from the answers to :func:`verification_requests`.

    Raises:
        MalformedAnswer: If an answer cannot be read, or a list is of another length.
    """
    if form == "batch":
        return parse_bits(answers[0], num_attributes)
    if len(answers) != num_attributes:
        raise MalformedAnswer(f"There must be {num_attributes} answers, one for each attribute, got {len(answers)}.")
    return tuple(parse_yes_no(answer) for answer in answers)


def image_score(bits: Sequence[bool]) -> float:
    """Return the share of attributes that an image shows.

    Example:
        >>> image_score([True, False, False, True])
        0.5
    """
    if not bits:
        raise ValueError("There must be at least one attribute.")
    return sum(bits) / len(bits)


def clip_bits(image: Tensor, confusable: Tensor, temperature: float = TEMPERATURE) -> tuple[float, tuple[bool, ...]]:
    """Return the score of an image by embeddings, good from 0.5, and for each attribute whether it reaches 0.5 too.

    The score is the mean over attributes of the discriminability of this one image, cosines ``(attributes,)``, against
    the confusable's real images, ``(images, attributes)``; for machines without a chat model.

    Example:
        >>> clip_bits(torch.tensor([0.3, 0.1]), torch.tensor([[0.3, 0.3]]))[1]
        (True, False)
    """
    values = discriminability_values(image[None], confusable, temperature)
    return float(values.mean()), tuple((values >= 0.5).tolist())


def prefers_target(images: Tensor, target: Tensor, confusable: Tensor) -> list[bool]:
    """Return whether each image is more like the target's real images than like the confusable's, in the mean cosine.

    Embeddings ``(images, d)`` are compared and not names, as that of a novel concept means nothing to CLIP.
    """
    rows = unit_rows(images)
    own, other = ((rows @ unit_rows(side).T).mean(1) for side in (target, confusable))
    preferred: list[bool] = torch.gt(own, other).tolist()
    return preferred


def accept_images(
    scores: Sequence[float | None], wanted: int, levels: Sequence[float] | None = (1.0, 0.8, 0.6)
) -> Acceptance:
    """Choose the ``wanted`` best images by their scores, at the first level that leaves enough of them.

    Scores are in [0, 1]; ``None`` is of an image that was rejected for another reason. A lower one of the falling
    levels is tried only when too few remain; without levels all that have a score are accepted, in order. Ties stay in
    order.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> accept_images([1.0, 0.4, 0.8, None], wanted=2)
        Acceptance(accepted=(0, 2), level=0.8, relaxed=True, short=0)
    """
    if wanted < 1:
        raise ValueError(f"wanted must be at least 1, got {wanted}.")
    if any(score is not None and not 0 <= score <= 1 for score in scores):
        raise ValueError(f"Scores must be in [0, 1], got {list(scores)}.")
    rated = [(index, score) for index, score in enumerate(scores) if score is not None]
    if levels is None:
        chosen = [index for index, _ in rated][:wanted]
        return Acceptance(tuple(chosen), None, False, short=wanted - len(chosen))
    if not levels or list(levels) != sorted(set(levels), reverse=True) or not 0 <= levels[-1] <= levels[0] <= 1:
        raise ValueError(f"levels must be falling numbers in [0, 1], at least one, got {list(levels)}.")
    ordered = sorted(rated, key=lambda pair: -pair[1])
    chosen, level = [], levels[0]
    for level in levels:
        # scores are fractions, such as 4 / 5, that may miss a level by rounding
        chosen = [index for index, score in ordered if score >= level - 1e-9][:wanted]
        if len(chosen) == wanted:
            break
    return Acceptance(tuple(chosen), level, level < levels[0], short=wanted - len(chosen))
