import json
from pathlib import Path

import pytest

from lit_modules.cli.pairs import main
from tests.scripted_server import ScriptedServer

KEY = "sk-secret-4711"
SMALL = ["--num-pairs=3", "--test-pairs=1", "--captions=2", "--keep=1", "--negatives=1", "--clip-model=none"]


@pytest.fixture
def mini(repository: Path) -> str:
    return str(repository / "tests" / "data" / "synthia" / "mini.yaml")


def test_pairs_from_endpoints(
    mini: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIT_MODULES_API_KEY", KEY)
    folder = tmp_path / "pairs"
    with ScriptedServer() as server:
        line = [mini, f"--folder={folder}", *SMALL, f"--caption-endpoint={server.url}", "--caption-model=writer"]
        line += [f"--image-endpoint={server.url}", "--image-model=painter", "--image-size=8"]
        assert main([*line, "--dry-run"]) == 0
        assert not folder.exists()
        assert server.requests == []
        said = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert "captions 7 0 7" in said
        assert "images 7 0 7" in said
        assert main(line) == 0
        assert "4 pairs are in" in capsys.readouterr().out
        count = len(server.requests)
        assert main(line) == 0
        assert len(server.requests) == count
        assert set(server.keys) == {f"Bearer {KEY}"}
    row = json.loads((folder / "stage0.jsonl").read_text().splitlines()[0])
    assert row["pos_paths"] == ["images/00000/00.png"]
    for path in folder.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


def test_problems_are_printed(mini: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedServer(lambda request, number: (200, {"choices": []})) as server:
        line = [mini, f"--folder={tmp_path}", *SMALL, "--steps", "curriculum", "captions", "--attempts=1"]
        assert main([*line, f"--caption-endpoint={server.url}", "--caption-model=writer"]) == 1
    said = capsys.readouterr().out
    assert "4 items could not be made; the same line tries again" in said
    assert "captions of pair 0 (" in said
    assert "the answer has no message" in said


def test_templates_and_a_changed_seed(mini: str, tmp_path: Path) -> None:
    line = [mini, f"--folder={tmp_path}", *SMALL, "--steps", "curriculum", "captions"]
    assert main(line) == 0
    with pytest.raises(
        ValueError, match=r"with seed=42, got seed=7\. Add `--steps curriculum captions images negatives filter --f"
    ):
        main([*line, "--seed=7"])
    assert main([*line, "--seed=7", "--fresh"]) == 0


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--caption-model=writer"], "--caption-endpoint and --caption-model must be given together"),
        (["--image-endpoint=http://127.0.0.1:9/v1"], "--image-endpoint needs --image-model"),
        (
            ["--image-endpoint=http://127.0.0.1:9/v1", "--image-model=m", "--image-steps=4"],
            "are for pipelines; an endpoint does not take them",
        ),
        (SMALL, "The step images needs what makes images: give --image-model"),
    ],
)
def test_options_that_do_not_go_together(more: list[str], sentence: str, mini: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        main([mini, f"--folder={tmp_path}", *more])
