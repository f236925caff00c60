"""Test under several attacks that can be interrupted, resumed, and spread over processes."""

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from lit_modules.adversarial.core.finished import AttackRun, Sample, answer, same_answers
from lit_modules.adversarial.core.report import Example, Finished, summarise
from lit_modules.attacks.engine.base import Attack
from lit_modules.attacks.engine.checks import check_classes
from lit_modules.utils.hashing import hash_tensors, stable_hash
from lit_modules.utils.model_modes import evaluation_mode

_EXAMPLES = 8  # samples of a test whose images are drawn


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


class RobustEvaluation:
    """Run every attack on every sample that a classifier gets right, once.

    What is finished is written after each batch and attack, in one step, into a folder named by the attack and a hash
    of all that the outcome depends on (:class:`lit_modules.adversarial.core.finished.AttackRun`); a later run with the
    same reads it and attacks only the rest. A sample is known by its index and a hash of image and label, and its
    outcome counts only for the answer that the classifier gives to it now. A classifier that answers at random is
    attacked anew, and nothing of it is kept. Everything is computed in float32, and every perturbation is held against
    radius and bounds in float64.

    Args:
        classifier: Gives logits.
        attacks: Attacks by name.
        folder: Folder of the records; ``None`` keeps them in memory alone.
    """

    def __init__(self, classifier: nn.Module, attacks: dict[str, Attack], folder: Path | None) -> None:
        self.classifier = classifier
        self.attacks = attacks
        self.weights = hash_weights(classifier)
        self.record: dict[str, Any] | None = None
        self.examples: list[Example] = []
        self.runs = {name: AttackRun(name, attack, classifier, folder) for name, attack in attacks.items()}
        self._clean: dict[int, tuple[str, bool]] = {}
        self._done: dict[str, dict[str, Finished]] = {name: {} for name in attacks}
        self._kept: dict[str, dict[str, Example]] = {name: {} for name in attacks}
        self._flags: dict[str, list[str]] = {name: [] for name in attacks}

    def update(self, images: Tensor, labels: Tensor, index: Tensor) -> None:
        """Classify a batch, and attack the samples that are right and not finished.

        Args:
            images: ``(batch, *)``, in the attacks' bounds.
            labels: ``(batch,)``.
            index: Place of each sample in its split, ``(batch,)``.

        Raises:
            ValueError: If one index stands for two samples.
            RuntimeError: If an attack breaks its radius or bounds.
        """
        with torch.inference_mode(False), torch.autocast(images.device.type, enabled=False):
            # tensors made in inference mode could not take part in the attack's gradients
            images, labels = images.to(torch.promote_types(images.dtype, torch.float32), copy=True), labels.clone()
            answers = classify(self.classifier, images, list(self.runs.values()))
            check_classes(labels, answers.shape[1])
            places = index.tolist()
            names = name_samples(images, labels, places)
            right = (answers.argmax(1) == labels).tolist()
            new: dict[str, int] = {}
            for row, (place, name) in enumerate(zip(places, names, strict=True)):
                if self._clean.setdefault(place, (name, right[row]))[0] != name:
                    raise ValueError(two_samples(place))
                if right[row]:
                    new.setdefault(name, row)
            for attack, run in self.runs.items():
                rows = [row for name, row in new.items() if name not in self._done[attack]]
                if rows:
                    samples = [Sample(names[row], places[row]) for row in rows]
                    for outcome in run.finish(samples, images[rows], labels[rows], answers[rows]):
                        self._done[attack][outcome.name] = outcome.finished
                        if outcome.example is not None:
                            self._kept[attack][outcome.name] = outcome.example
                        self._flags[attack] += [flag for flag in outcome.flags if flag not in self._flags[attack]]

    def robust_accuracy(self) -> float:
        """Return the share of this process's samples so far that no attack of a radius fools."""
        counted = [name for name, attack in self.attacks.items() if not attack.minimum_norm]
        right = [name for name, correct in self._clean.values() if correct]
        held = sum(not any(self._done[attack][name].success for attack in counted) for name in right)
        return held / max(1, len(self._clean))

    def finish(self) -> dict[str, Any]:
        """Gather the samples of all processes and return the record; see ``report.summarise``."""
        part = {"clean": self._clean, "done": self._done, "kept": self._kept, "flags": self._flags}
        parts: list[Any] = [part]
        if dist.is_available() and dist.is_initialized():
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, part)
        clean: dict[int, tuple[str, bool]] = {}
        done: dict[str, dict[str, Finished]] = {name: {} for name in self.attacks}
        kept: dict[str, dict[str, Example]] = {name: {} for name in self.attacks}
        flags: dict[str, list[str]] = {name: [] for name in self.attacks}
        for part in parts:
            for place, sample in part["clean"].items():
                if clean.setdefault(place, sample)[0] != sample[0]:
                    raise ValueError(two_samples(place))
            for name in self.attacks:
                for sample_name, finished in part["done"][name].items():
                    done[name].setdefault(sample_name, finished)
                kept[name] |= part["kept"][name]
                flags[name] += [flag for flag in part["flags"][name] if flag not in flags[name]]
        clean = dict(sorted(clean.items()))
        self.record = summarise(clean, done, self.attacks, self.weights, flags)
        self.examples = _choose(kept)
        return self.record

    def finished_record(self) -> dict[str, Any]:
        """Return the record.

        Raises:
            RuntimeError: If the evaluation is not finished.
        """
        if self.record is None:
            raise RuntimeError("There are no results before a test is finished.")
        return self.record


def classify(classifier: nn.Module, images: Tensor, runs: Sequence[AttackRun]) -> Tensor:
    """Return the logits of a classifier in evaluation mode, and let nothing be kept of one that answers at random.

    Random is one that draws from a global generator, or that answers the same images differently the second time.

    Args:
        classifier: Gives logits.
        images: Samples, ``(batch, *)``.
        runs: Attacks on it.
    """
    with torch.no_grad(), evaluation_mode(classifier):
        before = _random_state(images.device)
        logits = answer(classifier, images)
        same = _random_state(images.device) == before and bool(same_answers(answer(classifier, images), logits).all())
    for run in runs:
        if not same and run.repeatable:
            run.forget("the classifier answers at random.")
    return logits


def hash_weights(classifier: nn.Module) -> str:
    """Return a hash of a classifier's architecture, parameters and buffers."""
    return stable_hash(str(classifier), hash_tensors(classifier.state_dict()))[:32]


def name_samples(images: Tensor, labels: Tensor, places: Sequence[int]) -> list[str]:
    """Return a name for each sample, made of its place and a hash of image and label."""
    return [
        f"{place}-{hash_tensors([('image', image), ('label', label)])[:16]}"
        for place, image, label in zip(places, images.cpu(), labels.cpu(), strict=True)
    ]


def two_samples(place: int) -> str:
    """Return the sentence for an index that two samples share."""
    return f"The index {place} stands for two different samples; index must be the place of a sample in its split."


def _random_state(device: torch.device) -> tuple[object, ...]:
    """Return the states of the global random generators, to be compared."""
    legacy: Any = np.random.get_state()
    cuda = torch.cuda.get_rng_state(device).numpy().tobytes() if device.type == "cuda" else b""
    numbers = (legacy[1].tobytes(), *legacy[2:])
    return torch.get_rng_state().numpy().tobytes(), cuda, random.getstate(), numbers


def _choose(kept: dict[str, dict[str, Example]]) -> list[Example]:
    """Return a few samples to draw, those first that an attack changed, each once."""
    found: dict[int, Example] = {}
    for examples in kept.values():
        for example in examples.values():
            if example.index not in found or (example.success and not found[example.index].success):
                found[example.index] = example
    return sorted(found.values(), key=lambda example: (not example.success, example.index))[:_EXAMPLES]
