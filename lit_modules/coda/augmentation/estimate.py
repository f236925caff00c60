"""What a run would take, before it does: bounds of calls and images by stage, and their cost."""

from dataclasses import dataclass, field
from typing import Literal

from lit_modules.coda.augmentation.drawing import Drawing
from lit_modules.coda.augmentation.features import FeatureKind, base_kinds
from lit_modules.coda.augmentation.generability import trial_count
from lit_modules.coda.augmentation.inputs import Side
from lit_modules.coda.augmentation.stages import Workshop
from lit_modules.coda.augmentation.verification import SHORT_ANSWER
from lit_modules.coda.backends.protocols import Counts

Stage = Literal["features", "trials", "images", "verification"]


@dataclass(frozen=True)
class Prices:
    """Prices of what is used, in one currency; those that are 0 cost nothing.

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
        for name in self.__dataclass_fields__:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")

    def cost(self, calls: int, output_tokens: int, images: int) -> float:
        """Return the price of calls, the tokens of all their answers, and images."""
        tokens = calls * self.input_tokens_per_call * self.million_input_tokens
        tokens += output_tokens * self.million_output_tokens
        return calls * self.call + images * self.image + tokens / 1e6

    def paid(self, counts: Counts) -> float:
        """Return the price of what was used."""
        tokens = counts.input_tokens * self.million_input_tokens + counts.output_tokens * self.million_output_tokens
        return counts.calls * self.call + counts.images * self.image + tokens / 1e6


@dataclass
class Bounds:
    """At least and at most so many calls and images; the answers' tokens at most.

    Args:
        least_calls: Calls at least.
        most_calls: Calls at most.
        least_images: Images at least.
        most_images: Images at most.
        most_tokens: Tokens of all answers at most.
    """

    least_calls: int = 0
    most_calls: int = 0
    least_images: int = 0
    most_images: int = 0
    most_tokens: int = 0


@dataclass
class Estimate:
    """What a run would take.

    Args:
        stages: Bounds by stage.
        units: Units that are not done.
        done: Units that are done.
        prices: Prices.
    """

    stages: dict[Stage, Bounds] = field(
        default_factory=lambda: {
            "features": Bounds(),
            "trials": Bounds(),
            "images": Bounds(),
            "verification": Bounds(),
        }
    )
    units: int = 0
    done: int = 0
    prices: Prices = field(default_factory=Prices)

    @property
    def calls(self) -> tuple[int, int]:
        """Calls at least and at most."""
        bounds = self.stages.values()
        return sum(bound.least_calls for bound in bounds), sum(bound.most_calls for bound in bounds)

    @property
    def images(self) -> tuple[int, int]:
        """Images at least and at most."""
        bounds = self.stages.values()
        return sum(bound.least_images for bound in bounds), sum(bound.most_images for bound in bounds)

    @property
    def cost(self) -> tuple[float, float]:
        """Cost at least, without the answers' tokens, and at most."""
        tokens = sum(bound.most_tokens for bound in self.stages.values())
        least = self.prices.cost(self.calls[0], 0, self.images[0])
        return least, self.prices.cost(self.calls[1], tokens, self.images[1])


def estimate_unit(
    total: Estimate, workshop: Workshop, drawing: Drawing, side: Side, kind: FeatureKind, asked: set[FeatureKind]
) -> None:
    """Add what one direction of a pair and one kind of features would take.

    Nothing is embedded or asked for: without the record of its references a unit counts as not begun.

    Args:
        total: Estimate to add to.
        workshop: What the stages share.
        drawing: The last stage.
        side: Direction of a pair.
        kind: Kind of features.
        asked: Extractions of this direction that are counted already; kinds share their answers.
    """
    settings, store = workshop.settings, workshop.store
    begun = all(
        store.read_done(one.place("references.json"), workshop.references_key(one)) is not None
        for one in (side, side.reverse)
    )
    features = store.read_done(side.place(kind, "features.json"), workshop.features_key(side, kind)) if begun else None
    scores = None
    if features is not None and features["failure"] is None:
        key = workshop.scores_key(side, kind, features["features"])
        scores = store.read_done(side.place(kind, "scores.json"), key)
    if scores is not None and drawing.done(side, kind, scores["prompt_attributes"]) is not None:
        total.done += 1
        return
    if features is not None and features["failure"] is not None:
        total.done += 1
        return
    total.units += 1
    if features is None:
        new = [base for base in base_kinds(kind) if base not in asked]
        asked.update(new)
        bound = total.stages["features"]
        bound.least_calls += len(new)
        bound.most_calls += len(new) * (1 + settings.retries)
        bound.most_tokens += len(new) * (1 + settings.retries) * settings.feature_tokens
    filtered = kind in settings.filtered_kinds
    known = settings.max_features if features is None else len(features["features"])
    if scores is None and filtered:
        bound = total.stages["trials"]
        fewest = 1 if features is None else min(known, 1)
        bound.least_images += trial_count(fewest, settings.group_size, settings.trials_per_group)
        bound.most_images += trial_count(known, settings.group_size, settings.trials_per_group)
    bound = total.stages["images"]
    bound.least_images += settings.num_images
    bound.most_images += settings.num_images * settings.max_attempts
    if drawing.verifier is not None:
        most = min(known, settings.top_k) if filtered else known
        fewest = 1
        if scores is not None:
            most = fewest = len(scores["prompt_attributes"])
        batch = settings.verification == "batch"
        tries = settings.num_images * settings.max_attempts * (1 + settings.retries)
        bound = total.stages["verification"]
        # images that the guards refuse are not asked about
        bound.least_calls += 0 if settings.guards else settings.num_images * (1 if batch else fewest)
        bound.most_calls += tries * (1 if batch else most)
        able = drawing.verifier.model.capabilities
        length = SHORT_ANSWER + (settings.thought_tokens if able.thinks else 0)
        bound.most_tokens += tries * (length + 4 * most if batch else length * most)
