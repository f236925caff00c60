"""Who imports whom, and that starting imports no heavy library."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHORT = ("datamodules", "callbacks")
LONG = ("lit_modules.datamodules", "lit_modules.callbacks")
PACKAGES = ("lit_modules", *SHORT)
LAZY = sorted(path for path in (ROOT / "lit_modules").rglob("__init__.py") if "lazy_names" in path.read_text("utf-8"))
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def is_within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def package_of(module: str) -> str:
    """Return the part of the project that the rule speaks of, such as ``attacks`` or ``datamodules``."""
    parts = module.removeprefix("lit_modules.").split(".")
    return parts[0] if module != "lit_modules" else ""


def own_imports(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the modules of ours that a file imports, relative ones resolved, each with the name that it takes."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    package = parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if is_within(alias.name, *PACKAGES))
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            if is_within(module, *PACKAGES):
                yield from ((module, alias.name) for alias in node.names)


TOP = {"studies", "demos", "cli"}
MAY_IMPORT = {
    "utils": set(),
    "networks": {"utils"},
    "attacks": {"utils"},
    "defenses": {"utils", "attacks"},
    "metrics": {"utils", "networks"},
    **{key: {"utils", "networks", "metrics", "attacks"} for key in ("unlearning", "adversarial", "synthia", "coda")},
    **{key: {"utils"} for key in SHORT},
}
"""Packages of ours that each package may import beside itself; those of ``TOP`` may import all."""


def test_who_imports_whom() -> None:
    wrong = []
    for path in FILES:
        own = package_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for module, name in own_imports(path):
            other = package_of(module if module != "lit_modules" else f"lit_modules.{name}")
            through = is_within(module, *SHORT) and path.parts[len(ROOT.parts)] == "lit_modules"
            alias = own in SHORT and path.parent.name == "lit_modules"
            if own in MAY_IMPORT and other not in {own, *MAY_IMPORT[own]} and not alias:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
            elif through and not alias:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}, not lit_modules.{module}")
    assert not wrong


def test_no_circle() -> None:
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    graph = {
        module: {f"{m}.{name}" if f"{m}.{name}" in modules else m for m, name in own_imports(path)} & set(modules)
        for module, path in modules.items()
        if path.name != "__init__.py"
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_import_of_ours_by_its_text() -> None:
    """A name of ours in ``import_module`` would go round the rule; only the aliases and lazy names have some."""
    found = []
    for path in FILES:
        if path.name in ("lazy.py", "aliases.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and "import" in ast.unparse(node.func) and node.args:
                text = ast.unparse(node.args[0]).lstrip("f'\"")
                found += [f"{path.relative_to(ROOT)}: {text}"] if is_within(text.rstrip("'\""), *PACKAGES) else []
    assert not found


LIGHT = ["import lit_modules", "import lit_modules.unlearning", "import datamodules"]
LIGHT += [f"from lit_modules.cli import main; main(['{word}'])" for word in ("--help", "--version", "recipes")]


@pytest.mark.parametrize("code", LIGHT)
def test_start_is_light(code: str) -> None:
    code += "; import sys; print({'transformers', 'diffusers', 'torch', 'lightning'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("path", LAZY, ids=lambda path: path.parent.name)
def test_lazy_names_are_the_public_ones(path: Path) -> None:
    module = import_module(".".join(path.parent.relative_to(ROOT).parts))
    guarded = next(node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.If))
    seen = {alias.name for node in ast.walk(guarded) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(module.__all__)
    if path.parent.name in ("lit_modules", "unlearning"):  # the others group their names by subject
        assert module.__all__ == sorted(module.__all__)
    assert seen <= set(dir(module))
    assert all(getattr(module, name) is not None for name in seen)
    with pytest.raises(AttributeError, match="no attribute 'Nosuch'"):
        module.Nosuch  # noqa: B018


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
