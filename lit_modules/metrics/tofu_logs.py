"""The log files of TOFU's official evaluation: read, checked and written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_modules.metrics.tofu_scores import CHOICES, choice_probability, log_truth_ratio
from lit_modules.utils.files import write_whole

__all__ = ["build_log", "read_log", "write_log"]

Log = dict[str, dict[str, dict[int, Any]]]
"""For each split and statistic the value of each row."""

SECTIONS = {
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
    "forget": "eval_log_forget.json",
}
"""What the official files call each split."""

REQUIRED = ("avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss")
LARGEST = 700.0
"""Largest exponent that is written: JSON has no infinity."""
NUMBERS = {"avg_gt_loss", "avg_paraphrased_loss", "rouge1_recall", "rougeL_recall", "num_token_gt"}


def read_log(path: str | Path) -> Log:
    """Read an official log, ``eval_log_aggregated.json``, or one that :func:`write_log` wrote.

    Args:
        path: JSON with some of the keys ``eval_log.json`` (retain set), ``eval_log_forget.json``,
            ``eval_real_author_wo_options.json`` and ``eval_real_world_wo_options.json``; each maps the name of a
            statistic to an object of row numbers and values.

    Returns:
        For each split (``"retain"``, ``"forget"``, ``"real_authors"``, ``"world_facts"``) and statistic the value of
        each row, in the order of the rows.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no such JSON, or a split lacks a statistic of which scores are made, or a row of it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no log {path}; a test with TOFUScore(log_file=...) writes one.")
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be a log of TOFU's evaluation, and is not JSON: {error}.") from error
    names = {name: split for split, name in SECTIONS.items()}
    found = [name for name in names if isinstance(content, dict) and isinstance(content.get(name), dict)]
    if not found:
        raise ValueError(f"{path} must be a log of TOFU's evaluation, with an object at one of {', '.join(names)}.")
    log = {names[name]: _read_section(content[name], f"{path}: {name}") for name in found}
    return {split: log[split] for split in SECTIONS if split in log}


def write_log(path: str | Path, log: Mapping[str, Mapping[str, Mapping[int, Any]]]) -> None:
    """Write a log in the official format; a file of that name is replaced, whole or not at all.

    Args:
        path: File to write; its folder is made.
        log: For each split and statistic the value of each row.
    """
    path = Path(path)
    content = {
        SECTIONS[split]: {name: {str(row): values[row] for row in sorted(values)} for name, values in section.items()}
        for split, section in log.items()
    }
    write_whole(path, json.dumps(content, ensure_ascii=False))


def build_log(
    answers: Mapping[tuple[str, int, str, int], tuple[float, int]],
    generated: Mapping[tuple[str, int], Sequence[str]],
    recalls: Mapping[tuple[str, int], Sequence[float]],
    further: Mapping[tuple[str, int], Mapping[str, float]],
) -> Log:
    """Build a log from scored and generated answers; splits that the official files lack are left out.

    Args:
        answers: Mean token NLL in nats and number of tokens, by split, row, role (``"answer"``, ``"paraphrased"`` or
            ``"perturbed"``) and number of the perturbed answer.
        generated: Prompt, generation and target, by split and row.
        recalls: Recalls of ROUGE-1 and ROUGE-L, by split and row.
        further: Other statistics by split and row.
    """
    log: Log = {split: {} for split in SECTIONS}

    def put(split: str, row: int, **values: Any) -> None:
        for name, value in values.items():
            log[split].setdefault(name, {})[row] = value

    def put_answer(split: str, row: int, short: str, nll: float, count: int) -> None:
        put(split, row, **{f"avg_{short}_loss": nll, f"{short}_loss": nll * count, f"num_token_{short}": count})

    perturbed: dict[tuple[str, int], list[tuple[float, int]]] = {}
    for (split, row, role, _), (nll, count) in sorted(answers.items()):
        if split not in SECTIONS:
            continue
        if role == "perturbed":
            perturbed.setdefault((split, row), []).append((nll, count))
            continue
        if role == "answer":
            put_answer(split, row, "gt", nll, count)
        if role == "paraphrased" or split in CHOICES:  # where there is no paraphrase, the answer plays its role
            put_answer(split, row, "paraphrased", nll, count)
    for (split, row), values in perturbed.items():
        losses = [nll for nll, _ in values]
        put(split, row, average_perturb_loss=losses, perturb_loss=[nll * count for nll, count in values])
        put(split, row, num_token_perturb=[count for _, count in values])
        section = log[split]
        if row in section.get("avg_paraphrased_loss", {}):
            # the official files hold the geometric convention
            ratio = log_truth_ratio(section["avg_paraphrased_loss"][row], losses)
            put(split, row, truth_ratio=math.exp(min(ratio, LARGEST)))
        if split in CHOICES and row in section.get("avg_gt_loss", {}):
            probability = choice_probability(section["avg_gt_loss"][row], losses)
            put(split, row, normalized_gt_loss=min(-math.log(probability) if probability else LARGEST, LARGEST))
    for key, words in generated.items():
        if key[0] in SECTIONS:
            put(*key, generated_text=list(words))
    for key, (rouge1, rouge_l) in recalls.items():
        if key[0] in SECTIONS:
            put(*key, rouge1_recall=rouge1, rougeL_recall=rouge_l)
    for key, statistics in further.items():
        if key[0] in SECTIONS:
            put(key[0], key[1], **statistics)
    return {
        split: {name: dict(sorted(values.items())) for name, values in section.items()}
        for split, section in log.items()
        if section
    }


def _read_section(section: dict[str, Any], where: str) -> dict[str, dict[int, Any]]:
    columns: dict[str, dict[int, Any]] = {}
    for name, values in section.items():
        if not isinstance(values, dict):
            continue  # a statistic over all rows
        wrong = [row for row in values if not row.isdecimal()]
        if wrong:
            raise ValueError(f"{where}: the keys of {name!r} must be row numbers, got {wrong[0]!r}.")
        columns[name] = {int(row): values[row] for row in sorted(values, key=int)}
    missing = [name for name in REQUIRED if not columns.get(name)]
    if missing:
        raise ValueError(f"{where}: the statistic {missing[0]!r} is missing; the perturbed set was not evaluated.")
    rows = columns[REQUIRED[0]].keys()
    for name in REQUIRED[1:]:
        if columns[name].keys() != rows:
            raise ValueError(
                f"{where}: {name!r} must have the {len(rows)} rows of {REQUIRED[0]!r}, got {len(columns[name])} rows."
            )
    for name, column in columns.items():
        for row, value in column.items():
            if name in NUMBERS and not _is_finite(value):
                raise ValueError(f"{where}: {name!r} of row {row} must be a finite number, got {value!r}.")
            listed = isinstance(value, list) and bool(value) and all(map(_is_finite, value))
            if name == "average_perturb_loss" and not listed:
                raise ValueError(f"{where}: {name!r} of row {row} must be a list of finite numbers, got {value!r}.")
    return columns


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
