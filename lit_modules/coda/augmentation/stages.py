"""Stages of the augmentation on one direction of a pair, each with a record in the store that says it is done."""

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

from PIL.Image import Image
from torch import Tensor

from lit_modules.coda.augmentation.features import (
    FeatureKind,
    base_kinds,
    extract_features,
    feature_request,
    join_answers,
    wording,
)
from lit_modules.coda.augmentation.generation import image_prompt, long_texts, negative_prompt, plan_images
from lit_modules.coda.augmentation.scores import (
    EmbeddingCache,
    Selection,
    attribute_groups,
    discriminability_scores,
    generability_scores,
    rank_references,
    select_discriminative,
    select_generable,
    similarities,
)
from lit_modules.coda.augmentation.settings import CoDASettings
from lit_modules.coda.augmentation.verification import (
    Acceptance,
    accept_images,
    clip_bits,
    image_score,
    prefers_target,
    read_verification,
    verification_requests,
)
from lit_modules.coda.backends.protocols import (
    ChatRequest,
    Counts,
    ImageGenerator,
    ImageRequest,
    answered,
    refuse_cut_off,
)
from lit_modules.coda.core.answers import MalformedAnswer
from lit_modules.coda.core.concepts import Direction, SupportImage, prompt_text
from lit_modules.coda.core.images import near_duplicate, perceptual_hash, picture_problem, png_bytes, png_key
from lit_modules.coda.core.store import RecordedChat, Store, stage_key
from lit_modules.utils.hashing import stable_hash, stable_seed
from lit_modules.utils.images import read_picture

_FEATURE_SETTINGS = ("seed", "feature_temperature", "feature_tokens", "max_features", "max_words", "retries")
_SCORE_SETTINGS = (
    *("seed", "temperature", "min_discriminability", "min_features", "group_size", "trials_per_group", "top_k"),
    *("shuffle_groups", "min_generability", "resamples"),
)
_IMAGE_SETTINGS = ("seed", "prompt", "name_in_prompt", "negative", "width", "height", "steps", "guidance")
_VERIFICATION_SETTINGS = (
    *("temperature", "retries", "thought_tokens", "num_images", "verification", "score_levels", "guards"),
    *("min_side", "max_attempts", "allow_short"),
)
_THUMBNAIL = 256  # longest side of the copies of real images, in pixels
Record = dict[str, Any]
Made = tuple[str, Image]
"""Hash of a synthetic image's file, and the image."""


class StageRunner:
    """Runner of the stages, which reads what the store has and makes what is missing.

    ``verifier`` is ``None`` if none is needed; ``report`` takes the name of a stage and its counts.
    """

    def __init__(
        self,
        store: Store,
        settings: CoDASettings,
        chat: RecordedChat,
        generator: ImageGenerator,
        embeddings: EmbeddingCache,
        verifier: RecordedChat | None,
        report: Callable[[str, Counts], None],
    ) -> None:
        self.store, self.settings, self.chat, self.generator = store, settings, chat, generator
        self.embeddings, self.verifier, self.report = embeddings, verifier, report
        self._references: dict[tuple[str, str], Record] = {}

    # --- references

    def references_key(self, side: Direction) -> str:
        """Return the stage key of the reference images."""
        inputs = {
            "images": [[image.path.name, image.digest] for image in side.images],
            "texts": _reference_texts(side),
            "embedder": self.embeddings.embedder.identity,
            **self._values("num_references", "temperature"),
        }
        return stage_key("references", inputs)

    def references(self, side: Direction) -> Record:
        """Return the record of the real images that scores are computed with, the best first."""
        known = self._references.get((side.pair_id, side.name))
        if known is not None:
            return known
        key, texts, path = self.references_key(side), _reference_texts(side), side.path("references.json")
        record = self.store.read_done(path, key)
        if record is None:
            cosines = similarities(self._real_rows(side.images), self.embeddings.texts(texts))
            names = [f"{image.path.name}/{image.digest}" for image in side.images]
            order = rank_references(cosines[:, 0], cosines[:, 1], names, self.settings.num_references)
            record = {
                "key": key,
                "images": [side.images[index].record() for index in order],
                "texts": texts,
                "embedder": self.embeddings.embedder.identity,
                "support": [image.record() for image in side.images],
            }
            for image in side.images:  # for the report, which may be made where the real images are not
                small = image.image
                small.thumbnail((_THUMBNAIL, _THUMBNAIL))
                self.store.write_bytes(side.path("support", f"{image.digest}.png"), png_bytes(small, image.digest))
            self.store.write_json(path, record)
        self._references[side.pair_id, side.name] = record
        return record

    def _reference_images(self, side: Direction) -> list[SupportImage]:
        by_digest = {image.digest: image for image in side.images}
        return [by_digest[row["sha256"]] for row in self.references(side)["images"]]

    def _reference_records(self, side: Direction) -> list[Any]:
        return [self.references(side)["images"], self.references(side.reverse)["images"]]

    def _real_rows(self, images: Sequence[SupportImage]) -> Tensor:
        return self.embeddings.images([image.digest for image in images], lambda index: images[index].image)

    def _reference_rows(self, side: Direction) -> Tensor:
        return self._real_rows(self._reference_images(side))

    def _made_rows(self, images: Sequence[Made]) -> Tensor:
        return self.embeddings.images([digest for digest, _ in images], lambda index: images[index][1])

    # --- features

    def features_key(self, side: Direction, kind: FeatureKind) -> str:
        """Return the stage key of features."""
        visual = any(base.startswith("visual") for base in base_kinds(kind))
        inputs = {
            "kind": kind,
            "concepts": [side.concept.record(), side.other.record()],
            "images": [images[0] for images in self._reference_records(side)] if visual else [],
            "model": self.chat.model.identity,
            "questions": [wording(base, dict(self.settings.feature_prompts)) for base in base_kinds(kind)],
            "show_confusable_image": self.settings.show_confusable_image and visual,
            **self._values(*_FEATURE_SETTINGS),
        }
        return stage_key("features", inputs)

    def first_questions(self, side: Direction, kind: FeatureKind) -> list[ChatRequest]:
        """Return the first questions for features that are missing, to be asked together with others'."""
        if self.store.read_done(side.path(kind, "features.json"), self.features_key(side, kind)) is not None:
            return []
        return [
            feature_request(base, side.concept, side.other, **self._feature_options(side, base))
            for base in base_kinds(kind)
        ]

    def features(self, side: Direction, kind: FeatureKind) -> Record:
        """Return the record of features; a failed one says why."""
        key, path = self.features_key(side, kind), side.path(kind, "features.json")
        record = self.store.read_done(path, key)
        if record is None:
            answers = [
                extract_features(
                    self.chat.ask,
                    base,
                    side.concept,
                    confusable=side.other,
                    max_features=self.settings.max_features,
                    retries=self.settings.retries,
                    **self._feature_options(side, base),
                )
                for base in base_kinds(kind)
            ]
            answer = join_answers(kind, answers, self.settings.max_features)
            record = {"key": key, "model": self.chat.model.identity, **answer.record()}
            self.store.write_json(path, record)
        return record

    def _feature_options(self, side: Direction, base: FeatureKind) -> dict[str, Any]:
        settings = self.settings
        options: dict[str, Any] = {
            "capabilities": self.chat.model.capabilities,
            "seed_parts": self._seed_parts(side, base),
            "temperature": settings.feature_temperature,
            "max_new_tokens": settings.feature_tokens,
            "max_words": settings.max_words,
            "prompts": dict(settings.feature_prompts),
        }
        if base.startswith("visual"):
            options["target_image"] = self._reference_images(side)[0].image
            if settings.show_confusable_image and base == "visual_contrastive":
                options["confusable_image"] = self._reference_images(side.reverse)[0].image
        return options

    # --- scores

    def scores_key(self, side: Direction, kind: FeatureKind, features: Sequence[str]) -> str:
        """Return the stage key of scores."""
        inputs = {
            "kind": kind,
            "features": list(features),
            "filtered": kind in self.settings.filtered_kinds,
            "references": self._reference_records(side),
            "embedder": self.embeddings.embedder.identity,
            "generator": self.generator.identity,
            "concept": side.concept.record(),
            **self._values(*_SCORE_SETTINGS, *_IMAGE_SETTINGS),
        }
        return stage_key("scores", inputs)

    def scores(self, side: Direction, kind: FeatureKind, features: Sequence[str]) -> Record:
        """Return the record of discriminability (D), generability (G) and the attributes of the prompt."""
        key, path = self.scores_key(side, kind, features), side.path(kind, "scores.json")
        record = self.store.read_done(path, key)
        if record is not None:
            return record
        settings, embedder = self.settings, self.embeddings.embedder
        texts = self.embeddings.texts(features)
        real, other = (similarities(self._reference_rows(one), texts) for one in (side, side.reverse))
        seed = stable_seed(*self._seed_parts(side, kind, "bootstrap"))
        scores = discriminability_scores(real, other, settings.temperature, resamples=settings.resamples, seed=seed)
        rows: list[Record] = [
            {"text": text, "D": value, "D_interval": [lower, upper], "G": None, "kept": False}
            for text, value, lower, upper in zip(features, scores.values, scores.lower, scores.upper, strict=True)
        ]
        kept, reasons = list(range(len(features))), ["this kind is not filtered"] * len(features)
        fallback = {"discriminability": False, "generability": False}
        if kind in settings.filtered_kinds:
            first = select_discriminative(scores.values, settings.min_discriminability, settings.min_features)
            kept, reasons = list(first.kept), list(first.reasons)
            fallback["discriminability"] = first.fallback
            if settings.trials_per_group:
                second = self._generability(side, kind, first, other=other, texts=texts, rows=rows, seed=seed)
                kept = [first.kept[number] for number in second.kept]
                fallback["generability"] = second.fallback
        for number, row in enumerate(rows):
            row["kept"] = number in kept
            row.setdefault("reason", reasons[number])
        count_tokens = getattr(embedder, "count_tokens", None)  # not all embedders have a tokenizer
        record = {
            "key": key,
            "attributes": rows,
            "prompt_attributes": [features[number] for number in kept],
            "num_pairs": scores.num_pairs,
            "fallback": fallback,
            "references": [row["name"] for row in self.references(side)["images"]],
            "embedder": embedder.identity,
            "cut_off": [list(pair) for pair in long_texts(features, count_tokens)] if count_tokens else [],
        }
        self.store.write_json(path, record)
        return record

    def _generability(
        self,
        side: Direction,
        kind: str,
        first: Selection,
        other: Tensor,
        texts: Tensor,
        rows: list[Record],
        seed: int,
    ) -> Selection:
        """Make trial images of the discriminative attributes, note their scores in the rows, and select by these."""
        settings, kept = self.settings, list(first.kept)
        shuffle = stable_seed(*self._seed_parts(side, kind, "groups")) if settings.shuffle_groups else None
        groups = attribute_groups(len(kept), settings.group_size, shuffle)
        trials = []
        for number, group in enumerate(groups):
            attributes = [rows[kept[index]]["text"] for index in group]
            indices = range(settings.trials_per_group)
            requests = self._requests(side, kind, attributes, indices=indices, stage=("trials", attributes))
            # named by its attributes: no group overwrites another, and another threshold may find it again
            folder = side.path(kind, "trials", stable_hash(attributes)[:12])
            images = self._make("trials", folder, requests, indices=indices)
            trials.append(similarities(self._made_rows(images), texts[kept]))
            for index in group:
                rows[kept[index]] |= {"trials": folder[-1], "group": number}
        scores = generability_scores(
            trials, groups, other[:, kept], temperature=settings.temperature, resamples=settings.resamples, seed=seed
        )
        second = select_generable(scores.values, settings.top_k, settings.min_generability)
        for index, number in enumerate(kept):
            rows[number]["G"] = scores.values[index]
            rows[number]["G_interval"] = [scores.lower[index], scores.upper[index]]
            rows[number]["reason"] = f"{first.reasons[number]}; {second.reasons[index]}"
        return second

    # --- generation

    def generate(self, side: Direction, kind: str, attributes: Sequence[str]) -> int:
        """Make the first final images without verifying them; return the number of images."""
        record = self.read_images(side, kind, attributes)
        return len(self._batch(side, kind, attributes, attempt=0)) if record is None else len(record["files"])

    def _batch(self, side: Direction, kind: str, attributes: Sequence[str], attempt: int) -> list[Made]:
        wanted = self.settings.num_images
        indices = range(attempt * wanted, (attempt + 1) * wanted)
        requests = self._requests(side, kind, attributes, indices=indices, stage=("images",))
        return self._make("images", side.path(kind, "images"), requests, indices=indices)

    def _requests(
        self, side: Direction, kind: str, attributes: Sequence[str], indices: Sequence[int], stage: Sequence[object]
    ) -> list[ImageRequest]:
        """Return requests of images with these attributes; their seeds belong to the stage and the index."""
        settings = self.settings
        return plan_images(
            image_prompt(side.concept, attributes, settings.prompt, name_in_prompt=settings.name_in_prompt),
            negative_prompt(side.concept.kind, settings.guidance, settings.negative),
            indices,
            seed_parts=self._seed_parts(side, kind, *stage),
            width=settings.width,
            height=settings.height,
            steps=settings.steps,
            guidance=settings.guidance,
        )

    def _make(
        self, stage: str, folder: list[str], requests: Sequence[ImageRequest], indices: Sequence[int]
    ) -> list[Made]:
        """Return the image of each request, generated now unless the store has it."""
        made = []
        for index, request in zip(indices, requests, strict=True):
            key = stage_key("image", {"generator": self.generator.identity, "request": request.record()})
            image_path, record_path = [*folder, f"{index}.png"], [*folder, f"{index}.json"]
            record = self.store.read_done(record_path, key)
            data = self.store.read_file(image_path, None if record is None else record.get("sha256"))
            if record is None and data is not None and png_key(data) != key:
                data = None  # an image of other settings
            if data is None:
                started = time.perf_counter()
                data = png_bytes(self.generator.generate(**request.record()), key)
                seconds = time.perf_counter() - started
                self.store.write_bytes(image_path, data)
                record = None
                self.report(stage, Counts(images=1, seconds=seconds))
            digest = hashlib.sha256(data).hexdigest()
            if record is None:
                record = {"key": key, "generator": self.generator.identity, "sha256": digest, **request.record()}
                self.store.write_json(record_path, record)
            made.append((digest, read_picture(data, f"{index}.png")))
        return made

    # --- verification

    def images_key(self, side: Direction, kind: str, attributes: Sequence[str]) -> str:
        """Return the stage key of the final images."""
        inputs = {
            "kind": kind,
            "attributes": list(attributes),
            "concept": side.concept.record(),
            "references": self._reference_records(side),
            "generator": self.generator.identity,
            "embedder": self.embeddings.embedder.identity,
            "verifier": None if self.verifier is None else self.verifier.model.identity,
            **self._values(*_IMAGE_SETTINGS, *_VERIFICATION_SETTINGS),
        }
        return stage_key("images", inputs)

    def read_images(self, side: Direction, kind: str, attributes: Sequence[str]) -> Record | None:
        """Return the record of the final images if it is done and all its files exist."""
        record = self.store.read_done(side.path(kind, "images.json"), self.images_key(side, kind, attributes))
        for name, digest in {} if record is None else record["files"].items():
            if self.store.read_file(side.path(kind, "images", name), digest) is None:
                return None
        return record

    def images(self, side: Direction, kind: str, attributes: Sequence[str]) -> Record:
        """Return the record of the final images: which are accepted, at which level, and why others are not."""
        record = self.read_images(side, kind, attributes)
        if record is not None:
            return record
        settings, folder, wanted = self.settings, side.path(kind, "images"), self.settings.num_images
        made: list[Made] = []
        verdicts: list[Record] = []
        acceptance = Acceptance((), None, False, short=wanted)
        for attempt in range(settings.max_attempts):
            batch = self._batch(side, kind, attributes, attempt=attempt)
            reasons = self._guard(side, batch, made, verdicts=verdicts)
            made += batch
            verdicts += self._verify(side, batch, attributes, reasons=reasons)
            acceptance = accept_images([verdict["score"] for verdict in verdicts], wanted, settings.score_levels)
            if not acceptance.short:
                break
        for index, verdict in enumerate(verdicts):
            verdict["verdict"] = "accepted" if index in acceptance.accepted else "rejected"
            if verdict["reason"] is None and index not in acceptance.accepted:
                below = acceptance.level is not None and verdict["score"] < acceptance.level - 1e-9
                verdict["reason"] = f"score below {acceptance.level:g}" if below else f"not among the best {wanted}"
            path = [*folder, f"{index}.json"]
            self.store.write_json(path, {**(self.store.read_json(path) or {}), **verdict})
        failure = None
        if acceptance.short and not settings.allow_short:
            failure = (
                f"Only {wanted - acceptance.short} of {wanted} images were accepted in {settings.max_attempts} "
                "batches; allow_short takes fewer."
            )
        record = {
            "key": self.images_key(side, kind, attributes),
            "attributes": list(attributes),
            "accepted": list(acceptance.accepted),
            "level": acceptance.level,
            "relaxed": acceptance.relaxed,
            "short": acceptance.short,
            "files": {f"{index}.png": digest for index, (digest, _) in enumerate(made)},
            "verifier": settings.verification if self.verifier is None else self.verifier.model.identity,
            "failure": failure,
        }
        self.store.write_json(side.path(kind, "images.json"), record)
        return record

    def _guard(
        self, side: Direction, batch: Sequence[Made], earlier: Sequence[Made], verdicts: Sequence[Record]
    ) -> list[str | None]:
        """Return why each image of a batch is of no use, whatever it shows, or ``None``."""
        if not self.settings.guards:
            return [None] * len(batch)
        hashes = {
            index: perceptual_hash(image)
            for index, ((_, image), verdict) in enumerate(zip(earlier, verdicts, strict=True))
            if verdict["guard"] is None
        }
        preferred = prefers_target(
            self._made_rows(batch), self._reference_rows(side), self._reference_rows(side.reverse)
        )
        reasons: list[str | None] = []
        for number, (_, image) in enumerate(batch):
            reason, own = picture_problem(image, self.settings.min_side), perceptual_hash(image)
            if reason is None:
                twin = near_duplicate(own, list(hashes.values()))
                if twin is not None:
                    reason = f"near duplicate of {list(hashes)[twin]}"
                elif not preferred[number]:
                    reason = "looks more like the confusable"
                else:
                    hashes[len(earlier) + number] = own
            reasons.append(reason)
        return reasons

    def _verify(
        self, side: Direction, batch: Sequence[Made], attributes: Sequence[str], reasons: Sequence[str | None]
    ) -> list[Record]:
        """Return the bits and score of each image of a batch; images that the guards refused are left out."""
        settings = self.settings
        verdicts: list[Record] = [
            {"bits": None, "score": None, "reason": reason, "guard": reason} for reason in reasons
        ]
        numbers = [number for number, reason in enumerate(reasons) if reason is None]
        if settings.verification == "none":
            for number in numbers:
                verdicts[number]["score"] = 1.0
        elif settings.verification == "clip" and numbers:
            texts = self.embeddings.texts(attributes)
            cosines = similarities(self._made_rows([batch[number] for number in numbers]), texts)
            other = similarities(self._reference_rows(side.reverse), texts)
            for number, row in zip(numbers, cosines, strict=True):
                value, bits = clip_bits(row, other, settings.temperature)
                verdicts[number] |= {"bits": [int(bit) for bit in bits], "likeness": value}
                # the mean decides as a whole: good from chance level
                verdicts[number]["score"] = 1.0 if value >= 0.5 else 0.0
        elif numbers:
            self._ask_verifier(batch, attributes, numbers, verdicts=verdicts)
        return verdicts

    def _ask_verifier(
        self, batch: Sequence[Made], attributes: Sequence[str], numbers: Sequence[int], verdicts: list[Record]
    ) -> None:
        """Ask the verifier about images, all together, and again about those whose answers cannot be read."""
        settings, verifier = self.settings, self.verifier
        assert verifier is not None  # the pipeline gives one for these forms of verification
        form = cast(Literal["questions", "batch"], settings.verification)
        waiting, reasons = list(numbers), {}
        for attempt in range(1 + settings.retries):
            requests = [
                verification_requests(
                    batch[number][1],
                    attributes,
                    form,
                    capabilities=verifier.model.capabilities,
                    attempt=attempt,
                    thought_tokens=settings.thought_tokens,
                )
                for number in waiting
            ]
            replies = iter(verifier.ask_many([request for own in requests for request in own]))
            unread = []
            for number, questions in zip(waiting, requests, strict=True):
                own = [answered(next(replies)) for _ in questions]
                try:
                    bits = read_verification([reply.text for reply in own], len(attributes), form)
                except MalformedAnswer as error:
                    if attempt == settings.retries:
                        refuse_cut_off(own, "thought_tokens")
                    unread.append(number)
                    reasons[number] = f"verdict cannot be read: {error}"
                    continue
                verdicts[number] |= {"bits": [int(bit) for bit in bits], "score": image_score(bits)}
            waiting = unread
            if not waiting:
                return
        for number in waiting:
            # where nothing consumes the scores, an image is kept whatever its verdict
            score = 0.0 if settings.score_levels is None else None
            verdicts[number] |= {"score": score, "reason": reasons[number]}

    def _values(self, *names: str) -> Record:
        record = self.settings.record()
        return {name: record[name] for name in names}

    def _seed_parts(self, side: Direction, kind: str, *more: object) -> tuple[object, ...]:
        return (self.settings.seed, side.pair_id, side.name, kind, *more)


def _reference_texts(side: Direction) -> list[str]:
    return [side.concept.generic_text, f"photo of a {prompt_text(side.concept.name)}"]
