"""What is installed: the three packages and nothing else, with types and recipes, as a wheel and editable."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import lit_modules
from lit_modules.cli.recipes import list_recipes, recipes_folder

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("lit_modules", "datamodules", "callbacks")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md")
FILES += (".gitignore", ".pre-commit-config.yaml")
EXAMPLE = """
import importlib.util, pathlib, sys
from lit_modules.cli.recipes import find_recipe, list_recipes, recipes_folder
print(recipes_folder())
print(find_recipe("ngdiff/lume.yaml"))
print(len(list_recipes()))
print([name for name in ("configs", "tests", "benchmarks") if importlib.util.find_spec(name)])
"""
AMONG_OWN = """
import os, sys
sys.path.insert(0, os.getcwd())
import callbacks.mine, datamodules
import lit_modules.callbacks, lit_modules.datamodules.common.checks as ours
print(callbacks.mine.NAME, datamodules.NAME, "EMA" in dir(lit_modules.callbacks), ours.is_text.__module__)
sys.path.remove(os.getcwd())
del sys.modules["datamodules"]
import datamodules.common.checks
print(datamodules.common.checks is ours)
"""


def setuptools(hook: str, source: Path, target: Path) -> Path:
    """Call a hook of the build backend without network; return the file that it writes."""
    target.mkdir()
    code = f"import sys; from setuptools import build_meta; build_meta.{hook}(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(target)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(target.iterdir())


def bare_python(code: str, site: Path, folder: Path) -> list[str]:
    """Run code where only what lies in ``site`` is installed."""
    code = f"import site; site.addsitedir({str(site)!r})\n{code}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of what a build reads, so that it leaves nothing in the repository."""
    folder = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "configs", "tests", "benchmarks", ".ci"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return setuptools("build_wheel", source, tmp_path_factory.mktemp("wheel") / "out")


def test_wheel_holds_three_packages_recipes_and_the_console_script(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    info = f"lit_modules-{lit_modules.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {*PACKAGES, info}
    modules = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert {*(f"{package}/py.typed" for package in PACKAGES), f"{info}/licenses/LICENSE"} <= set(names)
    recipes = {f"lit_modules/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert {name for name in names if name.startswith("lit_modules/configs/")} == recipes != set()
    script = archive.read(f"{info}/entry_points.txt").decode().split()
    assert script == ["[console_scripts]", "lit-modules", "=", "lit_modules.cli:run"]


@pytest.mark.parametrize("installed", ["wheel", "editable"])
def test_recipes_are_found_from_any_folder(installed: str, wheel: Path, source: Path, tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "work"
    folder.mkdir()
    archive = wheel if installed == "wheel" else setuptools("build_editable", source, tmp_path / "out")
    zipfile.ZipFile(archive).extractall(site)
    configs = (site / "lit_modules" if installed == "wheel" else source) / "configs"
    expected = [str(configs), str(configs / "ngdiff" / "lume.yaml"), str(len(list_recipes())), "[]"]
    assert bare_python(EXAMPLE, site, folder) == expected
    assert recipes_folder() == ROOT / "configs"


@pytest.mark.parametrize("installed", ["wheel", "editable"])
def test_both_names_among_own_files(installed: str, wheel: Path, source: Path, tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "work"
    (folder / "callbacks").mkdir(parents=True)
    (folder / "callbacks" / "mine.py").write_text("NAME = 'my callback'\n", encoding="utf-8")
    (folder / "datamodules.py").write_text("NAME = 'my data'\n", encoding="utf-8")
    archive = wheel if installed == "wheel" else setuptools("build_editable", source, tmp_path / "out")
    zipfile.ZipFile(archive).extractall(site)
    printed = bare_python(AMONG_OWN, site, folder)
    assert printed == ["my callback my data True lit_modules.datamodules.common.checks", "True"]


def test_source_distribution_holds_all_that_the_repository_holds(source: Path, tmp_path: Path) -> None:
    archive = setuptools("build_sdist", source, tmp_path / "out")
    with tarfile.open(archive) as files:
        names = {member.name.partition("/")[2] for member in files.getmembers() if member.isfile()}
    folders = (*PACKAGES, "configs", "tests", "benchmarks", ".ci")
    paths = [path for folder in folders for path in (source / folder).rglob("*") if path.is_file()]
    kept = {path.relative_to(source).as_posix() for path in paths if path.parent.name != "__pycache__"}
    assert {"tests/data/lume/forget.jsonl", "configs/ngdiff/README.md", "configs/ngdiff/study.png", ".ci/run"} <= kept
    assert kept | set(FILES) <= names
    assert not [name for name in names if "__pycache__" in name]


def test_each_bound_has_a_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    for dependency in project["dependencies"]:
        line = next(line for line in text.splitlines() if f'"{dependency}"' in line)
        assert " # " in line
