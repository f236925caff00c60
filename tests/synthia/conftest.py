"""What the tests of Synthia share: a small curriculum of drawn objects, and small runs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from datamodules import DrawnObjects
from lit_modules.synthia.backbones.pixel import PixelDiffusion
from lit_modules.synthia.ontology.curriculum import build_curriculum
from lit_modules.synthia.synthia import Synthia
from lit_modules.utils.ontology import Ontology


@pytest.fixture(scope="session")
def drawn_curriculum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of six training pairs in three stages and four test pairs."""
    folder = tmp_path_factory.mktemp("curriculum")
    DrawnObjects.write_ontology(str(folder / "ontology.json"))
    ontology = Ontology.from_file(str(folder / "ontology.json"))
    build_curriculum(ontology, num_pairs=6, num_test_pairs=4).save(folder)
    return folder


@pytest.fixture
def pairs(drawn_curriculum: Path) -> Callable[..., DrawnObjects]:
    """Make the datamodule of the curriculum."""
    settings = {"image_size": 16, "batch_size": 2, "negatives": 2, "images_per_concept": 2}
    return lambda **more: DrawnObjects(str(drawn_curriculum), task="pairs", **settings | more)


@pytest.fixture
def synthia() -> Callable[..., Synthia]:
    """Make a small module."""

    def make(**more: Any) -> Synthia:
        optimizer = more.pop("optimizer", partial(torch.optim.AdamW, lr=1e-3))
        return Synthia(PixelDiffusion(image_size=16, widths=(8, 16), num_steps=2), optimizer=optimizer, **more)

    return make


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """Make a quiet trainer."""
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": tmp_path,
        "gradient_clip_val": 1.0,
    }
    return lambda **more: Trainer(**quiet | more)
