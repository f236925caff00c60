"""The augmentation of CoDA, from pairs and support images to accepted synthetic images, and its dry run."""

import errno
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal, get_args

import PIL
import torch

from lit_modules.coda.augmentation.features import FeatureKind, base_kinds
from lit_modules.coda.augmentation.scores import EmbeddingCache, trial_count
from lit_modules.coda.augmentation.settings import CoDASettings
from lit_modules.coda.augmentation.stages import StageRunner
from lit_modules.coda.augmentation.verification import SHORT_ANSWER
from lit_modules.coda.backends.protocols import (
    BudgetExhausted,
    ChatModel,
    ChatRequest,
    Counts,
    Embedder,
    ImageGenerator,
    Prices,
)
from lit_modules.coda.core.concepts import Direction, PairTask, read_directions, shard_tasks
from lit_modules.coda.core.store import RecordedChat, Store, StoreInUse

Until = Literal["features", "scores", "images", "verification"]
"""Last stage of a run: ``features`` extracts them, ``scores`` selects among them by trial images, ``images`` generates
the first final images, ``verification`` accepts or rejects them and generates more where too few pass."""
Progress = Callable[[int, int, Mapping[str, Counts]], None]
"""Takes the units that are done, their total, and the counts of the run so far, by stage."""
_QUESTIONS = 64  # asked at once, with their images in memory
_DISK_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES)


@dataclass(frozen=True)
class UnitResult:
    """Result of one direction of a pair, by folder names, and one kind of features.

    ``accepted`` of the ``made`` final images, ``kept`` of the ``features`` extracted are in the prompt; ``failure``
    says why there are no or too few images, if so.
    """

    pair_id: str
    direction: str
    concept: str
    other: str
    kind: FeatureKind
    accepted: int = 0
    failure: str | None = None
    warnings: tuple[str, ...] = ()
    features: int = 0
    kept: int = 0
    made: int = 0


@dataclass
class PipelineResult:
    """Result of a run: units, use of models by stage, and why it stopped before its end, if it did.

    Answers and images that the store had cost nothing.
    """

    units: list[UnitResult] = field(default_factory=list)
    counts: dict[str, Counts] = field(default_factory=dict)
    stopped: str | None = None

    @property
    def failures(self) -> list[UnitResult]:
        """Units without enough images."""
        return [unit for unit in self.units if unit.failure is not None]


@dataclass
class Bounds:
    """Least and most calls and images of a stage, and the most tokens of all answers."""

    least_calls: int = 0
    most_calls: int = 0
    least_images: int = 0
    most_images: int = 0
    most_tokens: int = 0

    def add(self, calls: tuple[int, int] = (0, 0), images: tuple[int, int] = (0, 0), tokens: int = 0) -> None:
        """Add the least and most calls and images of a unit, and its most tokens."""
        self.least_calls += calls[0]
        self.most_calls += calls[1]
        self.least_images += images[0]
        self.most_images += images[1]
        self.most_tokens += tokens


@dataclass
class Estimate:
    """Estimate of a run's use of models: bounds by stage, units that are not done and that are, and prices."""

    stages: dict[str, Bounds] = field(
        default_factory=lambda: {name: Bounds() for name in ("features", "trials", "images", "verification")}
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
        least = self.prices.estimate(self.calls[0], 0, self.images[0])
        return least, self.prices.estimate(self.calls[1], tokens, self.images[1])


class CoDAPipeline:
    """Run the stages for both directions of all pairs, and resume an earlier run.

    Every model is given once and used for all pairs. A unit, which is a direction of a pair with one kind of features,
    that fails is recorded with its reason and stops no other. A changed setting redoes the stages that depend on it,
    and no earlier one.

    Args:
        store: Store, open for writing; its shard selects the pairs.
        settings: Settings of the run, such as ``preset("official")``.
        chat: Model that is asked for features.
        generator: Model that generates images.
        embedder: Model of scores and references, such as CLIP.
        verifier: Model that is asked about the attributes of images; ``None`` takes ``chat``. Do not let a model judge
            the images that it is tested with, without saying so.

    References:
        Zhou et al., "Contrastive Visual Data Augmentation", ICML 2025, arXiv 2502.17709.
    """

    def __init__(
        self,
        store: Store,
        settings: CoDASettings,
        chat: ChatModel,
        generator: ImageGenerator,
        embedder: Embedder,
        verifier: ChatModel | None = None,
    ) -> None:
        self.store, self.settings = store, settings
        self.result = PipelineResult()
        self._progress: Progress | None = None
        self._total = 0
        asked = settings.verification in ("questions", "batch")
        self.stages = StageRunner(
            store,
            settings,
            chat=RecordedChat(chat, store, partial(self._report, "features")),
            generator=generator,
            embeddings=EmbeddingCache(embedder),
            verifier=RecordedChat(verifier or chat, store, partial(self._report, "verification")) if asked else None,
            report=self._report,
        )

    def run(
        self, tasks: Sequence[PairTask], until: Until = "verification", progress: Progress | None = None
    ) -> PipelineResult:
        """Run the stages of the store's shard of all pairs, or what is missing of them, to ``until``.

        ``progress`` is called after each call, each image and each unit. A run whose budget is used up says so and can
        be resumed.

        Raises:
            ValueError: If there is no such stage.
            OSError: If the disk is full or the store cannot be written to.
        """
        if until not in get_args(Until):
            raise ValueError(f"until must be {', '.join(map(repr, get_args(Until)))}, got {until!r}.")
        self.result, self._progress = PipelineResult(), progress
        self._write_manifest(tasks)
        try:
            units = list(self._units(shard_tasks(tasks, self.store.shard)))
            self._total = len(self.result.units) + len(units)
            self._notify()
            self._ask_together(units)
            for side, kind in units:
                self.result.units.append(self._guarded(side, kind, until))
                self._notify()
        except BudgetExhausted as error:
            self.result.stopped = str(error)
        return self.result

    def dry_run(self, tasks: Sequence[PairTask], prices: Prices | None = None) -> Estimate:
        """Return bounds of a run's calls and images, and their cost; no model is asked.

        Features that the store does not have yet, and answers to them, are unknown.
        """
        total = Estimate(prices=prices or Prices())
        for task in shard_tasks(tasks, self.store.shard):
            for side in read_directions(task):
                asked: set[FeatureKind] = set()  # kinds share their answers
                for kind in self.settings.kinds:
                    self._estimate_unit(total, side, kind, asked=asked)
        return total

    def _estimate_unit(self, total: Estimate, side: Direction, kind: FeatureKind, asked: set[FeatureKind]) -> None:
        """Add one unit; without the record of its references, which would need the embedder, it is not begun."""
        settings, stages, store = self.settings, self.stages, self.store
        begun = all(
            store.read_done(one.path("references.json"), stages.references_key(one)) is not None
            for one in (side, side.reverse)
        )
        features = store.read_done(side.path(kind, "features.json"), stages.features_key(side, kind)) if begun else None
        failed = features is not None and features["failure"] is not None
        scores = None
        if features is not None and not failed:
            key = stages.scores_key(side, kind, features["features"])
            scores = store.read_done(side.path(kind, "scores.json"), key)
        if failed or (scores is not None and stages.read_images(side, kind, scores["prompt_attributes"]) is not None):
            total.done += 1
            return
        total.units += 1
        if features is None:
            new = [base for base in base_kinds(kind) if base not in asked]
            asked.update(new)
            most_calls = len(new) * (1 + settings.retries)
            total.stages["features"].add((len(new), most_calls), tokens=most_calls * settings.feature_tokens)
        filtered = kind in settings.filtered_kinds
        most_features = settings.max_features if features is None else len(features["features"])
        if scores is None and filtered:
            fewest = 1 if features is None else min(most_features, 1)
            least, most = (
                trial_count(number, settings.group_size, settings.trials_per_group)
                for number in (fewest, most_features)
            )
            total.stages["trials"].add(images=(least, most))
        images = settings.num_images
        total.stages["images"].add(images=(images, images * settings.max_attempts))
        if stages.verifier is not None:
            least, most = 1, min(most_features, settings.top_k) if filtered else most_features
            if scores is not None:
                least = most = len(scores["prompt_attributes"])
            batch = settings.verification == "batch"
            answers = images * settings.max_attempts * (1 + settings.retries)
            thinks = stages.verifier.model.capabilities.thinks
            length = SHORT_ANSWER + (settings.thought_tokens if thinks else 0)
            total.stages["verification"].add(
                # images that the guards refuse are not asked about
                (0 if settings.guards else images * (1 if batch else least), answers * (1 if batch else most)),
                tokens=answers * (length + 4 * most if batch else length * most),
            )

    def run_unit(self, side: Direction, kind: FeatureKind, until: Until = "verification") -> UnitResult:
        """Run the stages for one direction of a pair and one kind of features."""
        stages, result = (
            self.stages,
            UnitResult(side.pair_id, side.name, side.concept.name, other=side.other.name, kind=kind),
        )
        features = stages.features(side, kind)
        if features["failure"] is not None:
            return replace(result, failure=f"No features: {features['failure']}")
        warn = partial(unit_warnings, self.settings.min_features, features)
        result = replace(result, features=len(features["features"]), warnings=tuple(warn()))
        if until == "features":
            return result
        scores = stages.scores(side, kind, features["features"])
        attributes = scores["prompt_attributes"]
        result = replace(result, kept=len(attributes), warnings=tuple(warn(scores)))
        if until == "scores":
            return result
        if until == "images":
            return replace(result, made=stages.generate(side, kind, attributes))
        images = stages.images(side, kind, attributes)
        return replace(
            result,
            accepted=len(images["accepted"]),
            failure=images["failure"],
            warnings=tuple(warn(scores, images)),
            made=len(images["files"]),
        )

    def _units(self, tasks: Sequence[PairTask]) -> Iterator[tuple[Direction, FeatureKind]]:
        """Yield the units; those of pairs whose images cannot be read are recorded as failed."""
        for task in tasks:
            try:
                directions = read_directions(task)
            except (ValueError, OSError) as error:
                pair_id, failure = task.pair.pair_id, str(error)
                self.store.log({"stage": "failure", "unit": pair_id, "reason": failure})
                self.result.units += [
                    UnitResult(pair_id, "", concept.name, other=other.name, kind=kind, failure=failure)
                    for concept, other, _, _ in task.directions()
                    for kind in self.settings.kinds
                ]
                continue
            yield from ((side, kind) for side in directions for kind in self.settings.kinds)

    def _ask_together(self, units: Sequence[tuple[Direction, FeatureKind]]) -> None:
        """Ask the first questions of many units at once, which is faster; the units then find the answers."""
        chat = self.stages.chat
        waiting: list[ChatRequest] = []
        for side, kind in units:
            try:
                waiting += self.stages.first_questions(side, kind)
            except Exception:  # the unit meets it again when its turn comes, and records it as its failure
                continue
            if len(waiting) >= _QUESTIONS:
                chat.ask_many(waiting)
                waiting = []
        chat.ask_many(waiting)

    def _guarded(self, side: Direction, kind: FeatureKind, until: Until) -> UnitResult:
        """Run a unit; its error is its result, unless all units would meet it."""
        try:
            return self.run_unit(side, kind, until)
        except Exception as error:
            failure = failure_of(error)
            self.store.log({"stage": "failure", "unit": "/".join(side.path(kind)), "reason": failure})
            return UnitResult(
                side.pair_id, side.name, side.concept.name, other=side.other.name, kind=kind, failure=failure
            )

    def _report(self, stage: str, counts: Counts) -> None:
        self.result.counts.setdefault(stage, Counts()).add(counts)
        self.store.log({"stage": stage, **asdict(counts)})
        self._notify()

    def _notify(self) -> None:
        if self._progress is not None:
            self._progress(len(self.result.units), self._total, self.result.counts)

    def _write_manifest(self, tasks: Sequence[PairTask]) -> None:
        stages, verifier = self.stages, self.stages.verifier
        manifest: dict[str, Any] = {
            "settings": self.settings.record(),
            "models": {
                "chat": stages.chat.model.identity,
                "generator": stages.generator.identity,
                "embedder": stages.embeddings.embedder.identity,
                "verifier": self.settings.verification if verifier is None else verifier.model.identity,
            },
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "pillow": PIL.__version__},
            "pairs": [
                {
                    "pair_id": task.pair.pair_id,
                    "target": task.pair.target.record(),
                    "confusable": task.pair.confusable.record(),
                    "error_rate": task.pair.error_rate,
                }
                for task in shard_tasks(tasks)
            ],
        }
        self.store.write_json(["manifest.json"], manifest)


def failure_of(error: Exception) -> str:
    """Return an error of one piece of work in words; raise one that would meet every other, so that the run ends."""
    if isinstance(error, BudgetExhausted | StoreInUse):
        raise error
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        raise error
    return f"{type(error).__name__}: {error}"


def unit_warnings(
    min_features: int,
    features: Mapping[str, Any],
    scores: Mapping[str, Any] | None = None,
    images: Mapping[str, Any] | None = None,
) -> list[str]:
    """Return the warnings of a unit, from the records of its stages as far as they exist."""
    number = len(features["features"])
    warnings = [f"few features: {number}"] if number < min_features else []
    if scores is not None:
        for stage, fallback in scores["fallback"].items():
            if fallback:
                warnings.append(f"no feature passed {stage}; the best ones were taken")
        for text, tokens in scores["cut_off"]:
            warnings.append(f"the text encoder cuts off {text!r} ({tokens} tokens)")
    if images is not None:
        if images["relaxed"]:
            warnings.append(f"the least score was relaxed to {images['level']:g}")
        if images["short"]:
            warnings.append(f"{images['short']} images are missing")
    return warnings


def store_counts(store: Store) -> dict[str, Counts]:
    """Return the use of models by all runs on a store, by stage, from its log."""
    totals: dict[str, Counts] = {}
    for event in store.events():
        if event.get("stage") != "failure":
            counts = Counts(**{name: event.get(name, 0) for name in asdict(Counts())})
            totals.setdefault(str(event.get("stage")), Counts()).add(counts)
    return totals
