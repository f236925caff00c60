"""Stress tests of an unlearned model, from the command line."""

import json
from pathlib import Path

import pytest
import torch

from lit_modules.cli import main
from lit_modules.studies.stress import command as stress
from lit_modules.unlearning.core.pretrained import load_causal_lm
from lit_modules.utils.errors import UsageError


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in load_causal_lm(str(folder)).parameters()])


def test_attacks_are_tested_once_each(
    ngdiff: list[str], tiny_causal_lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--folder=after", "--relearning_steps", "1", "3", "--relearning_rate=0.01", "--bits", "4", *ngdiff]
    line += ["--model.metric=LUMEScore", "--trainer.logger=false", "--trainer.limit_test_batches=2"]
    with pytest.raises(ValueError, match="There is no model folder"):  # a mistake does not bind the folder
        main(["stress", *line, "--model.model=/nowhere/at/all"])
    assert main(["stress", *line]) == 0
    records = json.loads((tmp_path / "after" / "results.json").read_text(encoding="utf-8"))
    assert list(records) == ["unlearned", "4 bits", "relearned 1 step", "relearned 3 steps"]
    assert len({tuple(sorted(record)) for record in records.values()}) == 1
    assert "relearned 3" in capsys.readouterr().out
    made = [tmp_path / "after" / name / "model" for name in ("4_bits", "relearned_1_step", "relearned_3_steps")]
    start, rounded, once, thrice = map(weights, (tiny_causal_lm, *made))
    assert len({value.item() for value in (rounded - start).abs()}) > 1
    assert 0 < (once - start).abs().max() <= 0.01 + 1e-6  # a step of Adam
    assert (once - start).norm() < (thrice - start).norm()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "after").rglob("*/results.json")}
    assert stress.main(line) == 0  # what is finished is not run again
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path.parent.name != "after")
    with pytest.raises(ValueError, match=r"after holds a stress test with arguments=.*; take another folder"):
        stress.main([*line, "--model.max_new_tokens=3"])


def test_accuracies_of_lm_eval_join_the_record(ngdiff: list[str], tmp_path: Path, harness: Path) -> None:
    line = ["--folder=after", "--relearning_steps", "1", "--bits", "8", *ngdiff, "--model.metric=LUMEScore"]
    line += ["--trainer.logger=false", "--trainer.limit_test_batches=1"]
    for tasks in (["wmdp_bio"], ["wmdp_bio"], ["wmdp_bio", "mmlu"]):
        assert stress.main([*line, "--tasks", *tasks]) == 0
    record = json.loads((tmp_path / "after" / "results.json").read_text(encoding="utf-8"))["unlearned"]
    assert (record["harness/wmdp_bio"], record["harness/mmlu"]) == (0.08, 0.04)
    assert len(list((tmp_path / "after" / "harness").rglob("results_*.json"))) == 2  # what is there is not asked again


def test_what_is_missing_is_told(ngdiff: list[str]) -> None:
    with pytest.raises(UsageError, match="need the arguments of test"):
        stress.main(["--folder", "after"])
    for option, sentence in (
        ("--relearning_steps=0", r"--relearning_steps must be at least 1, got \[0\]"),
        ("--relearning_rate=-1", r"--relearning_rate must be positive and finite, got -1"),
        ("--bits=3", r"bits must be 4 or 8, got '3'"),
    ):
        with pytest.raises(UsageError, match=sentence):
            stress.main(["--folder", "after", option, *ngdiff])
