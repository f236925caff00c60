"""The augmentation of CoDA from pairs and support images to accepted synthetic images, on a store."""

import errno
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, get_args

import PIL
import torch

from lit_modules.coda.augmentation.calls import RecordedChat
from lit_modules.coda.augmentation.drawing import Drawing
from lit_modules.coda.augmentation.estimate import Estimate, Prices, estimate_unit
from lit_modules.coda.augmentation.features import FeatureKind
from lit_modules.coda.augmentation.inputs import Embeddings, PairTask, Side, shard_tasks, sides
from lit_modules.coda.augmentation.presets import CoDASettings
from lit_modules.coda.augmentation.stages import Workshop
from lit_modules.coda.backends.protocols import (
    BudgetExhausted,
    ChatModel,
    ChatRequest,
    Counts,
    Embedder,
    ImageGenerator,
)
from lit_modules.coda.core.store import Store, StoreInUse

Until = Literal["features", "scores", "images", "verification"]
"""Last stage of a run: ``features`` extracts them, ``scores`` chooses among them by trial images, ``images`` makes the
first final images, ``verification`` accepts or rejects them and makes more where too few pass."""
Progress = Callable[[int, int, Mapping[str, Counts]], None]
"""Takes the units that are done, those that there are, and what the run took so far, by stage."""
_TOGETHER = 64  # questions asked at once, with their images in memory
_DISK = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES)


@dataclass(frozen=True)
class UnitResult:
    """What came of one direction of a pair and one kind of features.

    Args:
        pair_id: Folder name of the pair.
        direction: Folder name of the direction.
        concept: Name of the concept drawn.
        other: Name of the one it is told from.
        kind: Kind of features.
        accepted: Number of accepted images.
        failure: Why there are no or too few images; ``None`` if there are enough.
        warnings: What a reader of the results should know.
        features: Number of features extracted.
        kept: Number of features in the prompt.
        made: Number of final images, whether accepted or not.
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
    """What a run did.

    Args:
        units: What came of each unit.
        counts: What this run took, by stage; what the store had costs nothing.
        stopped: Why the run stopped before its end; ``None`` if it came to it.
    """

    units: list[UnitResult] = field(default_factory=list)
    counts: dict[str, Counts] = field(default_factory=dict)
    stopped: str | None = None

    @property
    def failures(self) -> list[UnitResult]:
        """Units without enough images."""
        return [unit for unit in self.units if unit.failure is not None]


class CoDAPipeline:
    """Run the stages for both directions of all pairs, and go on where an earlier run was.

    Every model is given once and used for all pairs. A unit, which is a direction of a pair with one kind of features,
    that fails is recorded with its reason and stops no other. A changed setting makes the stages anew that depend on
    it, and no earlier one.

    Args:
        store: Store, open for writing; its shard says which pairs are done here.
        settings: Settings of the run, such as ``preset("official")``.
        chat: Model that is asked for features.
        generator: Model that makes images.
        embedder: Model of scores and references, such as CLIP.
        verifier: Model that is asked what images show; ``None`` takes ``chat``. Do not let a model judge the images
            that it is tested with, without saying so.

    Attributes:
        embeddings: Embeddings of this run, each made once.

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
        self.embeddings = Embeddings(embedder)
        self.chat = RecordedChat(chat, store, partial(self._report, "features"))
        asked = settings.verification in ("questions", "batch")
        judge = RecordedChat(verifier or chat, store, partial(self._report, "verification")) if asked else None
        self.workshop = Workshop(store, settings, self.chat, generator, self.embeddings, self._report)
        self.drawing = Drawing(self.workshop, judge)

    def run(
        self, tasks: Sequence[PairTask], until: Until = "verification", progress: Progress | None = None
    ) -> PipelineResult:
        """Run the stages, or what is missing of them.

        Args:
            tasks: All pairs; the store's shard chooses among them.
            until: Last stage to run; a later run goes on from it.
            progress: Is told of each call, each image and each unit that is done.

        Returns:
            What came of each unit. A run whose budget is used up says so and can be gone on with.

        Raises:
            ValueError: If there is no such stage.
            OSError: If the disk is full or the store cannot be written to.
        """
        if until not in get_args(Until):
            raise ValueError(f"until must be {', '.join(map(repr, get_args(Until)))}, got {until!r}.")
        self.result, self._progress = PipelineResult(), progress
        self._write_manifest(tasks)
        chosen = shard_tasks(tasks, self.store.shard)
        try:
            units = self._units(chosen)
            self._total = len(self.result.units) + len(units)
            self._tell()
            self._ask_together(units)
            for side, kind in units:
                self.result.units.append(self._guarded(side, kind, until))
                self._tell()
        except BudgetExhausted as error:
            self.result.stopped = str(error)
        return self.result

    def dry_run(self, tasks: Sequence[PairTask], prices: Prices | None = None) -> Estimate:
        """Return how many calls and images a run would take, and what they cost; no model is asked and nothing drawn.

        Features that the store does not have yet, and answers to them, are unknown: so the counts are bounds.

        Args:
            tasks: All pairs; the store's shard chooses among them.
            prices: Prices of calls, tokens and images; ``None`` counts without cost.
        """
        total = Estimate(prices=prices or Prices())
        for task in shard_tasks(tasks, self.store.shard):
            for side in sides(task):
                asked: set[FeatureKind] = set()
                for kind in self.settings.kinds:
                    estimate_unit(total, self.workshop, self.drawing, side, kind, asked)
        return total

    def run_unit(self, side: Side, kind: FeatureKind, until: Until = "verification") -> UnitResult:
        """Run the stages for one direction of a pair and one kind of features.

        Args:
            side: Direction of a pair.
            kind: Kind of features.
            until: Last stage to run.

        Raises:
            BudgetExhausted: If a model's budget is used up.
            BackendError: If a model could not answer.
        """
        result = UnitResult(side.pair_id, side.direction, side.concept.name, side.other.name, kind)
        features = self.workshop.features(side, kind)
        number = len(features["features"])
        if features["failure"] is not None:
            return replace(result, failure=f"No features: {features['failure']}")
        warn = partial(unit_warnings, self.settings.min_features, features)
        if until == "features":
            return replace(result, features=number, warnings=tuple(warn()))
        scores = self.workshop.scores(side, kind, features["features"])
        attributes = scores["prompt_attributes"]
        result = replace(result, features=number, kept=len(attributes), warnings=tuple(warn(scores)))
        if until == "scores":
            return result
        if until == "images":
            return replace(result, made=self.drawing.draw(side, kind, attributes))
        images = self.drawing.images(side, kind, attributes)
        return replace(
            result,
            accepted=len(images["accepted"]),
            failure=images["failure"],
            warnings=tuple(warn(scores, images)),
            made=len(images["files"]),
        )

    def _units(self, tasks: Sequence[PairTask]) -> list[tuple[Side, FeatureKind]]:
        units: list[tuple[Side, FeatureKind]] = []
        for task in tasks:
            try:
                both = sides(task)
            except (ValueError, OSError) as error:
                pair = task.pair
                self.store.log({"stage": "failure", "unit": pair.pair_id, "reason": str(error)})
                for concept, other in ((pair.target, pair.confusable), (pair.confusable, pair.target)):
                    for kind in self.settings.kinds:
                        facts = (pair.pair_id, "", concept.name, other.name, kind)
                        self.result.units.append(UnitResult(*facts, failure=str(error)))
                continue
            units += [(side, kind) for side in both for kind in self.settings.kinds]
        return units

    def _ask_together(self, units: Sequence[tuple[Side, FeatureKind]]) -> None:
        """Ask the first questions of many units at once, which is faster; the units then find the answers."""
        waiting: list[ChatRequest] = []
        for side, kind in units:
            try:
                waiting += self.workshop.first_questions(side, kind)
            except Exception:  # the unit meets it again when its turn comes, and records it as its failure
                continue
            if len(waiting) >= _TOGETHER:
                self.chat.ask_many(waiting)
                waiting = []
        if waiting:
            self.chat.ask_many(waiting)

    def _guarded(self, side: Side, kind: FeatureKind, until: Until) -> UnitResult:
        """Run a unit; what goes wrong in it is its result, unless it would go wrong in all."""
        try:
            return self.run_unit(side, kind, until)
        except (BudgetExhausted, StoreInUse):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _DISK:
                raise
            failure = f"{type(error).__name__}: {error}"
            place = "/".join(side.place(kind))
            self.store.log({"stage": "failure", "unit": place, "reason": failure})
            return UnitResult(side.pair_id, side.direction, side.concept.name, side.other.name, kind, 0, failure)

    def _report(self, stage: str, counts: Counts) -> None:
        self.result.counts.setdefault(stage, Counts()).add(counts)
        self.store.log({"stage": stage, **{name: getattr(counts, name) for name in counts.__dataclass_fields__}})
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(len(self.result.units), self._total, self.result.counts)

    def _write_manifest(self, tasks: Sequence[PairTask]) -> None:
        judge = self.drawing.verifier
        unique = shard_tasks(tasks)
        manifest: dict[str, Any] = {
            "settings": self.settings.record(),
            "models": {
                "chat": self.chat.model.identity,
                "generator": self.workshop.generator.identity,
                "embedder": self.embeddings.embedder.identity,
                "verifier": self.settings.verification if judge is None else judge.model.identity,
            },
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "pillow": PIL.__version__},
            "pairs": [
                {
                    "pair_id": task.pair.pair_id,
                    "target": task.pair.target.record(),
                    "confusable": task.pair.confusable.record(),
                    "error_rate": task.pair.error_rate,
                }
                for task in unique
            ],
        }
        self.store.write_json(["manifest.json"], manifest)


def unit_warnings(
    min_features: int,
    features: Mapping[str, Any],
    scores: Mapping[str, Any] | None = None,
    images: Mapping[str, Any] | None = None,
) -> list[str]:
    """Return what a reader of a unit's results should know, from the records of its stages.

    Args:
        min_features: Number below which features are few.
        features: Record of features.
        scores: Record of scores, if there is one.
        images: Record of the verified images, if there is one.
    """
    number = len(features["features"])
    warnings = [f"few features: {number}"] if number < min_features else []
    if scores is not None:
        for stage, fallen in scores["fallback"].items():
            if fallen:
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
    """Return what all runs on a store took, by stage, from its log."""
    found: dict[str, Counts] = {}
    for event in store.events():
        if event.get("stage") == "failure":
            continue
        counts = Counts(**{name: event.get(name, 0) for name in Counts.__dataclass_fields__})
        found.setdefault(str(event.get("stage")), Counts()).add(counts)
    return found
