"""Who imports whom, and that starting imports no heavy library."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import lit_modules
import lit_modules.unlearning

ROOT = Path(__file__).resolve().parent.parent
SHORT = ("datamodules", "callbacks")
LONG = ("lit_modules.datamodules", "lit_modules.callbacks")
PACKAGES = ("lit_modules", *SHORT)
LAZY = sorted(path for path in (ROOT / "lit_modules").rglob("__init__.py") if "lazy_names" in path.read_text("utf-8"))
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_packages_meet_in_config_batch_and_hooks() -> None:
    crossing = []
    for path in FILES:
        own, *inner = path.relative_to(ROOT).with_suffix("").parts
        foreign: list[str] = []
        if own != "lit_modules":
            foreign = [name for name in imported(path) if is_within(name, *PACKAGES)]
            foreign = [name for name in foreign if not name.startswith("lit_modules.utils") and name != "lit_modules"]
        elif inner[0] in ("cli", "lightning_cli", "commands"):
            foreign = [name for name in imported(path) if is_within(name, *SHORT)]
        elif inner[0] not in SHORT:  # else it is the long name of one of the two
            foreign = [name for name in imported(path) if is_within(name, *SHORT, *LONG)]
        crossing += [f"{path.relative_to(ROOT)} imports {name}" for name in foreign]
    assert not crossing


def test_utils_import_nothing_of_ours() -> None:
    names = {name for path in FILES if path.parent.name == "utils" for name in imported(path)}
    assert not [name for name in names if is_within(name, *PACKAGES) and not is_within(name, "lit_modules.utils")]


@pytest.mark.parametrize(
    "code",
    [
        "import lit_modules",
        "import lit_modules.unlearning",
        "import datamodules",
        "from lit_modules.cli import main; main(['--help'])",
        "from lit_modules.cli import main; main(['--version'])",
        "from lit_modules.cli import main; main(['recipes'])",
    ],
)
def test_start_is_light(code: str) -> None:
    code += (
        "; import sys; print('loaded', sorted({'transformers', 'diffusers', 'torch', 'lightning'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "loaded []"


@pytest.mark.parametrize("module", [lit_modules, lit_modules.unlearning], ids=lambda module: module.__name__)
def test_public_names(module: object) -> None:
    names = module.__all__  # type: ignore[attr-defined]
    assert names == sorted(names)
    assert set(names) <= set(dir(module))
    for name in names:
        assert getattr(module, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'NGDif'"):
        module.NGDif  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("path", LAZY, ids=lambda path: path.parent.name)
def test_lazy_names_are_the_public_ones(path: Path) -> None:
    module = import_module(".".join(path.parent.relative_to(ROOT).parts))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in ast.walk(guarded) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(module.__all__)
    assert set(module.__all__) <= set(dir(module))
    assert all(getattr(module, name) is not None for name in module.__all__)


def test_type_checker_refuses_misspelt_names(tmp_path: Path) -> None:
    long = [ROOT / f"{name.replace('.', '/')}.py" for name in LONG]
    packages = [*LAZY, *long, *(ROOT / name / "__init__.py" for name in SHORT)]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in packages]
    public = {name: import_module(name).__all__[0] for name in names}
    lines = [f"from {name} import {right} as a{i}" for i, (name, right) in enumerate(public.items())]
    lines += [f"from {name} import {right}x as b{i}" for i, (name, right) in enumerate(public.items())]
    (tmp_path / "user.py").write_text("\n".join(lines), encoding="utf-8")
    options = ["--strict", "--follow-imports=skip", "--ignore-missing-imports", f"--cache-dir={tmp_path}"]
    options += ["--explicit-package-bases", "--no-pretty"]
    command = [sys.executable, "-m", "mypy", *options, str(tmp_path / "user.py"), *map(str, packages)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    refused = [line for line in done.stdout.splitlines() if "user.py" in line and "error" in line]
    assert len(refused) == len(names), done.stdout + done.stderr
    for line, (name, right) in zip(refused, public.items(), strict=True):
        assert f'Module "{name}" has no attribute "{right}x"' in line
