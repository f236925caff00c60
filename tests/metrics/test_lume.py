"""The arithmetic of the LUME score, its record, and that padded rows and processes change nothing."""

import copy
import json
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

import lit_modules.metrics
from lit_modules.metrics import LUMEScore
from lit_modules.metrics.lume import (
    exact_match,
    final_score,
    harmonic_mean,
    membership_auc,
    membership_score,
    rouge_l_recall,
    task_terms,
)

GROUPS = [
    (split, task, kind)
    for split in ("forget", "retain")
    for task in ("Task1", "Task2", "Task3")
    for kind in ("sc", "qa")
]
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def generations() -> tuple[dict[str, list[str]], list[str]]:
    """Two rows in each of the 12 groups, with shares that differ from group to group."""
    batch: dict[str, list[str]] = {name: [] for name in ("id", "split", "task", "kind", "target")}
    answers = []
    for number, (split, task, kind) in enumerate(GROUPS):
        for row in range(2):
            for name, value in zip(batch, (f"{task}-{kind}{row}", split, task, kind, " ".join(WORDS)), strict=True):
                batch[name].append(value)
            right = kind == "qa" and row == 0
            answers.append(f" {' '.join(WORDS).upper()}\n" if right else " ".join(WORDS[: 1 + (number + row) % 9]))
    return batch, answers


def documents() -> tuple[dict[str, Any], Tensor]:
    nll = torch.tensor([0.5, 1.0, 2.0, 1.0, 3.0, 4.0])
    member = torch.tensor([True, True, True, False, False, False])
    source = ["forget.jsonl"] * 3 + ["wiki", "wiki", "synthetic hold-out"]
    return {"id": ["a", "b", "c", "a", "x", "y"], "member": member, "source": source}, nll


def take(batch: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    return {name: [values[row] for row in rows] for name, values in batch.items()}


def add(metric: LUMEScore, rows: list[int], papers: list[int]) -> None:
    batch, answers = generations()
    metric.update(take(batch, rows), generations=[answers[row] for row in rows])
    batch, nll = documents()
    metric.update(take(batch, papers), nll=nll[papers])


def full(mmlu: float | None = 0.443) -> LUMEScore:
    metric = LUMEScore(mmlu=mmlu)
    add(metric, list(range(24)), list(range(6)))
    return metric


def test_golden_arithmetic() -> None:
    assert harmonic_mean([1.0] * 12) == 1
    assert harmonic_mean([1.0] * 11 + [0.5]) == pytest.approx(12 / 13)
    assert harmonic_mean([1.0] * 11 + [0.0]) == 0
    assert math.isnan(harmonic_mean([0.0, math.nan]))
    assert membership_score(0.5) == 1
    assert membership_score(0.9) == pytest.approx(0.2)
    assert membership_score(0.1) == pytest.approx(0.2)
    assert round(final_score(0.827, 0.847, 0.443), 3) == 0.706
    assert task_terms([0.25, 1.0]) == [0.75, 1.0]


def test_row_scores() -> None:
    assert rouge_l_recall("the cats ran", "cat running, then the cat ran") == 1  # stemmed, and in order
    assert rouge_l_recall("a b c d", "d c b a") == 0.25
    assert rouge_l_recall("a b", "") == 0
    assert exact_match("a_b@x.com", " A_b@x.com ") == 1
    assert exact_match("a_b@x.com", "a_b@x.com.") == 0


def test_auc_equals_torchmetrics_with_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        nll = torch.randint(0, 8, (40,), generator=generator).double() / 8
        member = torch.rand(40, generator=generator) < 0.5
        expected = binary_auroc(1 - nll, member.long())
        assert membership_auc(nll, member) == pytest.approx(float(expected), abs=1e-6)
    assert math.isnan(membership_auc(torch.tensor([1.0]), torch.tensor([True])))


def test_numbers_follow_the_rows() -> None:
    numbers = {name: float(value) for name, value in full().compute().items()}
    for number, (split, task, kind) in enumerate(GROUPS):
        mean = sum(1 + (number + row) % 9 for row in range(2)) / 20 if kind == "sc" else 0.5
        name = f"{split}/{task.lower()}/{'regurgitation' if kind == 'sc' else 'knowledge'}"
        assert numbers[name] == pytest.approx(mean)
    assert numbers["forget/knowledge"] == 0.5
    assert numbers["mia_auc"] == pytest.approx((3 + 2.5 + 2) / 9)
    assert numbers["mmlu"] == 0.443
    assert numbers["final_score"] == pytest.approx(
        (numbers["task_aggregate"] + numbers["mia_score"] + numbers["mmlu"]) / 3
    )


def test_overall_means_are_over_rows_not_over_tasks() -> None:
    metric = LUMEScore()
    rows = {"id": ["a", "b", "c"], "split": ["retain"] * 3, "kind": ["qa"] * 3, "target": ["x"] * 3}
    metric.update({**rows, "task": ["Task1", "Task2", "Task2"]}, generations=["x", "y", "y"])
    with pytest.warns(UserWarning, match="no row came for forget/Task1/regurgitation"):
        numbers = metric.compute()
    assert float(numbers["retain/knowledge"]) == pytest.approx(1 / 3)


def test_the_record_has_the_official_keys() -> None:
    metric = full()
    record = metric.record()
    assert list(record) == [
        "forget-set",
        "retain-set",
        "mia_loss_acc",
        "mia_final_score",
        "mmlu_average",
        "aggregated-terms",
        "harmonic-mean-task-aggregate",
        "aggregate-score",
        "nonmember-source",
    ]
    for split in ("forget-set", "retain-set"):
        assert list(record[split]) == [
            "overall-regurgitation-score",
            "overall-knowledge-score",
            "Task1",
            "Task2",
            "Task3",
        ]
        assert all(
            list(record[split][task]) == ["regurgitation-score", "knowledge-score"] for task in ("Task1", "Task3")
        )
    raw = [
        record[f"{s}-set"][f"Task{t}"][f"{k}-score"]
        for s in ("forget", "retain")
        for t in (1, 2, 3)
        for k in ("regurgitation", "knowledge")
    ]
    assert record["aggregated-terms"] == pytest.approx([1 - value for value in raw[:6]] + raw[6:])
    assert record["harmonic-mean-task-aggregate"] == pytest.approx(harmonic_mean(record["aggregated-terms"]))
    assert record["nonmember-source"] == "synthetic hold-out, wiki"
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_what_is_missing_is_null_and_the_final_score_minus_one() -> None:
    assert full(mmlu=None).record()["aggregate-score"] == -1
    metric = LUMEScore(mmlu=0.4)
    with pytest.warns(UserWarning, match="task aggregate is NaN") as warnings:
        record = metric.record()
    assert len([w for w in warnings if "task aggregate is NaN" in str(w.message)]) == 1
    assert record["aggregate-score"] == -1
    assert record["mia_loss_acc"] is record["nonmember-source"] is record["harmonic-mean-task-aggregate"] is None
    assert record["aggregated-terms"] == [None] * 12
    json.dumps(record, allow_nan=False)


def test_repeated_rows_count_once_and_order_does_not_matter() -> None:
    metric = LUMEScore(mmlu=0.443)
    add(metric, [23, 3, 3, 0, 7], [5, 1, 1])
    add(metric, list(range(24)), list(range(6)))
    assert metric.record() == full().record()


def test_reset_forgets_all() -> None:
    metric = full()
    metric.compute()
    metric.reset()
    with pytest.warns(UserWarning, match="NaN"):
        assert math.isnan(float(metric.compute()["mia_auc"]))


def test_copies_and_pickles() -> None:
    metric = full()
    assert copy.deepcopy(metric).record() == pickle.loads(pickle.dumps(metric)).record() == metric.record()


def test_bad_input_is_refused() -> None:
    metric = LUMEScore()
    batch, answers = generations()
    papers, nll = documents()
    with pytest.raises(TypeError, match="exactly one"):
        metric.update(batch)
    with pytest.raises(TypeError, match="exactly one"):
        metric.update(batch, generations=answers, nll=nll)
    with pytest.raises(ValueError, match="each of the 24 rows, got 23"):
        metric.update(batch, generations=answers[1:])
    for word, allowed in (("split", "forget, retain"), ("task", "Task1, Task2, Task3"), ("kind", "sc, qa")):
        with pytest.raises(ValueError, match=f"{word} of row 'Task1-sc0' must be one of {allowed}, got 'other'"):
            metric.update({**batch, word: ["other"] * 24}, generations=answers)
    with pytest.raises(ValueError, match=r"shape \(6,\) of the ids, got \(5,\)"):
        metric.update(papers, nll=nll[1:])
    with pytest.raises(ValueError, match="is NaN, so there is no membership attack: b, x"):
        metric.update(papers, nll=nll.index_fill(0, torch.tensor([1, 4]), math.nan))
    with pytest.raises(ValueError, match=r"accuracy in \[0, 1\], got 44.3"):
        LUMEScore(mmlu=44.3)


def test_public_names() -> None:
    for name in lit_modules.metrics.__all__:
        assert getattr(lit_modules.metrics, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Missing'"):
        lit_modules.metrics.Missing  # noqa: B018
