"""A family imports its own libraries alone; what is missing is named, with what to install; pages say it as it is."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
NAMED = r'pip install (?:-e )?\\?"(?:lit-modules|\.)\[(\w+)\]'
HIDE = """
import importlib, importlib.machinery, json, sys

hidden = set(json.loads(sys.argv[1]))

class Hiding(importlib.machinery.PathFinder):
    '''Finds neither the hidden libraries nor their metadata, as if they were not installed.'''

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *args, **more):
        name = getattr(args[0], "name", None) if args else None
        return iter(()) if str(name).lower().replace("-", "_") in hidden else super().find_distributions(*args, **more)

finder = importlib.machinery.PathFinder
sys.meta_path = [Hiding if each is finder else each for each in sys.meta_path]
"""
ALL = """
for package in json.loads(sys.argv[2]):
    module = importlib.import_module(package)
    for name in module.__all__:
        getattr(module, name)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules} & hidden)))
"""
ANYWHERE = {"wandb", "matplotlib", "rich", "torchvision", "sklearn", "faker", "jinja2", "timm", "ray", "torchao"}
ANYWHERE |= {"bitsandbytes", "lm_eval", "pyarrow"}
"""Libraries that no family imports before it needs them."""
LANGUAGE = {"transformers", "tokenizers", "huggingface_hub", "safetensors", "peft"}
OTHERS = {"diffusers", "networkx", "rouge_score", "httpx"}
HIDDEN = {
    "attacks": ANYWHERE | LANGUAGE | OTHERS | {"lightning", "torchmetrics", "PIL"},
    "defenses": ANYWHERE | LANGUAGE | OTHERS | {"lightning", "torchmetrics"},
    "adversarial": ANYWHERE | LANGUAGE | OTHERS,
    "unlearning": ANYWHERE | OTHERS | {"PIL"},
    "synthia": ANYWHERE | {"rouge_score", "diffusers"},
    "coda": ANYWHERE | {"diffusers", "networkx", "rouge_score"},
    "metrics": ANYWHERE | {"peft", "diffusers", "networkx", "httpx"},
    "callbacks": ANYWHERE | LANGUAGE | OTHERS,
}
"""Libraries that a family is imported without, all of its public names."""


def hide(libraries: set[str], code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that does not find some libraries."""
    command = [sys.executable, "-c", HIDE + code, json.dumps(sorted(libraries)), *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("family", HIDDEN)
def test_family_needs_no_library_of_another(family: str) -> None:
    done = hide(HIDDEN[family], ALL, json.dumps([f"lit_modules.{family}"]))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize(
    ("library", "used", "user"),
    [
        ("peft", "lit_modules.NGDiff", "lit_modules.unlearning.NGDiff"),
        ("PIL", "lit_modules.callbacks.RobustnessRecord", "lit_modules.callbacks.RobustnessRecord"),
        ("diffusers", "lit_modules.synthia.StableDiffusion('x')", "StableDiffusion"),
    ],
)
def test_missing_library_is_named(library: str, used: str, user: str) -> None:
    code = f"""
import lit_modules.callbacks, lit_modules.synthia
try:
    {used}
except ImportError as error:
    print(error)
"""
    done = hide({library}, code)
    installed = {"PIL": "pillow"}.get(library, library)
    sentence = f"{user} needs {library}, which is not installed: pip install {installed}."
    assert done.stdout.splitlines()[-1:] == [sentence], done.stderr


def listed(table: str) -> dict[str, list[str]]:
    """Return the second column of a table of the page by the names in the first."""
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (`[^|]+) \| ([^|]+) \|", page.partition(f"| {table} | ")[2].partition("\n\n")[0], re.MULTILINE
    )
    return {first.strip("`"): second.split(", ") for first, second in rows}


def test_the_page_lists_each_extra_with_its_packages() -> None:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {
        extra: sorted(re.split(r"[\[>=<]", requirement)[0] for requirement in requirements)
        for extra, requirements in project["optional-dependencies"].items()
    }
    assert {extra: sorted(packages) for extra, packages in listed("extra").items()} == names


def test_errors_name_extras_that_exist() -> None:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    files = [path for package in ("lit_modules", "datamodules", "callbacks") for path in (ROOT / package).rglob("*.py")]
    files += [*(ROOT / "docs").glob("*.md"), *(ROOT / "configs").rglob("*.md")]
    named = {
        extra
        for path in files
        for extra in re.findall(
            r'pip install (?:-e )?\\?"(?:lit-modules|\.)\[(\w+)\]', path.read_text(encoding="utf-8")
        )
    }
    assert named <= set(project["optional-dependencies"])
    assert {"timm", "ray", "parquet", "harness", "quantization"} <= named
