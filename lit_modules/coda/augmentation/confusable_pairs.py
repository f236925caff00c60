"""Confusable pairs of a model: many-way questions, the confusion table of its answers, a threshold."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from lit_modules.coda.backends.protocols import ChatRequest, user_message
from lit_modules.coda.core.answers import read_answer
from lit_modules.coda.core.concepts import Concept, ConfusablePair, prompt_text
from lit_modules.utils.files import write_whole
from lit_modules.utils.hashing import stable_seed


@dataclass(frozen=True)
class ConfusionQuestion:
    """Question on an image of ``target``, with the options in the order asked."""

    target: str
    options: tuple[str, ...]
    request: ChatRequest


def options_question(options: Sequence[str]) -> str:
    """Return the question which of at least two names an image shows.

    Names are joined by commas with "or" before the last; if one holds a comma, all are quoted.

    Example:
        >>> options_question(["Adder", "Puff Adder", "Viper"])
        'Does this picture show Adder, Puff Adder, or Viper? Answer with exactly one of these options and nothing else.'
    """
    if len(options) < 2:
        raise ValueError(f"A question needs at least two options, got {list(options)}.")
    names = [prompt_text(option) for option in options]
    if any(mark in name for name in names for mark in ",;?"):
        names = [f'"{name}"' for name in names]
    joined = f"{', '.join(names[:-1])}{',' if len(names) > 2 else ''} or {names[-1]}"
    return f"Does this picture show {joined}? Answer with exactly one of these options and nothing else."


def draw_subset(names: Sequence[str], size: int = 15, seed: int = 0, always: str | None = None) -> tuple[str, ...]:
    """Draw the ``size`` options of one many-way question from the known concepts of a super-category.

    ``always`` is a novel concept that is one of them, the last; the others are sorted, and the order of ``names``
    changes nothing.

    Raises:
        ValueError: If there are too few names.

    Example:
        >>> draw_subset(["a", "b", "c"], size=3, always="new")[-1]
        'new'
    """
    known = sorted(set(names) - {always})
    drawn = size - (always is not None)
    if size < 2 or len(known) < drawn:
        raise ValueError(
            f"A question of {size} options needs at least {max(drawn, 2)} known concepts, got {len(known)}; lower "
            "size, which is --confusions.num_options of `lit-modules coda pairs`."
        )
    generator = torch.Generator().manual_seed(stable_seed(seed, known, always, "subset"))
    chosen = sorted(known[index] for index in torch.randperm(len(known), generator=generator)[:drawn].tolist())
    return (*chosen, always) if always is not None else tuple(chosen)


def confusion_questions(
    target: str, images: Sequence[Image], options: Sequence[str], seed: int = 0, max_new_tokens: int = 16
) -> list[ConfusionQuestion]:
    """Return a question for each image of a concept; its options are shuffled for each, and answers are the likeliest.

    The paper asks about 50 images, 35 of a novel species. ``max_new_tokens`` is the longest answer, in tokens.

    Raises:
        ValueError: If the target is not an option, options repeat, or answers could not tell two apart.
    """
    if target not in options or len(set(options)) < len(options):
        raise ValueError(f"The options must differ and hold {target!r}, got {list(options)}.")
    read_answer("", options)  # refuses names that answers could not tell apart
    ordered = sorted(options)
    questions = []
    for number, image in enumerate(images):
        generator = torch.Generator().manual_seed(stable_seed(seed, target, ordered, number, "options"))
        order = [ordered[index] for index in torch.randperm(len(ordered), generator=generator).tolist()]
        request = ChatRequest((user_message(options_question(order), 1),), (image,), max_new_tokens, seed=0)
        questions.append(ConfusionQuestion(target, tuple(order), request))
    return questions


class ConfusionTable:
    """Counts of the answers to images of each concept; answers that name no option have a column of their own.

    A table belongs to a model, and so do the pairs found in it. One table holds the questions of one subset.

    Args:
        names: Names of the concepts.
        model: Name of the model that answered.
        aliases: Other names of concepts, by name.

    Raises:
        ValueError: If names repeat or are too few, or the model has none.

    Example:
        >>> table = ConfusionTable(["Adder", "Viper"], "a model")
        >>> for answer in ("Adder", "Viper.", "viper", "I cannot tell"):
        ...     _ = table.add("Adder", answer)
        >>> table.rate("Adder", "Viper"), table.invalid_rate("Adder")
        (0.5, 0.25)
        >>> [pair.confusable.name for pair in table.pairs({name: Concept(name) for name in table.names})]
        ['Viper']
    """

    def __init__(self, names: Sequence[str], model: str, aliases: Mapping[str, Sequence[str]] | None = None) -> None:
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"names must be at least two different ones, got {list(names)}.")
        if not model:
            raise ValueError("model must name the model that answers, as confusions belong to it; got nothing.")
        self.names, self.model = tuple(names), model
        self.aliases = {name: tuple((aliases or {}).get(name, ())) for name in names}
        self._index = {name: index for index, name in enumerate(self.names)}
        self.counts = [[0] * (len(names) + 1) for _ in names]  # the last column: no option

    def add(self, target: str, answer: str, options: Sequence[str] | None = None) -> str | None:
        """Count an answer, and return the name that was read, or ``None``.

        Args:
            target: Concept shown.
            answer: Text of the answer.
            options: Names that were asked; ``None`` for all.
        """
        asked = tuple(options or self.names)
        for name in (target, *asked):
            if name not in self._index:
                raise ValueError(f"{name!r} is not in the table of {', '.join(self.names)}.")
        number = read_answer(answer, asked, [self.aliases[name] for name in asked])
        read = None if number is None else asked[number]
        self.counts[self._index[target]][-1 if read is None else self._index[read]] += 1
        return read

    def asked(self, target: str) -> int:
        """Return how many images of a concept were asked about."""
        return sum(self.counts[self._index[target]])

    def rate(self, target: str, confusable: str) -> float:
        """Return the share of all images of ``target`` that were answered as ``confusable``; NaN if none was asked."""
        return self._share(target, self._index[confusable])

    def invalid_rate(self, target: str) -> float:
        """Return the share of all images of ``target`` whose answer named no option."""
        return self._share(target, -1)

    def _share(self, target: str, column: int) -> float:
        total = self.asked(target)
        return self.counts[self._index[target]][column] / total if total else float("nan")

    def pairs(
        self, concepts: Mapping[str, Concept], threshold: float = 0.2, top_n: int | None = None
    ) -> list[ConfusablePair]:
        """Return the directed pairs whose rate is over the threshold, a share in [0, 1].

        Of each target, in the table's order, there are at most ``top_n``, the largest rate first; ties in that order.

        Raises:
            ValueError: If a number is out of its range or a concept is missing.
        """
        if not 0 <= threshold <= 1 or (top_n is not None and top_n < 1):
            raise ValueError(f"threshold must be in [0, 1] and top_n at least 1 or None, got {threshold} and {top_n}.")
        missing = [name for name in self.names if name not in concepts]
        if missing:
            raise ValueError(f"concepts must hold all names of the table, got none for {', '.join(missing)}.")
        pairs = []
        for target in self.names:
            rates = [(self.rate(target, other), other) for other in self.names if other != target]
            over = sorted((row for row in rates if row[0] > threshold), key=lambda row: -row[0])
            pairs += [ConfusablePair(concepts[target], concepts[other], rate) for rate, other in over[:top_n]]
        return pairs

    def record(self) -> dict[str, Any]:
        """Return the whole table as plain values."""
        return {
            "model": self.model,
            "names": list(self.names),
            "aliases": {name: list(others) for name, others in self.aliases.items() if others},
            "counts": [list(row) for row in self.counts],
            "columns": "names, then answers that name none",
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "ConfusionTable":
        """Return the table of a record.

        Raises:
            ValueError: If the counts do not fit the names.
        """
        table = cls(record["names"], record["model"], record.get("aliases"))
        counts = [[int(value) for value in row] for row in record["counts"]]
        size = len(table.names)
        if len(counts) != size or any(len(row) != size + 1 or min(row) < 0 for row in counts):
            raise ValueError(f"counts must be {size} rows of {size + 1} numbers, not negative.")
        table.counts = counts
        return table


def merge_pairs(*lists: Sequence[ConfusablePair]) -> list[ConfusablePair]:
    """Return the pairs of several subsets without duplicates; of equal directed pairs the largest rate stays.

    Both directions of a pair may be present: they are different findings.
    """
    merged: dict[tuple[str, str], ConfusablePair] = {}
    for pair in chain(*lists):
        key = (pair.target.name, pair.confusable.name)
        if key not in merged or (pair.error_rate or 0) > (merged[key].error_rate or 0):
            merged[key] = pair
    return list(merged.values())


def save_pairs(
    path: str | Path,
    pairs: Sequence[ConfusablePair],
    tables: Sequence[ConfusionTable],
    threshold: float = 0.2,
    directories: Mapping[str, str] | None = None,
) -> None:
    """Write ``pairs.json``: the pairs, the one model that confuses them, and the whole tables that they were found in.

    ``threshold`` is the one that was used, ``directories`` the folders of concepts by name.

    Raises:
        ValueError: If there is no table, or they are of several models.
    """
    models = sorted({table.model for table in tables})
    if len(models) != 1:
        raise ValueError(f"The pairs of a file belong to one model, got {', '.join(models) or 'no table'}.")
    rows = []
    for pair in pairs:
        row = {"target": pair.target.name, "confusable": pair.confusable.name, "error_rate": pair.error_rate}
        for field, concept in (("target_dir", pair.target), ("confusable_dir", pair.confusable)):
            if directories and concept.name in directories:
                row[field] = directories[concept.name]
        rows.append(row)
    record = {
        "model": models[0],
        "threshold": threshold,
        "pairs": rows,
        "tables": [table.record() for table in tables],
    }
    write_whole(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def load_tables(path: str | Path) -> list[ConfusionTable]:
    """Return the tables of a file that :func:`save_pairs` wrote."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no file {path}; `save_pairs` writes it.") from error
    if not isinstance(record, dict) or "tables" not in record:
        raise ValueError(f"{path} holds no confusion tables; a plain list of pairs has none.")
    return [ConfusionTable.from_record(table) for table in record["tables"]]
