"""Promises of the style that a parser can check: docstrings name their thing, and the index of papers is true."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(
    path for package in ("lit_modules", "datamodules", "callbacks") for path in (ROOT / package).rglob("*.py")
)
INDEX = re.findall(
    r"^\| ([^|]+) \| (\[[^|]+) \| (`[^|]+) \|$", (ROOT / "docs" / "methods.md").read_text("utf-8"), re.MULTILINE
)


def test_docstrings_begin_with_a_noun_or_an_imperative() -> None:
    riddles = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ) and re.match(r"\s*(What|Whether|How)\b", node.value.value):
                riddles.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.value.value[:60]}")
    assert not riddles


@pytest.mark.parametrize(("files", "names"), [row[1:] for row in INDEX], ids=[row[0] for row in INDEX])
def test_paper_index_names_what_is_run(files: str, names: str) -> None:
    texts = [(ROOT / "docs" / path).read_text(encoding="utf-8") for path in re.findall(r"\(([^)]+)\)", files)]
    everything = re.sub(r'""".*?"""', "", "\n".join(path.read_text("utf-8") for path in FILES), flags=re.DOTALL)
    for name in re.findall(r"`([^`]+)`", names):
        own = name.rpartition(".")[2]
        assert any(re.search(rf"^ *(?:def|class) {own}\b", text, re.MULTILINE) for text in texts), name
        if own.islower():  # a class may be named by configurations alone
            used = len(re.findall(rf"\b{own}\b(?=[(,:\]])", everything)) - len(
                re.findall(rf"(?:def|class) {own}\b", everything)
            )
            assert used > 0, f"nothing in the packages calls {name}"


def test_the_changelog_keeps_its_form() -> None:
    """Versions with a date below the unreleased one, and every entry under a kind of change."""
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    versions = [line for line in lines if line.startswith("## ")]
    assert versions[0] == "## [Unreleased]"
    assert all(re.fullmatch(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", line) for line in versions[1:])
    kind = None
    for line in lines:
        if line.startswith("#"):
            kind = line.removeprefix("### ") if line.startswith("### ") else None
            assert kind in (None, "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"), line
        elif line.startswith("- "):
            assert kind is not None, f"{line} stands under no kind of change"
