"""Each family trains in bfloat16 and compiled, and goes on from a checkpoint of a resumed run, on GPU and CPU."""

import json
import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from tests.conftest import ROOT
from tests.test_resume import QUIET, build, models, working_folder  # noqa: F401  (fixtures)

pytestmark = pytest.mark.filterwarnings("ignore")
FAMILIES = ("NGDiff", "PGDTraining", "Synthia", "CoDA", "ClassifierUpdate")
on_each_device = pytest.mark.parametrize(
    "accelerator", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("gpu", marks=pytest.mark.gpu)]
)
families = pytest.mark.parametrize("name", FAMILIES)


def train(
    name: str, folder: Path, steps: int, resume: Path | None = None, *, compiler: str | None = None, **options: Any
) -> dict[str, Tensor]:
    """Train to a number of steps, with a checkpoint of every second one, and return the weights."""
    module, data = build(name)
    compiled = module if compiler is None else torch.compile(module, backend=compiler)
    settings = {**QUIET, "limit_train_batches": None, "limit_val_batches": 0, "max_epochs": -1, **options}
    saver = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=2)
    seed_everything(1, verbose=False)
    trainer = Trainer(callbacks=saver, max_steps=steps, default_root_dir=folder, **settings)
    trainer.fit(compiled, data, ckpt_path=resume, weights_only=True)
    return {key: value.detach().cpu() for key, value in module.state_dict().items()}


def moved(name: str, weights: dict[str, Tensor]) -> bool:
    """Return whether training has changed the weights, and left them finite."""
    start = build(name)[0]
    start.configure_model()
    before = start.state_dict()
    assert all(bool(value.isfinite().all()) for value in weights.values())
    return any(not torch.equal(value, before[key]) for key, value in weights.items() if key in before)


@on_each_device
@families
def test_a_family_trains_in_bfloat16(name: str, accelerator: str, tmp_path: Path) -> None:
    weights = train(name, tmp_path, 2, accelerator=accelerator, precision="bf16-mixed")
    assert moved(name, weights)
    assert all(value.dtype != torch.bfloat16 for value in weights.values())


@on_each_device
@families
def test_a_compiled_family_trains_as_it_does_uncompiled(name: str, accelerator: str, tmp_path: Path) -> None:
    start = partial(train, name, tmp_path, 2, accelerator=accelerator)
    plain = start()
    compiled = start(compiler="inductor" if accelerator == "gpu" else "aot_eager")
    assert moved(name, compiled)
    torch.testing.assert_close(compiled, plain, rtol=1e-2, atol=1e-3)


@on_each_device
@families
def test_a_family_goes_on_from_a_resumed_run(name: str, accelerator: str, tmp_path: Path) -> None:
    start = partial(train, name, steps=6, accelerator=accelerator)
    whole = start(tmp_path / "first")
    start(tmp_path / "second", resume=tmp_path / "first" / "step=2.ckpt")
    resumed = start(tmp_path / "third", resume=tmp_path / "second" / "step=4.ckpt")
    torch.testing.assert_close(resumed, whole, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_the_gpu_script_runs_at_toy_size_and_again_without_work(data_folder: Path, tmp_path: Path) -> None:
    line = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(tmp_path), str(data_folder / "cifar10"), "--toy"]
    environment = {**os.environ, "LIT_MODULES_DATA": str(data_folder), "CUDA_VISIBLE_DEVICES": ""}
    for _ in range(2):
        subprocess.run(line, check=True, env=environment, cwd=tmp_path, capture_output=True, text=True)
        results = json.loads((tmp_path / "results.json").read_text())
        methods = {"GradientAscent", "GradientDifference", "NPO", "NGDiff", "NGDiff + AdaptiveLR"}
        for data in ("lume", "tofu"):
            assert {row["method"] for row in results["unlearning"][data]} >= methods
        (ours,) = [row for row in results["robustness"] if row["toolbox"] == "ours"]
        assert 0 <= ours["robust"] <= ours["clean"] <= 1
    assert "## AutoAttack, CIFAR10" in (tmp_path / "table.md").read_text()
