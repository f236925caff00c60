"""Records of attacked samples, kept so that an interrupted run goes on where it was."""

import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import torch
from torch import Tensor, nn

from lit_modules.adversarial.core.report import Example, Finished
from lit_modules.attacks.engine.base import Attack
from lit_modules.attacks.engine.checks import audit_perturbation
from lit_modules.attacks.engine.state import Oracle
from lit_modules.utils.checkpoints import load_plain
from lit_modules.utils.files import whole_file, write_whole
from lit_modules.utils.fingerprint import UnidentifiableError, identify
from lit_modules.utils.hashing import stable_hash
from lit_modules.utils.model_modes import evaluation_mode

_EXAMPLES = 8  # samples of each batch whose images are kept
_ALIKE = 1e-4  # of the largest logit: what the order of sums and another batch can change


class Sample(NamedTuple):
    """A sample by its name, which says what it is, and its place in its split."""

    name: str
    place: int


@dataclass(frozen=True)
class Outcome:
    """Outcome of an attack on a sample, and what it was computed for.

    Attributes:
        name: Name of the sample.
        answer: Logits of the clean sample, ``(classes,)``.
        finished: Success, distance and cost.
        after: The classifier's answer to the adversarial sample.
        flags: Sentences that cast doubt on the attack of its batch.
        example: The sample to draw, of a few samples.
        file: File that holds the adversarial sample, if it is kept on disk.
        row: Its place there.
        adversarial: The adversarial sample, if it is kept in memory.
    """

    name: str
    answer: Tensor
    finished: Finished
    after: int
    flags: tuple[str, ...]
    example: Example | None
    file: Path | None
    row: int
    adversarial: Tensor | None


class AttackRun:
    """One attack on one classifier, and the samples that it has finished.

    They lie in ``<folder>/<name>-<hash>``, a file for each call, written in one step. The hash is that of all which an
    outcome depends on: the attack with all its arguments, and the classifier with its weights, its structure, its
    plain attributes and the code of its functions (:func:`lit_modules.utils.fingerprint.identify`). What these leave
    open the answers decide: an outcome counts only if the classifier answers the clean sample as it did. An attack or
    a classifier that cannot be told from another is named in a warning, and nothing of it is taken up again.

    Args:
        name: Name of the attack.
        attack: Attack.
        classifier: Gives logits.
        folder: Folder of all records; ``None`` keeps them in memory alone.
        keep_adversarial: Whether the adversarial samples are kept too.

    Raises:
        ValueError: If a file there cannot be read.
    """

    def __init__(
        self,
        name: str,
        attack: Attack,
        classifier: nn.Module,
        folder: Path | None,
        keep_adversarial: bool = False,
    ) -> None:
        self.name = name
        self.attack = attack
        self.classifier = classifier
        self.keep_adversarial = keep_adversarial
        self.root = folder
        self.folder: Path | None = None
        self.repeatable = folder is not None
        self._found: dict[str, list[Outcome]] = {}
        if folder is not None:
            try:
                key = identify_run(attack, classifier)
            except UnidentifiableError as error:
                self.forget(str(error))
            else:
                self.folder = folder / f"{name}-{key[:16]}"
                for path in sorted(self.folder.glob("*.pt")):
                    self._read(path)

    def __len__(self) -> int:
        """Return the number of samples that are finished."""
        return len(self._found)

    def forget(self, reason: str) -> None:
        """Take nothing for finished that another process has done, and leave nothing that another could take.

        Args:
            reason: Sentence that says why, for a warning.
        """
        warnings.warn(
            f"What {self.name!r} finishes is not taken up again, and if it is broken off it begins anew: {reason}",
            stacklevel=3,
        )
        self.repeatable = False
        self._found = {}
        # adversarial samples need a place, but one that nobody finds again
        self.folder = self.root / f"{self.name}-{uuid4().hex[:16]}" if self.root and self.keep_adversarial else None

    def finish(self, samples: Sequence[Sample], images: Tensor, labels: Tensor, answers: Tensor) -> list[Outcome]:
        """Return the outcome of each sample, after attacking those that are not finished.

        Args:
            samples: Their names and places; no name twice.
            images: Clean samples, ``(batch, *)``.
            labels: Their classes, or the targets of a targeted attack, ``(batch,)``.
            answers: The classifier's logits for them, ``(batch, classes)``.

        Raises:
            RuntimeError: If the attack breaks its radius or bounds.
        """
        logits = answers.detach().float().cpu()
        outcomes = [self._find(sample.name, row) for sample, row in zip(samples, logits, strict=True)]
        rows = [row for row, outcome in enumerate(outcomes) if outcome is None]
        if rows:
            content = self._attack([samples[row] for row in rows], images[rows], labels[rows], logits[rows])
            new = self._take(content, self._write(content))
            for row, outcome in zip(rows, new, strict=True):
                outcomes[row] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    def _find(self, name: str, logits: Tensor) -> Outcome | None:
        found = self._found.get(name, ())
        return next((outcome for outcome in found if bool(same_answers(logits[None], outcome.answer[None]))), None)

    def _attack(self, samples: list[Sample], images: Tensor, labels: Tensor, logits: Tensor) -> dict[str, Any]:
        start = time.perf_counter()
        result = self.attack.run(self.classifier, images, labels)
        success = result.success.cpu()  # waits for the device
        seconds = (time.perf_counter() - start) / len(samples)
        audit_perturbation(
            images,
            result.adversarial,
            norm=self.attack.norm,
            eps=None if self.attack.minimum_norm else self.attack.eps,
            bounds=self.attack.bounds,
            name=f"The attack {self.name!r}",
            samples=[sample.place for sample in samples],
        )
        with torch.no_grad(), evaluation_mode(self.classifier):
            after = answer(self.classifier, result.adversarial).argmax(1).tolist()
        count = 0 if self.keep_adversarial else _EXAMPLES
        shown = success.int().argsort(descending=True, stable=True)[:count].tolist()
        examples = [
            Example(
                index=samples[row].place,
                image=images[row].float().cpu().clone(),
                adversarial=result.adversarial[row].float().cpu().clone(),
                label=int(labels[row]),
                before=int(logits[row].argmax()),
                after=after[row],
                success=bool(success[row]),
                attack=self.name,
            )
            for row in shown
        ]
        return {
            "samples": [sample.name for sample in samples],
            "answers": logits.clone(),
            "success": success.tolist(),
            "distance": result.distance.double().tolist(),
            "num_queries": result.num_queries.tolist(),
            "seconds": [seconds] * len(samples),
            "after": after,
            "flags": list(getattr(result, "flags", ())),
            "examples": dict(zip(shown, map(_fields, examples), strict=True)),
            "adversarial": result.adversarial.cpu().clone() if self.keep_adversarial else None,
        }

    def _write(self, content: dict[str, Any]) -> Path | None:
        if self.folder is None:
            return None
        about = self.folder / "attack.json"
        if not about.is_file():
            text = {"attack": repr(self.attack), "classifier": str(self.classifier)}
            write_whole(about, json.dumps(text, indent=2) + "\n")
        path = self.folder / f"{stable_hash(content['samples'], content['answers'].tolist())[:16]}.pt"
        with whole_file(path) as part:
            torch.save(content, part)
        return path

    def _read(self, path: Path) -> None:
        try:
            self._take(load_plain(path), path)
        except Exception as error:
            raise ValueError(
                f"{path} is no record of finished samples ({error}); delete it to run them again."
            ) from error

    def _take(self, content: dict[str, Any], path: Path | None) -> list[Outcome]:
        answers = content["answers"].clone()
        outcomes = [
            Outcome(
                name=name,
                answer=answers[row],
                finished=Finished(*(content[key][row] for key in Finished.__dataclass_fields__)),
                after=content["after"][row],
                flags=tuple(content["flags"]),
                example=Example(**_own(content["examples"][row])) if row in content["examples"] else None,
                file=path,
                row=row,
                adversarial=content["adversarial"][row] if self.keep_adversarial and path is None else None,
            )
            for row, name in enumerate(content["samples"])
        ]
        for outcome in outcomes:
            self._found.setdefault(outcome.name, []).append(outcome)
        return outcomes


def identify_run(attack: Attack, classifier: nn.Module) -> str:
    """Return a hash of all that an attack's outcome depends on beside the samples.

    Raises:
        UnidentifiableError: If attack or classifier cannot be told from another.
    """
    modes = [module.training for module in classifier.modules()] if attack.model_mode == "keep" else []
    return stable_hash(identify(attack, "attack"), identify(classifier, "classifier"), modes)


def answer(classifier: nn.Module, images: Tensor) -> Tensor:
    """Return the logits that a classifier gives for images, asked as an attack asks it."""
    return Oracle(classifier, images, probe=False)(images)


def same_answers(first: Tensor, second: Tensor) -> Tensor:
    """Return which logits are equal but for rounding, ``(batch,)``."""
    if first.shape != second.shape:
        return torch.zeros(len(second), dtype=torch.bool, device=second.device)
    largest = second.abs().amax(1).clamp_min(1)
    return (first - second).abs().amax(1) <= _ALIKE * largest


def _fields(example: Example) -> dict[str, Any]:
    return {name: getattr(example, name) for name in Example.__dataclass_fields__}


def _own(values: dict[str, Any]) -> dict[str, Any]:
    """Return fields whose tensors are in memory, and not in a file that is open."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in values.items()}
