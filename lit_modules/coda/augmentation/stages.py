"""The stages of the augmentation on one direction of a pair, each with a record that says whether it is done."""

import hashlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from PIL.Image import Image
from torch import Tensor

from lit_modules.coda.augmentation.calls import RecordedChat
from lit_modules.coda.augmentation.discriminability import discriminability_scores
from lit_modules.coda.augmentation.features import (
    FeatureKind,
    base_kinds,
    extract_features,
    feature_request,
    join_answers,
    wording,
)
from lit_modules.coda.augmentation.generability import attribute_groups, generability_scores
from lit_modules.coda.augmentation.generation import image_prompt, long_texts, negative_prompt, plan_images
from lit_modules.coda.augmentation.inputs import Embeddings, Side, SupportImage
from lit_modules.coda.augmentation.presets import CoDASettings
from lit_modules.coda.augmentation.ranking import rank_references, similarities
from lit_modules.coda.augmentation.selection import Selection, select_discriminative, select_generable
from lit_modules.coda.backends.protocols import ChatRequest, Counts, ImageGenerator, ImageRequest
from lit_modules.coda.core.concepts import prompt_text
from lit_modules.coda.core.pictures import png_bytes, png_key, read_picture
from lit_modules.coda.core.store import Store, stage_key
from lit_modules.utils.hashing import stable_hash, stable_seed

_FEATURE_SETTINGS = ("seed", "feature_temperature", "feature_tokens", "max_features", "max_words", "retries")
_SCORE_SETTINGS = (
    *("seed", "temperature", "min_discriminability", "min_features", "group_size", "trials_per_group", "top_k"),
    *("shuffle_groups", "min_generability", "resamples"),
)
_THUMBNAIL = 256  # longest side of the copies of real images, in pixels
DRAWING_SETTINGS = ("seed", "prompt", "name_in_prompt", "negative", "width", "height", "steps", "guidance")


class Workshop:
    """What the stages share: store, settings and models.

    Args:
        store: Where records and images are kept.
        settings: Settings of the run.
        chat: Model that is asked for features.
        generator: Model that makes images.
        embeddings: Embeddings of images and texts.
        report: Takes the name of a stage and what it took.
    """

    def __init__(
        self,
        store: Store,
        settings: CoDASettings,
        chat: RecordedChat,
        generator: ImageGenerator,
        embeddings: Embeddings,
        report: Callable[[str, Counts], None],
    ) -> None:
        self.store, self.settings, self.chat = store, settings, chat
        self.generator, self.embeddings, self.report = generator, embeddings, report
        self._references: dict[tuple[str, str], dict[str, Any]] = {}

    def values(self, names: Sequence[str]) -> dict[str, Any]:
        """Return some settings as plain values."""
        record = self.settings.record()
        return {name: record[name] for name in names}

    def seed_parts(self, side: Side, kind: str, *more: object) -> tuple[object, ...]:
        """Return what a seed belongs to: the run's seed, pair, direction, kind and stage."""
        return (self.settings.seed, side.pair_id, side.direction, kind, *more)

    def references_key(self, side: Side) -> str:
        """Return the stage key of the reference images."""
        inputs = {
            "images": [[image.path.name, image.digest] for image in side.images],
            "texts": _reference_texts(side),
            "embedder": self.embeddings.embedder.identity,
            **self.values(("num_references", "temperature")),
        }
        return stage_key("references", inputs)

    def references(self, side: Side) -> dict[str, Any]:
        """Return the record of the real images that scores are computed with, the best first."""
        known = self._references.get((side.pair_id, side.direction))
        if known is not None:
            return known
        key, texts, place = self.references_key(side), _reference_texts(side), side.place("references.json")
        record = self.store.read_done(place, key)
        if record is None:
            cosines = similarities(self.image_rows(side.images), self.embeddings.texts(texts))
            names = [f"{image.path.name}/{image.digest}" for image in side.images]
            order = rank_references(
                cosines[:, 0], cosines[:, 1], names, self.settings.num_references, self.settings.temperature
            )
            chosen = [side.images[number] for number in order]
            record = {
                "key": key,
                "images": [{"name": image.path.name, "sha256": image.digest} for image in chosen],
                "texts": texts,
                "embedder": self.embeddings.embedder.identity,
                "support": [{"name": image.path.name, "sha256": image.digest} for image in side.images],
            }
            for image in side.images:  # for the report, which may be made where the real images are not
                small = image.picture.copy()
                small.thumbnail((_THUMBNAIL, _THUMBNAIL))
                self.store.write_bytes(side.place("support", f"{image.digest}.png"), png_bytes(small, image.digest))
            self.store.write_json(place, record)
        self._references[side.pair_id, side.direction] = record
        return record

    def reference_images(self, side: Side) -> list[SupportImage]:
        """Return the reference images of a direction, the best first."""
        by_digest = {image.digest: image for image in side.images}
        return [by_digest[row["sha256"]] for row in self.references(side)["images"]]

    def image_rows(self, images: Sequence[SupportImage]) -> Tensor:
        """Return the embeddings of real images."""
        return self.embeddings.images([(image.digest, partial(getattr, image, "picture")) for image in images])

    def made_rows(self, images: Sequence[tuple[str, Image]]) -> Tensor:
        """Return the embeddings of synthetic images, given with their hashes."""
        return self.embeddings.images([(digest, partial(_same, picture)) for digest, picture in images])

    def feature_options(self, side: Side, base: FeatureKind) -> dict[str, Any]:
        """Return what a question for features needs beside its kind and concepts."""
        settings = self.settings
        options: dict[str, Any] = {
            "capabilities": self.chat.model.capabilities,
            "seed_parts": self.seed_parts(side, base),
            "temperature": settings.feature_temperature,
            "max_new_tokens": settings.feature_tokens,
            "max_words": settings.max_words,
            "prompts": dict(settings.feature_prompts),
        }
        if base.startswith("visual"):
            options["target_image"] = self.reference_images(side)[0].picture
            if settings.show_confusable_image and base == "visual_contrastive":
                options["confusable_image"] = self.reference_images(side.reverse)[0].picture
        return options

    def features_key(self, side: Side, kind: FeatureKind) -> str:
        """Return the stage key of features."""
        visual = any(base.startswith("visual") for base in base_kinds(kind))
        shown = [self.references(side), self.references(side.reverse)] if visual else []
        inputs = {
            "kind": kind,
            "concepts": [side.concept.record(), side.other.record()],
            "images": [record["images"][0] for record in shown],
            "model": self.chat.model.identity,
            "questions": [wording(base, dict(self.settings.feature_prompts)) for base in base_kinds(kind)],
            "show_confusable_image": self.settings.show_confusable_image and visual,
            **self.values(_FEATURE_SETTINGS),
        }
        return stage_key("features", inputs)

    def first_questions(self, side: Side, kind: FeatureKind) -> list[ChatRequest]:
        """Return the first questions for features that are not done, to be asked together with others'."""
        if self.store.read_done(side.place(kind, "features.json"), self.features_key(side, kind)) is not None:
            return []
        return [
            feature_request(base, side.concept, side.other, **self.feature_options(side, base))
            for base in base_kinds(kind)
        ]

    def features(self, side: Side, kind: FeatureKind) -> dict[str, Any]:
        """Return the record of features; a failed one says why."""
        key, place = self.features_key(side, kind), side.place(kind, "features.json")
        record = self.store.read_done(place, key)
        if record is None:
            answers = [
                extract_features(
                    self.chat.ask,
                    base,
                    side.concept,
                    side.other,
                    max_features=self.settings.max_features,
                    retries=self.settings.retries,
                    **self.feature_options(side, base),
                )
                for base in base_kinds(kind)
            ]
            answer = join_answers(kind, answers, self.settings.max_features)
            record = {"key": key, "model": self.chat.model.identity, **answer.record()}
            self.store.write_json(place, record)
        return record

    def scores_key(self, side: Side, kind: FeatureKind, features: Sequence[str]) -> str:
        """Return the stage key of scores."""
        inputs = {
            "kind": kind,
            "features": list(features),
            "filtered": kind in self.settings.filtered_kinds,
            "references": [self.references(side)["images"], self.references(side.reverse)["images"]],
            "embedder": self.embeddings.embedder.identity,
            "generator": self.generator.identity,
            "concept": side.concept.record(),
            **self.values((*_SCORE_SETTINGS, *DRAWING_SETTINGS)),
        }
        return stage_key("scores", inputs)

    def scores(self, side: Side, kind: FeatureKind, features: Sequence[str]) -> dict[str, Any]:
        """Return the record of discriminability and generability, and of what goes into the prompt."""
        key, place = self.scores_key(side, kind, features), side.place(kind, "scores.json")
        record = self.store.read_done(place, key)
        if record is not None:
            return record
        settings = self.settings
        texts = self.embeddings.texts(features)
        real = similarities(self.image_rows(self.reference_images(side)), texts)
        other = similarities(self.image_rows(self.reference_images(side.reverse)), texts)
        seed = stable_seed(*self.seed_parts(side, kind, "bootstrap"))
        found = discriminability_scores(real, other, settings.temperature, settings.resamples, seed=seed)
        rows: list[dict[str, Any]] = [
            {"text": text, "D": value, "D_interval": [lower, upper], "G": None, "kept": False}
            for text, value, lower, upper in zip(features, found.values, found.lower, found.upper, strict=True)
        ]
        filtered = kind in settings.filtered_kinds
        kept = list(range(len(features)))
        first = second = None
        if filtered:
            first = select_discriminative(found.values, settings.min_discriminability, settings.min_features)
            second = self._generability(side, kind, features, first, other, texts, rows, seed)
            kept = [first.kept[number] for number in second.kept]
        for number, row in enumerate(rows):
            row["kept"] = number in kept
            row.setdefault("reason", first.reasons[number] if first else "this kind is not filtered")
        record = {
            "key": key,
            "attributes": rows,
            "prompt_attributes": [features[number] for number in kept],
            "num_pairs": found.num_pairs,
            "fallback": {
                "discriminability": bool(first and first.fallback),
                "generability": bool(second and second.fallback),
            },
            "references": [row["name"] for row in self.references(side)["images"]],
            "embedder": self.embeddings.embedder.identity,
            "cut_off": self._cut_off(features),
        }
        self.store.write_json(place, record)
        return record

    def _cut_off(self, features: Sequence[str]) -> list[list[Any]]:
        """Return the texts that the embedder does not read to their end, with their tokens."""
        count = getattr(self.embeddings.embedder, "count_tokens", None)
        return [] if count is None else [list(pair) for pair in long_texts(features, count)]

    def _generability(
        self,
        side: Side,
        kind: str,
        features: Sequence[str],
        first: Selection,
        other: Tensor,
        texts: Tensor,
        rows: list[dict[str, Any]],
        seed: int,
    ) -> Selection:
        """Make the trial images of the attributes that tell the concepts apart, and choose by their scores."""
        settings, kept = self.settings, list(first.kept)
        shuffle = stable_seed(*self.seed_parts(side, kind, "groups")) if settings.shuffle_groups else None
        groups = attribute_groups(len(kept), settings.group_size, shuffle)
        trials = []
        for group in groups:
            attributes = [features[kept[number]] for number in group]
            requests = self.requests(side, kind, attributes, range(settings.trials_per_group), "trials", attributes)
            # named by its attributes: no group overwrites another, and another threshold may find it again
            folder = side.place(kind, "trials", stable_hash(attributes)[:12])
            trials.append(self.made_rows(self.make(folder, requests, range(settings.trials_per_group))))
            for number in group:
                rows[kept[number]]["trials"] = folder[-1]
        chosen = texts[kept]
        found = generability_scores(
            [similarities(rows_, chosen) for rows_ in trials],
            groups,
            other[:, kept],
            settings.temperature,
            settings.resamples,
            seed,
        )
        second = select_generable(found.values, settings.top_k, settings.min_generability)
        for place, number in enumerate(kept):
            rows[number]["G"] = found.values[place]
            rows[number]["G_interval"] = [found.lower[place], found.upper[place]]
            rows[number]["group"] = next(at for at, group in enumerate(groups) if place in group)
            rows[number]["reason"] = f"{first.reasons[number]}; {second.reasons[place]}"
        return second

    def requests(
        self, side: Side, kind: str, attributes: Sequence[str], indices: Sequence[int], *stage: object
    ) -> list[ImageRequest]:
        """Return the requests of images with these attributes; their seeds belong to the stage and the index."""
        settings = self.settings
        return plan_images(
            image_prompt(side.concept, attributes, settings.prompt, settings.name_in_prompt),
            negative_prompt(side.concept.kind, settings.guidance, settings.negative),
            indices,
            self.seed_parts(side, kind, *stage),
            settings.width,
            settings.height,
            settings.steps,
            settings.guidance,
        )

    def image_key(self, request: ImageRequest) -> str:
        """Return the key of an image."""
        return stage_key("image", {"generator": self.generator.identity, "request": request.record()})

    def make(
        self, folder: list[str], requests: Sequence[ImageRequest], indices: Sequence[int]
    ) -> list[tuple[str, Image]]:
        """Return the hash and picture of each request, made now unless the store has it."""
        made = []
        for index, request in zip(indices, requests, strict=True):
            key, picture_place = self.image_key(request), [*folder, f"{index}.png"]
            record_place = [*folder, f"{index}.json"]
            record = self.store.read_done(record_place, key)
            data = self.store.read_file(picture_place, None if record is None else record.get("sha256"))
            if record is None and data is not None and png_key(data) != key:
                data = None  # an image of other settings
            if data is None:
                started = time.perf_counter()
                data = png_bytes(self.generator.generate(**request.record()), key)
                seconds = time.perf_counter() - started
                self.store.write_bytes(picture_place, data)
                record = None
                self.report("trials" if "trials" in folder else "images", Counts(images=1, seconds=seconds))
            digest = hashlib.sha256(data).hexdigest()
            if record is None:
                facts = {"key": key, "generator": self.generator.identity, "sha256": digest, **request.record()}
                self.store.write_json(record_place, facts)
            picture = read_picture(data, f"{index}.png")
            made.append((digest, picture))
        return made


def _same(picture: Image) -> Image:
    return picture


def _reference_texts(side: Side) -> list[str]:
    return [side.concept.generic_text, f"photo of a {prompt_text(side.concept.name)}"]
