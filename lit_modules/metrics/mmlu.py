"""MMLU accuracy from the EleutherAI evaluation harness, ``lm-eval``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_modules.metrics.harness import accuracy_of, read_results

__all__ = ["evaluate_mmlu", "mmlu_accuracy", "read_mmlu"]

SUBJECTS = 57
_CATEGORIES = {"mmlu_humanities", "mmlu_other", "mmlu_social_sciences", "mmlu_stem"}


def read_mmlu(path: str) -> float:
    """Read the MMLU accuracy from a result file of lm-eval.

    Args:
        path: A ``results_*.json``, or a folder given to ``lm_eval --output_path``; the newest such file at any depth of
            the folder is read.

    Returns:
        Accuracy over all questions, in [0, 1].

    Raises:
        FileNotFoundError: If there is no such file or folder, or the folder holds no result file.
        ValueError: If the file is no JSON or does not hold MMLU.
    """
    file, results = read_results(path)
    try:
        return mmlu_accuracy(results)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def mmlu_accuracy(results: Mapping[str, Any]) -> float:
    """Return the MMLU accuracy among the results of lm-eval.

    That of the group ``mmlu`` if it is there, else the mean over the 57 subjects ``mmlu_*``, each weighted by its
    number of questions as the group does; without the numbers of questions all subjects weigh the same.

    Args:
        results: What ``lm_eval.simple_evaluate`` returns or ``lm_eval`` writes.

    Raises:
        ValueError: If there is neither the group nor all subjects.

    Example:
        >>> mmlu_accuracy({"results": {"mmlu": {"acc,none": 0.443, "acc_stderr,none": 0.004}}})
        0.443
    """
    tasks = results.get("results") if isinstance(results, Mapping) else None
    if not isinstance(tasks, Mapping):
        raise ValueError("These are no results of lm-eval: the mapping 'results' is missing.")
    accuracies = {name: accuracy for name in tasks if (accuracy := accuracy_of(results, name)) is not None}
    if "mmlu" in accuracies:
        return accuracies["mmlu"]
    subjects = {
        name: accuracy for name, accuracy in accuracies.items() if name.startswith("mmlu_") and name not in _CATEGORIES
    }
    if len(subjects) != SUBJECTS:
        found = ", ".join(sorted(tasks)) or "nothing"
        raise ValueError(
            f"MMLU needs 'acc,none' of the group 'mmlu' or of its {SUBJECTS} subjects 'mmlu_*'; "
            f"{len(subjects)} subjects are there, among the results of {found}."
        )
    counts = results.get("n-samples") or {}
    weights = [counts.get(name, {}).get("effective") for name in subjects]
    if None in weights:
        weights = [1] * SUBJECTS
    return float(sum(w * a for w, a in zip(weights, subjects.values(), strict=True)) / sum(weights))


def evaluate_mmlu(folder: str, limit: int | None = None, batch_size: int | str = 8, device: str | None = None) -> float:
    """Measure the MMLU accuracy of a saved model with lm-eval, in the harness's setting without examples in the prompt.

    Downloads the questions (``cais/mmlu``) when they are not cached.

    Args:
        folder: Folder of model and tokenizer, as ``save_pretrained`` writes it, or a name on the hub.
        limit: Questions of each subject; ``None`` asks all. A number from a limit is an estimate.
        batch_size: Requests at a time, or ``"auto"``.
        device: Where to run, such as ``"cuda:0"``; ``None`` leaves the choice to lm-eval.

    Returns:
        Accuracy over all questions, in [0, 1].

    Raises:
        ImportError: If lm-eval is not installed.
        RuntimeError: If this process is not the first of a distributed evaluation, which alone gets the results.
    """
    try:
        from lm_eval import simple_evaluate
    except ImportError as error:
        raise ImportError('evaluate_mmlu needs lm-eval: pip install "lit-modules[harness]"') from error
    results = simple_evaluate(
        model="hf",
        model_args={"pretrained": folder},
        tasks=["mmlu"],
        limit=limit,
        batch_size=batch_size,
        device=device,
        log_samples=False,
        bootstrap_iters=0,
    )
    if results is None:
        raise RuntimeError("lm-eval gives its results to the first process only; call evaluate_mmlu there.")
    return mmlu_accuracy(results)
