"""A test under several attacks that can be broken off, resumed, and spread over processes."""

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from lit_modules.adversarial.report import Example, Finished, summarise
from lit_modules.attacks.base import Attack
from lit_modules.attacks.checks import check_classes
from lit_modules.attacks.contexts import evaluation_mode
from lit_modules.attacks.norms import lp_norm

_EXAMPLES = 8  # samples per attack whose images are kept
_AUDIT = 1e-6


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
    of weights, architecture and attack; a later run with the same ones reads it and attacks only the rest. A sample is
    known by its index and a hash of image and label. Everything is computed in float32, and every perturbation is held
    against radius and bounds in float64.

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
        self._clean: dict[int, tuple[str, bool]] = {}
        self._done: dict[str, dict[str, Finished]] = {name: {} for name in attacks}
        self._kept: dict[str, dict[str, Example]] = {name: {} for name in attacks}
        self._flags: dict[str, list[str]] = {name: [] for name in attacks}
        self._folders: dict[str, Path] = {}
        for name, attack in attacks.items() if folder is not None else ():
            key = hashlib.blake2b(f"{self.weights} {attack!r}".encode(), digest_size=8).hexdigest()
            self._folders[name] = Path(str(folder)) / f"{name}-{key}"
            self._read(name)

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
            images, labels = images.clone(), labels.clone()
            with torch.no_grad(), evaluation_mode(self.classifier):
                logits = self.classifier(images)
            check_classes(labels, logits.shape[1])
            answer = logits.argmax(1)
            places = index.tolist()
            names = _name_samples(images, labels, places)
            right = (answer == labels).tolist()
            new: dict[str, int] = {}
            for row, (place, name) in enumerate(zip(places, names, strict=True)):
                if self._clean.setdefault(place, (name, right[row]))[0] != name:
                    raise ValueError(_two_samples(place))
                if right[row]:
                    new.setdefault(name, row)
            for attack in self.attacks:
                rows = [row for name, row in new.items() if name not in self._done[attack]]
                if rows:
                    self._run(
                        attack, [names[row] for row in rows], [places[row] for row in rows], images[rows], labels[rows]
                    )

    def finish(self) -> dict[str, Any]:
        """Gather the samples of all processes and return the record; see ``report.summarise``."""
        own = {name for name, _ in self._clean.values()}
        part = {
            "clean": self._clean,
            "done": {a: {name: done[name] for name in done.keys() & own} for a, done in self._done.items()},
            "kept": {a: {name: kept[name] for name in kept.keys() & own} for a, kept in self._kept.items()},
            "flags": self._flags,
        }
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
                    raise ValueError(_two_samples(place))
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

    def _run(self, name: str, names: list[str], places: list[int], images: Tensor, labels: Tensor) -> None:
        attack = self.attacks[name]
        start = time.perf_counter()
        result = attack.run(self.classifier, images, labels)
        success = result.success.cpu()  # waits for the device
        seconds = (time.perf_counter() - start) / len(names)
        audit_perturbation(name, attack, images, result.adversarial, places)
        shown = success.int().argsort(descending=True, stable=True)[:_EXAMPLES]
        with torch.no_grad(), evaluation_mode(self.classifier):
            after = self.classifier(result.adversarial[shown.to(images.device)]).argmax(1)
        content = {
            "samples": names,
            "success": success.tolist(),
            "distance": result.distance.double().tolist(),
            "forward_passes": result.forward_passes.tolist(),
            "seconds": [seconds] * len(names),
            "flags": list(getattr(result, "flags", ())),
            "examples": [
                {
                    "index": places[row],
                    "image": images[row].float().cpu().clone(),
                    "adversarial": result.adversarial[row].float().cpu().clone(),
                    "label": int(labels[row]),
                    "before": int(labels[row]),  # only samples that are right are attacked
                    "after": int(after[number]),
                    "success": bool(success[row]),
                    "attack": name,
                }
                for number, row in enumerate(shown.tolist())
            ],
        }
        self._take(name, content)
        if name in self._folders:
            self._write(name, content)

    def _take(self, name: str, content: dict[str, Any]) -> None:
        columns = zip(*(content[field.name] for field in fields(Finished)), strict=True)
        for sample, values in zip(content["samples"], columns, strict=True):
            self._done[name].setdefault(sample, Finished(*values))
        place = {sample.split("-")[0]: sample for sample in content["samples"]}
        for values in content["examples"]:
            self._kept[name][place[str(values["index"])]] = Example(**values)
        self._flags[name] += [flag for flag in content["flags"] if flag not in self._flags[name]]

    def _write(self, name: str, content: dict[str, Any]) -> None:
        folder = self._folders[name]
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            about = {"attack": repr(self.attacks[name]), "weights": self.weights}
            (folder / "attack.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        digest = hashlib.blake2b(" ".join(content["samples"]).encode(), digest_size=8).hexdigest()
        part = folder / f"{digest}.part-{os.getpid()}"
        torch.save(content, part)
        part.replace(folder / f"{digest}.pt")

    def _read(self, name: str) -> None:
        for path in sorted(self._folders[name].glob("*.pt")):
            try:
                self._take(name, torch.load(path, map_location="cpu", weights_only=True))
            except Exception as error:
                raise ValueError(
                    f"{path} is no record of finished samples ({error}); delete it to run them again."
                ) from error


def audit_perturbation(name: str, attack: Attack, images: Tensor, adversarial: Tensor, places: list[int]) -> None:
    """Hold adversarial samples against the attack's radius and bounds, in float64.

    Args:
        name: Name of the attack, for the error.
        attack: Attack that made them.
        images: Clean samples.
        adversarial: Adversarial samples.
        places: Index of each sample, for the error.

    Raises:
        RuntimeError: If a sample is outside by more than one part in a million.
    """
    delta = adversarial.double() - images.double()
    if adversarial.shape != images.shape or not bool(delta.isfinite().all()):
        raise RuntimeError(f"The attack {name!r} gave samples of another shape, or values that are not finite.")
    if attack.eps is not None and attack.norm is not None and not attack.minimal:
        distance, eps = lp_norm(delta, attack.norm), float(attack.eps)
        worst = int(distance.argmax())
        if float(distance[worst]) > eps * (1 + _AUDIT) + _AUDIT:
            raise RuntimeError(
                f"The attack {name!r} broke its radius: {attack.norm} distance {float(distance[worst]):.8g} of sample "
                f"{places[worst]}, allowed {eps:.8g}."
            )
    if attack.bounds is not None:
        lower, upper = (torch.as_tensor(side, dtype=torch.float64, device=delta.device) for side in attack.bounds)
        outside = torch.maximum(lower - adversarial.double(), adversarial.double() - upper).flatten(1).amax(1)
        worst = int(outside.argmax())
        if float(outside[worst]) > _AUDIT:
            raise RuntimeError(
                f"The attack {name!r} left the bounds by {float(outside[worst]):.8g} on sample {places[worst]}."
            )


def hash_weights(classifier: nn.Module) -> str:
    """Return a hash of a classifier's architecture, parameters and buffers."""
    digest = hashlib.blake2b(str(classifier).encode(), digest_size=16)
    for name, value in classifier.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _name_samples(images: Tensor, labels: Tensor, places: list[int]) -> list[str]:
    values = images.detach().float().cpu().contiguous().flatten(1).numpy()
    names = []
    for place, label, row in zip(places, labels.tolist(), values, strict=True):
        digest = hashlib.blake2b(row.tobytes() + str(label).encode(), digest_size=8).hexdigest()
        names.append(f"{place}-{digest}")
    return names


def _two_samples(place: int) -> str:
    return f"The index {place} stands for two different samples; index must be the place of a sample in its split."


def _choose(kept: dict[str, dict[str, Example]]) -> list[Example]:
    """Return a few samples to draw, those first that an attack changed, each once."""
    found: dict[int, Example] = {}
    for examples in kept.values():
        for example in examples.values():
            if example.index not in found or (example.success and not found[example.index].success):
                found[example.index] = example
    return sorted(found.values(), key=lambda example: (not example.success, example.index))[:_EXAMPLES]
