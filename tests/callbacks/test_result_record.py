import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from callbacks import ForgetStopping, ResultRecord
from tests.small_runs import OneWeight, quiet_trainer, zeros


class Examined(OneWeight):
    record: dict[str, Any] = {"aggregate-score": 0.706, "terms": [None, 1.0]}  # noqa: RUF012

    def results(self) -> dict[str, Any]:
        return self.record


class Validated(OneWeight):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log_dict({"val/forget_loss": 6.5, "val/retain_loss": float("inf")})


def run_test(folder: Path, callback: ResultRecord, module: Any = None, logger: Any = False) -> None:
    quiet_trainer(folder, callback, logger=logger).test(module or Examined(), zeros(), verbose=False)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_test_and_a_validation_of_its_own_are_written(tmp_path: Path) -> None:
    run = quiet_trainer(tmp_path, ResultRecord())
    run.fit(Validated(), zeros(), zeros())
    run.validate(Examined(), zeros(), verbose=False)  # logs nothing
    assert not list(tmp_path.iterdir())
    run.validate(Validated(), zeros(), verbose=False)
    assert read(tmp_path / "validation.json") == {"val/forget_loss": 6.5, "val/retain_loss": None}
    assert ForgetStopping(level=str(tmp_path / "validation.json")).level == 6.5
    run.test(Examined(), zeros(), verbose=False)
    assert read(tmp_path / "results.json") == Examined.record


def test_the_folder_is_that_of_the_run_or_the_one_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run_test(tmp_path, ResultRecord(), logger=CSVLogger(tmp_path, name="logs"))
    run_test(tmp_path, ResultRecord(str(tmp_path / "mine" / "deep"), "numbers.json"))
    run_test(tmp_path, ResultRecord(), logger=WandbLogger(project="unlearning", save_dir=tmp_path, version="run1"))
    for path in ("logs/version_0/results.json", "mine/deep/numbers.json", "unlearning/run1/results.json"):
        assert read(tmp_path / path) == Examined.record


def test_another_record_is_kept(tmp_path: Path) -> None:
    module = Examined()
    for score in (0.1, 0.2, 0.2, 0.3, 0.1):
        module.record = {"aggregate-score": score}
        run_test(tmp_path, ResultRecord(), module)
    scores = {path.name: read(path)["aggregate-score"] for path in tmp_path.iterdir()}
    assert scores == {"results.json": 0.1, "results-1.json": 0.2, "results-2.json": 0.3}


def test_bad_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"asks for OneWeight\.results\(\), which is missing"):
        run_test(tmp_path, ResultRecord(), OneWeight())
    for name in ("", "a/b.json", ".."):
        with pytest.raises(ValueError, match="filename must be a name without folders"):
            ResultRecord(filename=name)
