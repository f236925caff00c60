"""The packages do not import each other, and starting imports no heavy library."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lit_modules
import lit_modules.unlearning

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("lit_modules", "datamodules", "callbacks")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_import_across_packages(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0]
    assert not set(imported(path)) & (set(PACKAGES) - {own})


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


def test_type_checkers_see_the_lazy_names() -> None:
    for module in (lit_modules, lit_modules.unlearning):
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        guarded = [node for node in tree.body if isinstance(node, ast.If)]
        seen = {alias.name for node in ast.walk(guarded[0]) if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert seen == set(module.__all__)
