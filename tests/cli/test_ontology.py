import csv
from pathlib import Path

import pytest

from lit_modules.cli import main
from lit_modules.utils.errors import UsageError


@pytest.fixture
def mini(repository: Path) -> str:
    return str(repository / "tests" / "data" / "synthia" / "mini.yaml")


def test_stats(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ontology", "stats", "household"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "concepts 36" in said
    assert "part names 56" in said
    assert "wearable 6 16 17" in said


def test_validate(mini: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ontology", "validate", mini]) == 0
    assert capsys.readouterr().out.endswith("mini.yaml is an ontology of 6 concepts.\n")
    broken = tmp_path / "broken.yaml"
    broken.write_text("schema_version: 1\nname: b\nsuperordinates: {tool: {saw: {}, axe: {part: {}}}}\n")
    assert main(["ontology", "validate", str(broken)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{broken}: tool/saw: has no affordance; a concept needs at least one.",
        f"{broken}: tool/axe: unknown key 'part'; did you mean 'parts'?",
        "2 problems.",
    ]


def test_distances(mini: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "new" / "distances.csv"
    assert main(["ontology", "distances", mini, "--top", "2", "--csv", str(table)]) == 0
    said = capsys.readouterr().out
    assert "28 pairs can be measured, 20 of them at a distance other than 0 and 1." in said
    assert "(0.9, 1]" in said
    assert "0.6000" in said
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 29
    assert rows[0] == ["first", "second", "distance"]


def test_plot(mini: str, tmp_path: Path) -> None:
    assert main(["ontology", "plot", mini, "--folder", str(tmp_path / "pictures")]) == 0
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == [f"{name}.{kind}" for name in ("distances", "graph") for kind in ("pdf", "png", "svg")]
    files = sorted((tmp_path / "pictures").glob("*.png"))
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000 for path in files)


def test_names_are_not_read_as_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.yaml"
    tools = "{'$[b]$': {'$x^$': {affordances: {main: [cut, '[red]']}}, axe: {affordances: {main: [cut, hit]}}}}"
    path.write_text(f"schema_version: 1\nname: '$[/b]^'\nsuperordinates: {tools}\n")
    assert main(["ontology", "stats", str(path)]) == 0
    assert main(["ontology", "distances", str(path)]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("$[/b]^", "$[b]$", "[red]"))
    assert main(["ontology", "plot", str(path), "--folder", str(tmp_path)]) == 0


def test_bad_input_is_refused(mini: str, tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("schema_version: 1\nname: one\nsuperordinates: {tool: {saw: {affordances: {main: [cut]}}}}\n")
    with pytest.raises(ValueError, match="one has no pair of affordances with a distance other than 0 and 1 to draw"):
        main(["ontology", "plot", str(path), "--folder", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match=r"'objects\.yaml' does not exist"):
        main(["ontology", "stats", "objects.yaml"])
    with pytest.raises(ValueError, match="--top must not be negative, got -1"):
        main(["ontology", "distances", mini, "--top=-1"])
    with pytest.raises(ValueError, match=r"weight must lie in \[0, 1\], got 2"):
        main(["ontology", "distances", mini, "--weight", "2"])
    with pytest.raises(UsageError, match="action must be 'stats' or 'validate' or 'distances' or 'plot', got 'show'"):
        main(["ontology", "show", mini])
