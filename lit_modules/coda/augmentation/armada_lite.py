"""A baseline: support images edited by instructions that a chat model proposes; named ``armada_lite``, not ARMADA."""

import errno
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from lit_modules.coda.augmentation.calls import RecordedChat
from lit_modules.coda.augmentation.edit_requests import EditSettings, edit_request
from lit_modules.coda.augmentation.export import write_training_folder
from lit_modules.coda.augmentation.inputs import PairTask, SupportImage
from lit_modules.coda.augmentation.parsing import MalformedAnswer, parse_features
from lit_modules.coda.backends.protocols import BudgetExhausted, ChatModel, Counts
from lit_modules.coda.core.concepts import Concept, prompt_text, safe_name
from lit_modules.coda.core.pictures import picture_problem, png_bytes, read_picture
from lit_modules.coda.core.store import Store, StoreInUse, stage_key
from lit_modules.utils.hashing import stable_seed

KIND = "armada_lite"
"""What these images are called everywhere; ``method`` of the datamodules."""
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class ImageEditor(Protocol):
    """A model that changes a picture as an instruction says."""

    @property
    def identity(self) -> str:
        """Name and revision, and all settings of the editor that shape a picture; it holds no secret."""
        ...

    def edit(
        self, image: Image.Image, instruction: str, seed: int, steps: int, guidance: float, image_guidance: float
    ) -> Image.Image:
        """Return the changed picture; the same arguments give the same one."""
        ...


@dataclass(frozen=True)
class EditedConcept:
    """What came of a concept.

    Args:
        concept: Name of the concept.
        made: Edited images that are there.
        failure: Why there are fewer than wanted; ``None`` if there are not.
    """

    concept: str
    made: int
    failure: str | None = None


@dataclass
class EditResult:
    """What a run did.

    Args:
        concepts: What came of each concept.
        counts: What this run took; what the store had costs nothing.
        stopped: Why the run stopped before its end; ``None`` if it came to it.
    """

    concepts: list[EditedConcept] = field(default_factory=list)
    counts: dict[str, Counts] = field(default_factory=dict)
    stopped: str | None = None


class ArmadaLite:
    """Edit the support images of concepts, and go on where an earlier run was.

    A chat model looks at each support image and proposes changes of attributes that leave the concept what it is, and
    an editor such as InstructPix2Pix makes them. This is the outline of ARMADA and not ARMADA: attribute values come
    from the chat model alone, with no knowledge base behind them and none from sibling concepts, and edits are chosen
    by simple checks and not by a Frechet distance. Numbers of it are none of ARMADA's.

    Args:
        store: Where answers and images are kept.
        settings: Settings of the run.
        chat: Model that proposes edits; it takes an image.
        editor: Model that makes them.
    """

    def __init__(self, store: Store, settings: EditSettings, chat: ChatModel, editor: ImageEditor) -> None:
        self.store, self.settings, self.editor = store, settings, editor
        self.result = EditResult()
        self.chat = RecordedChat(chat, store, lambda took: self._report("edits", took))

    def run(self, tasks: Sequence[PairTask]) -> EditResult:
        """Make the images of all concepts of some pairs, each once; one that fails stops no other."""
        self.result = EditResult()
        record = {
            "method": KIND,
            "settings": self.settings.record(),
            "models": {"chat": self.chat.model.identity, "editor": self.editor.identity},
        }
        self.store.write_json(["manifest.json"], record)
        try:
            for concept, images in _concepts(tasks).values():
                self.result.concepts.append(self._concept(concept, images))
        except BudgetExhausted as error:
            self.result.stopped = str(error)
        return self.result

    def _report(self, stage: str, took: Counts) -> None:
        self.result.counts.setdefault(stage, Counts()).add(took)
        self.store.log({"stage": stage, **{name: getattr(took, name) for name in took.__dataclass_fields__}})

    def _concept(self, concept: Concept, paths: Sequence[str]) -> EditedConcept:
        made, failures = 0, []
        try:
            images = [SupportImage(path) for path in paths]
            proposed: dict[str, list[str]] = {}
            for index in range(self.settings.num_images):
                image, turn = images[index % len(images)], index // len(images)
                if image.digest not in proposed:
                    wanted = -(-(self.settings.num_images - index) // len(images))
                    proposed[image.digest] = self._edits(concept, image, wanted)
                problem = self._image(concept, image, proposed[image.digest][turn], index)
                made += problem is None
                failures += [problem] if problem else []
        except (BudgetExhausted, StoreInUse):
            raise
        except Exception as error:  # whatever a model raises is of this concept alone
            if isinstance(error, OSError) and error.errno in _DISK:
                raise
            failures.append(f"{type(error).__name__}: {error}")
        for failure in failures:
            self.store.log({"stage": "failure", "unit": safe_name(concept.name), "reason": failure})
        return EditedConcept(concept.name, made, failures[0] if failures else None)

    def _edits(self, concept: Concept, image: SupportImage, count: int) -> list[str]:
        """Return the instructions for a picture.

        Raises:
            MalformedAnswer: If no answer has as many.
        """
        settings, problem = self.settings, ""
        parts = (settings.seed, concept.name, image.digest)
        for attempt in range(1 + settings.retries):
            reply = self.chat.ask(edit_request(concept, image.picture, count, settings, parts, attempt))
            try:
                found = parse_features(reply.text, max_features=count, max_words=settings.max_words).features
            except MalformedAnswer as error:
                problem = str(error)
                continue
            if len(found) == count:
                return [prompt_text(instruction) for instruction in found]
            problem = f"The answer has {len(found)} edits that can be used, and {count} are wanted."
        raise MalformedAnswer(f"{image.path.name}: {problem}")

    def _image(self, concept: Concept, image: SupportImage, instruction: str, index: int) -> str | None:
        """Make an image unless the store has it; return what is wrong with it."""
        settings, folder = self.settings, [safe_name(concept.name), "images"]
        given = {
            "instruction": instruction,
            "source": {"name": image.path.name, "sha256": image.digest},
            "editor": self.editor.identity,
            **{name: getattr(settings, name) for name in ("steps", "guidance", "image_guidance")},
        }
        checks = {name: getattr(settings, name) for name in ("seed", "min_change", "min_side", "max_attempts")}
        key = stage_key(KIND, {**given, **checks, "index": index, "concept": concept.name})
        record = self.store.read_done([*folder, f"{index}.json"], key)
        if record is not None and (
            not record["accepted"] or self.store.read_file([*folder, f"{index}.png"], record["sha256"]) is not None
        ):
            return record["reason"] or None
        reason, data, seed = "", b"", 0
        for attempt in range(settings.max_attempts):
            seed = stable_seed(settings.seed, KIND, concept.name, image.digest, index, attempt)
            started = time.perf_counter()
            edited = self.editor.edit(
                image.picture, instruction, seed, settings.steps, settings.guidance, settings.image_guidance
            )
            data = png_bytes(edited, key)
            self._report("images", Counts(images=1, seconds=time.perf_counter() - started))
            reason = _problem(image.picture, read_picture(data, f"{index}.png"), settings)
            if not reason:
                break
        reason = f"{image.path.name}, {instruction!r}: {reason}, {settings.max_attempts} times" if reason else ""
        facts = {"key": key, "accepted": not reason, "reason": reason, "seed": seed, **given}
        self.store.write_bytes([*folder, f"{index}.png"], data)
        self.store.write_json([*folder, f"{index}.json"], {**facts, "sha256": hashlib.sha256(data).hexdigest()})
        return reason or None

    def export(self, folder: str | Path, tasks: Sequence[PairTask], allow_short: bool = False) -> int:
        """Write the images as training data for ``method="armada_lite"`` of the datamodules.

        Args:
            folder: Folder to write; files that are there already and fit are left alone.
            tasks: Pairs whose concepts to export.
            allow_short: Whether a concept may have fewer images than wanted.

        Returns:
            Number of images.

        Raises:
            ValueError: If a concept has too few images.
        """
        rows, problems, files = [], [], []
        concepts = {name: concept for name, (concept, _) in _concepts(tasks).items()}
        for concept in concepts.values():
            number = 0
            for index in range(self.settings.num_images):
                place = [safe_name(concept.name), "images"]
                facts = self.store.read_json([*place, f"{index}.json"])
                if facts is None or not facts["accepted"]:
                    continue
                data = self.store.read_file([*place, f"{index}.png"], facts["sha256"])
                if data is None:
                    problems.append(f"image {index} of {concept.name} is not what was made")
                    continue
                number += 1
                name = f"{place[0]}/{KIND}-{index}.png"
                files.append((name, data))
                rows.append(
                    {
                        "file_name": name,
                        "class_name": concept.name,
                        "source": "synthetic",
                        "supercategory": concept.supercategory,
                        "split_role": "support",
                        "kind": KIND,
                        "prompt": facts["instruction"],
                        "edited_from": facts["source"]["name"],
                        "generator": facts["editor"],
                        **{name: facts[name] for name in ("seed", "sha256")},
                    }
                )
            if not number or (number < self.settings.num_images and not allow_short):
                problems.append(f"{concept.name} has {number} of {self.settings.num_images} images")
        if problems:
            raise ValueError(f"The images cannot be exported: {'; '.join(problems)}.")
        write_training_folder(folder, rows, files, concepts)
        return len(rows)


def _concepts(tasks: Sequence[PairTask]) -> dict[str, tuple[Concept, tuple[str, ...]]]:
    found: dict[str, tuple[Concept, tuple[str, ...]]] = {}
    for task in tasks:
        for concept, images in ((task.pair.target, task.target_images), (task.pair.confusable, task.confusable_images)):
            found.setdefault(concept.name, (concept, images))
    return found


def _problem(source: Image.Image, edited: Image.Image, settings: EditSettings) -> str:
    before = np.asarray(source.resize(edited.size, Image.Resampling.BOX), dtype=np.float32)
    change = float(np.abs(np.asarray(edited, dtype=np.float32) - before).mean())
    if change < settings.min_change:
        return f"the edit changed nothing ({change:.2f} of 255)"
    return picture_problem(edited, settings.min_side) or ""
