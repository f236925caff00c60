"""A fit ends with what was reached, where it lies, and a line that can be run next."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = ["-c", "pgd/digits.yaml", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
SHORT = [
    *RECIPE,
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1",
]


def run(*line: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-m", "lit_modules", *line], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(output: str) -> dict[str, str]:
    lines = output[output.index(": done") :].splitlines()[1:]
    return {name: text.strip() for name, _, text in (line.partition(" ") for line in lines)}


def test_the_line_after_a_fit_tests_its_best_checkpoint(tmp_path: Path) -> None:
    quick = {"class_path": "lit_modules.attacks.LinfPGD", "init_args": {"eps": 0.1, "steps": 1}}
    attacks = f"--model.test_attacks={json.dumps({'pgd': quick})}"
    after = rows(run("fit", *SHORT, attacks, folder=tmp_path))
    assert after["trained"].startswith("2 optimizer steps, 1 epochs")
    assert "val/robust_accuracy" in after["reached"]
    best = re.match(r"(\S+\.ckpt) \(val/robust_accuracy [\d.]+\)", after["best"])
    assert best is not None
    assert (tmp_path / best[1]).is_file()
    assert (tmp_path / after["folder"]).is_dir()
    _, command, *words = shlex.split(after["next"])
    assert command == "test"
    assert words[-2:] == ["--ckpt_path", "best"]
    tested = rows(run(command, *words, folder=tmp_path))
    assert "robustness.json" in tested["written"]
    assert tested["next"].startswith("lit-modules sweep -c pgd/digits.yaml")
    assert "--ckpt_path" not in tested["next"]


@pytest.mark.slow
def test_two_processes_end_with_one_summary(tmp_path: Path) -> None:
    """Both ask for the log folder at the same places, or they would wait for each other."""
    line = [sys.executable, "-m", "lit_modules", "fit", "-c", "pgd/digits.yaml", "--trainer.accelerator=cpu"]
    line += ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_steps=2", "--trainer.limit_val_batches=0"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (done.stdout + done.stderr).count("lit-modules fit: done") == 1
    assert (tmp_path / "lightning_logs" / "version_0" / "config.yaml").is_file()
