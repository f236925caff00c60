"""Test under several attacks that can be interrupted, resumed, and spread over processes."""

import json
import random
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from lit_modules.adversarial.core.report import Example, Finished, summarise
from lit_modules.attacks.engine.base import Attack
from lit_modules.attacks.engine.checks import audit_perturbation, check_bounds, check_classes
from lit_modules.attacks.engine.state import Oracle
from lit_modules.utils.checkpoints import load_plain
from lit_modules.utils.files import whole_file, write_whole
from lit_modules.utils.fingerprint import UnidentifiableError, identify
from lit_modules.utils.hashing import hash_tensors, stable_hash
from lit_modules.utils.model_modes import evaluation_mode
from lit_modules.utils.progress import step

_EXAMPLES = 8  # samples of a test, and of each batch, whose images are kept and drawn
_ALIKE = 1e-4  # of the largest logit: what the order of sums and another batch can change


def name_attacks(attacks: Mapping[str, Attack] | Sequence[Attack]) -> dict[str, Attack]:
    """Return the attacks of a test by name; those of a list are named by their classes.

    Raises:
        ValueError: If there is none, a name is no plain word, or an attack is targeted or has a radius per sample.
    """
    if isinstance(attacks, Mapping):
        named = dict(attacks)
    else:
        named = {}
        for attack in attacks:
            base, number = type(attack).__name__, 2
            name = base
            while name in named:
                name, number = f"{base}-{number}", number + 1
            named[name] = attack
    if not named:
        raise ValueError("test_attacks must name at least one attack, got none; leave it out for the default.")
    for name, attack in named.items():
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise ValueError(f"test_attacks must be named by letters, digits and . _ + -, got {name!r}.")
        if attack.targeted:
            raise ValueError(
                f"test_attacks must be untargeted, as they are given the true labels; {name!r} is {attack!r}."
            )
        if isinstance(attack.eps, Tensor) and attack.eps.numel() > 1:
            raise ValueError(f"test_attacks must have one radius for all samples; {name!r} has {attack.eps.numel()}.")
    return named


class Sample(NamedTuple):
    """A sample by its name, which says what it is, and its position in its split."""

    name: str
    position: int


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
        """Take nothing for finished that another process has done, and leave nothing that another could take."""
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
        outcomes = self._found.get(name, ())
        return next((outcome for outcome in outcomes if bool(same_answers(logits[None], outcome.answer[None]))), None)

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
            samples=[sample.position for sample in samples],
        )
        with torch.no_grad(), evaluation_mode(self.classifier):
            after = answer(self.classifier, result.adversarial).argmax(1).tolist()
        count = 0 if self.keep_adversarial else _EXAMPLES
        shown = success.int().argsort(descending=True, stable=True)[:count].tolist()
        examples = [
            Example(
                index=samples[row].position,
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
            "examples": dict(zip(shown, map(vars, examples), strict=True)),
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
                example=_example(content["examples"].get(row)),
                file=path,
                row=row,
                adversarial=content["adversarial"][row] if self.keep_adversarial and path is None else None,
            )
            for row, name in enumerate(content["samples"])
        ]
        for outcome in outcomes:
            self._found.setdefault(outcome.name, []).append(outcome)
        return outcomes


class RobustEvaluation:
    """Run every attack on every sample that a classifier gets right, once.

    What is finished is written after each batch and attack, in one step, into a folder named by the attack and a hash
    of all that the outcome depends on (:class:`AttackRun`); a later run with the
    same reads it and attacks only the rest. A sample is known by its index and a hash of image and label, and its
    outcome counts only for the answer that the classifier gives to it now. A classifier that answers at random is
    attacked anew, and nothing of it is kept. Everything is computed in float32, and every perturbation is held against
    radius and bounds in float64.

    Args:
        classifier: Gives logits.
        attacks: Attacks by name.
        folder: Folder of the records; ``None`` keeps them in memory alone.
        num_classes: Number of classes of the data; ``None`` if it is not known.
    """

    def __init__(
        self, classifier: nn.Module, attacks: dict[str, Attack], folder: Path | None, num_classes: int | None = None
    ) -> None:
        self.classifier = classifier
        self.attacks = attacks
        self.num_classes = num_classes
        self.weights = hash_weights(classifier)
        self.record: dict[str, Any] | None = None
        self.examples: list[Example] = []
        self.runs = {name: AttackRun(name, attack, classifier, folder) for name, attack in attacks.items()}
        self._clean: dict[int, tuple[str, bool]] = {}
        self._done: dict[str, dict[str, Finished]] = {name: {} for name in attacks}
        self._examples: dict[str, dict[str, Example]] = {name: {} for name in attacks}
        self._flags: dict[str, list[str]] = {name: [] for name in attacks}

    def update(self, images: Tensor, labels: Tensor, index: Tensor) -> None:
        """Classify a batch, and attack the samples that are right and not finished.

        Args:
            images: ``(batch, *)``, in the attacks' bounds.
            labels: ``(batch,)``.
            index: Place of each sample in its split, ``(batch,)``.

        Raises:
            ValueError: If one index stands for two samples, or images, labels and logits do not fit each other.
            RuntimeError: If an attack breaks its radius or bounds.
        """
        with torch.inference_mode(False), torch.autocast(images.device.type, enabled=False):
            # tensors made in inference mode could not take part in the attack's gradients
            images, labels = images.to(torch.promote_types(images.dtype, torch.float32), copy=True), labels.clone()
            for attack in self.attacks.values():
                check_bounds(attack.bounds, images)
            answers = classify(self.classifier, images, list(self.runs.values()))
            check_classes(labels, answers.shape[1])
            check_width(answers, self.num_classes)
            indices = index.tolist()
            names = name_samples(images, labels, indices)
            right = (answers.argmax(1) == labels).tolist()
            new: dict[str, int] = {}
            for row, (position, name) in enumerate(zip(indices, names, strict=True)):
                if self._clean.setdefault(position, (name, right[row]))[0] != name:
                    raise ValueError(two_samples(position))
                if right[row]:
                    new.setdefault(name, row)
            with step("attacks", len(self.runs)) as bar:
                for named, run in self.runs.items():
                    rows = [row for name, row in new.items() if name not in self._done[named]]
                    if rows:
                        bar.say(named)
                        samples = [Sample(names[row], indices[row]) for row in rows]
                        self._keep(named, run.finish(samples, images[rows], labels[rows], answers[rows]))
                    bar.advance()

    def _keep(self, named: str, outcomes: Sequence[Outcome]) -> None:
        """Keep the outcomes of an attack."""
        for outcome in outcomes:
            self._done[named][outcome.name] = outcome.finished
            if outcome.example is not None:
                self._examples[named][outcome.name] = outcome.example
            self._flags[named] = list(dict.fromkeys([*self._flags[named], *outcome.flags]))

    def robust_accuracy(self) -> float:
        """Return the share of this process's samples so far that no attack of a radius fools."""
        counted = [name for name, attack in self.attacks.items() if not attack.minimum_norm]
        right = [name for name, correct in self._clean.values() if correct]
        held = sum(not any(self._done[attack][name].success for attack in counted) for name in right)
        return held / max(1, len(self._clean))

    def finish(self) -> dict[str, Any]:
        """Gather the samples of all processes and return the record; see ``report.summarise``."""
        part = (self._clean, self._done, self._examples, self._flags)
        parts: list[Any] = [part]
        if dist.is_available() and dist.is_initialized():
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, part)
        clean: dict[int, tuple[str, bool]] = {}
        done: dict[str, dict[str, Finished]] = {name: {} for name in self.attacks}
        examples: dict[str, dict[str, Example]] = {name: {} for name in self.attacks}
        flags: dict[str, list[str]] = {name: [] for name in self.attacks}
        for own_clean, own_done, own_examples, own_flags in parts:
            for position, sample in own_clean.items():
                if clean.setdefault(position, sample)[0] != sample[0]:
                    raise ValueError(two_samples(position))
            for name in self.attacks:
                done[name] = own_done[name] | done[name]
                examples[name] |= own_examples[name]
                flags[name] = list(dict.fromkeys([*flags[name], *own_flags[name]]))
        clean = dict(sorted(clean.items()))
        self.record = summarise(clean, done, self.attacks, self.weights, flags)
        self.examples = _choose(examples)
        return self.record


def identify_run(attack: Attack, classifier: nn.Module) -> str:
    """Return a hash of all that an attack's outcome depends on beside the samples."""
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


def classify(classifier: nn.Module, images: Tensor, runs: Sequence[AttackRun]) -> Tensor:
    """Return the logits of a classifier in evaluation mode, and let nothing be kept of one that answers at random.

    Random is one that draws from a global generator, or that answers the same images differently the second time.
    """
    with torch.no_grad(), evaluation_mode(classifier):
        before = _random_state(images.device)
        logits = answer(classifier, images)
        same = _random_state(images.device) == before and bool(same_answers(answer(classifier, images), logits).all())
    for run in runs:
        if not same and run.repeatable:
            run.forget("the classifier answers at random.")
    return logits


def check_width(logits: Tensor, num_classes: int | None) -> None:
    """Refuse logits that are not as many as the data has classes; ``None``, if that is not known, passes."""
    if num_classes is not None and num_classes != logits.shape[1]:
        raise ValueError(
            f"The classifier gives {logits.shape[1]} logits, and the data has {num_classes} classes, so labels "
            "and logits mean different classes; give the classifier as many, or the data all those of the classifier."
        )


def hash_weights(classifier: nn.Module) -> str:
    """Return a hash of a classifier's architecture, parameters and buffers."""
    return stable_hash(str(classifier), hash_tensors(classifier.state_dict()))[:32]


def name_samples(images: Tensor, labels: Tensor, indices: Sequence[int]) -> list[str]:
    """Return a name for each sample, made of its place and a hash of image and label."""
    return [
        f"{index}-{hash_tensors([('image', image), ('label', label)])[:16]}"
        for index, image, label in zip(indices, images.cpu(), labels.cpu(), strict=True)
    ]


def two_samples(index: int) -> str:
    """Return the sentence for an index that two samples share."""
    return f"The index {index} stands for two different samples; index must be the place of a sample in its split."


def _example(fields: dict[str, Any] | None) -> Example | None:
    """Return an example whose tensors are in memory, and not in a file that is open."""
    if fields is None:
        return None
    own: dict[str, Any] = {name: v.clone() if isinstance(v, Tensor) else v for name, v in fields.items()}
    return Example(**own)


def _random_state(device: torch.device) -> tuple[object, ...]:
    """Return the states of the global random generators, to be compared."""
    legacy: Any = np.random.get_state()
    cuda = torch.cuda.get_rng_state(device).numpy().tobytes() if device.type == "cuda" else b""
    numbers = (legacy[1].tobytes(), *legacy[2:])
    return torch.get_rng_state().numpy().tobytes(), cuda, random.getstate(), numbers


def _choose(by_attack: dict[str, dict[str, Example]]) -> list[Example]:
    """Return a few samples to draw, those first that an attack changed, each once."""
    chosen: dict[int, Example] = {}
    for examples in by_attack.values():
        for example in examples.values():
            if example.index not in chosen or (example.success and not chosen[example.index].success):
                chosen[example.index] = example
    return sorted(chosen.values(), key=lambda example: (not example.success, example.index))[:_EXAMPLES]
