"""The arithmetic of the TOFU score, its logs, the official golden values, and that processes change nothing."""

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

RETAIN = SECTIONS["retain"]
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
    for call, sentence in (
        (lambda: truth_ratio(1.0, []), "at least one perturbed answer, got none"),
        (lambda: truth_ratio(math.nan, [1.0]), "finite NLLs, got nan"),
        (lambda: truth_ratio(1.0, [1.0], "harmonic"), "mean must be 'geometric' or 'arithmetic', got 'harmonic'"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=sentence):
            call()


def test_forget_quality_does_not_change_with_the_inverse_or_the_logarithm() -> None:
    generator = random.Random(0)
    ours, theirs = ([generator.lognormvariate(mean, 1) for _ in range(50)] for mean in (0.0, 0.6))
    expected = forget_quality(ours, theirs)
    assert 0 < expected.p_value < 1
    maps: list[Callable[[float], float]] = [lambda ratio: 1 / ratio, math.log]
    for change in maps:
        assert forget_quality([*map(change, ours)], [*map(change, theirs)]).p_value == pytest.approx(expected.p_value)
    with pytest.raises(
        ValueError, match=r"got 50 of the unlearned model and 49 of the retain model; take the retain log"
    ):
        forget_quality(ours, theirs[1:])


def test_memorisation_by_hand() -> None:
    flags = torch.tensor([True, False, True, True])
    assert (exact_memorisation(flags), extraction_strength(flags)) == (0.75, 0.5)
    assert extraction_strength(torch.ones(3)) == 1
    assert extraction_strength(torch.zeros(4)) == 0.25  # never below one token
    with pytest.raises(ValueError, match=r"at least one token, got shape \(0,\)"):
        extraction_strength(torch.empty(0))


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_official_logs(name: str, data_folder: Path) -> None:
    folder = data_folder / "tofu" / "reference_logs"
    if not folder.is_dir():
        pytest.skip(f"no official TOFU logs in {folder}")
    log = read_log(folder / f"{name}_wd0.01.json")
    geometric, arithmetic = score_log(log), score_log(log, mean="arithmetic")
    found = geometric["model_utility"], arithmetic["model_utility"], geometric["forget/truth_ratio"]
    assert found == pytest.approx(GOLDEN[name], abs=1e-4)
    assert math.isnan(geometric["forget_quality"])
    section = log["forget"]
    columns = zip(section["avg_paraphrased_loss"].values(), section["average_perturb_loss"].values(), strict=True)
    ratios = [truth_ratio(paraphrased, perturbed) for paraphrased, perturbed in columns]
    assert ratios == pytest.approx(list(section["truth_ratio"].values()), rel=1e-4)


def test_official_forget_quality_and_components(data_folder: Path) -> None:
    folder = data_folder / "tofu" / "reference_logs"
    if not folder.is_dir():
        pytest.skip(f"no official TOFU logs in {folder}")
    golden = {
        ("phi", "geometric"): (2.194e-16, 0.34667),
        ("phi", "arithmetic"): (2.431e-17, 0.35667),
        ("llama2-7b", "geometric"): (1.834e-21, 0.39667),
        ("llama2-7b", "arithmetic"): (6.032e-23, 0.41000),
    }
    logs = {name: read_log(folder / f"{name}_wd0.01.json") for name in GOLDEN if name.endswith(("full", "retain90"))}
    for (model, mean), (p_value, statistic) in golden.items():
        numbers = score_log(logs[f"{model}_full"], logs[f"{model}_retain90"], mean)  # type: ignore[arg-type]
        assert numbers["forget_quality"] == pytest.approx(p_value, rel=1e-3)
        assert numbers["ks_statistic"] == pytest.approx(statistic, abs=1e-5)
    numbers = score_log(logs["phi_full"])
    nine = [numbers[name] for name in UTILITY]
    assert nine == pytest.approx([0.9261, 0.9293, 0.4827, 0.3774, 0.4157, 0.4560, 0.4090, 0.7774, 0.4923], abs=1e-4)
    with pytest.raises(ValueError, match="got 300 of the unlearned model and 200 of the retain model"):
        score_log(logs["phi_full"], read_log(folder / "phi_retain95_wd0.01.json"))


def test_numbers_follow_the_rows() -> None:
    metric = add(TOFUScore())
    numbers = {name: float(value) for name, value in metric.compute().items()}
    batch, nll, tokens = answers()
    found = {
        (split, int(row), role, int(choice)): (float(value), flags)
        for split, row, role, choice, value, flags in zip(
            batch["split"], batch["row"], batch["role"], batch["choice"], nll, tokens["correct"], strict=True
        )
    }
    forget = [found["forget", row, "answer", 0] for row in range(4)]
    assert numbers["forget/probability"] == pytest.approx(sum(math.exp(-value) for value, _ in forget) / 4)
    assert numbers["forget/exact_memorisation"] == pytest.approx(
        sum(exact_memorisation(flags[:-1]) for _, flags in forget) / 4
    )
    facts = []
    for row in range(2):
        keys = [("answer", 0), ("perturbed", 0), ("perturbed", 1), ("perturbed", 2)]
        p = [math.exp(-found["world_facts", row, role, choice][0]) for role, choice in keys]
        facts.append((p[0] / sum(p), max(0.0, 1 - math.prod(p[1:]) ** (1 / 3) / p[0])))
    assert numbers["world_facts/probability"] == pytest.approx(sum(p for p, _ in facts) / 2)
    assert numbers["world_facts/truth_ratio"] == pytest.approx(sum(r for _, r in facts) / 2)
    assert numbers["forget/rouge"] == pytest.approx((2 + 2 * 2 / 6) / 4)
    for name in ("loss", "zlib", "min_k", "min_k_plus_plus"):
        assert 0 <= numbers[f"mia/{name}_low"] <= numbers[f"mia/{name}"] <= numbers[f"mia/{name}_high"] <= 1
    members = [value for value, _ in forget]
    others = [found["holdout", row, "answer", 0][0] for row in range(3)]
    wins = sum((other > member) + 0.5 * (other == member) for other in others for member in members)
    assert numbers["mia/loss"] == pytest.approx(wins / 12)


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
    official = {"avg_gt_loss", "gt_loss", "num_token_gt", "generated_text", "rouge1_recall", "rougeL_recall"}
    official |= {"average_perturb_loss", "avg_paraphrased_loss", "truth_ratio", "paraphrased_loss", "perturb_loss"}
    official |= {"num_token_paraphrased", "num_token_perturb"}
    assert official <= set(content["eval_log.json"])
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


def test_bad_rows_are_refused() -> None:
    metric = TOFUScore()
    batch, texts = prompts()
    scored, nll, tokens = answers()
    with pytest.raises(TypeError, match="exactly one of generations and nll"):
        metric.update(batch)
    with pytest.raises(ValueError, match="each of the 11 rows, got 10"):
        metric.update(batch, generations=texts[1:])
    with pytest.raises(ValueError, match=r"split of row 'forget/0' must be one of forget, retain, .*, got 'other'"):
        metric.update({**batch, "split": ["other"] * 11}, generations=texts)
    with pytest.raises(ValueError, match=r"role of row 'forget/0/answer0' must be one of answer, .*, got 'other'"):
        metric.update({**scored, "role": ["other"] * len(nll)}, nll=nll)
    with pytest.raises(ValueError, match=r"must have the shape \(\d+,\) of the ids, got \(1,\)"):
        metric.update(scored, nll=nll[:1])
    with pytest.raises(ValueError, match="NLL of these rows is not finite, so they have no score: forget/0/answer0"):
        metric.update(scored, nll=nll.index_fill(0, torch.tensor([0]), math.inf))
    short = {name: [row[:1] for row in rows] for name, rows in tokens.items()}
    with pytest.raises(ValueError, match="'forget/0/answer0' must have a token before the end of sequence"):
        metric.update(scored, nll=nll, tokens=short)
    with pytest.raises(ValueError, match="mean must be 'geometric' or 'arithmetic', got 'harmonic'"):
        TOFUScore(mean="harmonic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"k must be a share in \(0, 1\], got 40"):
        TOFUScore(k=40)


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> str:
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def test_a_retain_log_that_does_not_belong(log_file: Path) -> None:
    name = SECTIONS["forget"]
    original = log_file.read_text(encoding="utf-8")

    def edited(edit: Callable[[dict[str, Any]], Any]) -> TOFUScore:
        log_file.write_text(original, encoding="utf-8")
        return TOFUScore(retain_log=change(log_file, lambda content: edit(content[name])))

    def drop(section: dict[str, Any]) -> None:
        for column in section.values():
            del column["3"]

    def more(section: dict[str, Any]) -> None:
        for column in section.values():
            column["4"] = column["3"]

    with pytest.raises(
        ValueError, match=r"of another split or number of rows: it holds 3 forget rows, and row 3 is not"
    ):
        add(edited(drop))
    with pytest.raises(ValueError, match="got 4 of the unlearned model and 5 of the retain model"):
        add(edited(more)).compute()
    with pytest.raises(
        ValueError, match=r"of another split: its forget row 0 has the answer 'x', and the forget set 'the"
    ):
        add(edited(lambda section: section["generated_text"].update({"0": ["Who?", "", "x"]})))
    with pytest.raises(
        ValueError, match="another tokenizer or template: the answer of its forget row 0 has 9 tokens, and"
    ):
        add(edited(lambda section: section["num_token_gt"].update({"0": 9})))
    bare = edited(lambda section: [section.pop("num_token_gt"), section.pop("generated_text")])
    assert add(bare).record()["forget_quality"] is not None


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda c: c.clear(), r"with an object at one of eval_log\.json, "),
        (
            lambda c: c[RETAIN].pop("average_perturb_loss"),
            "'average_perturb_loss' is missing; the perturbed set was not",
        ),
        (lambda c: c[RETAIN]["avg_gt_loss"].pop("0"), r"'avg_paraphrased_loss' must have the 2 rows of .*, got 3"),
        (lambda c: c[RETAIN]["avg_gt_loss"].update({"x": 1}), "keys of 'avg_gt_loss' must be row numbers, got 'x'"),
        (lambda c: c[RETAIN]["avg_gt_loss"].update({"0": None}), "row 0 must be a finite number, got None"),
        (lambda c: c[RETAIN]["average_perturb_loss"].update({"0": [math.nan]}), r"finite numbers, got \[nan\]"),
        (lambda c: c.pop(SECTIONS["forget"]), "holds no forget rows; give the log of a test on the forget set"),
    ],
)
def test_malformed_logs(edit: Callable[[dict[str, Any]], Any], sentence: str, log_file: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        TOFUScore(retain_log=change(log_file, edit))


def test_files_that_are_no_logs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no log .*missing\.json; a test with TOFUScore"):
        TOFUScore(retain_log=str(tmp_path / "missing.json"))
    (tmp_path / "text.json").write_text("text")
    with pytest.raises(ValueError, match="must be a log of TOFU's evaluation, and is not JSON"):
        TOFUScore(retain_log=str(tmp_path / "text.json"))


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
