"""One rule for half weights: every public module trains in float32, under ``32-true`` or ``bf16-mixed``."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader

import lit_modules
from lit_modules.adversarial.core.base import AdversarialTraining
from lit_modules.coda.core.update import UpdateModule
from lit_modules.networks import small_llama
from lit_modules.synthia.backbones.pixel import PixelDiffusion
from lit_modules.synthia.core.base import TextToImage
from lit_modules.unlearning.core.causal_lm import CausalLM

FAMILIES = ("NGDiff", "Synthia", "CoDA", "PGDTraining")
TRAIN = sorted(set(lit_modules.__all__) - {"InContext"})


def build(name: str) -> Any:
    kind: Any = getattr(lit_modules, name)
    if issubclass(kind, CausalLM):
        return kind(small_llama(64, 16, num_layers=1, num_heads=2), **({"layer": 0} if name == "RMU" else {}))
    if issubclass(kind, TextToImage):
        return kind(PixelDiffusion(image_size=16, widths=(8, 16)))
    if issubclass(kind, UpdateModule):
        return kind("a/model")
    assert issubclass(kind, AdversarialTraining)
    return kind(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)))


@pytest.mark.parametrize(
    ("name", "precision", "stage"),
    [
        *((name, "bf16-true", "fit") for name in TRAIN),
        *((name, *case) for name in FAMILIES for case in (("16-true", "test"), ("16-mixed", "fit"))),
    ],
)
def test_half_weights_are_refused_before_anything_runs(name: str, precision: str, stage: str, tmp_path: Any) -> None:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    if precision != "16-mixed":
        quiet["precision"] = precision
    trainer: Any = Trainer(accelerator="cpu", devices=1, max_epochs=1, default_root_dir=tmp_path, **quiet)
    if precision == "16-mixed":  # in the place of which Lightning takes bfloat16 on a CPU
        trainer._accelerator_connector.precision_plugin.precision = precision
    data = DataLoader(torch.zeros(2, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"^{name} .*precision '{precision}'.*use 'bf16-mixed' or '32-true'\.$"):
        getattr(trainer, stage)(build(name), data)


def test_weights_of_float16_are_not_trained() -> None:
    trainer: Any = Trainer(accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False)
    network = small_llama(64, 16, num_layers=1, num_heads=2).half()
    with pytest.raises(ValueError, match=r"NGDiff does not train weights of float16; give the model in float32"):
        trainer.fit(lit_modules.NGDiff(network), DataLoader(torch.zeros(2, 1)))  # type: ignore[arg-type]
