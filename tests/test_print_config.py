"""Each command prints the configuration recorded at version 0.1.0, apart from the changes that are listed here.

A recording holds the command, as a comment, and its output. A new one is made by hand::

    lit-modules fit -c METHOD/DATA.yaml --print_config

The address of an option begins at the class that takes it, else at the top of the configuration, and leaves out the
positions in lists: ``lit_modules.NGDiff.eps``, ``trainer.max_epochs``. It may hold ``*``.
"""

import math
import shlex
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

from lit_modules.cli import main

RECORDINGS = sorted((Path(__file__).parent / "data" / "print_config").glob("*.yaml"))
STAGES = LightningCLI.subcommands()
FOREIGN = ("torch.", "lightning.", "transformers.", "diffusers.", "peft.", "trainer.")
"""Addresses of other libraries, whose next version may have more options."""
RENAMED: dict[str, str] = {
    "lit_modules.*.combine": "aggregator",
    "lit_modules.attacks.*.passes": "eot_samples",
    "lit_modules.unlearning.combiners.Normalised": "lit_modules.unlearning.core.aggregators.Normalised",
    "lit_modules.synthia.Linear": "lit_modules.synthia.LinearContrast",
    "lit_modules.coda.update_base.default_optimizer": "lit_modules.coda.core.update.adamw_without_decay",
}
"""New name of an option by its old address; new class path, file or command by the old one."""
ADDED: set[str] = {
    "lit_modules.datamodules.DrawnSpecies.habitats",
    *(  # shared options that had no default before
        f"lit_modules.{kind}.{option}"
        for kind in ("attacks.*", "adversarial.KLPGD")
        for option in ("targeted", "bounds", "restarts", "seed", "precision", "model_mode", "eot_samples", "*_radius")
    ),
    "lit_modules.callbacks.AdaptiveLR.rule",
    "lit_modules.*.model_kwargs",
    "lit_modules.*.prior_*",
    "lit_modules.*.text_peft_config",
    "lit_modules.synthia.*.quantization_config",
    "lit_modules.datamodules.AffordancePairs.bucket_step",
    "lit_modules.datamodules.AffordancePairs.largest_ratio",
    *(
        f"lit_modules.datamodules.{data}.{option}"
        for data in ("LUME", "SyntheticLUME", "TOFU")
        for option in ("request", "requests")
    ),
    "lit_modules.metrics.TOFUScore.part",
    *(
        f"lit_modules.datamodules.{kind}.download"
        for kind in ("FewShotPairs", "NovelSpecies", "INaturalistPairs", "SUNPairs")
    ),
}
"""Addresses of new options."""
CHANGED: dict[str, Any] = {
    "lit_modules.callbacks.AdaptiveLR.clip": math.inf,
    "lit_modules.callbacks.AdaptiveLR.probe_batch": "fresh",
}
"""New default of an option by its address; no recorded recipe sets it."""


def address_of(parent: dict[str, Any], address: str, key: str) -> str:
    if key == "init_args" and "class_path" in parent:
        return str(parent["class_path"])
    return f"{address}.{key}" if address else key


def renamed(old: Any, address: str = "") -> Any:
    if isinstance(old, list):
        return [renamed(value, address) for value in old]
    if not isinstance(old, dict):
        return RENAMED.get(old, old) if isinstance(old, str) else old
    new = {}
    for key, value in old.items():
        below = address_of(old, address, key)
        names = [name for pattern, name in RENAMED.items() if fnmatchcase(below, pattern) and key != "init_args"]
        new[names[0] if names else key] = CHANGED.get(below, renamed(value, below))
    return new


def differences(old: Any, new: Any, address: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            below = address_of(new, address, key)
            if key not in new:
                yield f"{below}: recorded {old[key]!r}, now missing"
            elif key in old:
                yield from differences(old[key], new[key], below)
            elif not below.startswith(FOREIGN) and not any(fnmatchcase(below, pattern) for pattern in ADDED):
                yield f"{below}: not recorded, now {new[key]!r}"
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for old_value, new_value in zip(old, new, strict=True):
            yield from differences(old_value, new_value, address)
    elif old != new or type(old) is not type(new):
        yield f"{address}: recorded {old!r}, now {new!r}"


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
def test_configuration_is_the_recorded_one(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # its files would go before the shipped recipes
    text = recording.read_text(encoding="utf-8")
    command = [RENAMED.get(word, word) for word in shlex.split(text.partition("\n")[0])[2:]]
    parsers = {name: skip for name, skip in STAGES.items() if name == command[0]} or STAGES
    monkeypatch.setattr(LightningCLI, "subcommands", staticmethod(lambda: parsers))  # the others take half of the time
    with pytest.raises(SystemExit, match="0"):
        main(command)
    assert not list(differences(renamed(yaml.safe_load(text)), yaml.safe_load(capsys.readouterr().out)))
