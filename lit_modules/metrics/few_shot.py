"""Accuracy of questions with few options: per pair, per super-category, with rates, intervals and seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lit_modules.metrics.rows import RowMetric

__all__ = ["NWayAccuracy", "PairAccuracy", "retention_change", "seed_statistics"]


def seed_statistics(results: Sequence[Mapping[str, float | Tensor]]) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation of each number over runs with different seeds.

    Args:
        results: One mapping of numbers for each seed, all with the same names.

    Returns:
        For each name ``mean``, ``std`` (of the sample, NaN for one seed) and ``seeds``.

    Example:
        >>> seed_statistics([{"acc_macro": 0.7}, {"acc_macro": 0.8}])["acc_macro"]["mean"]
        0.75
    """
    if not results:
        raise ValueError("There must be the results of at least one seed.")
    for result in results:
        differing = sorted(set(result) ^ set(results[0]))
        if differing:
            raise ValueError(f"All seeds must have the same numbers; {', '.join(differing)} are not in all.")
    statistics = {}
    for name in results[0]:
        values = torch.tensor([float(result[name]) for result in results], dtype=torch.float64)
        std = float(values.std(correction=1)) if len(values) > 1 else math.nan
        statistics[name] = {"mean": float(values.mean()), "std": std, "seeds": float(len(values))}
    return statistics


def retention_change(before: Mapping[str, float | Tensor], after: Mapping[str, float | Tensor]) -> dict[str, float]:
    """Return the cost of an update on known pairs that were not trained: numbers after it less those before.

    The numbers are those of :class:`PairAccuracy`, with the same names.

    Example:
        >>> retention_change({"acc_macro": 0.75}, {"acc_macro": 0.5})
        {'acc_macro': -0.25}
    """
    if set(before) != set(after):
        raise ValueError(
            f"Both must have the same numbers; {', '.join(sorted(set(before) ^ set(after)))} are not in both."
        )
    return {name: float(after[name]) - float(before[name]) for name in before}


Column = tuple[str, Tensor, int, int | None]
"""Name, whole numbers, least and greatest of them."""


class _Answers(RowMetric):
    """Metric that keeps a row for each answer; one that a sampler repeated to fill its last batch counts once."""

    def __init__(self, columns: int, supercategories: Sequence[int] | None, names: Sequence[str], groups: str) -> None:
        super().__init__({"rows": (torch.int64, columns)})
        if len(set(names)) < len(names):
            raise ValueError(f"supercategory_names must differ, got {', '.join(names)}.")
        if supercategories is not None and not all(0 <= number < len(names) for number in supercategories):
            raise ValueError(
                f"supercategories must be numbers from 0 to {len(names) - 1}, one for each of the {groups}, got "
                f"{list(supercategories)}."
            )
        if supercategories is None and names:
            raise ValueError(f"supercategory_names need supercategories, one for each of the {groups}.")
        self.supercategories = None if supercategories is None else tuple(supercategories)
        self.supercategory_names = tuple(names)
        self._groups = groups

    def _add(self, columns: Sequence[Column]) -> None:
        """Add a row for each answer from columns: their names, numbers, and least and greatest ones."""
        shape = columns[0][1].shape
        for name, column, least, greatest in columns:
            if column.ndim != 1 or column.shape != shape:
                raise ValueError(f"{name} must be of shape {tuple(shape)}, got {tuple(column.shape)}.")
            if column.is_floating_point():
                raise ValueError(f"{name} must be whole numbers, got {column.dtype}.")
            if bool((column < least).any()) or (greatest is not None and bool((column > greatest).any())):
                most = "" if greatest is None else f" and at most {greatest}"
                raise ValueError(f"{name} must be at least {least}{most}, got {column.tolist()}.")
        group = columns[0][1]
        if self.supercategories is not None and bool((group >= len(self.supercategories)).any()):
            known = len(self.supercategories)
            raise ValueError(f"There are supercategories of {known} {self._groups}, got number {int(group.max())}.")
        self.append("rows", torch.stack([column.to(self.device, torch.int64) for _, column, _, _ in columns], 1))

    def _table(self, key: Sequence[int]) -> Tensor:
        """Return all rows on the CPU; of those with one key, the index of an image among them, only the first."""
        rows = self.all_rows("rows").cpu()
        seen: dict[tuple[int, ...], list[int]] = {}
        for number, row in enumerate(rows.tolist()):
            # without an index each row counts
            name = tuple(row[column] for column in key) if row[3] >= 0 else (-1, number)
            seen.setdefault(name, row)
        return rows.new_tensor(list(seen.values())).reshape(-1, rows.shape[1])

    def _by_supercategory(self, values: Mapping[int, float]) -> dict[str, float]:
        """Return the mean of the groups' values for each super-category; NaN where there is none."""
        of = self.supercategories or ()
        return {
            f"acc_supercategory/{name}": _mean([value for group, value in values.items() if of[group] == number])
            for number, name in enumerate(self.supercategory_names)
        }


class PairAccuracy(_Answers):
    """Accuracy of two-way questions, in the form of CoDA's tables.

    Of each pair the accuracy is the mean of the target's and the confusable's recall, which weigh alike however many
    images each has. ``acc_macro`` is the mean over pairs, ``acc_micro`` over answers. ``acc_target`` and
    ``acc_confusable`` are the recalls' means over pairs; the second one falls when the known concept is forgotten.
    ``invalid`` is the share of answers that name neither option, which count as wrong. ``position_bias`` is the share
    of valid answers that name the option asked first: 0.5 has no bias. With super-categories there is ``acc_macro`` of
    each too. A pair of which only one class came has no accuracy, and ``acc_macro`` is NaN.

    The interval is a bootstrap over images within each class of each pair; all answers on an image, such as those to
    both orders of the options, stay together.

    Args:
        supercategories: Number of each pair's super-category, by the pair's number; ``None`` for none.
        supercategory_names: Names of super-categories.
        resamples: Bootstrap resamples; 0 leaves the interval out.
        confidence: Share of resamples in the interval, in (0, 1).
        seed: Seed of the resamples.

    Example:
        >>> accuracy = PairAccuracy(resamples=0)
        >>> zero = torch.zeros(4, dtype=torch.int64)
        >>> accuracy.update(zero, label=torch.tensor([0, 0, 0, 1]), prediction=torch.tensor([0, 1, -1, 1]), first=zero)
        >>> {name: round(float(value), 3) for name, value in accuracy.compute().items()}
        {'acc_macro': 0.667, 'acc_micro': 0.5, 'acc_target': 0.333, 'acc_confusable': 1.0, 'invalid': 0.25, \
'position_bias': 0.333}

    References:
        Zhou et al., "Contrastive Visual Data Augmentation", ICML 2025, arXiv 2502.17709; the paper names one accuracy
        and the released code one matrix for each pair, so their joining is defined here.
    """

    def __init__(
        self,
        supercategories: Sequence[int] | None = None,
        supercategory_names: Sequence[str] = (),
        resamples: int = 1000,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> None:
        super().__init__(5, supercategories, supercategory_names, "pairs")
        if resamples < 0 or not 0 < confidence < 1:
            raise ValueError(
                f"resamples must not be negative and confidence in (0, 1), got {resamples} and {confidence}."
            )
        self.resamples, self.confidence, self.seed = resamples, confidence, seed

    def update(
        self, pair: Tensor, label: Tensor, prediction: Tensor, first: Tensor, index: Tensor | None = None
    ) -> None:
        """Add answers.

        Args:
            pair: Number of the pair, from 0, ``(n,)``.
            label: 0 for an image of the target and 1 for one of the confusable, ``(n,)``.
            prediction: 0 or 1 for the concept answered, -1 for an answer that names none, ``(n,)``.
            first: 0 or 1 for the concept that stood first in the question, ``(n,)``.
            index: Number of the image in its data, from 0, ``(n,)``; it joins the answers on one image, and an answer
                that a distributed sampler repeats counts once, the first. ``None`` takes each answer for an image
                of its own.
        """
        columns = [("pair", pair, 0, None), ("label", label, 0, 1), ("prediction", prediction, -1, 1)]
        self._add([*columns, _index_column(index, pair), ("first", first, 0, 1)])

    def compute(self) -> dict[str, Tensor]:
        """Return the numbers by name, float64 scalars in [0, 1]; NaN where nothing counts."""
        rows = self._table((0, 1, 3, 4))
        pair, label, prediction, _, first = rows.unbind(1)
        right = (prediction == label).double()
        valid = prediction >= 0
        recalls = _recalls(pair, label, right)
        known = sorted(set(pair.tolist()))
        pairs = {number: _mean([recalls.get((number, side), math.nan) for side in (0, 1)]) for number in known}
        numbers = {
            "acc_macro": _mean(list(pairs.values())),
            "acc_micro": _mean(right.tolist()),
            "acc_target": _mean([value for (_, side), value in recalls.items() if side == 0]),
            "acc_confusable": _mean([value for (_, side), value in recalls.items() if side == 1]),
            "invalid": _mean((~valid).double().tolist()),
            "position_bias": _mean((prediction == first)[valid].double().tolist()),
            **self._by_supercategory(pairs),
        }
        if self.resamples:
            numbers |= self._interval(rows, right)
        return self.scalars(numbers)

    def pair_table(self) -> dict[int, Tensor]:
        """Return for each pair the shares of answers: rows target and confusable, columns these and invalid.

        Rows sum to 1, as answers that name no option have a column; a class without images has a row of NaN.
        """
        rows = self._table((0, 1, 3, 4))
        counts: dict[int, Tensor] = {}
        for pair, label, prediction, _, _ in sorted(rows.tolist()):
            counts.setdefault(pair, torch.zeros(2, 3, dtype=torch.float64))[label, prediction] += 1  # -1: last column
        return {pair: table / table.sum(1, keepdim=True) for pair, table in counts.items()}

    def _interval(self, rows: Tensor, right: Tensor) -> dict[str, float]:
        """Return the ends of the interval of ``acc_macro``."""
        names = ("acc_macro_lower", "acc_macro_upper")
        generator = torch.Generator().manual_seed(self.seed)
        sides: dict[tuple[int, int], dict[int, list[float]]] = {}
        for number, (pair, label, _, index, _) in enumerate(rows.tolist()):
            images = sides.setdefault((pair, label), {})
            images.setdefault(index if index >= 0 else -1 - number, []).append(float(right[number]))
        if not sides or len(sides) < 2 * len({pair for pair, _ in sides}):
            return dict.fromkeys(names, math.nan)
        total = torch.zeros(self.resamples, dtype=torch.float64)
        for key in sorted(sides):
            answers = [sides[key][image] for image in sorted(sides[key])]
            sums = torch.tensor([sum(image) for image in answers], dtype=torch.float64)
            counts = torch.tensor([len(image) for image in answers], dtype=torch.float64)
            drawn = torch.randint(len(answers), (self.resamples, len(answers)), generator=generator)
            total += sums[drawn].sum(1) / counts[drawn].sum(1)
        ends = torch.tensor([(1 - self.confidence) / 2, (1 + self.confidence) / 2], dtype=torch.float64)
        return dict(zip(names, (total / len(sides)).quantile(ends).tolist(), strict=True))


class NWayAccuracy(_Answers):
    """Accuracy of questions with all concepts of a super-category as options.

    Two-way accuracy can rise by learning to answer the new name; this one cannot. ``acc_macro`` is the mean of the
    concepts' recalls, ``acc_micro`` the mean over answers, ``invalid`` the share of answers that name no option, which
    count as wrong.

    Args:
        supercategories: Number of each concept's super-category, by the concept's number; ``None`` for none.
        supercategory_names: Names of super-categories.

    Example:
        >>> accuracy = NWayAccuracy()
        >>> accuracy.update(label=torch.tensor([0, 0, 2]), prediction=torch.tensor([0, -1, 2]))
        >>> {name: round(float(value), 3) for name, value in accuracy.compute().items()}
        {'acc_macro': 0.75, 'acc_micro': 0.667, 'invalid': 0.333}
    """

    def __init__(self, supercategories: Sequence[int] | None = None, supercategory_names: Sequence[str] = ()) -> None:
        super().__init__(4, supercategories, supercategory_names, "concepts")

    def update(self, label: Tensor, prediction: Tensor, index: Tensor | None = None) -> None:
        """Add answers.

        Args:
            label: Number of the concept shown, from 0, ``(n,)``.
            prediction: Number of the concept answered, -1 for an answer that names none, ``(n,)``.
            index: Number of the image in its data, from 0, ``(n,)``; an image that is repeated counts once.
        """
        columns = [("label", label, 0, None), ("label", label, 0, None), ("prediction", prediction, -1, None)]
        self._add([*columns, _index_column(index, label)])

    def compute(self) -> dict[str, Tensor]:
        """Return the numbers by name, float64 scalars in [0, 1]; NaN where nothing counts."""
        rows = self._table((1, 3))
        label, prediction = rows[:, 1], rows[:, 2]
        right = (prediction == label).double()
        recalls = {number: value for (number, _), value in _recalls(label, label * 0, right).items()}
        numbers = {
            "acc_macro": _mean(list(recalls.values())),
            "acc_micro": _mean(right.tolist()),
            "invalid": _mean((prediction < 0).double().tolist()),
            **self._by_supercategory(recalls),
        }
        return self.scalars(numbers)


def _index_column(index: Tensor | None, like: Tensor) -> Column:
    return ("index", torch.full_like(like, -1), -1, None) if index is None else ("index", index, 0, None)


def _recalls(group: Tensor, side: Tensor, right: Tensor) -> dict[tuple[int, int], float]:
    sums: dict[tuple[int, int], list[float]] = {}
    for one, two, value in zip(group.tolist(), side.tolist(), right.tolist(), strict=True):
        sums.setdefault((one, two), []).append(value)
    return {key: _mean(values) for key, values in sorted(sums.items())}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
