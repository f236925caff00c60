import copy
import json
import math
import pickle
from collections.abc import Callable, Iterable
from itertools import product
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

GROUPS = list(product(("forget", "retain"), ("Task1", "Task2", "Task3"), ("sc", "qa")))
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NLL = torch.tensor([0.5, 1.0, 2.0, 1.0, 3.0, 4.0])
DOCUMENTS = {
    "id": ["a", "b", "c", "a", "x", "y"],
    "member": torch.arange(6) < 3,
    "source": ["forget.jsonl"] * 3 + ["wiki", "wiki", "synthetic hold-out"],
}


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


def add(metric: LUMEScore, rows: Iterable[int] = range(24), papers: Iterable[int] = range(6)) -> LUMEScore:
    def take(batch: dict[str, Any], indices: Iterable[int]) -> dict[str, Any]:
        return {name: [values[index] for index in indices] for name, values in batch.items()}

    batch, answers = generations()
    metric.update(take(batch, rows), generations=[answers[row] for row in rows])
    metric.update(take(DOCUMENTS, papers), nll=NLL[list(papers)])
    return metric


def test_golden_arithmetic() -> None:
    assert harmonic_mean([1.0] * 12) == 1
    assert harmonic_mean([1.0] * 11 + [0.5]) == pytest.approx(12 / 13)
    assert harmonic_mean([1.0] * 11 + [0.0]) == 0
    assert math.isnan(harmonic_mean([0.0, math.nan]))
    assert [membership_score(auc) for auc in (0.5, 0.9, 0.1)] == pytest.approx([1, 0.2, 0.2])
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


def test_numbers_and_record_follow_the_rows() -> None:
    metric = add(LUMEScore(mmlu=0.443))
    numbers = {name: float(value) for name, value in metric.compute().items()}
    raw = []
    for number, (split, task, kind) in enumerate(GROUPS):
        raw.append(sum(1 + (number + row) % 9 for row in range(2)) / 20 if kind == "sc" else 0.5)
        name = f"{split}/{task.lower()}/{'regurgitation' if kind == 'sc' else 'knowledge'}"
        assert numbers[name] == pytest.approx(raw[-1])
    assert numbers["forget/knowledge"] == 0.5
    assert numbers["mia_auc"] == pytest.approx((3 + 2.5 + 2) / 9)
    aggregate, mia = numbers["task_aggregate"], numbers["mia_score"]
    assert numbers["final_score"] == pytest.approx((aggregate + mia + 0.443) / 3)

    record = metric.record()  # the official keys, in their order
    official = ["forget-set", "retain-set", "mia_loss_acc", "mia_final_score", "mmlu_average", "aggregated-terms"]
    assert list(record) == [*official, "harmonic-mean-task-aggregate", "aggregate-score", "nonmember-source"]
    for split in official[:2]:
        overall = ["overall-regurgitation-score", "overall-knowledge-score"]
        assert list(record[split]) == [*overall, "Task1", "Task2", "Task3"]
        assert list(record[split]["Task3"]) == ["regurgitation-score", "knowledge-score"]
    assert record["retain-set"]["Task3"]["regurgitation-score"] == pytest.approx(raw[10])
    assert record["aggregated-terms"] == pytest.approx([1 - value for value in raw[:6]] + raw[6:])
    assert record["harmonic-mean-task-aggregate"] == pytest.approx(harmonic_mean(record["aggregated-terms"]))
    assert record["nonmember-source"] == "synthetic hold-out, wiki"
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_overall_means_are_over_rows_not_over_tasks() -> None:
    metric = LUMEScore()
    rows = {"id": ["a", "b", "c"], "split": ["retain"] * 3, "kind": ["qa"] * 3, "target": ["x"] * 3}
    metric.update({**rows, "task": ["Task1", "Task2", "Task2"]}, generations=["x", "y", "y"])
    with pytest.warns(UserWarning, match="no row came for forget/Task1/regurgitation"):
        numbers = metric.compute()
    assert float(numbers["retain/knowledge"]) == pytest.approx(1 / 3)


def test_what_is_missing_is_null_and_the_final_score_minus_one() -> None:
    assert add(LUMEScore()).record()["aggregate-score"] == -1
    metric = add(LUMEScore(mmlu=0.4))
    metric.reset()
    with pytest.warns(UserWarning, match="task aggregate is NaN"):
        record = metric.record()
    assert record["aggregate-score"] == -1
    assert record["mia_loss_acc"] is record["nonmember-source"] is record["harmonic-mean-task-aggregate"] is None
    assert record["aggregated-terms"] == [None] * 12
    json.dumps(record, allow_nan=False)


def test_repeats_order_copies_and_pickles_change_nothing() -> None:
    expected = add(LUMEScore(mmlu=0.443)).record()
    metric = add(add(LUMEScore(mmlu=0.443), [23, 3, 3, 0, 7], [5, 1, 1]))
    for same in (metric, copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert same.record() == expected


def update(nll: Tensor | None = None, **changes: list[str]) -> None:
    batch, answers = generations()
    LUMEScore().update(DOCUMENTS if nll is not None else batch | changes, None if nll is not None else answers, nll)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LUMEScore().update(DOCUMENTS), "exactly one"),
        (lambda: LUMEScore().update(generations()[0], ["a"]), "each of the 24 rows, got 1"),
        (lambda: update(kind=["other"] * 24), "kind of row 'Task1-sc0' must be one of sc, qa, got 'other'"),
        (lambda: update(NLL[1:]), r"shape \(6,\) of the ids, got \(5,\)"),
        (lambda: update(NLL.index_fill(0, torch.tensor([1, 4]), math.nan)), "no membership attack: b, x"),
        (lambda: LUMEScore(mmlu=44.3), r"accuracy in \[0, 1\], got 44.3"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_public_names() -> None:
    for name in lit_modules.metrics.__all__:
        assert getattr(lit_modules.metrics, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Missing'"):
        lit_modules.metrics.Missing  # noqa: B018
