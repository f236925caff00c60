"""What README and guide tell to type works: their Python runs, their commands, recipes and pages exist."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lit_modules.cli import STAGES
from lit_modules.cli.commands import COMMANDS
from lit_modules.cli.recipes import list_recipes

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
TYPED = PAGES["README.md"] + PAGES["docs/guide.md"]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TYPED, flags=re.DOTALL | re.MULTILINE)
PYTHON = [code for language, code in BLOCKS if language == "python"]
LINES = [line for language, code in BLOCKS if language == "bash" for line in code.splitlines()]
INLINE = re.findall(r"`(lit-modules [^`]*)`", TYPED + PAGES["docs/methods.md"])
COMMAND_LINES = sorted({line[line.index("lit-modules ") :] for line in [*LINES, *INLINE] if "lit-modules " in line})


def test_python_runs(tiny_causal_lm: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_causal_lm, tmp_path / "FOLDER")
    code = f"for code in {PYTHON!r}:\n    print(code, flush=True)\n    exec(code, {{'__name__': 'readme'}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_command_exists(line: str) -> None:
    words = shlex.split(line)
    assert words[1] in {*STAGES, *COMMANDS}
    recipes = [words[i + 1] for i, word in enumerate(words) if word == "-c"]
    assert all((ROOT / recipe).is_file() or recipe in list_recipes() for recipe in recipes)


@pytest.mark.parametrize("page", PAGES)
def test_linked_files_exist(page: str) -> None:
    targets = set(re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", PAGES[page]))
    assert not [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()]


@pytest.mark.parametrize(
    ("block", "line"), [("quick", "lit-modules demo ngdiff"), ("demos", ""), ("test", "pytest"), ("python", "")]
)
def test_block_is_marked_for_ci(block: str, line: str) -> None:
    assert len(re.findall(rf"^<!-- ci: {block} -->\n```(?:bash|python)\n", PAGES["README.md"], flags=re.MULTILINE)) == 1
    assert not line or f'pip install -e ".[dev]" && {line}' in LINES


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) < 120


def test_the_table_of_methods_is_complete() -> None:
    import lit_modules

    named = re.findall(r"^\| `(\w+)` \|", PAGES["docs/methods.md"], flags=re.MULTILINE)
    assert sorted(named) == sorted(lit_modules.__all__)
