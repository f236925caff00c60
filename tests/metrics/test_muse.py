"""The arithmetic of the MUSE score and its log."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_modules.metrics.muse import MUSEScore, first_answer, privacy_leakage, read_retrained_auc, rouge_l_f1


def answers(score: MUSEScore) -> None:
    rows = [("verbmem", "forget", 0), ("knowmem", "forget", 0), ("knowmem", "forget", 1), ("knowmem", "retain", 0)]
    batch = {
        "id": [f"{kind}/{split}/{row}" for kind, split, row in rows],
        "kind": [row[0] for row in rows],
        "split": [row[1] for row in rows],
        "row": torch.tensor([row[2] for row in rows]),
        "prompt": ["?"] * 4,
        "target": ["a b c d", "Lirra", "Tomar", "seven bells"],
    }
    # an answer to a question ends before the next one, a passage does not
    texts = ["a b x\n\nd", "Lirra\nQuestion: and?", "nothing", "seven bells\n\nfurther"]
    score.update(batch, generations=texts)


def documents(score: MUSEScore, forget: list[float], holdout: list[float]) -> None:
    values = [("forget", i, x) for i, x in enumerate(forget)] + [("holdout", i, x) for i, x in enumerate(holdout)]
    batch = {"id": [f"{s}/{i}" for s, i, _ in values], "split": [s for s, _, _ in values]}
    batch |= {"row": torch.tensor([i for _, i, _ in values])}
    # of five tokens the attack looks at two
    tokens = {"log_probs": [torch.tensor([-x - 0.5, -x + 0.5, 0.0, 0.0, 0.0]) for _, _, x in values]}
    score.update(batch, nll=torch.zeros(len(values)), tokens=tokens)


def numbers(score: MUSEScore) -> dict[str, float]:
    return {name: float(value) for name, value in score.compute().items()}


def test_rouge_against_hand_worked_cases() -> None:
    assert rouge_l_f1("a b c d", "a b x d") == pytest.approx(0.75)
    assert rouge_l_f1("keys", "key") == 0.0
    assert rouge_l_f1("keys", "key", stemmer=True) == 1.0
    assert first_answer("Question: a") == ""
    assert first_answer("one\ntwo") == "one\ntwo"


def test_golden_case() -> None:
    score = MUSEScore(retrained_auc=0.5)
    answers(score)
    documents(score, forget=[1.0, 2.0], holdout=[1.5, 3.0])
    answers(score)  # rows that come twice count once
    # VerbMem: 3 of 4 words, both ways; of four pairs the hold-out text is more likely than the forget text in one
    expected = {"forget/verbmem": 75.0, "forget/knowmem": 50.0, "retain/knowmem": 100.0}
    expected |= {"privleak_auc": 0.25, "privleak": -50.0}
    assert expected == pytest.approx({name: value for name, value in numbers(score).items() if name in expected})


def test_ends_of_the_range() -> None:
    assert privacy_leakage(0.0, 0.4772) == -100.0
    assert privacy_leakage(1.0, 0.4772) == pytest.approx(109.6, abs=0.05)
    assert privacy_leakage(1.0, 0.5393) == pytest.approx(85.4, abs=0.05)
    assert MUSEScore(retrained_auc="books").retrained_auc == 0.5393


def test_no_privleak_without_a_retrained_model() -> None:
    score = MUSEScore()
    documents(score, forget=[1.0, 2.0], holdout=[1.5, 3.0])
    record = score.record()
    assert record["privleak"] is None
    assert record["retrained_auc"] is None
    assert record["privleak_auc"] == 0.25
    assert record["forget/verbmem"] is None


def test_the_log_of_a_retrained_model_is_a_reference(tmp_path: Path) -> None:
    file = tmp_path / "runs" / "retrained.json"
    retrained = MUSEScore(log_file=str(file))
    answers(retrained)
    documents(retrained, forget=[1.0, 2.0], holdout=[1.5, 1.2])
    retrained.record()
    log = json.loads(file.read_text(encoding="utf-8"))
    assert log["forget_verbmem_ROUGE"]["value_by_index"]["0"]["ground_truth"] == "a b c d"
    assert log["mia_min_k"]["forget"]["value_by_index"]["1"]["score"] == pytest.approx(2.0)
    assert read_retrained_auc(file) == pytest.approx(0.5)
    score = MUSEScore(retain_log=str(file))
    documents(score, forget=[1.0, 2.0], holdout=[0.5, 0.6])
    assert numbers(score)["privleak"] == pytest.approx(100.0)


@pytest.mark.parametrize("content", ["no", "[]", '{"mia_min_k": {"agg_value": "x"}}'])
def test_a_malformed_log_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"log\.json.*mia_min_k\.agg_value"):
        MUSEScore(retain_log=str(tmp_path / "log.json"))
    with pytest.raises(FileNotFoundError, match="MUSEScore\\(log_file"):
        MUSEScore(retain_log=str(tmp_path / "none.json"))


ROW: dict[str, Any] = {"id": ["x"], "split": ["forget"], "row": torch.tensor([0]), "kind": ["verbmem"]}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MUSEScore(retrained_auc="novels"), "must be an AUC, 'news' or 'books', got 'novels'"),
        (lambda: MUSEScore(retrained_auc=0.0), r"must be in \(0, 1\], got 0.0"),
        (lambda: MUSEScore(retrained_auc=0.5, retain_log="x"), "exclude each other"),
        (lambda: MUSEScore(k=0.0), r"k must be a share in \(0, 1\], got 0.0"),
        (lambda: MUSEScore().update(ROW | {"split": ["other"]}, ["a"]), "split of row 'x' .* holdout, got 'other'"),
        (lambda: MUSEScore().update(ROW | {"kind": ["sc"]}, ["a"]), "kind of row 'x'"),
        (lambda: MUSEScore().update(ROW), "exactly one"),
        (lambda: MUSEScore().update(ROW, tokens={"log_probs": [torch.tensor([math.inf])]}), "not finite: x"),
    ],
)
def test_bad_input_is_refused(call: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()
