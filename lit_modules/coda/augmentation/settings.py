"""Settings of the augmentation: those of this library, and those of the released code."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from lit_modules.coda.augmentation.features import KINDS, PROMPTS, FeatureKind
from lit_modules.coda.augmentation.generation import PROMPT
from lit_modules.coda.augmentation.verification import VerificationForm
from lit_modules.coda.backends.protocols import check_not_negative, check_positive
from lit_modules.utils.suggestions import did_you_mean

_OFFICIAL: dict[str, Any] = {
    "filtered_kinds": ("visual_contrastive", "both_contrastive"),
    "retries": 1,
    "show_confusable_image": False,
    "min_generability": None,
    "verification": "batch",
    "score_levels": None,
    "guards": False,
    "max_attempts": 1,
}
CONTRASTIVE: tuple[FeatureKind, ...] = ("textual_contrastive", "visual_contrastive", "both_contrastive")

_COUNTS = (
    *("num_references", "feature_tokens", "thought_tokens", "max_features", "max_words", "min_features"),
    *("group_size", "top_k", "resamples", "num_images", "width", "height", "steps", "min_side"),
    "max_attempts",
)


@dataclass(frozen=True)
class CoDASettings:
    """All settings of the synthetic images of CoDA, but the models.

    Args:
        seed: Seed of the run.
        kinds: Kinds of features; each gets images of its own.
        filtered_kinds: Kinds whose features are filtered by discriminability and generability; others go to the prompt
            as they are.
        num_references: Real images of either side that scores are computed with; the best of the support images.
        temperature: Factor of cosines (tau).
        feature_temperature: Temperature of sampling features.
        feature_tokens: Longest answer with features, in tokens, thoughts included.
        thought_tokens: Tokens that a verifier which may think first gets beyond those of its short answer.
        max_features: Most features of an answer.
        max_words: Longest feature, in words.
        retries: Further tries after an answer that cannot be read.
        show_confusable_image: Whether contrastive visual questions show an image of the confusable too.
        feature_prompts: Questions by kind, pairs ``(kind, text)``, in place of the library's.
        min_discriminability: A feature's discriminability must be greater.
        min_features: Features to take if none passes.
        group_size: Features whose trial images are made together.
        trials_per_group: Trial images of a group; 0 makes none, and no feature is dropped for its generability.
        shuffle_groups: Whether features are shuffled before they are grouped.
        top_k: Most features in the final prompt.
        min_generability: A feature's generability must be greater; ``None`` asks for nothing.
        resamples: Bootstrap resamples of the intervals.
        num_images: Accepted images wanted of each concept, direction and kind.
        prompt: Prompt of images.
        name_in_prompt: Whether it names the concept.
        negative: Negative prompt in place of that of the kind, refused where guidance is off; ``None`` takes that one.
        width: Width of images, in pixels.
        height: Height of images, in pixels.
        steps: Denoising steps.
        guidance: Scale of classifier-free guidance; off up to 1.
        verification: How images are verified.
        score_levels: Falling least shares of shown attributes; ``None`` accepts all.
        guards: Whether small, blank, repeated images, and those that look more like the confusable, are rejected.
        min_side: Shortest side of an image, in pixels.
        max_attempts: Batches of ``num_images`` that are made before a concept fails.
        allow_short: Whether fewer images than wanted will do.

    Raises:
        ValueError: If a value is out of its range.
    """

    seed: int = 0
    kinds: tuple[FeatureKind, ...] = CONTRASTIVE
    filtered_kinds: tuple[FeatureKind, ...] = CONTRASTIVE
    num_references: int = 5
    temperature: float = 100.0
    feature_temperature: float = 0.5
    feature_tokens: int = 1000
    thought_tokens: int = 1000
    max_features: int = 30
    max_words: int = 12
    retries: int = 3
    show_confusable_image: bool = True
    feature_prompts: tuple[tuple[str, str], ...] = ()
    min_discriminability: float = 0.6
    min_features: int = 3
    group_size: int = 4
    trials_per_group: int = 5
    shuffle_groups: bool = False
    top_k: int = 5
    min_generability: float | None = 0.5
    resamples: int = 1000
    num_images: int = 50
    prompt: str = PROMPT
    name_in_prompt: bool = True
    negative: str | None = None
    width: int = 1024
    height: int = 1024
    steps: int = 4
    guidance: float = 0.0
    verification: VerificationForm = "questions"
    score_levels: tuple[float, ...] | None = (1.0, 0.8, 0.6)
    guards: bool = True
    min_side: int = 64
    max_attempts: int = 3
    allow_short: bool = False

    def __post_init__(self) -> None:
        for name in ("kinds", "filtered_kinds", "score_levels", "feature_prompts"):
            value = getattr(self, name)
            if isinstance(value, list):
                items = [tuple(item) if isinstance(item, list) else item for item in value]
                object.__setattr__(self, name, tuple(items))
        for kind in (*self.kinds, *self.filtered_kinds):
            if kind not in KINDS:
                raise ValueError(f"Kinds must be {', '.join(map(repr, KINDS))}, got {kind!r}.")
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"kinds must be at least one, and differ, got {list(self.kinds)}.")
        check_positive(self, *_COUNTS)
        check_not_negative(self, "feature_temperature", "guidance", "retries", "trials_per_group")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}.")
        for name in ("min_discriminability", "min_generability"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}.")
        if self.negative and self.guidance <= 1:
            raise ValueError(
                f"The negative prompt {self.negative!r} has no effect with guidance {self.guidance:g}; leave negative "
                "out, or give guidance above 1."
            )
        unknown = [kind for kind, _ in self.feature_prompts if kind not in PROMPTS]
        if unknown:
            raise ValueError(f"feature_prompts may be of {', '.join(PROMPTS)}, got {', '.join(unknown)}.")
        if self.verification not in ("questions", "batch", "clip", "none"):
            raise ValueError(f"verification must be 'questions', 'batch', 'clip' or 'none', got {self.verification!r}.")

    def record(self) -> dict[str, Any]:
        """Return the values, as plain ones."""
        return asdict(self)


def preset(name: Literal["default", "official"] = "default", **changes: Any) -> CoDASettings:
    """Return the settings of a preset, with changes.

    ``"official"`` is the released code: only contrastive visual and joint features are filtered, all that a concept's
    image shows counts without a least generability, every image is verified by one question for all attributes, and
    all are accepted, as nothing there consumes the scores.

    Args:
        name: Name of the preset.
        changes: Values in place of the preset's.

    Raises:
        ValueError: If there is no such preset or setting, or a value is out of its range.

    Example:
        >>> preset("official").filtered_kinds
        ('visual_contrastive', 'both_contrastive')
        >>> preset(num_images=3).num_images
        3
    """
    if name not in ("default", "official"):
        raise ValueError(f"The preset must be 'default' or 'official', got {name!r}.")
    known = sorted(field.name for field in fields(CoDASettings))
    for change in changes:
        if change not in known:
            raise ValueError(f"There is no setting {change!r}{did_you_mean(change, known)}")
    return CoDASettings(**{**(_OFFICIAL if name == "official" else {}), **changes})
