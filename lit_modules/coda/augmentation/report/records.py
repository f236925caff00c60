"""What a store holds of each pair, for readers: features, scores, images with verdicts, and what is not done yet."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from lit_modules.coda.augmentation.pipeline import Until, unit_warnings
from lit_modules.coda.core.concepts import safe_name
from lit_modules.coda.core.store import Store

STAGES: tuple[str, ...] = get_args(Until)
"""Stages in their order."""
_INTERVALS = ("D_interval", "G_interval")
_IMAGE = re.compile(r"(\d{1,9})\.png")
_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, IndexError)


@dataclass(frozen=True)
class Feature:
    """A feature with its scores.

    Args:
        text: The feature.
        discriminability: Its discriminability; ``None`` if it was not scored.
        discriminability_interval: Ends of the interval.
        generability: Its generability; ``None`` if no trial images were made of it.
        generability_interval: Ends of the interval.
        kept: Whether it is in the prompt; ``None`` if it was not scored.
        reason: Why it is kept or not.
    """

    text: str
    discriminability: float | None = None
    discriminability_interval: tuple[float, float] | None = None
    generability: float | None = None
    generability_interval: tuple[float, float] | None = None
    kept: bool | None = None
    reason: str = ""


@dataclass(frozen=True)
class MadeImage:
    """A synthetic image.

    Args:
        parts: Place in the store.
        digest: SHA-256 of what was made; ``None`` if there is no record.
        verdict: ``"accepted"``, ``"rejected"``, ``"trial"``, or ``"not verified"``.
        score: Share of the features that it shows, in [0, 1].
        reason: Why it is rejected.
        prompt: Its prompt.
        negative: Its negative prompt.
        seed: Its seed.
        generator: Model that made it.
        marks: Features, each with whether the image shows it.
    """

    parts: tuple[str, ...]
    digest: str | None = None
    verdict: str = "not verified"
    score: float | None = None
    reason: str | None = None
    prompt: str = ""
    negative: str | None = None
    seed: int | None = None
    generator: str = ""
    marks: tuple[tuple[str, bool], ...] = ()


@dataclass
class UnitRecord:
    """What there is of one direction of a pair and one kind of features.

    Args:
        concept: Name of the concept drawn.
        other: Name of the one it is told from.
        kind: Kind of features.
        features: Features.
        dropped: Items of the answers that were left out, with the reason.
        raw: Answers as they were given.
        trials: Trial images.
        images: Final images, the accepted ones first and the best of them before the others.
        accepted: Number of accepted images.
        short: Number of images that are missing.
        missing: Stages that are not done, in order.
        warnings: What a reader should know.
        failure: Why there are no or too few images.
    """

    concept: str
    other: str
    kind: str
    features: list[Feature] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)
    trials: list[MadeImage] = field(default_factory=list)
    images: list[MadeImage] = field(default_factory=list)
    accepted: int = 0
    short: int = 0
    missing: tuple[str, ...] = ()
    warnings: list[str] = field(default_factory=list)
    failure: str | None = None

    @property
    def kept(self) -> int:
        """Number of features in the prompt."""
        return sum(bool(feature.kept) for feature in self.features)


@dataclass
class PairRecord:
    """What there is of a pair.

    Args:
        pair_id: Folder name.
        target: Record of the target.
        confusable: Record of the confusable.
        error_rate: Share of the target's images answered as the confusable; ``None`` if unknown.
        support: Names and hashes of the real images of each concept, and whether scores are computed with them.
        units: Both directions with each kind.
    """

    pair_id: str
    target: Mapping[str, Any]
    confusable: Mapping[str, Any]
    error_rate: float | None
    support: dict[str, list[tuple[str, str, bool]]] = field(default_factory=dict)
    units: list[UnitRecord] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, str]:
        """Names of target and confusable."""
        return str(self.target["name"]), str(self.confusable["name"])


def read_failures(store: Store) -> dict[str, str]:
    """Return the last failure that the log tells of, by the place of a unit or pair."""
    return {
        str(event.get("unit")): str(event.get("reason")) for event in store.events() if event.get("stage") == "failure"
    }


def read_pair(
    store: Store, row: Mapping[str, Any], kinds: Sequence[str], min_features: int, failures: Mapping[str, str]
) -> PairRecord:
    """Return what a store holds of a pair; a unit whose records cannot be read says so and hides no other.

    Args:
        store: The store.
        row: The pair in the manifest.
        kinds: Kinds of features of the run.
        min_features: Number below which features are few.
        failures: What :func:`read_failures` found.

    Raises:
        KeyError: If the row is not what a run writes.
    """
    rate = None if row["error_rate"] is None else float(row["error_rate"])
    pair = PairRecord(str(row["pair_id"]), row["target"], row["confusable"], rate)
    for concept, other in (pair.names, pair.names[::-1]):
        place = [pair.pair_id, safe_name(concept)]
        try:
            references = store.read_json([*place, "references.json"]) or {"images": [], "support": []}
            used = {image["sha256"] for image in references["images"]}
            pair.support[concept] = [
                (str(image["name"]), str(image["sha256"]), image["sha256"] in used) for image in references["support"]
            ]
        except _UNREADABLE:
            pair.support[concept] = []
        for kind in kinds:
            unit = UnitRecord(concept, other, kind)
            try:
                _read_unit(store, [*place, kind], unit, min_features)
            except _UNREADABLE as error:
                unit.failure = f"The records in {'/'.join([*place, kind])} cannot be read: {error!r}"
            if unit.missing and unit.failure is None:
                unit.failure = failures.get("/".join([*place, kind]), failures.get(pair.pair_id))
            pair.units.append(unit)
    return pair


def _read_unit(store: Store, place: list[str], unit: UnitRecord, min_features: int) -> None:
    features, scores, verified = (
        store.read_json([*place, f"{name}.json"]) for name in ("features", "scores", "images")
    )
    unit.missing = STAGES
    if features is None:
        return
    texts = [str(text) for text in features["features"]]
    unit.features = [Feature(text) for text in texts]
    unit.dropped = [(str(text), str(reason)) for text, reason in features["dropped"]]
    unit.raw = [str(text) for text in features["raw"]]
    unit.missing = STAGES[1:]
    if features["failure"] is not None:
        unit.failure, unit.missing = f"No features: {features['failure']}", ()
        return
    if scores is not None:
        unit.features = [_feature(row) for row in scores["attributes"]]
        unit.missing = STAGES[2:]
        for number, group in enumerate(dict.fromkeys(row["trials"] for row in scores["attributes"] if "trials" in row)):
            images = _images(store, [*place, "trials", str(group)], None, ())
            unit.trials += [replace(image, verdict="trial", reason=f"group {number + 1}") for image in images]
    prompted = [] if scores is None else [str(text) for text in scores["prompt_attributes"]]
    unit.warnings = unit_warnings(min_features, features, scores, verified)
    if verified is not None and _remade(store, [*place, "images"], verified["files"]):
        unit.warnings.append("the verdicts are of earlier images; the next run gives them anew")
        verified = None
    files = None if verified is None else verified["files"]
    unit.images = _images(store, [*place, "images"], files, prompted)
    if unit.images:
        unit.missing = STAGES[3:]
    if verified is not None:
        order = {int(index): number for number, index in enumerate(verified["accepted"])}
        unit.images = [
            replace(image, verdict="accepted" if _index(image.parts[-1]) in order else "rejected")
            for image in sorted(unit.images, key=lambda one: order.get(_index(one.parts[-1]), len(order)))
        ]
        unit.accepted, unit.short, unit.failure = len(order), int(verified["short"]), verified["failure"]
        unit.missing = ()
    if scores is not None and [feature.text for feature in unit.features] != texts:
        unit.warnings.append("the scores are of earlier features; the next run gives them anew")
        unit.missing = STAGES[1:]
    elif verified is not None and verified["attributes"] != prompted:
        unit.warnings.append("the images are of earlier features; the next run makes them anew")
        unit.missing = STAGES[2:]


def _remade(store: Store, folder: list[str], files: Mapping[str, str]) -> bool:
    """Return whether an image was made anew after the verdicts, which name the files that they are of."""
    for name, digest in files.items():
        record = store.read_json([*folder, name.removesuffix(".png") + ".json"])
        if record is not None and record.get("sha256", digest) != digest:
            return True
    return False


def _feature(row: Mapping[str, Any]) -> Feature:
    ends = [None if row.get(name) is None else (float(row[name][0]), float(row[name][1])) for name in _INTERVALS]
    values = [None if row[name] is None else float(row[name]) for name in ("D", "G")]
    return Feature(str(row["text"]), values[0], ends[0], values[1], ends[1], bool(row["kept"]), str(row["reason"]))


def _index(name: str) -> int:
    return int(name.removesuffix(".png"))


def _images(
    store: Store, folder: list[str], files: Mapping[str, str] | None, attributes: Sequence[str]
) -> list[MadeImage]:
    """Return the images that a record names, or without one those in a folder, in the order of their numbers."""
    if files is None:
        inside = store.path([*folder, "0.png"]).parent
        files = {path.name: "" for path in inside.iterdir()} if inside.is_dir() else {}
    names = [name for name in files if _IMAGE.fullmatch(name)]
    found = []
    for name in sorted(names, key=_index):
        parts = [*folder, name]
        record = store.read_json([*folder, f"{_index(name)}.json"]) or {}
        digest = files[name] or record.get("sha256")
        bits = record.get("bits")
        marks = zip(attributes, bits, strict=False) if isinstance(bits, list) else ()
        found.append(
            MadeImage(
                tuple(parts),
                None if digest is None else str(digest),
                str(record.get("verdict", "not verified")),
                None if record.get("score") is None else float(record["score"]),
                None if record.get("reason") is None else str(record["reason"]),
                str(record.get("prompt", "")),
                None if record.get("negative") is None else str(record["negative"]),
                record.get("seed"),
                str(record.get("generator", "")),
                tuple((text, bool(bit)) for text, bit in marks),
            )
        )
    return found
