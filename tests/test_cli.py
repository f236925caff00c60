"""The command line: help, short names, one-sentence errors, saved configurations, resume and test from a checkpoint."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lit_modules
from lit_modules.cli import main, run
from lit_modules.commands import COMMANDS
from lit_modules.errors import UsageError
from lit_modules.lightning_cli import ProjectCLI
from lit_modules.recipes import find_recipe, list_recipes

NGDIFF = ["fit", "--data", "LUME", "--model", "NGDiff", "--model.model", "x"]
QUIET = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false"]
QUIET += ["--trainer.enable_model_summary=false", "--data.num_workers=0"]


@pytest.fixture
def ngdiff(tiny_causal_lm: Path, lume_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments that train a tiny model on a few rows, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    arguments = ["--model=NGDiff", f"--model.model={tiny_causal_lm}", "--model.max_new_tokens=2"]
    arguments += ["--data=LUME", f"--data.root={lume_folder}", "--data.batch_size=4"]
    return [*arguments, *QUIET, f"--trainer.default_root_dir={tmp_path}"]


def start(*args: str) -> ProjectCLI:
    cli = main(list(args))
    assert isinstance(cli, ProjectCLI)
    return cli


def printed_config(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    with pytest.raises(SystemExit, match="0"):
        main([*args, "--print_config"])
    config: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return config


# Help


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
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


def test_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--help"])
    printed = capsys.readouterr().out
    assert "--trainer.max_epochs" in printed
    assert "name of a shipped recipe" in " ".join(printed.split())


def test_help_of_a_class(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--model.help", "NGDiff"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "Unlearn along the difference of two normalised gradients" in printed
    assert "Largest norm of the combined gradient" in printed


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_answer_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert f"lit-modules {name}" in capsys.readouterr().out


# Configurations


def test_short_names_and_print_config(capsys: pytest.CaptureFixture[str]) -> None:
    config = printed_config([*NGDIFF, "--trainer.callbacks+=AdaptiveLR", "--model.metric=LUMEScore"], capsys)
    assert config["model"]["class_path"] == "lit_modules.NGDiff"
    assert config["model"]["init_args"]["metric"]["class_path"].endswith("LUMEScore")
    assert config["data"]["class_path"] == "datamodules.LUME"
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
    assert printed_config(["fit", "-c", "ngdiff/lume.yaml"], capsys)["trainer"]["max_epochs"] == 77


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


def test_recipe_with_the_repository_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("configs/ngdiff/lume.yaml") == find_recipe("ngdiff/lume.yaml")


# Mistakes

MISTAKES: dict[str, tuple[list[str], str]] = {
    "argument of a class": (
        [*NGDIFF, "--model.init_args.clipnorm", "1"],
        "NGDiff has no argument 'clipnorm'; did you mean 'clip_norm'?",
    ),
    "argument of a class, short": (
        [*NGDIFF, "--model.clipnorm", "1"],
        "NGDiff has no argument 'clipnorm'; did you mean 'clip_norm'?",
    ),
    "argument of the data": (
        [*NGDIFF, "--data.btch_size", "1"],
        "LUME has no argument 'btch_size'; did you mean 'batch_size'?",
    ),
    "argument of a callback": (
        [*NGDIFF, "--trainer.callbacks+=AdaptiveLR", "--trainer.callbacks.perod=3"],
        "AdaptiveLR has no argument 'perod'; did you mean 'period'?",
    ),
    "argument of the optimizer": (
        [*NGDIFF, "--model.optimizer=AdamW", "--model.optimizer.lrr=3"],
        "AdamW has no argument 'lrr'; did you mean 'lr'?",
    ),
    "module": (["fit", "--model", "NGDif"], "There is no class 'NGDif' for model; did you mean 'NGDiff'?"),
    "module by path": (
        ["fit", "--model", "lit_modules.NGDif"],
        "There is no class 'lit_modules.NGDif' for model; did you mean 'lit_modules.NGDiff'?",
    ),
    "data": (["fit", "--data", "LUM"], "There is no class 'LUM' for data; did you mean 'LUME'?"),
    "callback": (
        [*NGDIFF, "--trainer.callbacks+=AdaptivLR"],
        "There is no class 'AdaptivLR' for trainer.callbacks; did you mean 'AdaptiveLR'?",
    ),
    "package": (["fit", "--model", "nosuch.Method"], "There is no class 'nosuch.Method' for model."),
    "other class": (["fit", "--model", "datamodules.LUME"], "model must be a LightningModule, got 'datamodules.LUME'."),
    "option": (
        [*NGDIFF, "--trainer.max_epoch", "3"],
        "There is no option '--trainer.max_epoch'; did you mean '--trainer.max_epochs'?",
    ),
    "group": (["fit", "--modle", "NGDiff"], "There is no option '--modle'; did you mean '--model'?"),
    "no value": ([*NGDIFF, "--trainer.max_epochs"], "--trainer.max_epochs needs a value."),
    "stray word": ([*NGDIFF, "stray"], "There is no place for the argument 'stray'; options begin with --."),
    "type": ([*NGDIFF, "--trainer.max_epochs", "abc"], "trainer.max_epochs must be int or None, got 'abc'."),
    "type in a class": ([*NGDIFF, "--model.clip_norm", "abc"], "model.clip_norm must be float or None, got 'abc'."),
    "type in the optimizer": (
        [*NGDIFF, "--model.optimizer=AdamW", "--model.optimizer.lr=abc"],
        "model.optimizer.lr must be float, got 'abc'.",
    ),
    "choice": (
        [*NGDIFF, "--model.buffer=gpu"],
        "model.buffer must be 'device' or 'bfloat16' or 'cpu', got 'gpu'; did you mean 'cpu'?",
    ),
    "trainer": ([*NGDIFF, "--trainer", "x"], "trainer must be a mapping of its arguments, got 'x'."),
    "missing model": (
        ["fit", "--data", "LUME"],
        "model must be given: add --model, or -c with a configuration file.",
    ),
    "missing argument": (["test", "--data=LUME", "--model=NGDiff"], "NGDiff needs model: add --model.model."),
    "file": (
        ["fit", "-c", "nosuch.yaml"],
        "There is no configuration file 'nosuch.yaml'; `lit-modules recipes` lists those that are shipped.",
    ),
    "recipe": (
        ["fit", "-c", "ngdiff/lumee.yaml"],
        "There is no configuration file 'ngdiff/lumee.yaml'; did you mean ngdiff/lume.yaml?",
    ),
    "command": (["fitt"], "There is no command 'fitt'; did you mean 'fit'?"),
    "no command": (
        ["--trainer.max_epochs", "3"],
        "A command must come first: one of fit, validate, test, predict, demo, study, recipes; "
        "got '--trainer.max_epochs'.",
    ),
}


@pytest.mark.parametrize(("args", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_named_first(
    args: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lit-modules", *args])
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    lines = (out + err).splitlines()
    assert lines[0] == f"error: {sentence}"
    assert len(lines) <= 2


FILES: dict[str, tuple[str, str]] = {
    "top key": ("modle: {class_path: lit_modules.NGDiff}", "There is no key 'modle'; did you mean 'model'?"),
    "key of the trainer": (
        "trainer: {max_epoch: 3}",
        "There is no key 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?",
    ),
    "syntax": ("model:\n  class_path: a\n   init_args: [\n", "not valid YAML: mapping values are not allowed"),
    "no mapping": ("- a\n- b\n", "a configuration must be a mapping of keys such as model, data and trainer."),
    "empty": ("", "a configuration must be a mapping of keys such as model, data and trainer."),
    "binary": ("\x00", "not valid YAML: "),
}


@pytest.mark.parametrize(("content", "sentence"), FILES.values(), ids=FILES)
def test_mistake_in_a_file_names_the_file(content: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError) as raised:
        main([*NGDIFF, "-c", str(path)])
    first = str(raised.value).splitlines()[0]
    assert first.startswith(str(path))
    assert sentence in first


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            "model: {class_path: lit_modules.NGDiff, init_args: {modl: x}}",
            "NGDiff has no argument 'modl'; did you mean",
        ),
        ("trainer: {callbacks: [{class_path: callbacks.AdaptivLR}]}", "There is no class 'callbacks.AdaptivLR' for"),
        (
            "trainer: {callbacks: [{class_path: callbacks.AdaptiveLR, init_args: {perio: 3}}]}",
            "AdaptiveLR has no argument 'perio'; did you mean 'period'?",
        ),
        ("trainer: {max_epochs: abc}", "trainer.max_epochs must be int or None, got 'abc'."),
    ],
)
def test_mistake_below_the_outer_keys(content: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError) as raised:
        main([*NGDIFF, "-c", str(path)])
    assert str(raised.value).startswith(sentence)


def test_hint_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"\n`lit-modules validate --model.help NGDiff` lists its arguments.$"):
        main(["validate", "--data=LUME", "--model=NGDiff"])


def test_error_of_a_run_is_one_sentence(
    ngdiff: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["fit", *ngdiff, "--data.root=nowhere"]
    monkeypatch.setattr(sys, "argv", ["lit-modules", *args])
    monkeypatch.delenv("LIT_MODULES_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "nowhere" in errors[0]
    monkeypatch.setenv("LIT_MODULES_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        main(args)


def test_error_of_a_constructor_is_raised_as_it_is(ngdiff: list[str]) -> None:
    with pytest.raises(ValueError, match=r"clip_norm must be positive, got -1\.0") as raised:
        main(["fit", *ngdiff, "--model.clip_norm=-1.0"])
    assert not isinstance(raised.value, UsageError)


def test_python_m(tmp_path: Path, repository: Path) -> None:
    done = _python_m(["fitt"], tmp_path, repository)
    assert done.returncode == 2
    assert done.stderr == "error: There is no command 'fitt'; did you mean 'fit'?\n"
    assert done.stdout == ""


@pytest.mark.parametrize("package", ["callbacks", "datamodules"])
def test_package_that_hides_ours_is_named(package: str, tmp_path: Path, repository: Path) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise SystemExit('imported')\n", encoding="utf-8")
    done = _python_m(["fit", "--help"], tmp_path, repository)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: The folder {tmp_path / package} hides the package {package} of lit-modules")


def test_module_that_hides_ours_is_named(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "callbacks.py").write_text("", encoding="utf-8")
    done = _python_m(["fit", "--help"], tmp_path, repository)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: The file {tmp_path / 'callbacks.py'} hides the package callbacks of lit-modules"
    )


def _python_m(args: list[str], folder: Path, repository: Path) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(repository)}
    command = [sys.executable, "-m", "lit_modules", *args]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


# Runs


def test_tokenizer_comes_from_the_model(ngdiff: list[str], tiny_causal_lm: Path) -> None:
    cli = start("fit", *ngdiff, "--trainer.fast_dev_run=1")
    assert cli.config["fit"]["data"]["init_args"]["tokenizer"] == str(tiny_causal_lm)
    assert cli.datamodule.tokenizer.name_or_path == str(tiny_causal_lm)


def test_given_tokenizer_stays(ngdiff: list[str], tiny_causal_lm: Path, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer"
    other.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_bytes((tiny_causal_lm / name).read_bytes())
    cli = start("fit", *ngdiff, f"--data.tokenizer={other}", "--trainer.fast_dev_run=1")
    assert cli.config["fit"]["data"]["init_args"]["tokenizer"] == str(other)
    assert cli.datamodule.tokenizer.name_or_path == str(other)


def test_built_model_leaves_the_tokenizer_to_the_data(tmp_path: Path) -> None:
    args = ["fit", "-c", "ngdiff/lume_synthetic_memorise.yaml", *QUIET, "--trainer.fast_dev_run=1"]
    args += [f"--data.root={tmp_path}", "--data.num_documents=1"]
    cli = start(*args)
    assert cli.config["fit"]["data"]["init_args"]["tokenizer"] is None


def test_data_without_tokenizer(ngdiff: list[str]) -> None:
    args = [arg for arg in ngdiff if not arg.startswith("--data")]
    with pytest.raises(Exception, match="dataloader"):
        main(["fit", *args, "--data=LightningDataModule", "--trainer.fast_dev_run=1"])


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
    model = {"class_path": "lit_modules.NGDiff", "init_args": {"model": str(tiny_causal_lm)}}
    data = {"class_path": "datamodules.LUME", "init_args": {"root": str(lume_folder), "num_workers": 0}}
    trainer = {"fast_dev_run": 1, "accelerator": "cpu", "devices": 1}
    cli = main({"subcommand": "fit", "fit": {"model": model, "data": data, "trainer": trainer}})
    assert isinstance(cli, ProjectCLI)
    assert cli.trainer.global_step == 1
