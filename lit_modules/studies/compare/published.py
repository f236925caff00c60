"""Numbers that others have published for TOFU and MUSE, beside those of a comparison of the same model and split."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from lit_modules.studies.tables import Number, number
from lit_modules.utils.errors import UsageError
from lit_modules.utils.suggestions import did_you_mean

METHODS = {
    "Finetuned": "start",
    "Retain": "retain only",
    "GradAscent": "GradientAscent",
    "GradDiff": "GradientDifference",
    "IdkDPO": "DPO",
    "NPO": "NPO",
    "SimNPO": "SimNPO",
    "RMU": "RMU",
}
"""Our name of a published method: the class, or one of the two references."""
METRICS = {
    "forget_quality": ("test/forget_quality", 1.0),
    "model_utility": ("test/model_utility", 1.0),
    "forget_truth_ratio": ("test/forget/truth_ratio", 1.0),
    "forget_knowmem_ROUGE": ("test/forget/knowmem", 100.0),
    "forget_verbmem_ROUGE": ("test/forget/verbmem", 100.0),
    "privleak": ("test/privleak", 1.0),
    "retain_knowmem_ROUGE": ("test/retain/knowmem", 100.0),
}
"""Our name of a published number, and the factor that turns it into our unit."""


@dataclass(frozen=True)
class Published:
    """Published numbers of a model and split.

    Args:
        title: Benchmark, model and split.
        source: Where the numbers stand, and when they were read.
        setting: How they were reached.
        numbers: By our name of the method and of the number, in our unit.
    """

    title: str
    source: str
    setting: str
    numbers: Mapping[str, Mapping[str, float]]


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(
        (files("lit_modules.studies.compare") / "data" / "published.json").read_text(encoding="utf-8")
    )
    return content


def find_published(settings: Mapping[str, Any]) -> Published | None:
    """Return the published numbers of the model and split of a comparison; ``None`` if there are none.

    The model is ``report.published``, a name of the table, or else the one in whose name ``start.model`` holds that of
    the table, such as ``open-unlearning/tofu_Llama-3.2-1B-Instruct_full``. A start that is built from a class has none.

    Raises:
        UsageError: If ``report.published`` is no model of the benchmark's table.
    """
    benchmark = settings["data"]["class_path"].rpartition(".")[2]
    tables = _content()["tables"].get(benchmark, {})
    start = settings["start"]["model"]
    wanted = settings["report"].get("published")
    data = settings["data"].get("init_args") or {}
    if wanted is not None and wanted not in tables:
        raise UsageError(
            f"report.published: there are no published numbers of {wanted!r}{did_you_mean(wanted, tables)}"
        )
    name = start if isinstance(start, str) else ""
    for model, splits in tables.items():
        for split, rows in splits.items():
            if (wanted == model or _names(name, model, split)) and _is_split(benchmark, split, name, data):
                content = _content()
                return Published(
                    f"{benchmark}, {model}, {split}",
                    f"{content['source']}, read {content['read']}",
                    content["setting"],
                    {
                        METHODS[method]: {METRICS[key][0]: METRICS[key][1] * v for key, v in values.items()}
                        for method, values in rows.items()
                    },
                )
    return None


def _names(start: str, model: str, split: str) -> bool:
    """Return whether a start's name is that of the model that a table is of."""
    plain = start.lower().replace("_", "-")
    # the hub writes the Llama of the table as Llama-2-7b-chat-hf
    names = (model, model.replace("-hf-chat", "-chat-hf"), f"MUSE-{split}-target")
    return any(name.lower() in plain for name in names)


def _is_split(benchmark: str, split: str, start: str, data: Mapping[str, Any]) -> bool:
    """Return whether a comparison's data are of a split of a table."""
    if benchmark == "TOFU":
        return bool(data.get("split", "forget10") == split)
    return split.lower() in f"{start} {data.get('root', '')}".lower()


def published_table(
    published: Published, classes: Mapping[str, str], ours: Mapping[str, Mapping[str, Number]]
) -> list[list[str]]:
    """Return a table of ``ours / published``, its header first; ``-`` for what one of both lacks.

    Args:
        published: Published numbers.
        classes: Name of the class of each method of the comparison, by the method's name; a reference by its own.
        ours: Mean and deviation of each number, by the method's name.
    """
    names = list(dict.fromkeys(name for values in published.numbers.values() for name in values))
    rows: list[list[str]] = [["ours / published", *(name.removeprefix("test/") for name in names)]]
    for method, numbers in ours.items():
        theirs = published.numbers.get(classes[method])
        if theirs is not None:
            pairs = ((numbers.get(name, (math.nan, None))[0], theirs.get(name)) for name in names)
            rows.append([method, *(f"{_shown(own)} / {_shown(number(other))}" for own, other in pairs)])
    return rows


def caption(published: Published) -> str:
    """Return the sentence that stands below a table."""
    return f"Published: {published.title}; {published.source}; {published.setting}."


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"
