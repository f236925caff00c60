"""Score of WMDP, and accuracies from result files of lm-eval."""

import json
import math
from pathlib import Path

import pytest
import torch

from lit_modules.metrics.harness import read_accuracies, read_results
from lit_modules.metrics.wmdp import WMDPScore


def write_results(path: Path, **accuracies: float) -> Path:
    content = {"results": {task: {"acc,none": value, "alias": task} for task, value in accuracies.items()}}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_rows_count_once_and_accuracies_are_read(tmp_path: Path) -> None:
    write_results(tmp_path / "results_1.json", wmdp_bio=0.3, mmlu=0.5)
    score = WMDPScore(str(tmp_path))
    rows = {"split": ["forget", "forget", "retain"], "row": torch.tensor([0, 1, 0])}
    score.update(rows, nll=torch.tensor([2.0, 4.0, 1.0]))
    score.update({"split": ["forget"], "row": torch.tensor([1])}, nll=torch.tensor([4.0]))
    assert score.record() == {
        "forget/nll": 3.0,
        "retain/nll": 1.0,
        "wmdp_bio": 0.3,
        "wmdp_cyber": None,
        "mmlu": 0.5,
    }
    assert math.isnan(WMDPScore().compute()["mmlu"])


def test_bad_rows_and_files_are_named(tmp_path: Path) -> None:
    score = WMDPScore()
    with pytest.raises(ValueError, match="The split of row '0' must be one of forget, retain, got 'other'"):
        score.update({"split": ["other"], "row": torch.tensor([0])}, nll=torch.tensor([1.0]))
    with pytest.raises(ValueError, match="The nll of these rows is not finite, so they have no score: a"):
        score.update({"split": ["forget"], "row": torch.tensor([0]), "id": ["a"]}, nll=torch.tensor([math.nan]))
    with pytest.raises(ValueError, match="takes the NLL of rows"):
        score.update({"split": ["forget"], "row": torch.tensor([0])})
    path = write_results(tmp_path / "results_1.json", hellaswag=0.3)
    with pytest.raises(ValueError, match="must hold 'acc,none' of one of wmdp_bio, wmdp_cyber, mmlu, and has none"):
        WMDPScore(str(path))
    assert read_accuracies(path, ["hellaswag"]) == {"hellaswag": 0.3}
    with pytest.raises(ValueError, match="must hold 'acc,none' of mmlu, and has the results of hellaswag"):
        read_accuracies(path, ["hellaswag", "mmlu"])
    with pytest.raises(FileNotFoundError, match=r"There is no file or folder .*nowhere"):
        read_results(tmp_path / "nowhere")
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="These are no results of lm-eval: the mapping 'results' is missing"):
        read_results(path)
