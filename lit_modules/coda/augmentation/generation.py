"""Prompts and requests of synthetic images, each with a seed of its own."""

from collections.abc import Callable, Sequence
from string import Formatter

from lit_modules.coda.backends.protocols import ImageRequest
from lit_modules.coda.core.concepts import Concept, prompt_text, with_article
from lit_modules.utils.hashing import stable_seed

PROMPT = "A realistic 4K photograph of {subject} with {attributes}"
"""Prompt of an image; a run may give its own, with these fields."""

_NEGATIVE = {
    "animal": "man-made objects, unnatural colours, cartoon, drawing, text",
    "scene": "cartoon, drawing, text, frames",
}


def image_prompt(
    concept: Concept, attributes: Sequence[str], template: str = PROMPT, name_in_prompt: bool = True
) -> str:
    """Return the prompt of an image of a concept with exactly these attributes, at least one.

    The template has the fields ``{subject}`` and ``{attributes}``. Without ``name_in_prompt`` the concept's wider
    class, or its kind, stands for its name, as that of a novel concept means nothing to a generator.

    Raises:
        ValueError: If there are no attributes, or the template lacks a field or has another.

    Example:
        >>> image_prompt(Concept("Puff Adder", "snake"), ["a short tail", "keeled scales"], name_in_prompt=False)
        'A realistic 4K photograph of a snake with a short tail, keeled scales'
    """
    fields = template_fields(template)
    if fields != {"subject", "attributes"}:
        raise ValueError(
            f"The template must have the places {{subject}} and {{attributes}}, got {template!r} with "
            f"{', '.join(sorted(fields)) or 'none'}."
        )
    if not attributes:
        raise ValueError(f"An image of {concept.name!r} needs at least one attribute; without any its prompt is empty.")
    subject = concept.name if name_in_prompt else with_article(concept.supercategory or concept.kind)
    listed = ", ".join(prompt_text(attribute) for attribute in attributes)
    return template.format(subject=prompt_text(subject), attributes=listed)


def template_fields(template: str) -> set[str]:
    """Return the names of the fields in a template."""
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


def negative_prompt(kind: str, guidance: float, text: str | None = None) -> str | None:
    """Return the negative prompt of a kind, or ``text`` in its place, or ``None``: up to 1 guidance is off.

    Example:
        >>> negative_prompt("scene", guidance=0.0), negative_prompt("scene", guidance=4.5)
        (None, 'cartoon, drawing, text, frames')
    """
    if guidance <= 1:
        return None
    return (_NEGATIVE.get(kind, "cartoon, drawing, text") if text is None else text) or None


def plan_images(
    prompt: str,
    negative: str | None,
    indices: Sequence[int],
    seed_parts: Sequence[object],
    width: int = 1024,
    height: int = 1024,
    steps: int = 4,
    guidance: float = 0.0,
) -> list[ImageRequest]:
    """Return the requests of images; the seed of each is a stable hash of ``seed_parts`` and its index alone.

    ``seed_parts`` are the run's seed, pair, direction, kind and stage. Sizes are in pixels; a ``guidance`` of 0 is for
    distilled models, up to 1 the negative prompt is dropped.
    """
    return [
        ImageRequest(
            prompt=prompt,
            negative=negative if guidance > 1 else None,
            seed=stable_seed(*seed_parts, index),
            width=width,
            height=height,
            steps=steps,
            guidance=guidance,
        )
        for index in indices
    ]


def long_texts(texts: Sequence[str], count_tokens: Callable[[str], int], limit: int = 77) -> list[tuple[str, int]]:
    """Return the texts that an encoder of ``limit`` tokens, special ones included, cuts off, with their tokens."""
    return [(text, tokens) for text in texts if (tokens := count_tokens(text)) > limit]
