"""The command line: help, short names, saved configurations, resume and test from a checkpoint."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lit_modules
from lit_modules.cli import main
from lit_modules.cli.commands import COMMANDS
from lit_modules.cli.lightning_cli import ProjectCLI
from lit_modules.cli.recipes import find_recipe, list_recipes
from lit_modules.utils.arguments import argument_names
from lit_modules.utils.errors import UsageError

NGDIFF = ["fit", "--data", "LUME", "--model", "NGDiff", "--model.model", "x"]


def start(*args: str) -> ProjectCLI:
    cli = main(list(args))
    assert isinstance(cli, ProjectCLI)
    return cli


def printed_config(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    with pytest.raises(SystemExit, match="0"):
        main([*args, "--print_config"])
    config: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return config


@pytest.mark.parametrize("args", [[], ["--help"]])
def test_help_lists_the_commands(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 0
    printed = capsys.readouterr().out
    for name in ("fit", "validate", "test", "predict", *COMMANDS):
        assert f"\n  {name} " in printed


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lit-modules {lit_modules.__version__}\n"


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list_recipes()
    assert all(len(line.split()) > 2 for line in lines)
    assert all(line.endswith(".") for line in lines)


@pytest.mark.parametrize(
    ("args", "texts"),
    [
        (["fit", "--help"], ("--trainer.max_epochs", "name of a shipped recipe")),
        (["fit", "--model.help", "NGDiff"], ("Unlearn along the difference of two", "Largest norm of the direction")),
    ],
)
def test_help_of_a_command_and_a_class(
    args: list[str], texts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(args)
    printed = " ".join(capsys.readouterr().out.split())
    assert all(text in printed for text in texts)


@pytest.mark.parametrize(
    ("args", "key", "own", "shared"),
    [
        (["--model.help", "NGDiff"], "model", "eps", ("GradientPairUnlearning", "buffer")),
        (["--model.help=SimNPO"], "model", "delta", ("Unlearning", "accumulate")),
        (["--data.help", "Digits"], "data", "augment", ("ImageDataModule", "batch_size")),
        (["--trainer.callbacks.help", "EMA"], "trainer.callbacks", "decay", None),
        (["--model", "PGDTraining", "--model.attack.help", "APGD"], "model.attack", "norm", ("Attack", "restarts")),
        (["--model.help", "NGDiff", "--model.metric.help", "LUMEScore"], "model.metric", "mmlu", None),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_help_of_a_class_begins_with_its_own_options(
    args: list[str], key: str, own: str, shared: tuple[str, str] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["fit", *args])
    printed = capsys.readouterr().out
    assert printed.startswith("usage: lit-modules COMMAND --")
    assert len(printed.splitlines()) < 125
    first = printed.index(f"\n  --{key}.{own} ")
    assert "\nOptions of " in printed[:first]
    if shared is None:
        assert "Shared options" not in printed
    else:
        base, option = shared
        assert first < printed.index(f"\nShared options, of {base}:\n") < printed.index(f"\n  --{key}.{option} ")
    assert printed.count(f"\n  --{key}.{own} ") == 1
    assert printed.startswith(f"usage: lit-modules COMMAND --{key} ")
    assert all(option.startswith(f"{key}.") for option in re.findall(r"^ *--(\S+)", printed, re.M))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.help", "PGD"], "There is no class 'PGD' for model; did you mean 'PGDTraining'"),
        (
            ["--model", "PGDTraining", "--model.attack.help", "PGD"],
            r"There is no class 'PGD' for model\.attack; did you mean .*'LinfPGD'\?",
        ),
    ],
)
def test_help_of_a_missing_class_names_those_like_it(args: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        main(["fit", *args])


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without GPU")
def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(UsageError, match=r"no GPU on this machine; add -c _trainer/cpu\.yaml"):
        main(["fit", "-c", "pgd/digits.yaml", "-c", "_trainer/gpu.yaml"])


def test_help_of_a_class_has_each_option_once_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--model.help", "NGDiff"])
    printed = capsys.readouterr().out
    options = re.findall(r"^  --model\.(\w+)", printed, re.M)
    assert sorted(options) == sorted(argument_names(lit_modules.NGDiff))
    words = " ".join(printed.split())
    assert "(type: float, default: 1e-12)" in words
    assert re.search(r"takes AffordanceCLIPScore, .*LUMEScore, .*PairAccuracy, .*SynthiaScore, TOFUScore", words)
    assert "torchmetrics" not in printed


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_answer_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert f"lit-modules {name}" in capsys.readouterr().out


def test_short_names_and_print_config(capsys: pytest.CaptureFixture[str]) -> None:
    config = printed_config([*NGDIFF, "--trainer.callbacks+=AdaptiveLR", "--model.metric=LUMEScore"], capsys)
    assert config["model"]["class_path"] == "lit_modules.NGDiff"
    assert config["model"]["init_args"]["metric"]["class_path"].endswith("LUMEScore")
    assert config["data"]["class_path"] == "lit_modules.datamodules.LUME"
    assert config["trainer"]["callbacks"][0]["class_path"].endswith("AdaptiveLR")
    assert config["seed_everything"] == 0


def test_later_wins_and_lists_grow(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = yaml.safe_load(find_recipe("ngdiff/lume.yaml").read_text(encoding="utf-8"))
    more = ["--model.clip_norm=3", "--trainer.callbacks+=LearningRateMonitor"]
    config = printed_config(["fit", "-c", "ngdiff/lume.yaml", *more], capsys)
    assert config["model"]["init_args"]["clip_norm"] == 3.0
    assert len(config["trainer"]["callbacks"]) == len(recipe["trainer"]["callbacks"]) + 1


def test_file_of_the_working_folder_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert printed_config(["fit", "-c", "ngdiff/lume.yaml"], capsys)["trainer"]["max_epochs"] == 10
    Path("ngdiff").mkdir()
    Path("ngdiff/lume.yaml").write_text("trainer: {max_epochs: 77}\n", encoding="utf-8")
    assert find_recipe("ngdiff/lume.yaml") == Path("ngdiff/lume.yaml")
    assert find_recipe("configs/npo/lume.yaml") == find_recipe("npo/lume.yaml")
    assert printed_config(["fit", "-c", "ngdiff/lume.yaml"], capsys)["trainer"]["max_epochs"] == 77


@pytest.mark.parametrize("text", ['{"trainer": {"max_epochs": 3}}', "trainer:\n  max_epochs: 3\n"])
def test_configuration_as_text(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = printed_config(["fit", "-c", "ngdiff/lume.yaml", "-c", text, "--trainer.max_steps=5"], capsys)
    assert (config["trainer"]["max_epochs"], config["trainer"]["max_steps"]) == (3, 5)
    assert config["model"]["class_path"] == "lit_modules.NGDiff"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ngdif/lume.yaml", r"no configuration file 'ngdif/lume.yaml'; did you mean ngdiff/lume.yaml\?"),
        ("configs/ngdiff/lum.yaml", r"did you mean ngdiff/lume.yaml\?"),
        ("lume_7b", r"did you mean ngdiff/lume_7b.yaml\?"),
        ("zzz", "`lit-modules recipes` lists"),
    ],
)
def test_misspelt_recipe(name: str, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        find_recipe(name)


@pytest.mark.parametrize("own", [False, True])
def test_tokenizer_comes_from_the_model_unless_given(
    own: bool, ngdiff: list[str], tiny_causal_lm: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_causal_lm, tmp_path / "tokenizer") if own else tiny_causal_lm
    cli = start("fit", *ngdiff, *([f"--data.tokenizer={folder}"] if own else []), "--trainer.fast_dev_run=1")
    assert cli.config["fit"]["data"]["init_args"]["tokenizer"] == str(folder)
    assert cli.datamodule.tokenizer.name_or_path == str(folder)


def test_built_model_leaves_the_tokenizer_to_the_data(quiet: list[str], tmp_path: Path) -> None:
    args = ["fit", "-c", "ngdiff/lume_synthetic_memorise.yaml", *quiet, "--trainer.fast_dev_run=1"]
    args += [f"--data.root={tmp_path}", "--data.num_documents=1"]
    cli = start(*args)
    assert cli.config["fit"]["data"]["init_args"]["tokenizer"] is None


def test_configuration_reaches_every_logger_and_the_run_folder(ngdiff: list[str], tmp_path: Path) -> None:
    loggers = [
        {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path / name)}}
        for name in ("one", "two")
    ]
    cli = start("fit", *ngdiff, f"--trainer.logger={loggers}", "--trainer.max_steps=1", "--model.clip_norm=3.0")
    for name in ("one", "two"):
        text = (tmp_path / name / "lightning_logs" / "version_0" / "hparams.yaml").read_text(encoding="utf-8")
        logged = yaml.safe_load(text)["config"]
        assert logged["model"]["init_args"]["clip_norm"] == 3.0
        assert logged["trainer"]["max_steps"] == 1
        assert logged["data"]["init_args"]["batch_size"] == 4
    assert cli.trainer.log_dir is not None
    saved = yaml.safe_load((Path(cli.trainer.log_dir) / "config.yaml").read_text(encoding="utf-8"))
    assert saved["model"]["class_path"] == "lit_modules.NGDiff"
    checkpoints = list((Path(cli.trainer.log_dir) / "checkpoints").iterdir())
    assert [path.suffix for path in checkpoints] == [".ckpt"]


def test_saved_configuration_repeats_the_run(ngdiff: list[str], tmp_path: Path) -> None:
    first = start("fit", *ngdiff, "--trainer.max_steps=2", "--trainer.logger=false")
    again = start("fit", "-c", "config.yaml", f"--trainer.default_root_dir={tmp_path / 'again'}")
    assert again.trainer.global_step == 2
    pairs = zip(first.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_checkpoints_elsewhere_have_the_configuration(ngdiff: list[str], tmp_path: Path) -> None:
    checkpoints = tmp_path / "elsewhere" / "deep"
    args = [*ngdiff, "--trainer.callbacks+=ModelCheckpoint", f"--trainer.callbacks.dirpath={checkpoints}"]
    args += ["--trainer.callbacks.save_last=true", "--trainer.max_epochs=1"]
    cli = start("fit", *args)
    saved = yaml.safe_load((checkpoints / "config.yaml").read_text(encoding="utf-8"))
    assert saved["data"]["init_args"]["batch_size"] == 4
    assert (checkpoints / "last.ckpt").is_file()

    steps = cli.trainer.global_step
    resumed = start("fit", *args, "--trainer.max_epochs=2", f"--ckpt_path={checkpoints / 'last.ckpt'}")
    assert resumed.trainer.global_step == 2 * steps
    assert yaml.safe_load((checkpoints / "config.yaml").read_text(encoding="utf-8"))["trainer"]["max_epochs"] == 2


def test_checkpoint_is_tested_and_loaded(ngdiff: list[str], tmp_path: Path) -> None:
    args = [*ngdiff, "--model.optimizer=SGD", "--model.optimizer.lr=0.1", "--trainer.logger=false"]
    trained = start("fit", *args, "--trainer.max_epochs=1")
    checkpoint = next(tmp_path.rglob("*.ckpt"))
    before = (tmp_path / "config.yaml").read_bytes()

    tested = start("test", *args, "--model.metric=LUMEScore", f"--ckpt_path={checkpoint}", "--trainer.max_epochs=1")
    pairs = zip(trained.model.model.parameters(), tested.model.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert tested.model.metric is not None
    assert (tmp_path / "config.yaml").read_bytes() == before
    assert (tmp_path / "config_test.yaml").is_file()

    loaded = lit_modules.NGDiff.load_from_checkpoint(checkpoint)
    pairs = zip(trained.model.model.parameters(), loaded.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_configuration_as_a_mapping(ngdiff: list[str], tiny_causal_lm: Path, lume_folder: Path) -> None:
    model = {"class_path": "NGDiff", "init_args": {"model": str(tiny_causal_lm)}}
    data = {"class_path": "LUME", "init_args": {"root": str(lume_folder), "num_workers": 0}}
    trainer = {"fast_dev_run": 1, "accelerator": "cpu", "devices": 1}
    cli: Any = main({"subcommand": "fit", "fit": {"model": model, "data": data, "trainer": trainer}})
    assert cli.trainer.global_step == 1
