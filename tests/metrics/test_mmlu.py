import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from lit_modules.metrics import LUMEScore, evaluate_mmlu, read_mmlu

SUBJECTS = [f"mmlu_subject_{number}" for number in range(57)]
CATEGORIES = ["mmlu_stem", "mmlu_humanities", "mmlu_social_sciences", "mmlu_other"]


def write(path: Path, accuracies: dict[str, float], **more: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    results = {name: {"acc,none": value, "alias": name} for name, value in accuracies.items()}
    path.write_text(json.dumps({"results": results, **more}), encoding="utf-8")
    return path


def test_the_group_is_read_first_and_the_newest_file_of_a_folder(tmp_path: Path) -> None:
    new = write(tmp_path / "model" / "results_2025-01-01T00-00-00.json", {"mmlu": 0.443, "mmlu_stem": 0.1})
    old = write(tmp_path / "model" / "results_2024-01-01T00-00-00.json", {"mmlu": 0.2})
    os.utime(old, (1, 1))
    os.utime(new, (2, 2))
    assert read_mmlu(str(tmp_path)) == read_mmlu(str(new)) == LUMEScore(mmlu=str(new)).mmlu == 0.443


def test_subjects_stand_in_for_the_group(tmp_path: Path) -> None:
    accuracies = {name: number / 57 for number, name in enumerate(SUBJECTS)} | dict.fromkeys(CATEGORIES, 0.0)
    assert read_mmlu(str(write(tmp_path / "a.json", accuracies))) == pytest.approx(28 / 57)
    counts = {
        name: {"original": 500, "effective": 300 if number == 56 else 100} for number, name in enumerate(SUBJECTS)
    }
    weighted = (sum(range(57)) + 2 * 56) / 57 / 59
    assert read_mmlu(str(write(tmp_path / "b.json", accuracies, **{"n-samples": counts}))) == pytest.approx(weighted)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"holds no results_\*\.json"),
        ("not json", "is not JSON"),
        ("[1]", "'results' is missing"),
        (
            '{"results": {"mmlu_anatomy": {"acc,none": 0.3}, "mmlu_stem": {"acc,none": 0.2}}}',
            "1 subjects are there, among the results of mmlu_anatomy, mmlu_stem",
        ),
    ],
)
def test_what_is_no_result_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "results_broken.json").write_text(text, encoding="utf-8")
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        read_mmlu(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        read_mmlu(str(tmp_path / "absent.json"))


def test_a_missing_harness_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r'pip install "lit-modules\[harness\]"'):
        evaluate_mmlu("folder")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_the_harness_scores_a_saved_model(
    tiny_causal_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the hub's questions cannot be had offline; a folder of their name, with the same columns, takes their place
    import datasets
    import lm_eval

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder, configs = tmp_path / "cais" / "mmlu", []
    folder.mkdir(parents=True)
    for task in sorted((Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default").glob("mmlu_*.yaml")):
        subject = task.stem.removeprefix("mmlu_")
        rows = [
            {"question": f"Is it {n}?", "choices": ["a", "b", "c", "d"], "answer": n, "subject": subject}
            for n in range(4)
        ]
        for split in ("test", "dev"):
            text = "\n".join(json.dumps(row) for row in rows)
            (folder / f"{subject}_{split}.jsonl").write_text(text, encoding="utf-8")
        files = [f"  - split: {split}\n    path: {subject}_{split}.jsonl" for split in ("test", "dev")]
        configs.append("\n".join([f"- config_name: {subject}", "  data_files:", *files]))
    assert len(configs) == 57
    (folder / "README.md").write_text("\n".join(["---", "configs:", *configs, "---", ""]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    accuracy = evaluate_mmlu(str(tiny_causal_lm), limit=4, batch_size=16, device="cpu")
    assert 0 <= accuracy <= 1
    assert accuracy * 57 * 4 == pytest.approx(round(accuracy * 57 * 4))
