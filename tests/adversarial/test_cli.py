"""From the command line: train, select by robust accuracy, test under several attacks, write the record."""

import json
from pathlib import Path
from typing import Any

import yaml

from lit_modules import PGDTraining
from lit_modules.cli import main


def linf(**arguments: Any) -> dict[str, Any]:
    return {"class_path": "LinfPGD", "init_args": {"eps": 0.1, "steps": 2} | arguments}


CONFIG: dict[str, Any] = {
    "model": {
        "class_path": "PGDTraining",
        "init_args": {
            "classifier": {"class_path": "LeNet5", "init_args": {"variant": "small", "width": 0.1, "image_size": 8}},
            "attack": linf(step_size=0.05, keep="last"),
            "test_attacks": {"pgd": linf(), "l2": {"class_path": "L2PGD", "init_args": {"eps": 0.5, "steps": 2}}},
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 5.0e-3}},
        },
    },
    "data": {"class_path": "Digits", "init_args": {"validation_size": 64, "test_size": 50}},
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 1,
        "limit_train_batches": 4,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "callbacks": [
            {"class_path": "RobustnessRecord"},
            {"class_path": "AdversarialWeightPerturbation", "init_args": {"gamma": 0.005}},
            {
                "class_path": "ModelCheckpoint",
                "init_args": {"monitor": "val/robust_accuracy", "mode": "max", "filename": "best"},
            },
        ],
    },
}


def test_fit_and_test(tmp_path: Path) -> None:
    config = tmp_path / "pgd.yaml"
    config.write_text(yaml.safe_dump(CONFIG, sort_keys=False), encoding="utf-8")
    folder = f"--trainer.default_root_dir={tmp_path}"
    fitted: Any = main(["fit", "-c", str(config), folder])
    checkpoint = next(tmp_path.rglob("best.ckpt"))
    tested: Any = main(["test", "-c", str(config), folder, f"--ckpt_path={checkpoint}"])
    assert isinstance(tested.model, PGDTraining)
    for name, value in fitted.model.classifier.state_dict().items():
        assert value.equal(tested.model.classifier.state_dict()[name])
    record = json.loads(next(tmp_path.rglob("robustness.json")).read_text(encoding="utf-8"))
    assert record == tested.model.results()
    assert list(record["attacks"]) == ["pgd", "l2"]
    assert record["samples"] == 50
    assert {path.suffix for path in tmp_path.rglob("robustness.*")} == {".json", ".md", ".png", ".svg", ".pdf"}
    assert len(list((tmp_path / "evaluation").iterdir())) == 2
