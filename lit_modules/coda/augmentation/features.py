"""Extraction of the visible features of a concept by a chat model, plain or in contrast to the confusable one."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from PIL.Image import Image

from lit_modules.coda.backends.protocols import Capabilities, ChatRequest, Reply, refuse_cut_off, user_message
from lit_modules.coda.core.answers import MalformedAnswer, join_features, parse_features
from lit_modules.coda.core.concepts import Concept, prompt_text
from lit_modules.utils.hashing import stable_seed

FeatureKind = Literal[
    "textual_plain", "visual_plain", "both_plain", "textual_contrastive", "visual_contrastive", "both_contrastive"
]
"""Source of features (T, V, T+V), and whether the other concept is named."""

KINDS: tuple[FeatureKind, ...] = get_args(FeatureKind)
SCHEMA = {"type": "array", "items": {"type": "string"}}
"""Schema of an answer, for models that obey one."""

PROMPTS = {
    "textual_plain": "Name as many visible attributes of {target} as you can.",
    "textual_contrastive": "Name the visible attributes by which {target} can be told from {confusable}.",
    "visual_plain": "The picture shows {target}. Name as many of its attributes that you see in it as you can.",
    "visual_contrastive": "The {picture} shows {target}. What sets it apart from {confusable}? Name only attributes "
    "that you see in the {picture} of {target}.",
}
"""Questions by kind; a run may give its own, with the same fields."""

_FORM = (
    "Each attribute is a short phrase of at most {max_words} words on what can be seen, such as a colour, pattern or "
    'shape, and names neither class. Invent nothing: if you do not know, answer ["unknown"]. '
    "Answer with a JSON list of strings and nothing else."
)
_REMINDER = 'The last answer could not be read. Answer only with a JSON list of strings, such as ["short tail"].'


@dataclass(frozen=True)
class FeatureAnswer:
    """Features of a concept in a model's answers.

    ``dropped`` items come with the reason; ``raw`` holds the answers as they were given, those of failed attempts
    included; ``failure`` says why there are no features, if there are none.
    """

    kind: FeatureKind
    features: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...] = ()
    raw: tuple[str, ...] = ()
    failure: str | None = None

    def record(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


def base_kinds(kind: FeatureKind) -> tuple[FeatureKind, ...]:
    """Return the extractions behind a kind: itself, or the textual and the visual one.

    Example:
        >>> base_kinds("both_plain")
        ('textual_plain', 'visual_plain')
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be {', '.join(map(repr, KINDS))}, got {kind!r}.")
    if kind == "both_plain":
        return ("textual_plain", "visual_plain")
    if kind == "both_contrastive":
        return ("textual_contrastive", "visual_contrastive")
    return (kind,)


def wording(kind: FeatureKind, prompts: dict[str, str] | None = None) -> list[str]:
    """Return the texts of a question; an answer to other texts is out of date."""
    return [{**PROMPTS, **(prompts or {})}[kind], _FORM, _REMINDER]


def feature_request(
    kind: FeatureKind,
    target: Concept,
    confusable: Concept,
    target_image: Image | None = None,
    confusable_image: Image | None = None,
    capabilities: Capabilities | None = None,
    attempt: int = 0,
    seed_parts: Sequence[object] = (),
    temperature: float = 0.5,
    max_new_tokens: int = 1000,
    max_words: int = 12,
    prompts: dict[str, str] | None = None,
) -> ChatRequest:
    """Return the question for features of a concept, of a textual or visual kind.

    Args:
        kind: Kind of features; ask for both by two questions.
        target: Concept to describe (T).
        confusable: The other one (M); plain kinds do not name it.
        target_image: Real image of the target, for visual kinds.
        confusable_image: Real image of the confusable to show beside it, for contrastive visual kinds, if the model
            takes two.
        capabilities: Capabilities of the model; ``None`` takes the least.
        attempt: Number of the attempt from 0; later ones add a reminder of the form and have another seed.
        seed_parts: Values that the seed of sampling is made of, such as the run's seed and the pair.
        temperature: Temperature of sampling, not negative.
        max_new_tokens: Longest answer, in tokens.
        max_words: Longest feature, in words.
        prompts: Questions by kind in place of ``PROMPTS``.

    Raises:
        ValueError: If the kind needs an image that was not given, or the model takes none.
    """
    if len(base_kinds(kind)) > 1:
        raise ValueError(f"kind {kind!r} is the union of {' and '.join(base_kinds(kind))}; ask for these.")
    capabilities = capabilities or Capabilities()
    images: list[Image] = []
    if kind.startswith("visual"):
        if target_image is None:
            raise ValueError(f"kind {kind!r} needs target_image, an image of {target.name!r}, got None.")
        if capabilities.images_per_message < 1:
            raise ValueError(f"kind {kind!r} needs a model that takes images; take a textual kind.")
        images.append(target_image)
        if confusable_image is not None and kind == "visual_contrastive" and capabilities.images_per_message > 1:
            images.append(confusable_image)
    text = {**PROMPTS, **(prompts or {})}[kind].format(
        target=_quoted(target.name),
        confusable=_quoted(confusable.name),
        picture="first picture" if len(images) > 1 else "picture",
    )
    if len(images) > 1:
        text += f" The second picture shows {_quoted(confusable.name)}."
    if kind.startswith("textual"):
        for concept in (target, confusable) if kind.endswith("contrastive") else (target,):
            if concept.knowledge_text:
                text += f" What is known of {_quoted(concept.name)}: {prompt_text(concept.knowledge_text)}"
    text += " " + _FORM.format(max_words=max_words)
    if attempt:
        text += " " + _REMINDER
    return ChatRequest(
        messages=(user_message(text, len(images)),),
        images=tuple(images),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        schema=SCHEMA if capabilities.structured_output else None,
        seed=stable_seed(*seed_parts, kind, "features", attempt),
    )


def read_features(
    kind: FeatureKind,
    replies: Sequence[Reply],
    names: Sequence[str],
    max_features: int = 30,
    max_words: int = 12,
) -> FeatureAnswer:
    """Read the last of the replies of all attempts; if it cannot be read, the answer says why."""
    raw = tuple(reply.text for reply in replies)
    try:
        parsed = parse_features(raw[-1], names, max_features, max_words=max_words)
    except MalformedAnswer as error:
        return FeatureAnswer(kind, (), (), raw=raw, failure=str(error))
    failure = None
    if not parsed.features:
        reasons = sorted({reason for _, reason in parsed.dropped})
        failure = f"The answer holds no feature that can be used ({', '.join(reasons) or 'an empty list'})."
    return FeatureAnswer(kind, parsed.features, parsed.dropped, raw=raw, failure=failure)


def join_answers(kind: FeatureKind, answers: Sequence[FeatureAnswer], max_features: int = 30) -> FeatureAnswer:
    """Return the union of a textual and a visual answer (T+V), without duplicates; the textual ones come first.

    It fails only if all fail. Where the union is longer than ``max_features``, it takes from both in turn.
    """
    if len(answers) == 1:
        return answers[0]
    union = join_features(*(answer.features for answer in answers))
    kept = set(union)
    if len(union) > max_features:
        turns = [answer.features[index : index + 1] for index in range(max_features) for answer in answers]
        kept = set(join_features(*turns)[:max_features])
    dropped = [pair for answer in answers for pair in answer.dropped]
    dropped += [(item, f"after the first {max_features}") for item in union if item not in kept]
    failures = [answer.failure for answer in answers if answer.failure]
    return FeatureAnswer(
        kind,
        tuple(item for item in union if item in kept),
        tuple(dropped),
        raw=tuple(text for answer in answers for text in answer.raw),
        failure=" ".join(failures) if failures and not union else None,
    )


def extract_features(
    ask: Callable[[ChatRequest], Reply],
    kind: FeatureKind,
    target: Concept,
    confusable: Concept,
    target_image: Image | None = None,
    confusable_image: Image | None = None,
    max_features: int = 30,
    retries: int = 3,
    **options: Any,
) -> FeatureAnswer:
    """Ask for features until an answer can be read, at most ``1 + retries`` times for each extraction.

    The first arguments and ``options`` are those of :func:`feature_request`; ``ask`` takes what it returns and gives a
    reply. A failed answer says why.

    Raises:
        ValueError: If an argument is out of its range.
        BackendError: If no answer could be read and one was cut off.
    """
    if retries < 0:
        raise ValueError(f"retries must not be negative, got {retries}.")
    names = (*target.names, *confusable.names)
    max_words = int(options.get("max_words", 12))
    answers: list[FeatureAnswer] = []
    for base in base_kinds(kind):
        replies: list[Reply] = []
        for attempt in range(1 + retries):
            request = feature_request(
                base,
                target,
                confusable,
                target_image=target_image,
                confusable_image=confusable_image,
                attempt=attempt,
                **options,
            )
            replies.append(ask(request))
            answer = read_features(base, replies, names, max_features=max_features, max_words=max_words)
            if answer.failure is None:
                break
        else:
            refuse_cut_off(replies, "feature_tokens")
        answers.append(answer)
    return join_answers(kind, answers, max_features)


def _quoted(name: str) -> str:
    return f'"{prompt_text(name)}"'
