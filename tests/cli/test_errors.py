"""Mistakes on the command line, in files and in runs: the first line says what is wrong."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lit_modules.cli import STAGES, main, run
from lit_modules.cli.commands import COMMANDS
from lit_modules.cli.errors import is_for_user
from lit_modules.utils.errors import UsageError

NGDIFF = ["fit", "--data", "LUME", "--model", "NGDiff", "--model.model", "x"]
DIGITS = ["fit", "-c", "pgd/digits.yaml"]

MISTAKES: dict[str, tuple[list[str], str]] = {
    "argument of a class": (
        [*NGDIFF, "--model.init_args.clipnorm", "1"],
        "NGDiff has no argument 'clipnorm'; did you mean 'clip_norm'?",
    ),
    "argument of a class, short": (
        [*NGDIFF, "--model.clipnorm", "1"],
        "NGDiff has no argument 'clipnorm'; did you mean 'clip_norm'?",
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
    "package": (["fit", "--model", "nosuch.Method"], "There is no class 'nosuch.Method' for model."),
    "other class": (["fit", "--model", "datamodules.LUME"], "model must be a LightningModule, got 'datamodules.LUME'."),
    "option": (
        [*NGDIFF, "--trainer.max_epoch", "3"],
        "There is no option '--trainer.max_epoch'; did you mean '--trainer.max_epochs'?",
    ),
    "no value": ([*NGDIFF, "--trainer.max_epochs"], "--trainer.max_epochs needs a value."),
    "stray word": ([*NGDIFF, "stray"], "There is no place for the argument 'stray'; options begin with --."),
    "type": ([*NGDIFF, "--trainer.max_epochs", "abc"], "trainer.max_epochs must be int or None, got 'abc'."),
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
    "argument without a model": (
        ["fit", "--model.clip_norm", "1"],
        "model must be given before its argument 'clip_norm': add --model with the name of a class, or -c with a "
        "configuration file.",
    ),
    "missing argument": (["test", "--data=LUME", "--model=NGDiff"], "NGDiff needs model: add --model.model."),
    "file": (
        ["fit", "-c", "nosuchrecipe.yaml"],
        "There is no configuration file 'nosuchrecipe.yaml'; `lit-modules recipes` lists those that are shipped.",
    ),
    "recipe": (
        ["fit", "-c", "ngdiff/lumee.yaml"],
        "There is no configuration file 'ngdiff/lumee.yaml'; did you mean ngdiff/lume.yaml?",
    ),
    "text": (
        ["fit", "-c", "{trainer: {max_epoch: 3}}"],
        "-c: There is no key 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?",
    ),
    "text that is no YAML": (
        ["fit", "-c", "{trainer: [max_epochs: 3}"],
        "-c:1: not valid YAML: expected ',' or ']', but got '}'.",
    ),
    "nested argument": (
        [*DIGITS, "--model.atack.eps=1"],
        "PGDTraining has no argument 'atack'; did you mean 'attack'?",
    ),
    "nested argument of a nested class": (
        [*DIGITS, "--model.attack.epss=1"],
        "LinfPGD has no argument 'epss'; did you mean 'eps'?",
    ),
    "nested class": (
        [*DIGITS, "--model.attack=LinfPG"],
        "There is no class 'LinfPG' for model.attack; did you mean 'LinfPGD'?",
    ),
    "class of another package": (
        [*NGDIFF, "--trainer.callbacks+=mine.EMA"],
        "There is no class 'mine.EMA' for trainer.callbacks; did you mean 'lit_modules.callbacks.EMA'?",
    ),
    "adapter": (
        [*NGDIFF, "--model.peft_config=LoraConfg"],
        "There is no class 'LoraConfg' for model.peft_config; did you mean 'LoraConfig'?",
    ),
    "argument without a logger": (
        [*NGDIFF, "--trainer.logger.project=x"],
        "trainer.logger must be given before its argument 'project': add --trainer.logger with the name of a class, or "
        "-c with a configuration file.",
    ),
    "argument without an optimizer": (
        [*NGDIFF, "--model.optimizer.lr=1"],
        "model.optimizer must be given before its argument 'lr': add --model.optimizer with the name of a class, or -c "
        "with a configuration file.",
    ),
    "argument of a value": (
        [*NGDIFF, "--model.clip_norm.x=1"],
        "model.clip_norm must be float or None, so it has no argument 'x'.",
    ),
    "missing argument of a scheduler": (
        [*NGDIFF, "--model.scheduler=OneCycleLR"],
        "OneCycleLR needs max_lr: add --model.scheduler.max_lr.",
    ),
    "help on a class": (
        ["fit", "--model.help", "NGDif"],
        "There is no class 'NGDif' for model; did you mean 'NGDiff'?",
    ),
    "help on a nested class": (
        ["fit", "--model.attack.help", "LinfPGD"],
        "model must be given before its argument 'attack': add --model with the name of a class, or -c with a "
        "configuration file.",
    ),
    "option without its group": (
        [*NGDIFF, "--optimizer", "AdamW"],
        "There is no option '--optimizer'; did you mean '--model.optimizer'?",
    ),
    "option like none": ([*NGDIFF, "--gpus=1"], "There is no option '--gpus'; `lit-modules fit --help` lists them."),
    "seed below its range": (
        [*NGDIFF, "--seed_everything=-1"],
        "seed_everything must be from 0 to 4294967295, or false for none, got -1.",
    ),
    "checkpoint": (
        [*NGDIFF, "--ckpt_path=nope.ckpt"],
        "There is no checkpoint 'nope.ckpt' for ckpt_path; it takes a file or last, best.",
    ),
    "folder of recipes": (
        ["fit", "-c", "compare"],
        "There is no configuration file 'compare'; did you mean compare/lume_rates.yaml or compare/lume_tiny.yaml or "
        "compare/tofu_tiny.yaml?",
    ),
    "command": (["fitt"], "There is no command 'fitt'; did you mean 'fit'?"),
    "no command": (
        ["--trainer.max_epochs", "3"],
        f"A command must come first: one of {', '.join([*STAGES, *COMMANDS])}; got '--trainer.max_epochs'.",
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


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        ([*DIGITS, "--model.attack.epss=1"], "--model PGDTraining --model.attack.help LinfPGD"),
        ([*NGDIFF, "--model.scheduler=OneCycleLR"], "--model NGDiff --model.scheduler.help OneCycleLR"),
    ],
)
def test_hint_on_a_nested_class_works(args: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=f"\n`lit-modules fit {hint}` lists its arguments.$"):
        main(args)
    with pytest.raises(SystemExit, match="0"):
        main(["fit", *hint.split()])
    assert hint.split()[-1] in capsys.readouterr().out


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


SETUP: dict[str, tuple[list[str], str]] = {
    "data": (["--data.root=nowhere"], "The folder nowhere must hold forget.jsonl and retain.jsonl"),
    "model": (["--model.model=/nowhere/at/all"], "There is no model folder '/nowhere/at/all'."),
    "accumulation": (["--trainer.accumulate_grad_batches=2"], "Trainer(accumulate_grad_batches=2) has no effect on"),
    "rate": (["--model.optimizer=AdamW", "--model.optimizer.lr=-1"], "The optimizer of NGDiff refuses its arguments"),
    "tokenizer": (["--data.tokenizer={wide}"], "The tokenizer '{wide}' has 401 tokens and the model's embedding only"),
    "accelerator": (["--trainer.accelerator=abacus"], "You selected an invalid accelerator name"),
}
SEVERAL = """
import json, sys
from lit_modules.cli import run
for args in json.load(sys.stdin):
    sys.argv = ["lit-modules", *args]
    try:
        run()
    except SystemExit as stopped:
        print(f"=== {stopped.code}", flush=True)
"""


def test_error_of_set_up_is_the_first_line(
    ngdiff: list[str], tiny_causal_lm: Path, tmp_path: Path, repository: Path
) -> None:
    wide = tmp_path / "wide"
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_lm)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(wide)
    runs = [["fit", *ngdiff, *(arg.format(wide=wide) for arg in args)] for args, _ in SETUP.values()]
    runs.append(["fit", *ngdiff, "--trainer.max_steps=1", "--trainer.logger=false"])
    environment = os.environ | {"PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, "-u", "-c", SEVERAL],
        cwd=tmp_path,
        env=environment,
        input=json.dumps(runs),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    *failed, trained, rest = re.split(r"=== (?:0|1)\n", done.stdout)
    assert rest == ""
    for printed, (_, sentence) in zip(failed, SETUP.values(), strict=True):
        lines = printed.splitlines()
        assert lines[0].startswith(f"error: {sentence.format(wide=wide)}")
        assert lines[1:] == ["LIT_MODULES_TRACEBACK=1 shows where this was raised."]
    assert trained.startswith("Seed set to 0\n")


def _caught(code: str, module: str, file: Path) -> Exception:
    """Return the error that code of a module ends with."""
    file.write_text(code, encoding="utf-8")
    with pytest.raises(Exception) as raised:  # noqa: PT011
        exec(compile(code, str(file), "exec"), {"__name__": module})
    return raised.value


@pytest.mark.parametrize(
    ("code", "module", "told"),
    [
        ("raise ValueError('rate must be positive')", "lit_modules.callbacks.adaptive_lr", True),
        (
            "try:\n    {}['a']\nexcept KeyError as error:\n    raise RuntimeError('no a') from error",
            "lit_modules.datamodules",
            True,
        ),
        ("from pathlib import Path\nPath('nowhere').read_text()", "lit_modules.datamodules.lume.lume", True),
        ("raise Misconfigured('no loop')", "lightning.pytorch.trainer", True),
        (
            "def instantiate_classes():\n    raise ValueError('n must be positive')\ninstantiate_classes()",
            "other",
            True,
        ),
        ("raise ValueError('deep')", "torch.nn.functional", False),
        ("raise ValueError('deep')", "callbacks_of_a_user", False),
        ("int('a')", "lit_modules.callbacks.adaptive_lr", False),
        ("len(3)", "lit_modules.unlearning", False),
        ("[][1]", "lit_modules.unlearning", False),
        ("assert 1 == 2, 'never'", "lit_modules.unlearning", False),
        ("raise NotImplementedError", "lit_modules.unlearning", False),
        ("import json\njson.loads('{')", "lit_modules.datamodules.lume.lume", False),
    ],
)
def test_only_sentences_for_the_user_are_told(code: str, module: str, told: bool, tmp_path: Path) -> None:
    code = code.replace(
        "Misconfigured", "__import__('lightning').pytorch.utilities.exceptions.MisconfigurationException"
    )
    assert is_for_user(_caught(code, module, tmp_path / "code.py")) is told


def test_defect_keeps_its_traceback(
    ngdiff: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import json\nfrom lightning.pytorch import Callback\n\n\nclass Defective(Callback):\n"
    code += "    def setup(self, trainer, pl_module, stage):\n        json.loads('{')\n"
    (tmp_path / "defective_callback.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    args = ["lit-modules", "fit", *ngdiff, "--trainer.callbacks+=defective_callback.Defective"]
    monkeypatch.setattr(sys, "argv", args)
    with pytest.raises(json.JSONDecodeError):
        run()
    assert "error: " not in capsys.readouterr().err


def test_error_of_a_constructor_is_raised_as_it_is(ngdiff: list[str]) -> None:
    with pytest.raises(ValueError, match=r"clip_norm must be positive, got -1\.0") as raised:
        main(["fit", *ngdiff, "--model.clip_norm=-1.0"])
    assert not isinstance(raised.value, UsageError)


def test_python_m(tmp_path: Path, repository: Path) -> None:
    done = _python_m(["fitt"], tmp_path, repository)
    assert done.returncode == 2
    assert done.stderr == "error: There is no command 'fitt'; did you mean 'fit'?\n"
    assert done.stdout == ""


def _python_m(args: list[str], folder: Path, repository: Path) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(repository)}
    command = [sys.executable, "-m", "lit_modules", *args]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
