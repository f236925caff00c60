"""Accuracies from result files of the EleutherAI evaluation harness, ``lm-eval``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["accuracy_of", "read_accuracies", "read_results"]


def read_results(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """Read a result file of lm-eval.

    Args:
        path: A ``results_*.json``, or a folder given to ``lm_eval --output_path``; the newest such file at any depth of
            the folder is read.

    Returns:
        The file, and what it holds.

    Raises:
        FileNotFoundError: If there is no such file or folder, or the folder holds no result file.
        ValueError: If the file is no JSON, or no results of lm-eval.
    """
    file = Path(path)
    if file.is_dir():
        found = list(file.rglob("results_*.json"))
        if not found:
            raise FileNotFoundError(f"The folder {path} holds no results_*.json of lm-eval.")
        file = max(found, key=lambda result: (result.stat().st_mtime, result.name))
    if not file.is_file():
        raise FileNotFoundError(f"There is no file or folder {path} with the results of lm-eval.")
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}.") from error
    if not isinstance(results, dict) or not isinstance(results.get("results"), dict):
        raise ValueError(f"{file}: These are no results of lm-eval: the mapping 'results' is missing.")
    return file, results


def read_accuracies(path: str | Path, tasks: Sequence[str]) -> dict[str, float]:
    """Read the accuracies of tasks from a result file of lm-eval.

    Args:
        path: File or folder; see :func:`read_results`.
        tasks: Names of tasks or groups, such as ``"wmdp_bio"``.

    Returns:
        Accuracies in [0, 1], by task.

    Raises:
        FileNotFoundError: If there is no such file or folder, or the folder holds no result file.
        ValueError: If the file is no results of lm-eval, or lacks the accuracy of a task.
    """
    file, results = read_results(path)
    accuracies = {task: accuracy_of(results, task) for task in tasks}
    lacking = [task for task, accuracy in accuracies.items() if accuracy is None]
    if lacking:
        found = ", ".join(sorted(results["results"])) or "nothing"
        raise ValueError(f"{file} must hold 'acc,none' of {', '.join(lacking)}, and has the results of {found}.")
    return {task: accuracy for task, accuracy in accuracies.items() if accuracy is not None}


def accuracy_of(results: Mapping[str, Any], task: str) -> float | None:
    """Return the accuracy of a task or group among results, ``None`` if there is none.

    Example:
        >>> accuracy_of({"results": {"wmdp_bio": {"acc,none": 0.25}}}, "wmdp_bio")
        0.25
    """
    entry = results["results"].get(task)
    value = entry.get("acc,none") if isinstance(entry, Mapping) else None
    return float(value) if isinstance(value, int | float) else None
