"""Options of the commands that the pages show exist and take the values shown."""

import re
import shlex
from pathlib import Path

import pytest

from lit_modules.cli import STAGES, main

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*/*.py")]
PAGES += (ROOT / "configs").glob("*/README.md")
TEXT = "\n".join(path.read_text(encoding="utf-8").replace("\\\n", "") for path in sorted(PAGES))
LINES = sorted(set(re.findall(rf"lit[-_]modules ((?:{'|'.join(STAGES)}) -[^`\n]*)", TEXT)))


@pytest.mark.parametrize("line", [line for line in LINES if ".help" not in line and len(line.split()) > 3])
def test_options_exist(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([*shlex.split(line), "--print_config"])
    assert "class_path" in capsys.readouterr().out
