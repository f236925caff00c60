import csv
import math
from pathlib import Path
from typing import Any

import pytest

from lit_modules.coda.augmentation.annotation import export_annotation, fleiss_kappa, score_annotation
from lit_modules.coda.core.store import Store
from tests.coda.fakes import FakeChat, discs, run_pipeline

KIND = "visual_contrastive"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("annotation")
    task = discs(folder)
    chat = FakeChat(script=['["red body", "=red <b>"]', '["blue body"]'])
    plain: dict[str, Any] = {"kinds": (KIND,), "verification": "none", "guards": False}
    assert not run_pipeline(folder / "store", [task], chat=chat, **plain).failures
    with Store(folder / "store") as store:
        assert export_annotation(store, folder / "a", [task], KIND, num_items=3, annotators=2) == 9
        export_annotation(store, folder / "b", [task], KIND, num_items=3, annotators=2)
        for name, kind, more, message in (
            ("a", KIND, {}, "holds something already"),
            ("c", "textual_contrastive", {}, "no accepted images of textual_contrastive"),
            ("c", KIND, {"num_items": 0}, "must be at least 1, got 0 and 3"),
        ):
            with pytest.raises(ValueError, match=message):
                export_annotation(store, folder / name, [task], kind, **more)  # type: ignore[arg-type]
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_sample_is_blind_seeded_and_safe(sample: Path) -> None:
    files = {path.relative_to(sample / "a"): path.read_bytes() for path in sorted((sample / "a").rglob("*.*"))}
    again = {path.relative_to(sample / "b"): path.read_bytes() for path in sorted((sample / "b").rglob("*.*"))}
    assert files == again
    blank = rows(sample / "a" / "annotator-1.csv")
    assert set(blank[0]) == {"item", "image", "feature", "answer"}
    assert {row["answer"] for row in blank} == {""}
    assert all((sample / "a" / row["image"]).is_file() for row in blank)
    groups = [row["group"] for row in rows(sample / "a" / "key.csv")]
    assert sorted(groups) == ["real misidentified"] * 3 + ["real target"] * 3 + ["synthetic"] * 3
    assert groups != sorted(groups)
    assert not any(row["feature"].startswith("=") for row in blank)
    assert "<b>" not in (sample / "a" / "sheet.html").read_text()


def answered(folder: Path, answers: list[str]) -> list[Path]:
    """Write a key of two groups with two items each, and a file for each annotator's answers."""
    key = ["item,group", "1,real target", "2,real target", "3,synthetic", "4,synthetic"]
    (folder / "key.csv").write_text("\n".join(key) + "\n")
    files = []
    for number, letters in enumerate(answers):
        files.append(folder / f"annotator-{number}.csv")
        files[-1].write_text("item,answer\n" + "".join(f"{n},{a}\n" for n, a in enumerate(letters.split("/"), 1)))
    return files


def test_scores_by_hand(tmp_path: Path) -> None:
    files = answered(tmp_path, ["yes/no/Yes/1", "yes/no/y/YES", "yes/yes/yes/yes"])
    scores = score_annotation(files, tmp_path / "key.csv")
    real = scores["real target"]
    # agreement (1 + 1/3) / 2 = 2/3; shares 4/6 and 2/6, so chance 5/9; (2/3 - 5/9) / (4/9) = 1/4
    assert (real.items, real.percent, real.kappa) == (2, pytest.approx(100 * 4 / 6), pytest.approx(0.25))
    assert scores["synthetic"].percent == 100
    assert math.isnan(scores["synthetic"].kappa)  # a single category
    assert "real misidentified" not in scores
    assert math.isnan(score_annotation(files[:1], tmp_path / "key.csv")["real target"].kappa)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item,answer\n1,yes\n2,\n3,yes\n4,no\n", r"annotator-0.csv: item 2 has no answer"),
        ("item,answer\n1,yes\n2,maybe\n3,yes\n4,no\n", "item 2 must be yes or no, got 'maybe'"),
        ("item,answer\n1,yes\n2,no\n3,yes\n", "is not of this sample: item 4 is missing"),
        ("item,answer\n1,yes\n1,no\n", "item 1 comes twice"),
        ("item;answer\n1;yes\n", "with the columns item and answer"),
    ],
)
def test_wrong_files_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    files = answered(tmp_path, ["yes"])
    files[0].write_text(text)
    with pytest.raises(ValueError, match=message):
        score_annotation(files, tmp_path / "key.csv")


def test_kappa() -> None:
    table = "00004+0 02642 00356 03920 22811 77000 32630 25322 65210 02237"
    counts = [[int(letter) for letter in row.removesuffix("+0")] for row in table.split()]
    counts[0][-1] = 14
    assert fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)  # a well-known worked example
    assert math.isnan(fleiss_kappa([[3, 0], [3, 0]]))
    with pytest.raises(ValueError, match="item 1 has 3"):
        fleiss_kappa([[2, 0], [2, 1]])
