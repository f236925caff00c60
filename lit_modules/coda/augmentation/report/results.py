"""Accuracies after the update, as the paper's main table shows them: a line for each method, a column for each mix."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

KEYS = (
    *("method", "real", "synthetic", "accuracy", "lower", "upper", "std", "invalid", "seeds"),
    *("feature", "dataset", "model"),
)
"""Keys of a row; all but ``method``, ``real``, ``synthetic`` and ``accuracy`` may be left out; others are not read."""
_SHARES = ("accuracy", "lower", "upper", "std", "invalid")


@dataclass(frozen=True)
class ResultRow:
    """An accuracy.

    Args:
        method: Name of the method, such as ``"CoDA"``.
        real: Real images of each class.
        synthetic: Synthetic images of each class.
        accuracy: Share of right answers, in [0, 1].
        lower: Lower end of its interval.
        upper: Upper end.
        std: Standard deviation over the seeds.
        invalid: Share of answers that name no option.
        seeds: Number of seeds.
        feature: Kind of features, or of the baseline.
        dataset: Name of the data.
        model: Model that was updated.
    """

    method: str
    real: int
    synthetic: int
    accuracy: float
    lower: float | None = None
    upper: float | None = None
    std: float | None = None
    invalid: float | None = None
    seeds: int | None = None
    feature: str = ""
    dataset: str = ""
    model: str = ""


@dataclass(frozen=True)
class ResultTable:
    """The accuracies of one model on one data set.

    Args:
        dataset: Name of the data; may be empty.
        model: Model that was updated; may be empty.
        columns: Real and synthetic images of each class.
        rows: Method, feature and the accuracy of each column that has one.
        best: For each column the largest accuracy, if there are several.
    """

    dataset: str
    model: str
    columns: list[tuple[int, int]]
    rows: dict[tuple[str, str], dict[tuple[int, int], ResultRow]]
    best: dict[tuple[int, int], float]


def read_results(results: Sequence[Mapping[str, Any]] | str | Path) -> list[ResultRow]:
    """Return the rows of results.

    Args:
        results: Rows with the keys :data:`KEYS`, or a JSON file of such a list, which may stand under ``"results"``.
            ``seeds`` is their number, or a list of them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no JSON of rows, a value is missing or out of its range, or a key is almost one of these.

    Example:
        >>> read_results([{"method": "CoDA", "real": 5, "synthetic": 1, "accuracy": 0.73, "seeds": [0, 1]}])[0].seeds
        2
    """
    source = "The results"
    rows: Any = results
    if isinstance(results, str | Path):
        source = str(results)
        try:
            rows = json.loads(Path(results).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"There is no file {results} with results.") from error
        except ValueError as error:
            raise ValueError(f"{results} is no JSON: {error}.") from error
        if isinstance(rows, dict) and "results" in rows:
            rows = rows["results"]
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise ValueError(f"{source} must be a list of rows, each with {', '.join(KEYS)}.")
    return [_row(row, f"{source}, row {number}") for number, row in enumerate(rows, 1)]


def result_tables(rows: Sequence[ResultRow]) -> list[ResultTable]:
    """Return a table for each data set and model, in the order of the rows; columns by their number of images.

    Raises:
        ValueError: If two rows are of the same place.

    Example:
        >>> rows = [ResultRow("real", 5, 0, 0.6), ResultRow("CoDA", 0, 5, 0.7), ResultRow("CoDA", 5, 1, 0.7)]
        >>> result_tables(rows)[0].columns
        [(5, 0), (0, 5), (5, 1)]
    """
    tables: dict[tuple[str, str], dict[tuple[str, str], dict[tuple[int, int], ResultRow]]] = {}
    for row in rows:
        line = tables.setdefault((row.dataset, row.model), {}).setdefault((row.method, row.feature), {})
        if (row.real, row.synthetic) in line:
            raise ValueError(
                f"The results have two rows of {row.method} {row.feature} at {row.real}:{row.synthetic}; give one, or "
                "tell them apart by feature, dataset or model."
            )
        line[row.real, row.synthetic] = row
    found = []
    for (dataset, model), lines in tables.items():
        columns = sorted({column for line in lines.values() for column in line}, key=lambda one: (sum(one), one[1]))
        best = {}
        for column in columns:
            values = [line[column].accuracy for line in lines.values() if column in line]
            if len(values) > 1:
                best[column] = max(values)
        found.append(ResultTable(dataset, model, columns, lines, best))
    return found


def _row(row: Any, where: str) -> ResultRow:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} must have the keys {', '.join(KEYS)}, got {row!r}.")
    for key in row:
        if key not in KEYS and (meant := get_close_matches(str(key), KEYS, n=1, cutoff=0.7)):
            raise ValueError(f"{where} has the key {key!r}; did you mean {meant[0]!r}?")
    given = {key: value for key, value in row.items() if key in KEYS and value is not None}
    for key in ("method", "real", "synthetic", "accuracy"):
        if key not in given:
            raise ValueError(f"{where} has no {key}.")
    for key in ("method", "feature", "dataset", "model"):
        if key in given and (not isinstance(given[key], str) or (key == "method" and not given[key])):
            raise ValueError(f"{where}: {key} must be a text, got {given[key]!r}.")
    if isinstance(given.get("seeds"), list | tuple):
        given["seeds"] = len(given["seeds"])
    for key, least in (("real", 0), ("synthetic", 0), ("seeds", 1)):
        if key in given and (type(given[key]) is not int or given[key] < least):
            raise ValueError(f"{where}: {key} must be a whole number from {least}, got {given[key]!r}.")
    for key in _SHARES:
        value = given.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{where}: {key} must be a number, got {value!r}.")
        if math.isnan(value) and key != "accuracy":
            del given[key]  # what metrics give for too few answers
        elif not 0 <= value <= 1:
            raise ValueError(f"{where}: {key} must be a share in [0, 1] and no percentage, got {value}.")
    if ("lower" in given) != ("upper" in given) or given.get("lower", 0) > given.get("upper", 1):
        raise ValueError(f"{where}: lower and upper must be the two ends of an interval.")
    return ResultRow(**given)
