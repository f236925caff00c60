"""The last stage of the augmentation: final images of a concept, verified, and made anew until enough are accepted."""

from collections.abc import Sequence
from typing import Any, Literal, cast

from PIL.Image import Image

from lit_modules.coda.augmentation.calls import RecordedChat, answered
from lit_modules.coda.augmentation.inputs import Side
from lit_modules.coda.augmentation.parsing import MalformedAnswer
from lit_modules.coda.augmentation.ranking import similarities
from lit_modules.coda.augmentation.stages import DRAWING_SETTINGS, Workshop
from lit_modules.coda.augmentation.verification import (
    Acceptance,
    accept_images,
    clip_bits,
    image_score,
    prefers_target,
    read_verification,
    verification_requests,
)
from lit_modules.coda.backends.protocols import refuse_cut_off
from lit_modules.coda.core.pictures import near_duplicate, perceptual_hash, picture_problem
from lit_modules.coda.core.store import stage_key

_VERIFYING_SETTINGS = (
    *("temperature", "retries", "thought_tokens", "num_images", "verification", "score_levels", "guards"),
    *("min_side", "max_attempts", "allow_short"),
)
Verdict = dict[str, Any]


class Drawing:
    """Make, verify and accept the final images of a direction.

    Args:
        workshop: What the stages share.
        verifier: Model that is asked what images show; ``None`` if none is needed.
    """

    def __init__(self, workshop: Workshop, verifier: RecordedChat | None) -> None:
        self.workshop, self.verifier = workshop, verifier

    def key(self, side: Side, kind: str, attributes: Sequence[str]) -> str:
        """Return the stage key of the final images."""
        workshop = self.workshop
        inputs = {
            "kind": kind,
            "attributes": list(attributes),
            "concept": side.concept.record(),
            "references": [workshop.references(side)["images"], workshop.references(side.reverse)["images"]],
            "generator": workshop.generator.identity,
            "embedder": workshop.embeddings.embedder.identity,
            "verifier": None if self.verifier is None else self.verifier.model.identity,
            **workshop.values((*DRAWING_SETTINGS, *_VERIFYING_SETTINGS)),
        }
        return stage_key("images", inputs)

    def done(self, side: Side, kind: str, attributes: Sequence[str]) -> Verdict | None:
        """Return the record of the final images if all of them are there."""
        store = self.workshop.store
        record = store.read_done(side.place(kind, "images.json"), self.key(side, kind, attributes))
        if record is None:
            return None
        files = record["files"].items()
        if all(store.read_file(side.place(kind, "images", name), digest) is not None for name, digest in files):
            return record
        return None

    def draw(self, side: Side, kind: str, attributes: Sequence[str]) -> int:
        """Make the first final images and look at none; return how many there are."""
        record = self.done(side, kind, attributes)
        return len(self._batch(side, kind, attributes, 0)) if record is None else len(record["files"])

    def images(self, side: Side, kind: str, attributes: Sequence[str]) -> Verdict:
        """Return the record of the final images: which are accepted, at which level, and why others are not."""
        record = self.done(side, kind, attributes)
        if record is not None:
            return record
        workshop, settings = self.workshop, self.workshop.settings
        folder, wanted = side.place(kind, "images"), settings.num_images
        made: list[tuple[str, Image]] = []
        verdicts: list[Verdict] = []
        acceptance = Acceptance((), None, False, wanted)
        for attempt in range(settings.max_attempts):
            batch = self._batch(side, kind, attributes, attempt)
            guarded = self._guard(side, batch, [picture for _, picture in made], verdicts)
            made += batch
            verdicts += self._verify(side, batch, attributes, guarded)
            acceptance = accept_images([verdict["score"] for verdict in verdicts], wanted, settings.score_levels)
            if not acceptance.short:
                break
        for index, verdict in enumerate(verdicts):
            verdict["verdict"] = "accepted" if index in acceptance.accepted else "rejected"
            if verdict["reason"] is None and index not in acceptance.accepted:
                below = acceptance.level is not None and verdict["score"] < acceptance.level - 1e-9
                verdict["reason"] = f"score below {acceptance.level:g}" if below else f"not among the best {wanted}"
            kept = workshop.store.read_json([*folder, f"{index}.json"]) or {}
            workshop.store.write_json([*folder, f"{index}.json"], {**kept, **verdict})
        failure = None
        if acceptance.short and not settings.allow_short:
            failure = (
                f"Only {wanted - acceptance.short} of {wanted} images were accepted in {settings.max_attempts} "
                "batches; allow_short takes fewer."
            )
        record = {
            "key": self.key(side, kind, attributes),
            "attributes": list(attributes),
            "accepted": list(acceptance.accepted),
            "level": acceptance.level,
            "relaxed": acceptance.relaxed,
            "short": acceptance.short,
            "files": {f"{index}.png": digest for index, (digest, _) in enumerate(made)},
            "verifier": settings.verification if self.verifier is None else self.verifier.model.identity,
            "failure": failure,
        }
        workshop.store.write_json(side.place(kind, "images.json"), record)
        return record

    def _batch(self, side: Side, kind: str, attributes: Sequence[str], attempt: int) -> list[tuple[str, Image]]:
        """Return the hash and picture of each image of a batch, which the store may have."""
        wanted = self.workshop.settings.num_images
        indices = range(attempt * wanted, (attempt + 1) * wanted)
        requests = self.workshop.requests(side, kind, attributes, indices, "images")
        return self.workshop.make(side.place(kind, "images"), requests, indices)

    def _guard(
        self, side: Side, batch: Sequence[tuple[str, Image]], earlier: Sequence[Image], verdicts: Sequence[Verdict]
    ) -> list[str | None]:
        """Return why each image of a batch is no use, whatever it shows, or ``None``."""
        workshop, settings = self.workshop, self.workshop.settings
        if not settings.guards:
            return [None] * len(batch)
        seen = {
            index: perceptual_hash(picture)
            for index, (picture, verdict) in enumerate(zip(earlier, verdicts, strict=True))
            if verdict["guard"] is None
        }
        preferred = prefers_target(
            workshop.made_rows(batch),
            workshop.image_rows(workshop.reference_images(side)),
            workshop.image_rows(workshop.reference_images(side.reverse)),
        )
        reasons: list[str | None] = []
        for number, (_, picture) in enumerate(batch):
            reason = picture_problem(picture, settings.min_side)
            found = perceptual_hash(picture)
            if reason is None:
                twin = near_duplicate(found, list(seen.values()))
                if twin is not None:
                    reason = f"near duplicate of {list(seen)[twin]}"
                elif not preferred[number]:
                    reason = "looks more like the confusable"
                else:
                    seen[len(earlier) + number] = found
            reasons.append(reason)
        return reasons

    def _verify(
        self, side: Side, batch: Sequence[tuple[str, Image]], attributes: Sequence[str], guarded: Sequence[str | None]
    ) -> list[Verdict]:
        """Return the bits and score of each image of a batch; images that the guards refused are not looked at."""
        workshop, settings = self.workshop, self.workshop.settings
        verdicts: list[Verdict] = [
            {"bits": None, "score": None, "reason": reason, "guard": reason} for reason in guarded
        ]
        open_ = [number for number, reason in enumerate(guarded) if reason is None]
        if settings.verification == "none":
            for number in open_:
                verdicts[number]["score"] = 1.0
        elif settings.verification == "clip" and open_:
            texts = workshop.embeddings.texts(attributes)
            cosines = similarities(workshop.made_rows([batch[number] for number in open_]), texts)
            other = similarities(workshop.image_rows(workshop.reference_images(side.reverse)), texts)
            for number, row in zip(open_, cosines, strict=True):
                value, bits = clip_bits(row, other, settings.temperature)
                verdicts[number] |= {"bits": [int(bit) for bit in bits], "likeness": value}
                # the mean decides as a whole: good from chance level
                verdicts[number]["score"] = 1.0 if value >= 0.5 else 0.0
        elif open_:
            self._ask(batch, attributes, open_, verdicts)
        return verdicts

    def _ask(
        self,
        batch: Sequence[tuple[str, Image]],
        attributes: Sequence[str],
        numbers: Sequence[int],
        verdicts: list[Verdict],
    ) -> None:
        """Ask the verifier about images, all together, and again about those whose answers cannot be read.

        Raises:
            BackendError: If a question has no answer, or the last one was cut off before it could be read.
        """
        settings = self.workshop.settings
        form = cast(Literal["questions", "batch"], settings.verification)
        if self.verifier is None:
            raise ValueError(f"verification {form!r} needs a chat model; take 'clip' or 'none' without one.")
        waiting, reason = list(numbers), {}
        for attempt in range(1 + settings.retries):
            asked = [
                verification_requests(
                    batch[number][1],
                    attributes,
                    form,
                    self.verifier.model.capabilities,
                    attempt,
                    settings.thought_tokens,
                )
                for number in waiting
            ]
            replies = iter(self.verifier.ask_many([request for requests in asked for request in requests]))
            unread = []
            for number, requests in zip(waiting, asked, strict=True):
                own = [answered(next(replies)) for _ in requests]
                try:
                    bits = read_verification([reply.text for reply in own], len(attributes), form)
                except MalformedAnswer as error:
                    if attempt == settings.retries:
                        refuse_cut_off(own, "thought_tokens")
                    unread.append(number)
                    reason[number] = f"verdict cannot be read: {error}"
                    continue
                verdicts[number] |= {"bits": [int(bit) for bit in bits], "score": image_score(bits)}
            waiting = unread
            if not waiting:
                return
        for number in waiting:
            # where nothing consumes the scores, an image stays whatever its verdict
            score = 0.0 if settings.score_levels is None else None
            verdicts[number] |= {"score": score, "reason": reason[number]}
