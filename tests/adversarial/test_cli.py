"""From the command line: train, select by robust accuracy, test under several attacks, write the record."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from lit_modules import PGDTraining
from lit_modules.cli import main

CONFIG: dict[str, Any] = {
    "model": {
        "class_path": "lit_modules.PGDTraining",
        "init_args": {
            "classifier": {
                "class_path": "lit_modules.networks.LeNet5",
                "init_args": {"variant": "small", "width": 0.1, "image_size": 8},
            },
            "attack": {
                "class_path": "lit_modules.attacks.pgd.LinfPGD",
                "init_args": {"eps": 0.1, "steps": 2, "step_size": 0.05, "keep": "last"},
            },
            "test_attacks": {
                "pgd": {"class_path": "lit_modules.attacks.pgd.LinfPGD", "init_args": {"eps": 0.1, "steps": 2}},
                "l2": {"class_path": "lit_modules.attacks.pgd.L2PGD", "init_args": {"eps": 0.5, "steps": 2}},
            },
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 5.0e-3}},
        },
    },
    "data": {"class_path": "datamodules.Digits", "init_args": {"validation_size": 64, "test_size": 50}},
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 1,
        "limit_train_batches": 4,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "callbacks": [
            {"class_path": "callbacks.RobustnessRecord"},
            {"class_path": "callbacks.AdversarialWeightPerturbation", "init_args": {"gamma": 0.005}},
            {
                "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
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
    assert {path.suffix for path in tmp_path.rglob("robustness.*")} == {".json", ".md", ".png"}
    assert len(list((tmp_path / "evaluation").iterdir())) == 2


def test_predict(tmp_path: Path) -> None:
    config = tmp_path / "pgd.yaml"
    trainer = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    config.write_text(yaml.safe_dump(CONFIG | {"trainer": trainer}, sort_keys=False), encoding="utf-8")
    cli: Any = main(["predict", "-c", str(config), f"--trainer.default_root_dir={tmp_path}"])
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    batch = next(iter(cli.datamodule.predict_dataloader()))
    probability = cli.model.eval()(batch["image"]).softmax(1)
    assert [row["index"] for row in rows] == list(range(50))
    assert torch.allclose(torch.tensor([row["probability"] for row in rows]), probability, atol=1e-6)
    assert [row["prediction"] for row in rows] == probability.argmax(1).tolist()


def test_a_list_of_attacks_and_every_method(tmp_path: Path) -> None:
    for name in ("StandardTraining", "TRADES", "MART", "FreeTraining", "FastTraining"):
        arguments = CONFIG["model"]["init_args"]
        kept = {key: arguments[key] for key in ("classifier", "optimizer")}
        model = {
            "class_path": name,
            "init_args": kept | {"test_attacks": [arguments["test_attacks"]["pgd"]], "scheduler_interval": "epoch"},
        }
        config = tmp_path / f"{name}.yaml"
        config.write_text(
            yaml.safe_dump(CONFIG | {"model": model, "trainer": {"accelerator": "cpu"}}), encoding="utf-8"
        )
        cli: Any = main(
            ["fit", "-c", str(config), "--trainer.fast_dev_run=1", f"--trainer.default_root_dir={tmp_path}"]
        )
        assert type(cli.model).__name__ == name
        assert list(cli.model.test_attacks) == ["LinfPGD"]
