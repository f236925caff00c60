"""The page on models of one's own: each snippet runs, on small random weights under the names that it uses."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from lit_modules.cli import main
from lit_modules.cli.recipes import list_recipes

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "attack-your-own-model.md").read_text(encoding="utf-8")
SNIPPETS = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE))
LINES = [
    line for block in re.findall(r"^```bash\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE) for line in block.splitlines()
]
TITLES = ["transformers", "torchvision", "timm", "An exported program, a module or a function of your own"]
TITLES += ["Train it, or test it on a whole set"]
SLOW = {"torchvision", "timm", "Train it, or test it on a whole set"}


def write_pictures(folder: Path, *parts: str, classes: int = 2) -> None:
    for part in parts:
        for number, name in enumerate(["n01440764", "n01443537", "n01484850", "n01491361"][:classes]):
            (folder / part / name).mkdir(parents=True)
            for place in range(4):
                pixels = np.random.default_rng(place).integers(0, 128, (40, 60, 3), dtype=np.uint8) + 40 * number
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name / f"{place}.png")


def write_vit(folder: Path, classes: int = 10, size: int = 224) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = ViTConfig(image_size=size, patch_size=size // 4, num_labels=classes, **sizes)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": size, "width": size}).save_pretrained(folder)


def stand_in(title: str, folder: Path) -> dict[str, str]:
    """Write what a snippet would download, where its library looks first; return the environment that this takes."""
    if title == "torchvision":
        from torchvision.models import ResNet18_Weights, resnet18

        (folder / "hub" / "checkpoints").mkdir(parents=True)
        name = ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
        torch.save(resnet18().state_dict(), folder / "hub" / "checkpoints" / name)
        return {"TORCH_HOME": str(folder)}
    if title == "timm":
        from safetensors.torch import save_model

        cache = folder / "hub" / "models--timm--resnet18.a1_in1k"
        (cache / "refs").mkdir(parents=True)
        (cache / "refs" / "main").write_text("0" * 40)
        (cache / "snapshots" / ("0" * 40)).mkdir(parents=True)
        model = pytest.importorskip("timm").create_model("resnet18.a1_in1k")
        save_model(model, str(cache / "snapshots" / ("0" * 40) / "model.safetensors"))
        return {"HF_HOME": str(folder)}
    write_vit(folder / "google" / "vit-base-patch16-224")  # a folder goes before the hub
    write_pictures(folder / "pictures", "train", "test")
    return {}


def test_snippets_are_found() -> None:
    assert list(SNIPPETS) == TITLES


@pytest.mark.parametrize("title", [pytest.param(t, marks=pytest.mark.slow) if t in SLOW else t for t in TITLES])
def test_snippet_runs(title: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | stand_in(title, tmp_path)
    command = [sys.executable, "-c", SNIPPETS[title]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


@pytest.mark.parametrize("line", LINES)
def test_command_is_of_a_recipe_and_its_options(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line)
    assert words[words.index("-c") + 1] in list_recipes()
    with pytest.raises(SystemExit, match="0"):
        main([*words[1:], "--print_config"])
    printed = capsys.readouterr().out
    assert all(word in printed for word in words if word.startswith(("lit_modules.networks", "ResNet", "classifier.")))


@pytest.mark.slow
def test_recipe_evaluates_a_pretrained_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_vit(tmp_path / "model", classes=4, size=32)
    write_pictures(tmp_path / "data", "val", classes=4)
    changes = ["--model.classifier.model=model", "--data.root=data", "--data.num_workers=0", "--data.test_size=6"]
    changes += ["--data.image_size=32", "--trainer.accelerator=cpu", "--trainer.devices=1"]
    tested: Any = main(["test", "-c", "pgd/imagenet_pretrained.yaml", *changes, "--trainer.enable_progress_bar=false"])
    results = tested.model.results()
    assert results["samples"] == 6
    assert list(results["attacks"]) == ["autoattack"]
