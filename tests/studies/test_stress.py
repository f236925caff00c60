"""Stress tests of an unlearned model, from the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from datamodules.common.text import Encoded
from lit_modules.cli import main
from lit_modules.studies.stress import command as stress
from lit_modules.studies.stress.callback import StressTest
from lit_modules.studies.stress.prompts import few_shot_tokens
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


@pytest.fixture
def tofu(
    tiny_causal_lm: Path, lume_folder: Path, quiet: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Arguments of a tiny model and the tests' rows of TOFU, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    line = ["--model=NGDiff", f"--model.model={tiny_causal_lm}", "--model.max_new_tokens=2", "--data=TOFU", *quiet]
    return [*line, f"--data.root={lume_folder.parent / 'tofu'}", "--model.metric=TOFUScore", "--trainer.logger=false"]


def test_full_tests_of_tofu_take_all_that_the_data_have(tofu: list[str], tiny_causal_lm: Path, tmp_path: Path) -> None:
    line = ["--folder=after", "--full", "--relearning_steps", "2", "--relearning_rate=0.01", "--bits", "8", *tofu]
    assert stress.main(line) == 0
    records = json.loads((tmp_path / "after" / "results.json").read_text(encoding="utf-8"))
    names = ["unlearned", "paraphrased questions", "2-shot prompts", "prefilled prompts", "8 bits", "pruned by 0.2"]
    names += ["pruned by 0.4", *(f"relearned 2 steps{rows}" for rows in ("", " on retain", " on paraphrased"))]
    assert list(records) == names
    probability = {name: record["forget/probability"] for name, record in records.items()}
    assert probability["2-shot prompts"] == probability["prefilled prompts"] == probability["unlearned"]
    relearned = [probability[name] for name in names[-3:]]
    assert len({*relearned, probability["unlearned"], probability["8 bits"]}) == 5  # each attack is one of its own
    assert relearned[0] > probability["unlearned"]
    start, pruned = (
        dict(load_causal_lm(str(folder)).named_parameters())
        for folder in (tiny_causal_lm, tmp_path / "after" / "pruned_by_0.4" / "model")
    )
    for name, parameter in pruned.items():
        share = (parameter == 0).float().mean().item()
        assert share == pytest.approx(0.4 if "proj" in name else 0.0, abs=0.01), name
        assert torch.equal(parameter[parameter != 0], start[name][parameter != 0])
    assert "| forget/probability |" in (tmp_path / "after" / "table.md").read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="holds prefilled prompts with other tokens; take another folder"):
        stress.main([*line, "--prefill=Well:"])


def test_a_run_ends_with_stress_tests(tofu: list[str], tmp_path: Path) -> None:
    line = ["fit", *tofu, f"--trainer.default_root_dir={tmp_path}", "--trainer.max_steps=2"]
    line += ["--trainer.callbacks=lit_modules.studies.stress.callback.StressTest", "--trainer.callbacks.bits=[4]"]
    line += ["--trainer.callbacks.pruning=[0.5]", "--trainer.callbacks.relearning_rate=0.1"]
    cli: Any = main(line)
    trained = torch.cat([parameter.detach().flatten() for parameter in cli.model.model.parameters()])
    cli.model.save_pretrained("saved")
    assert torch.equal(trained, weights(tmp_path / "saved"))
    (path,) = tmp_path.rglob("stress.json")
    records = json.loads(path.read_text(encoding="utf-8"))
    assert list(records) == ["unlearned", "4 bits", "pruned by 0.5", "relearned 5 steps"]
    probability = [record["forget/probability"] for record in records.values()]
    assert len(set(probability)) == 4
    assert probability[-1] > probability[0]
    with pytest.raises(ValueError, match="StressTest needs the module's metric"):
        main([word for word in line if "metric" not in word])
    for arguments, message in (
        ({"relearning_steps": -1}, "relearning_steps must be 0 or more, got -1"),
        ({"relearning_rate": 0.0}, "relearning_rate must be positive, got 0.0"),
        ({"bits": (3,)}, r"bits must be of 4 and 8, got \(3,\)"),
        ({"pruning": (1.0,)}, r"pruning must be shares between 0 and 1, got \(1.0,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            StressTest(**arguments)


def test_what_data_lack_is_told(ngdiff: list[str]) -> None:
    line = ["--folder=after", *ngdiff, "--model.metric=LUMEScore", "--trainer.logger=false"]
    with pytest.raises(UsageError, match="--relearning_on paraphrased: LUME has no paraphrased answers"):
        stress.main([*line, "--relearning_on", "paraphrased", "--bits", "8"])
    with pytest.raises(UsageError, match="--prompts paraphrased: LUME has no questions in other words"):
        stress.main([*line, "--prompts", "paraphrased"])


def test_examples_are_the_shortest_rows(tiny_causal_lm: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_lm)
    blank, end = tokenizer("\n\n")["input_ids"], tokenizer.eos_token_id
    rows = [Encoded("long", [1, 2, 3, 4], [5, end]), Encoded("b", [6], [7, end]), Encoded("c", [8, 9], [10, end])]
    assert few_shot_tokens(rows, 2, tokenizer) == [6, 7, *blank, 8, 9, 10, *blank]


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
        ("--pruning=1.5", r"--pruning must be shares between 0 and 1, got \[1\.5\]"),
        ("--examples=0", "--examples must be at least 1, got 0"),
    ):
        with pytest.raises(UsageError, match=sentence):
            stress.main(["--folder", "after", option, *ngdiff])
