"""Every recipe trains for two batches on the CPU; every fragment joins a recipe."""

from pathlib import Path

import pytest
import yaml

from lit_modules.cli import main
from lit_modules.lightning_cli import ProjectCLI

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RECIPES = sorted(CONFIGS.glob("[!_]*/*.yaml"))
FRAGMENTS = sorted(CONFIGS.glob("_*/*.yaml"))


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def small(config: Path, model: Path, lume: Path, folder: Path) -> list[str]:
    """Overrides that make a recipe small: a tiny model in place of a named one, the tests' rows as data."""
    recipe = yaml.safe_load(config.read_text(encoding="utf-8"))
    data = recipe["data"]["class_path"]
    arguments = [f"--trainer.default_root_dir={folder}", "--trainer.accelerator=cpu", "--trainer.devices=1"]
    arguments += [
        "--trainer.precision=32-true",
        "--trainer.enable_progress_bar=false",
        "--data.init_args.num_workers=0",
    ]
    if isinstance(recipe["model"]["init_args"]["model"], str):
        arguments += [f"--model.init_args.model={model}"]
    if data == "datamodules.LUME":
        arguments += [f"--data.init_args.root={lume}"]
    elif data == "datamodules.SyntheticLUME":
        arguments += [f"--data.init_args.root={folder / 'data'}", "--data.init_args.num_documents=2"]
    return arguments


@pytest.mark.parametrize("config", RECIPES, ids=name_of)
def test_recipe_trains(
    config: Path, tiny_causal_lm: Path, lume_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cli = main(
        ["fit", "-c", str(config), *small(config, tiny_causal_lm, lume_folder, tmp_path), "--trainer.fast_dev_run=2"]
    )
    assert isinstance(cli, ProjectCLI)
    assert cli.trainer.global_step >= 1
    assert cli.trainer.fit_loop.total_batch_idx + 1 == 2


@pytest.mark.parametrize("config", RECIPES, ids=name_of)
def test_recipe_begins_with_what_it_is(config: Path) -> None:
    assert config.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=name_of)
def test_fragment_joins_a_recipe(fragment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "-c", "ngdiff/lume.yaml", "-c", str(fragment), "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)["trainer"]
    for key, value in yaml.safe_load(fragment.read_text(encoding="utf-8"))["trainer"].items():
        if isinstance(value, dict):
            assert printed[key]["class_path"] == value["class_path"]
            assert printed[key]["init_args"].items() >= value["init_args"].items()
        else:
            assert printed[key] == value
    assert printed["max_epochs"] == 10
