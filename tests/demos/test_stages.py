"""Stages of the demonstrations."""

import shlex
from pathlib import Path

import pytest

from lit_modules.demos.stages import Demo
from lit_modules.utils.errors import UsageError


def test_a_command_is_shown_in_a_line_and_kept_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    demo = Demo(tmp_path / "run")
    demo.run("recipes")
    long = ["ontology", "stats", "household", f"--output={tmp_path / ('a file ' * 20)}"]
    with pytest.raises(UsageError, match="There is no option"):
        demo.run(*long)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "lit-modules recipes"
    assert "lit-modules ontology stats household ... (whole in commands.sh)" in lines
    whole = (tmp_path / "run" / "commands.sh").read_text(encoding="utf-8").splitlines()
    assert [shlex.split(line) for line in whole] == [["lit-modules", "recipes"], ["lit-modules", *long]]
