"""The packages ``datamodules`` and ``callbacks`` under two names, also among a user's own files of these names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OWN = "from lightning.pytorch import Callback\nclass MyCallback(Callback): pass\n"
CONSOLE_SCRIPT = "import sys\nfrom lit_modules.cli import run\nif __name__ == '__main__':\n    sys.exit(run())\n"
SHORT = "import datamodules.few_shot.pairs as short\n"
FULL = "import lit_modules.datamodules.few_shot.pairs as full\n"
IMPORTS = [
    "import datamodules\nfrom lit_modules.datamodules.few_shot import pairs as full\n" + SHORT,
    pytest.param(SHORT + FULL, marks=pytest.mark.slow),
    pytest.param("from datamodules.few_shot import pairs as short\n" + FULL, marks=pytest.mark.slow),
]
SAME = """
import pickle, sys
import datamodules, lit_modules.datamodules
assert datamodules is lit_modules.datamodules
import datamodules.few_shot.pairs
assert short is full is datamodules.few_shot.pairs
assert full.__name__ == full.__spec__.name == "lit_modules.datamodules.few_shot.pairs"
pair = pickle.loads(pickle.dumps(short.ConfusablePair("a", "b")))
assert isinstance(pair, full.ConfusablePair) and type(pair).__module__ == full.__name__
import callbacks, lit_modules.callbacks
assert callbacks is lit_modules.callbacks and "AdaptiveLR" in dir(callbacks)
try:
    import datamodules.nosuch
except ModuleNotFoundError as error:
    print(error)
"""


def python(*args: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *args], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def write_own(folder: Path, kind: str, content: str = OWN) -> str:
    """Write a package or a folder called ``callbacks``; return the import path of its class."""
    (folder / "callbacks").mkdir()
    name = "__init__" if kind == "package" else "mine"
    (folder / "callbacks" / f"{name}.py").write_text(content, encoding="utf-8")
    return "callbacks.MyCallback" if kind == "package" else "callbacks.mine.MyCallback"


@pytest.mark.parametrize("imports", IMPORTS)
def test_both_names_lead_to_the_same_modules(imports: str, tmp_path: Path) -> None:
    done = python("-c", imports + SAME, folder=tmp_path)
    assert done.stdout == "No module named 'datamodules.nosuch'\n", done.stderr


@pytest.mark.parametrize(
    ("how", "kind"), [("console script", "package"), pytest.param("python -m", "folder", marks=pytest.mark.slow)]
)
def test_command_line_takes_own_classes_and_ours(how: str, kind: str, tmp_path: Path) -> None:
    own = write_own(tmp_path, kind)
    (tmp_path / "datamodules.py").write_text(
        "from lightning.pytorch import LightningDataModule\nclass Mine(LightningDataModule):\n"
        "    def __init__(self, size: int = 3): super().__init__()\n",
        encoding="utf-8",
    )
    script = tmp_path / "bin" / "lit-modules"
    script.parent.mkdir()
    script.write_text(CONSOLE_SCRIPT, encoding="utf-8")
    start = [str(script)] if how == "console script" else ["-m", "lit_modules"]
    args = ["fit", "--model", "NGDiff", "--model.model", "x", "--data", "datamodules.Mine", "--print_config"]
    args += [f"--trainer.callbacks+={name}" for name in (own, "AdaptiveLR", "lit_modules.callbacks.EMA")]
    done = python(*start, *args, folder=tmp_path)
    printed = [line.split()[-1] for line in done.stdout.splitlines() if "class_path:" in line]
    for name in (own, "lit_modules.callbacks.AdaptiveLR", "lit_modules.callbacks.EMA", "datamodules.Mine"):
        assert name in printed, done.stderr


@pytest.mark.slow
def test_console_script_leaves_the_folder_out_if_told(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise SystemExit('imported')\n", encoding="utf-8")
    script = tmp_path / "bin" / "lit-modules"
    script.parent.mkdir()
    script.write_text(CONSOLE_SCRIPT, encoding="utf-8")
    done = python("-P", str(script), "fit", "--model", "mine.Method", folder=tmp_path)
    assert done.stderr == "error: There is no class 'mine.Method' for model.\n"
