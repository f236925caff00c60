"""Mistakes on the command line, in files and in runs: the first line says what is wrong."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lit_modules.cli import STAGES, main, run
from lit_modules.cli.commands import COMMANDS
from lit_modules.cli.errors import is_for_user
from lit_modules.utils.errors import UsageError

NGDIFF = "fit --data LUME --model NGDiff --model.model x"
DIGITS = "fit -c pgd/digits.yaml"
REMEDY = "with the name of a class, or -c with a configuration file."

MISTAKES = [
    (f"{NGDIFF} --model.init_args.clipnorm 1", "NGDiff has no argument 'clipnorm'; did you mean 'clip_norm'?"),
    (f"{NGDIFF} --model.clipnorm 1", "NGDiff has no argument 'clipnorm'; did you mean 'clip_norm'?"),
    (
        f"{NGDIFF} --trainer.callbacks+=AdaptiveLR --trainer.callbacks.perod=3",
        "AdaptiveLR has no argument 'perod'; did you mean 'period'?",
    ),
    (f"{NGDIFF} --model.optimizer=AdamW --model.optimizer.lrr=3", "AdamW has no argument 'lrr'; did you mean 'lr'?"),
    (f"{DIGITS} --model.attack.epss=1", "LinfPGD has no argument 'epss'; did you mean 'eps'?"),
    ("fit --model NGDif", "There is no class 'NGDif' for model; did you mean 'NGDiff'?"),
    (
        "fit --model lit_modules.NGDif",
        "There is no class 'lit_modules.NGDif' for model; did you mean 'lit_modules.NGDiff'?",
    ),
    ("fit --model nosuch.Method", "There is no class 'nosuch.Method' for model."),
    (f"{DIGITS} --model.attack=LinfPG", "There is no class 'LinfPG' for model.attack; did you mean 'LinfPGD'?"),
    (
        f"{NGDIFF} --trainer.callbacks+=mine.EMA",
        "There is no class 'mine.EMA' for trainer.callbacks; did you mean 'lit_modules.callbacks.EMA'?",
    ),
    ("fit --model.help NGDif", "There is no class 'NGDif' for model; did you mean 'NGDiff'?"),
    ("fit --model datamodules.LUME", "model must be a LightningModule, got 'datamodules.LUME'."),
    (
        f"{NGDIFF} --trainer.max_epoch 3",
        "There is no option '--trainer.max_epoch'; did you mean '--trainer.max_epochs'?",
    ),
    (f"{NGDIFF} --optimizer AdamW", "There is no option '--optimizer'; did you mean '--model.optimizer'?"),
    (f"{NGDIFF} --gpus=1", "There is no option '--gpus'; `lit-modules fit --help` lists them."),
    (f"{NGDIFF} --trainer.max_epochs", "--trainer.max_epochs needs a value."),
    (f"{NGDIFF} stray", "There is no place for the argument 'stray'; options begin with --."),
    (f"{NGDIFF} --trainer.max_epochs abc", "trainer.max_epochs must be int or None, got 'abc'."),
    (
        f"{NGDIFF} --model.optimizer=AdamW --model.optimizer.lr=abc",
        "model.optimizer.lr must be float, got 'abc'.",
    ),
    (
        f"{NGDIFF} --model.buffer=gpu",
        "model.buffer must be 'device' or 'bfloat16' or 'cpu', got 'gpu'; did you mean 'cpu'?",
    ),
    (f"{NGDIFF} --trainer x", "trainer must be a mapping of its arguments, got 'x'."),
    (f"{NGDIFF} --model.clip_norm.x=1", "model.clip_norm must be float or None, so it has no argument 'x'."),
    ("fit --data LUME", "model must be given: add --model, or -c with a configuration file."),
    ("fit --model.clip_norm 1", f"model must be given before its argument 'clip_norm': add --model {REMEDY}"),
    (
        f"{NGDIFF} --model.optimizer.lr=1",
        f"model.optimizer must be given before its argument 'lr': add --model.optimizer {REMEDY}",
    ),
    ("test --data=LUME --model=NGDiff", "NGDiff needs model: add --model.model."),
    (f"{NGDIFF} --model.scheduler=OneCycleLR", "OneCycleLR needs max_lr: add --model.scheduler.max_lr."),
    (
        "fit -c nosuchrecipe.yaml",
        "There is no configuration file 'nosuchrecipe.yaml'; `lit-modules recipes` lists those that are shipped.",
    ),
    (
        "fit -c '{trainer: {max_epoch: 3}}'",
        "-c: There is no key 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?",
    ),
    ("fit -c '{trainer: [max_epochs: 3}'", "-c:1: not valid YAML: expected ',' or ']', but got '}'."),
    (
        f"{NGDIFF} --seed_everything=-1",
        "seed_everything must be from 0 to 4294967295, or false for none, got -1.",
    ),
    (
        f"{NGDIFF} --ckpt_path=nope.ckpt",
        "There is no checkpoint 'nope.ckpt' for ckpt_path; it takes a file or last, best.",
    ),
    ("fitt", "There is no command 'fitt'; did you mean 'fit'?"),
    (
        "--trainer.max_epochs 3",
        f"A command must come first: one of {', '.join([*STAGES, *COMMANDS])}; got '--trainer.max_epochs'.",
    ),
]


@pytest.mark.parametrize(("line", "sentence"), MISTAKES)
def test_mistake_is_named_first(
    line: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lit-modules", *shlex.split(line)])
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    lines = (out + err).splitlines()
    assert lines[0] == f"error: {sentence}"
    assert len(lines) <= 2


FILES = [
    ("modle: {class_path: lit_modules.NGDiff}", "PATH: There is no key 'modle'; did you mean 'model'?"),
    ("trainer: {max_epoch: 3}", "PATH: There is no key 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
    ("model:\n  class_path: a\n   init_args: [\n", "PATH:3: not valid YAML: mapping values are not allowed"),
    ("- a\n- b\n", "PATH: a configuration must be a mapping of keys such as model, data and trainer."),
    ("\x00", "PATH: not valid YAML: "),
    ("model: {class_path: lit_modules.NGDiff, init_args: {modl: x}}", "NGDiff has no argument 'modl'; did you mean"),
    ("trainer: {callbacks: [{class_path: callbacks.AdaptivLR}]}", "There is no class 'callbacks.AdaptivLR' for"),
    ("trainer: {max_epochs: abc}", "trainer.max_epochs must be int or None, got 'abc'."),
]


@pytest.mark.parametrize(("content", "sentence"), FILES)
def test_mistake_in_a_file(content: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError) as raised:
        main([*NGDIFF.split(), "-c", str(path)])
    assert str(raised.value).startswith(sentence.replace("PATH", str(path)))


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        (f"{DIGITS} --model.attack.epss=1", "fit --model PGDTraining --model.attack.help LinfPGD"),
        ("validate --data=LUME --model=NGDiff", "validate --model.help NGDiff"),
    ],
)
def test_hint_works(line: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=f"\n`lit-modules {hint}` lists its arguments.$"):
        main(line.split())
    with pytest.raises(SystemExit, match="0"):
        main(hint.split())
    assert hint.split()[-1] in capsys.readouterr().out


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


def python(
    args: list[str], folder: Path, repository: Path, text: str | None = None
) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(repository)}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "input": text}
    return subprocess.run([sys.executable, *args], cwd=folder, env=environment, **streams, text=True, timeout=120)


def test_error_of_set_up_is_the_first_line(
    ngdiff: list[str], tiny_causal_lm: Path, tmp_path: Path, repository: Path
) -> None:
    wide = tmp_path / "wide"
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_lm)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(wide)
    runs = [["fit", *ngdiff, *(arg.format(wide=wide) for arg in args)] for args, _ in SETUP.values()]
    runs.append(["fit", *ngdiff, "--trainer.max_steps=1", "--trainer.logger=false"])
    done = python(["-u", "-c", SEVERAL], tmp_path, repository, json.dumps(runs))
    *failed, trained, rest = re.split(r"=== (?:0|1)\n", done.stdout)
    assert rest == ""
    for printed, (_, sentence) in zip(failed, SETUP.values(), strict=True):
        first, second = printed.splitlines()
        assert first.startswith(f"error: {sentence.format(wide=wide)}")
        assert second == "LIT_MODULES_TRACEBACK=1 shows where this was raised."
    assert trained.startswith("Seed set to 0\n")


TOLD = [
    ("raise ValueError('rate must be positive')", "lit_modules.callbacks.adaptive_lr"),
    ("try:\n    {}['a']\nexcept KeyError as error:\n    raise RuntimeError('no a') from error", "lit_modules.data"),
    ("from pathlib import Path\nPath('nowhere').read_text()", "lit_modules.datamodules.lume.lume"),
    (
        "from lightning.fabric.utilities import exceptions\nraise exceptions.MisconfigurationException('no loop')",
        "lightning.pytorch.trainer",
    ),
    ("def instantiate_classes():\n    raise ValueError('n must be positive')\ninstantiate_classes()", "other"),
]
TRACED = [
    ("raise ValueError('deep')", "torch.nn.functional"),
    ("raise ValueError('deep')", "callbacks_of_a_user"),
    ("int('a')", "lit_modules.callbacks.adaptive_lr"),
    ("assert 1 == 2, 'never'", "lit_modules.unlearning"),
    ("raise NotImplementedError", "lit_modules.unlearning"),
    ("import json\njson.loads('{')", "lit_modules.datamodules.lume.lume"),
]


@pytest.mark.parametrize(
    ("code", "module", "told"), [*((*case, True) for case in TOLD), *((*case, False) for case in TRACED)]
)
def test_only_sentences_for_the_user_are_told(code: str, module: str, told: bool, tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    path.write_text(code, encoding="utf-8")
    with pytest.raises(Exception) as raised:  # noqa: PT011
        exec(compile(code, str(path), "exec"), {"__name__": module})
    assert is_for_user(raised.value) is told


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
    done = python(["-m", "lit_modules", "fitt"], tmp_path, repository)
    assert done.returncode == 2
    assert done.stdout == "error: There is no command 'fitt'; did you mean 'fit'?\n"


def test_output_that_is_read_no_further_ends_the_command(tmp_path: Path, repository: Path) -> None:
    command = [sys.executable, "-m", "lit_modules", "recipes"]
    environment = {**os.environ, "PYTHONPATH": str(repository), "PYTHONUNBUFFERED": "1"}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **streams) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
