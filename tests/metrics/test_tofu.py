import copy
import json
import math
import pickle
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lit_modules.metrics.tofu import TOFUScore
from lit_modules.metrics.tofu_scores import (
    SECTIONS,
    UTILITY,
    choice_probability,
    exact_memorisation,
    extraction_strength,
    forget_quality,
    log_truth_ratio,
    read_log,
    score_log,
    truth_ratio,
    truth_ratio_score,
    write_log,
)

RETAIN, FORGET = SECTIONS["retain"], SECTIONS["forget"]
SIZES = {"forget": 4, "retain": 3, "real_authors": 2, "world_facts": 2}
# model: utility with the geometric mean, with the arithmetic mean, truth ratio of the forget set
GOLDEN = {
    "phi_full": (0.5221, 0.5034, 0.4834),
    "phi_retain90": (0.5320, 0.5130, 0.6288),
    "phi_retain95": (0.5250, 0.5070, 0.6269),
    "phi_retain99": (0.5186, 0.4986, 0.6446),
    "llama2-7b_full": (0.6227, 0.5859, 0.5160),
    "llama2-7b_retain90": (0.6137, 0.5752, 0.6740),
    "llama2-7b_retain95": (0.6006, 0.5613, 0.6741),
    "llama2-7b_retain99": (0.6207, 0.5812, 0.6849),
}


def prompts() -> tuple[dict[str, Any], list[str]]:
    keys = [(split, row) for split, size in SIZES.items() for row in range(size)]
    batch = {
        "id": [f"{split}/{row}" for split, row in keys],
        "split": [split for split, _ in keys],
        "row": torch.tensor([row for _, row in keys]),
        "prompt": ["Who?"] * len(keys),
        "target": [f"the answer number {row} of {split}" for split, row in keys],
    }
    return batch, [target if row % 2 else "the answer" for row, target in enumerate(batch["target"])]


def answers(seed: int = 0, holdout: bool = True) -> tuple[dict[str, Any], torch.Tensor, dict[str, list[torch.Tensor]]]:
    """Every answer of every split, with random log-probabilities of two to five tokens."""
    keys = []
    for split, size in (SIZES | ({"holdout": 3} if holdout else {})).items():
        roles = [("answer", 0)]
        if split in ("forget", "retain"):
            roles += [("paraphrased", 0)]
        if split != "holdout":
            roles += [("perturbed", choice) for choice in range(3)]
        keys += [(split, row, *role) for row in range(size) for role in roles]
    generator = torch.Generator().manual_seed(seed)
    lengths = [2 + number % 4 for number in range(len(keys))]
    tokens = {
        "log_probs": [-torch.rand(length, generator=generator) * 3 for length in lengths],
        "correct": [torch.rand(length, generator=generator) < 0.6 for length in lengths],
        "means": [-torch.ones(length) for length in lengths],
        "deviations": [torch.ones(length) for length in lengths],
    }
    batch = {
        "id": [f"{split}/{row}/{role}{choice}" for split, row, role, choice in keys],
        "split": [key[0] for key in keys],
        "row": torch.tensor([key[1] for key in keys]),
        "role": [key[2] for key in keys],
        "choice": torch.tensor([key[3] for key in keys]),
        "target": [f"text {number}" for number in range(len(keys))],
        "labels": torch.tensor([[-100, *[1] * length, *[-100] * (6 - length)] for length in lengths]),
    }
    return batch, torch.stack([-row.double().mean() for row in tokens["log_probs"]]), tokens


def take(values: Any, rows: list[int]) -> Any:
    if isinstance(values, dict):
        return {name: take(column, rows) for name, column in values.items()}
    return values[rows] if isinstance(values, torch.Tensor) else [values[row] for row in rows]


def add(metric: TOFUScore, part: slice = slice(None), seed: int = 0) -> TOFUScore:
    batch, texts = prompts()
    rows = list(range(len(texts)))[part]
    metric.update(take(batch, rows), generations=take(texts, rows))
    scored, nll, tokens = answers(seed)
    rows = list(range(len(nll)))[part]
    metric.update(take(scored, rows), nll=nll[rows], tokens=take(tokens, rows))
    return metric


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    """Log of another model on the same rows."""
    path = tmp_path / "retain.json"
    add(TOFUScore(log_file=str(path)), seed=1).record()
    return path


def test_truth_ratio_by_hand() -> None:
    probabilities = [math.log(4), math.log(16)]  # of 1/4 and 1/16
    assert truth_ratio(math.log(2), probabilities) == pytest.approx(math.sqrt(1 / 64) / 0.5)
    assert truth_ratio(math.log(2), probabilities, "arithmetic") == pytest.approx((5 / 32) / 0.5)
    assert truth_ratio(5000.0, [1.0]) == math.inf
    assert log_truth_ratio(5000.0, [1.0, 3.0]) == 4998
    assert choice_probability(math.log(2), [math.log(4), math.log(4)]) == pytest.approx(0.5)
    logs = [math.log(0.5), math.log(4.0), 5000.0]
    assert truth_ratio_score(logs, "forget") == pytest.approx((0.5 + 0.25 + 0) / 3)
    assert truth_ratio_score(logs, "world_facts") == pytest.approx(0.5 / 3)


def test_forget_quality_does_not_change_with_the_inverse_or_the_logarithm() -> None:
    generator = random.Random(0)
    ours, theirs = ([generator.lognormvariate(mean, 1) for _ in range(50)] for mean in (0.0, 0.6))
    expected = forget_quality(ours, theirs)
    assert 0 < expected.p_value < 1
    maps: list[Callable[[float], float]] = [lambda ratio: 1 / ratio, math.log]
    for change in maps:
        assert forget_quality([*map(change, ours)], [*map(change, theirs)]).p_value == pytest.approx(expected.p_value)


def test_memorisation_by_hand() -> None:
    flags = torch.tensor([True, False, True, True])
    assert (exact_memorisation(flags), extraction_strength(flags)) == (0.75, 0.5)
    assert extraction_strength(torch.ones(3)) == 1
    assert extraction_strength(torch.zeros(4)) == 0.25  # never below one token


@pytest.fixture(scope="module")
def official(data_folder: Path) -> dict[str, Any]:
    """The official logs by name."""
    folder = data_folder / "tofu" / "reference_logs"
    if not folder.is_dir():
        pytest.skip(f"no official TOFU logs in {folder}")
    return {name: read_log(folder / f"{name}_wd0.01.json") for name in GOLDEN}


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_official_logs(name: str, official: dict[str, Any]) -> None:
    log = official[name]
    geometric, arithmetic = score_log(log), score_log(log, mean="arithmetic")
    numbers = geometric["model_utility"], arithmetic["model_utility"], geometric["forget/truth_ratio"]
    assert numbers == pytest.approx(GOLDEN[name], abs=1e-4)
    assert math.isnan(geometric["forget_quality"])
    section = log["forget"]
    columns = zip(section["avg_paraphrased_loss"].values(), section["average_perturb_loss"].values(), strict=True)
    ratios = [truth_ratio(paraphrased, perturbed) for paraphrased, perturbed in columns]
    assert ratios == pytest.approx(list(section["truth_ratio"].values()), rel=1e-4)


def test_official_forget_quality_and_components(official: dict[str, Any]) -> None:
    golden = {
        ("phi", "geometric"): (2.194e-16, 0.34667),
        ("phi", "arithmetic"): (2.431e-17, 0.35667),
        ("llama2-7b", "geometric"): (1.834e-21, 0.39667),
        ("llama2-7b", "arithmetic"): (6.032e-23, 0.41000),
    }
    for (model, mean), (p_value, statistic) in golden.items():
        numbers = score_log(official[f"{model}_full"], official[f"{model}_retain90"], mean)  # type: ignore[arg-type]
        assert numbers["forget_quality"] == pytest.approx(p_value, rel=1e-3)
        assert numbers["ks_statistic"] == pytest.approx(statistic, abs=1e-5)
    numbers = score_log(official["phi_full"])
    nine = [0.9261, 0.9293, 0.4827, 0.3774, 0.4157, 0.4560, 0.4090, 0.7774, 0.4923]
    assert [numbers[name] for name in UTILITY] == pytest.approx(nine, abs=1e-4)
    with pytest.raises(ValueError, match="got 300 of the unlearned model and 200 of the retain model"):
        score_log(official["phi_full"], official["phi_retain95"])


def test_numbers_follow_the_rows() -> None:
    numbers = {name: float(value) for name, value in add(TOFUScore()).compute().items()}
    batch, nll, tokens = answers()
    keys = zip(batch["split"], batch["row"].tolist(), batch["role"], batch["choice"].tolist(), strict=True)
    losses = dict(zip(keys, nll.tolist(), strict=True))
    correct = dict(zip(losses, tokens["correct"], strict=True))
    forget = [("forget", row, "answer", 0) for row in range(4)]
    expected = {
        "forget/probability": sum(math.exp(-losses[key]) for key in forget) / 4,
        "forget/exact_memorisation": sum(exact_memorisation(correct[key][:-1]) for key in forget) / 4,
        "forget/rouge": (2 + 2 * 2 / 6) / 4,
    }
    facts = []
    for row in range(2):
        options = [("answer", 0), ("perturbed", 0), ("perturbed", 1), ("perturbed", 2)]
        p = [math.exp(-losses["world_facts", row, role, choice]) for role, choice in options]
        facts.append((p[0] / sum(p), max(0.0, 1 - math.prod(p[1:]) ** (1 / 3) / p[0])))
    expected["world_facts/probability"] = sum(p for p, _ in facts) / 2
    expected["world_facts/truth_ratio"] = sum(ratio for _, ratio in facts) / 2
    members, others = [losses[key] for key in forget], [losses["holdout", row, "answer", 0] for row in range(3)]
    wins = sum((other > member) + 0.5 * (other == member) for other in others for member in members)
    expected["mia/loss"] = wins / 12
    assert {name: numbers[name] for name in expected} == pytest.approx(expected)
    for name in ("loss", "zlib", "min_k", "min_k_plus_plus"):
        assert 0 <= numbers[f"mia/{name}_low"] <= numbers[f"mia/{name}"] <= numbers[f"mia/{name}_high"] <= 1


def test_the_record_is_json_and_says_none_without_a_retain_model(log_file: Path) -> None:
    record = add(TOFUScore()).record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["forget_quality"] is record["ks_statistic"] is None
    assert record["truth_ratio_mean"] == "geometric"
    with_retain = add(TOFUScore(retain_log=str(log_file))).record()
    assert 0 < with_retain["forget_quality"] <= 1
    assert with_retain["model_utility"] == record["model_utility"]
    assert add(TOFUScore(retain_log=str(log_file)), seed=1).record()["forget_quality"] == 1
    arithmetic = add(TOFUScore(mean="arithmetic")).record()
    assert arithmetic["retain/truth_ratio"] != record["retain/truth_ratio"]


def test_logs_have_the_official_shape_and_give_the_same_numbers(log_file: Path, tmp_path: Path) -> None:
    content = json.loads(log_file.read_text(encoding="utf-8"))
    assert set(content) == set(SECTIONS.values())
    columns = {"avg_gt_loss", "gt_loss", "num_token_gt", "generated_text", "rouge1_recall", "rougeL_recall"}
    columns |= {"average_perturb_loss", "avg_paraphrased_loss", "truth_ratio", "paraphrased_loss", "perturb_loss"}
    assert columns | {"num_token_paraphrased", "num_token_perturb"} <= set(content["eval_log.json"])
    assert "normalized_gt_loss" in content["eval_real_world_wo_options.json"]
    assert content["eval_log_forget.json"]["generated_text"]["1"] == ["Who?"] + ["the answer number 1 of forget"] * 2
    own = add(TOFUScore(), seed=1).compute()
    numbers = score_log(read_log(log_file))
    assert {name: float(own[name]) for name in numbers} == pytest.approx(numbers, nan_ok=True)
    write_log(tmp_path / "again.json", read_log(log_file))
    assert read_log(tmp_path / "again.json") == read_log(log_file)


def test_rows_that_come_twice_count_once_and_splits_may_lack() -> None:
    metric = TOFUScore()
    add(metric, slice(None, None, 2))
    add(metric)
    assert metric.record() == add(TOFUScore()).record()
    assert copy.deepcopy(metric).record() == pickle.loads(pickle.dumps(metric)).record()
    metric.reset()
    with pytest.warns(UserWarning, match=r"model utility is NaN, as no row came for retain/probability, "):
        assert metric.record()["model_utility"] is None
    plain = TOFUScore(memorisation=False)
    assert not plain.needs_tokens
    batch, nll, _ = answers(holdout=False)
    plain.update(batch, nll=nll)
    with pytest.warns(UserWarning, match="no row came for retain/rouge, real_authors/rouge, world_facts/rouge"):
        assert not any(name.endswith(("memorisation", "strength")) for name in plain.compute())


def update(scored: bool = False, **changes: Any) -> None:
    batch, texts = prompts()
    if scored:
        batch, nll, tokens = answers()
        TOFUScore().update(**{"batch": batch, "nll": nll, "tokens": tokens} | changes)
    else:
        TOFUScore().update(**{"batch": batch, "generations": texts} | changes)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: TOFUScore(mean="harmonic"), "mean must be 'geometric' or 'arithmetic', got 'harmonic'"),  # type: ignore[arg-type]
        (lambda: TOFUScore(k=40), r"k must be a share in \(0, 1\], got 40"),
        (lambda: truth_ratio(1.0, []), "at least one perturbed answer, got none"),
        (lambda: truth_ratio(math.nan, [1.0]), "finite NLLs, got nan"),
        (lambda: extraction_strength(torch.empty(0)), r"at least one token, got shape \(0,\)"),
        (lambda: update(generations=None), "exactly one of generations and nll"),
        (lambda: update(generations=["a"]), "each of the 11 rows, got 1"),
        (
            lambda: update(batch=prompts()[0] | {"split": ["other"] * 11}),
            r"split of row 'forget/0' must be one of forget, retain, .*, got 'other'",
        ),
        (lambda: update(True, nll=torch.ones(1)), r"must have the shape \(54,\) of the ids, got \(1,\)"),
        (lambda: update(True, nll=torch.full((54,), math.inf)), "not finite, so they have no score: forget/0/answer0"),
        (
            lambda: update(True, tokens={name: [row[:1] for row in rows] for name, rows in answers()[2].items()}),
            "'forget/0/answer0' must have a token before the end of sequence",
        ),
    ],
)
def test_bad_input_is_refused(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises((ValueError, TypeError), match=sentence):
        call()


def drop(content: dict[str, Any]) -> None:
    for column in content[FORGET].values():
        del column["3"]


def more(content: dict[str, Any]) -> None:
    for column in content[FORGET].values():
        column["4"] = column["3"]


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (drop, r"of another split or number of rows: it holds 3 forget rows, and row 3 is not"),
        (more, "got 4 of the unlearned model and 5 of the retain model"),
        (
            lambda c: c[FORGET]["generated_text"].update({"0": ["Who?", "", "x"]}),
            r"of another split: its forget row 0 has the answer 'x', and the forget set 'the",
        ),
        (
            lambda c: c[FORGET]["num_token_gt"].update({"0": 9}),
            "another tokenizer or template: the answer of its forget row 0 has 9 tokens, and",
        ),
        (lambda c: c.clear(), r"with an object at one of eval_log\.json, "),
        (lambda c: c[RETAIN].pop("average_perturb_loss"), "'average_perturb_loss' is missing; the perturbed set was"),
        (lambda c: c[RETAIN]["avg_gt_loss"].pop("0"), r"'avg_paraphrased_loss' must have the 2 rows of .*, got 3"),
        (lambda c: c[RETAIN]["avg_gt_loss"].update({"x": 1}), "keys of 'avg_gt_loss' must be row numbers, got 'x'"),
        (lambda c: c[RETAIN]["avg_gt_loss"].update({"0": None}), "row 0 must be a finite number, got None"),
        (lambda c: c[RETAIN]["average_perturb_loss"].update({"0": [math.nan]}), r"finite numbers, got \[nan\]"),
        (lambda c: c.pop(FORGET), "holds no forget rows; give the log of a test on the forget set"),
        (None, "must be a log of TOFU's evaluation, and is not JSON"),
    ],
)
def test_a_retain_log_that_does_not_serve(edit: Any, sentence: str, log_file: Path) -> None:
    content = json.loads(log_file.read_text(encoding="utf-8"))
    if edit is not None:
        edit(content)
    log_file.write_text("text" if edit is None else json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=sentence):
        add(TOFUScore(retain_log=str(log_file))).compute()


def test_a_retain_log_may_lack_texts_and_counts_and_must_be_there(log_file: Path, tmp_path: Path) -> None:
    content = json.loads(log_file.read_text(encoding="utf-8"))
    del content[FORGET]["num_token_gt"], content[FORGET]["generated_text"]
    log_file.write_text(json.dumps(content), encoding="utf-8")
    assert add(TOFUScore(retain_log=str(log_file))).record()["forget_quality"] is not None
    with pytest.raises(FileNotFoundError, match=r"There is no log .*missing\.json; a test with TOFUScore"):
        TOFUScore(retain_log=str(tmp_path / "missing.json"))


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=120))
    both = add(TOFUScore(log_file=f"{folder}/log.json"), slice(rank, None, 2)).record()
    lonely = TOFUScore()
    if rank == 1:  # rank 0 has no row at all
        add(lonely)
    Path(folder, f"{rank}.json").write_text(json.dumps([both, lonely.record()]), encoding="utf-8")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    metric = add(TOFUScore())
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) == [metric.record()] * 2
    assert read_log(tmp_path / "log.json") == metric.log()
