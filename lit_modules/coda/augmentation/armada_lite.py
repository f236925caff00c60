"""Baseline ``armada_lite``, not ARMADA: support images edited by instructions that a chat model proposes."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lit_modules.coda.augmentation.export import image_row, write_training_folder
from lit_modules.coda.augmentation.generation import template_fields
from lit_modules.coda.augmentation.pipeline import failure_of
from lit_modules.coda.backends.protocols import (
    BudgetExhausted,
    ChatModel,
    ChatRequest,
    Counts,
    ImageEditor,
    check_not_negative,
    check_positive,
    user_message,
)
from lit_modules.coda.core.answers import MalformedAnswer, parse_features
from lit_modules.coda.core.concepts import Concept, PairTask, SupportImage, prompt_text, safe_name
from lit_modules.coda.core.images import picture_problem, png_bytes
from lit_modules.coda.core.store import RecordedChat, Store, stage_key
from lit_modules.utils.hashing import stable_seed
from lit_modules.utils.images import read_picture

KIND = "armada_lite"
"""Kind of these images everywhere; ``method`` of the datamodules."""
PROMPT = (
    "The picture shows {target}. Propose {count} different edits of it, each of one attribute that may vary while it "
    "still shows {target}: the surroundings, the weather, the light, the season, the distance or the pose. Leave alone "
    "what {target} is recognised by."
)
"""Question for edits; a run may give its own, with these fields."""
_FORM = (
    " Each edit is one instruction of at most {max_words} words that begins with a verb, such as "
    '"put it on wet sand at dusk". Answer with a JSON list of strings and nothing else.'
)
_REMINDER = " The last answer could not be read. Answer only with a JSON list of strings."


@dataclass(frozen=True)
class EditSettings:
    """All settings of the edits, but the models.

    Args:
        seed: Seed of the run.
        num_images: Edited images of each concept; its support images take turns.
        prompt: Question for edits, with the fields ``{target}`` and ``{count}``.
        temperature: Temperature of sampling the edits.
        max_new_tokens: Longest answer, in tokens.
        max_words: Longest instruction, in words.
        retries: Further attempts after an answer that cannot be read or has too few edits.
        steps: Denoising steps.
        guidance: Scale of the instruction, above 1.
        image_guidance: Scale of the likeness to the image, at least 1.
        min_change: Least mean difference of an edit from its image, of 255; one below it changed nothing.
        min_side: Shortest side of an image, in pixels.
        max_attempts: Seeds that are tried for an image before it fails.

    Raises:
        ValueError: If a value is out of its range.
    """

    seed: int = 0
    num_images: int = 5
    prompt: str = PROMPT
    temperature: float = 0.5
    max_new_tokens: int = 500
    max_words: int = 20
    retries: int = 3
    steps: int = 20
    guidance: float = 7.5
    image_guidance: float = 1.5
    min_change: float = 2.0
    min_side: int = 64
    max_attempts: int = 3

    def __post_init__(self) -> None:
        check_positive(self, "num_images", "max_new_tokens", "max_words", "steps", "min_side", "max_attempts")
        check_not_negative(self, "temperature", "retries", "min_change")
        if not (self.guidance > 1 and self.image_guidance >= 1):
            raise ValueError(
                "guidance must be above 1 and image_guidance at least 1, as neither has an effect otherwise; got "
                f"{self.guidance:g} and {self.image_guidance:g}."
            )
        if template_fields(self.prompt) != {"target", "count"}:
            raise ValueError(f"prompt must have the places {{target}} and {{count}}, got {self.prompt!r}.")


@dataclass(frozen=True)
class EditedConcept:
    """Result of a concept: its edited images, and why there are fewer than wanted, if there are."""

    concept: str
    made: int
    failure: str | None = None


@dataclass
class EditResult:
    """Result of a run: concepts, use of models in this run, and why it stopped before its end, if it did."""

    concepts: list[EditedConcept] = field(default_factory=list)
    counts: dict[str, Counts] = field(default_factory=dict)
    stopped: str | None = None


class ArmadaLite:
    """Edit the support images of concepts, and resume an earlier run.

    A chat model looks at each support image and proposes changes of attributes that leave the concept what it is, and
    an editor such as InstructPix2Pix makes them. This is the outline of ARMADA and not ARMADA: attribute values come
    from the chat model alone, with no knowledge base behind them and none from sibling concepts, and edits are chosen
    by simple checks and not by a Frechet distance. Numbers of it are none of ARMADA's.

    Args:
        store: Store of answers and images.
        settings: Settings of the run.
        chat: Model that proposes edits; it takes an image.
        editor: Model that makes them.
    """

    def __init__(self, store: Store, settings: EditSettings, chat: ChatModel, editor: ImageEditor) -> None:
        self.store, self.settings, self.editor = store, settings, editor
        self.result = EditResult()
        self.chat = RecordedChat(chat, store, lambda counts: self._report("edits", counts))

    def run(self, tasks: Sequence[PairTask]) -> EditResult:
        """Make the images of all concepts of some pairs, each once; one that fails stops no other."""
        self.result = EditResult()
        models = {"chat": self.chat.model.identity, "editor": self.editor.identity}
        self.store.write_json(["manifest.json"], {"method": KIND, "settings": asdict(self.settings), "models": models})
        try:
            for concept, images in _concepts(tasks).values():
                self.result.concepts.append(self._edit_concept(concept, images))
        except BudgetExhausted as error:
            self.result.stopped = str(error)
        return self.result

    def _report(self, stage: str, counts: Counts) -> None:
        self.result.counts.setdefault(stage, Counts()).add(counts)
        self.store.log({"stage": stage, **asdict(counts)})

    def _edit_concept(self, concept: Concept, paths: Sequence[str]) -> EditedConcept:
        failures: list[str] = []
        made, wanted = 0, self.settings.num_images
        try:
            images = [SupportImage(path) for path in paths]
            proposed: dict[str, list[str]] = {}
            for index in range(wanted):
                image, turn = images[index % len(images)], index // len(images)
                if image.digest not in proposed:
                    count = -(-(wanted - index) // len(images))
                    proposed[image.digest] = self._propose(concept, image, count)
                problem = self._edit(concept, image, proposed[image.digest][turn], index=index)
                made += not problem
                failures += [problem] if problem else []
        except Exception as error:  # whatever a model raises is of this concept alone
            failures.append(failure_of(error))
        for failure in failures:
            self.store.log({"stage": "failure", "unit": safe_name(concept.name), "reason": failure})
        return EditedConcept(concept.name, made, failures[0] if failures else None)

    def _propose(self, concept: Concept, image: SupportImage, count: int) -> list[str]:
        """Return the instructions for an image.

        Raises:
            MalformedAnswer: If no answer has as many.
        """
        settings, problem = self.settings, ""
        text = settings.prompt.format(target=f'"{prompt_text(concept.name)}"', count=count)
        text += _FORM.format(max_words=settings.max_words)
        for attempt in range(1 + settings.retries):
            request = ChatRequest(
                (user_message(text + (_REMINDER if attempt else ""), 1),),
                (image.image,),
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                seed=stable_seed(settings.seed, concept.name, image.digest, "edits", attempt),
            )
            reply = self.chat.ask(request)
            try:
                edits = parse_features(reply.text, max_features=count, max_words=settings.max_words).features
            except MalformedAnswer as error:
                problem = str(error)
                continue
            if len(edits) == count:
                return [prompt_text(instruction) for instruction in edits]
            problem = f"The answer has {len(edits)} edits that can be used, and {count} are wanted."
        raise MalformedAnswer(f"{image.path.name}: {problem}")

    def _edit(self, concept: Concept, image: SupportImage, instruction: str, index: int) -> str:
        """Make an image unless the store has it; return its problem, or an empty text."""
        settings, folder = self.settings, [safe_name(concept.name), "images"]
        values = asdict(settings)
        inputs: dict[str, Any] = {
            "instruction": instruction,
            "source": image.record(),
            "editor": self.editor.identity,
            **{name: values[name] for name in ("steps", "guidance", "image_guidance")},
        }
        checks = {name: values[name] for name in ("seed", "min_change", "min_side", "max_attempts")}
        key = stage_key(KIND, {**inputs, **checks, "index": index, "concept": concept.name})
        image_path, record_path = [*folder, f"{index}.png"], [*folder, f"{index}.json"]
        record = self.store.read_done(record_path, key)
        if record is not None and (
            not record["accepted"] or self.store.read_file(image_path, record["sha256"]) is not None
        ):
            return str(record["reason"])
        reason, data, seed = "", b"", 0
        for attempt in range(settings.max_attempts):
            seed = stable_seed(settings.seed, KIND, concept.name, image.digest, index, attempt)
            started = time.perf_counter()
            edited = self.editor.edit(
                image.image,
                instruction,
                seed,
                steps=settings.steps,
                guidance=settings.guidance,
                image_guidance=settings.image_guidance,
            )
            data = png_bytes(edited, key)
            self._report("images", Counts(images=1, seconds=time.perf_counter() - started))
            reason = _problem(image.image, read_picture(data, f"{index}.png"), settings)
            if not reason:
                break
        if reason:
            reason = f"{image.path.name}, {instruction!r}: {reason}, {settings.max_attempts} times"
        record = {"key": key, "accepted": not reason, "reason": reason, "seed": seed, **inputs}
        self.store.write_bytes(image_path, data)
        self.store.write_json(record_path, {**record, "sha256": hashlib.sha256(data).hexdigest()})
        return reason

    def export(self, folder: str | Path, tasks: Sequence[PairTask], allow_short: bool = False) -> int:
        """Write the images as training data for ``method="armada_lite"`` of the datamodules; return their number.

        Files that exist and fit are left alone. With ``allow_short`` a concept may have fewer images than wanted.

        Raises:
            ValueError: If a concept has too few images.
        """
        rows, problems, files = [], [], []
        concepts = {name: concept for name, (concept, _) in _concepts(tasks).items()}
        wanted = self.settings.num_images
        for concept in concepts.values():
            number, own = 0, safe_name(concept.name)
            for index in range(wanted):
                record = self.store.read_json([own, "images", f"{index}.json"])
                if record is None or not record["accepted"]:
                    continue
                data = self.store.read_file([own, "images", f"{index}.png"], record["sha256"])
                if data is None:
                    problems.append(f"image {index} of {concept.name} is not what was made")
                    continue
                number += 1
                name = f"{own}/{KIND}-{index}.png"
                files.append((name, data))
                made = {"prompt": record["instruction"], "edited_from": record["source"]["name"]}
                made |= {"generator": record["editor"], "seed": record["seed"], "sha256": record["sha256"]}
                rows.append(image_row(name, concept, KIND, **made))
            if not number or (number < wanted and not allow_short):
                problems.append(f"{concept.name} has {number} of {wanted} images")
        if problems:
            raise ValueError(f"The images cannot be exported: {'; '.join(problems)}.")
        write_training_folder(folder, rows, files, concepts=concepts)
        return len(rows)


def _concepts(tasks: Sequence[PairTask]) -> dict[str, tuple[Concept, tuple[str, ...]]]:
    """Return each concept of some pairs with its support images."""
    concepts: dict[str, tuple[Concept, tuple[str, ...]]] = {}
    for task in tasks:
        for concept, _, images, _ in task.directions():
            concepts.setdefault(concept.name, (concept, images))
    return concepts


def _problem(source: Image.Image, edited: Image.Image, settings: EditSettings) -> str:
    before = np.asarray(source.resize(edited.size, Image.Resampling.BOX), dtype=np.float32)
    change = float(np.abs(np.asarray(edited, dtype=np.float32) - before).mean())
    if change < settings.min_change:
        return f"the edit changed nothing ({change:.2f} of 255)"
    return picture_problem(edited, settings.min_side) or ""
