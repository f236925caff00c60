"""Names, groups, job types and tags of runs in Weights & Biases, and the tables that they get."""

from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from jsonargparse import Namespace

from lit_modules.cli import main
from lit_modules.cli.lightning_cli import ProjectCLI
from lit_modules.cli.recipes import find_recipe
from lit_modules.cli.run_names import name_wandb_runs

WANDB = "lightning.pytorch.loggers.WandbLogger"


def named(files: list[Any], logger: Any, **more: Any) -> Any:
    given = {"model": Namespace(class_path="lit_modules.NGDiff"), "data": Namespace(class_path="my.data.Mine")}
    config = Namespace(**({"config": files, "trainer": Namespace(logger=logger), "seed_everything": 3} | given | more))
    name_wandb_runs(config, "fit")
    return config.trainer.logger


def wandb_logger(**given: Any) -> Namespace:
    return Namespace(class_path=WANDB, init_args=Namespace(**given))


@pytest.mark.usefixtures("wandb_offline")
def test_a_run_has_a_name_a_group_a_job_type_and_a_tag(
    ngdiff: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["-c", "ngdiff/lume.yaml", "-c", "_logger/wandb_offline.yaml", *ngdiff, "--seed_everything=5"]
    args += [f"--trainer.logger.save_dir={tmp_path}", "--trainer.callbacks=GenerationLog", "--model.metric=LUMEScore"]
    cli = main(["test", *args, "--trainer.precision=32-true"])
    assert isinstance(cli, ProjectCLI)
    assert cli.trainer.logger is not None
    run = cli.trainer.logger.experiment
    assert (run.name, run.group, run.job_type, run.tags) == ("NGDiff-LUME-5", "ngdiff/lume", "test", ("unlearning",))
    wandb.finish()
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/table/test/generations_*.table.json"))
    saved = yaml.safe_load(next(tmp_path.rglob("config_test.yaml")).read_text(encoding="utf-8"))
    assert saved["trainer"]["logger"]["init_args"]["name"] == "NGDiff-LUME-5"


def test_what_was_given_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_JOB_TYPE", "mine")
    csv = Namespace(class_path="lightning.pytorch.loggers.CSVLogger", init_args=Namespace(name=""))
    first, second = named([], [csv, wandb_logger(name="mine", group=None)])
    assert first.init_args.as_dict() == {"name": ""}
    assert second.init_args.as_dict() == {"name": "mine", "group": "NGDiff-Mine", "tags": ["unlearning"]}


@pytest.mark.parametrize(
    ("files", "group"),
    [
        ([find_recipe("_logger/wandb.yaml"), find_recipe("npo/lume.yaml")], "npo/lume"),
        ([None, "runs/mine.yaml"], "mine"),
        (["runs/config.yaml"], "NGDiff-Mine"),
    ],
)
def test_group_is_the_recipe(files: list[Any], group: str) -> None:
    assert named(files, wandb_logger()).init_args.group == group


def test_a_run_without_seed_or_data_has_a_name_too() -> None:
    arguments = named([], wandb_logger(), data=None, seed_everything=False).init_args
    assert (arguments.name, arguments.group) == ("NGDiff", "NGDiff")
