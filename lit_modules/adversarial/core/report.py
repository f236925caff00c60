"""Record of a test under attack, its table and its figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_modules.attacks.engine.base import Attack
from lit_modules.metrics.robustness import distance_statistics, median_distance, wilson_interval
from lit_modules.utils.figures import figure_style, new_figure, save_figure


@dataclass(frozen=True)
class Finished:
    """Outcome of one attack on one sample.

    Attributes:
        success: Whether the classifier was fooled.
        distance: Norm of the perturbation.
        num_queries: Forward passes spent.
        seconds: Its share of the wall-clock time of its batch.
    """

    success: bool
    distance: float
    num_queries: int
    seconds: float


@dataclass(frozen=True)
class Example:
    """A sample to draw.

    Attributes:
        index: Place in the split.
        image: ``(channel, height, width)`` in [0, 1].
        adversarial: What the attack made of it.
        label: True class.
        before: Answer to the image.
        after: Answer to the adversarial one.
        success: Whether the attack counts as a success.
        attack: Name of the attack.
    """

    index: int
    image: Tensor
    adversarial: Tensor
    label: int
    before: int
    after: int
    success: bool
    attack: str


def summarise(
    clean: Mapping[int, tuple[str, bool]],
    done: Mapping[str, Mapping[str, Finished]],
    attacks: Mapping[str, Attack],
    weights: str = "",
    flags: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Return the record of a test, ready for JSON.

    A sample that is misclassified without an attack counts as not robust. The worst case counts a sample as robust if
    no attack fools it; attacks for the smallest perturbation, which have no radius, are listed but left out of it.

    Args:
        clean: By index, the sample's name and whether it is classified correctly.
        done: By attack and name, what became of the samples that are.
        attacks: Attacks by name.
        weights: Hash of the classifier.
        flags: By attack, sentences that cast doubt on its outcome.

    Returns:
        ``weights``, ``samples``, ``clean`` (``accuracy``, ``interval``), ``attacks`` (by name: ``attack``, ``norm``,
        ``eps``, ``robust_accuracy``, its Wilson ``interval`` of 95 per cent, ``attacked``, ``successes``,
        ``success_rate``, ``distance`` over the successes with ``min``, ``median``, ``mean``, ``max`` (the median of an
        attack for the smallest perturbation is over all that were attacked, a failure being ``"inf"``),
        ``num_queries`` with ``total`` and ``mean`` per attacked sample, ``seconds``, ``flags``) and ``worst_case``
        (``robust_accuracy``, ``interval``, ``attacks``), ``None`` where there is nothing to tell.

    Raises:
        ValueError: If there are no samples.
    """
    if not clean:
        raise ValueError("The test saw no samples; check the test loader and limit_test_batches.")
    right = [name for name, correct in clean.values() if correct]
    survivors, counted = set(right), []
    rows: dict[str, Any] = {}
    for title, attack in attacks.items():
        outcomes = [done[title][name] for name in right]
        fooled = {name for name in right if done[title][name].success}
        if not attack.minimum_norm:
            counted.append(title)
            survivors -= fooled
        chosen = torch.tensor([finished.success for finished in outcomes], dtype=torch.bool)
        distance = torch.tensor([finished.distance for finished in outcomes], dtype=torch.float64)
        sizes = distance_statistics(distance, chosen)
        if attack.minimum_norm:
            sizes["median"] = median_distance(distance, chosen)
        passes = sum(finished.num_queries for finished in outcomes)
        rows[title] = {
            "attack": repr(attack),
            "norm": attack.norm,
            "eps": None if attack.eps is None or attack.minimum_norm else float(attack.eps),
            **_share("robust_accuracy", len(right) - len(fooled), len(clean)),
            "attacked": len(outcomes),
            "successes": len(fooled),
            "success_rate": len(fooled) / len(outcomes) if outcomes else None,
            "distance": {key: _jsonable(sizes[key]) for key in ("min", "median", "mean", "max")},
            "num_queries": {"total": passes, "mean": passes / len(outcomes) if outcomes else None},
            "seconds": round(sum(finished.seconds for finished in outcomes), 3),
            "flags": list((flags or {}).get(title, ())),
        }
    worst = {**_share("robust_accuracy", len(survivors), len(clean)), "attacks": counted} if counted else None
    return {
        "weights": weights,
        "samples": len(clean),
        "clean": _share("accuracy", len(right), len(clean)),
        "attacks": rows,
        "worst_case": worst,
    }


def table_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Return a record as the rows of a table, the first of them its titles."""
    titles = ["", "norm", "eps", "accuracy", "95 % interval", "successes"]
    titles += ["min", "median", "mean", "max", "queries", "s"]
    rows = [titles, ["clean", "", "", *_accuracy(record["clean"], "accuracy"), *[""] * 7]]
    for name, numbers in record["attacks"].items():
        sizes = [_short(numbers["distance"][key]) for key in ("min", "median", "mean", "max")]
        cost = [_short(numbers["num_queries"]["mean"]), f"{numbers['seconds']:.1f}"]
        hit = f"{numbers['successes']}/{numbers['attacked']}"
        accuracy = _accuracy(numbers, "robust_accuracy")
        rows.append([name, numbers["norm"] or "", _short(numbers["eps"]), *accuracy, hit, *sizes, *cost])
    if record["worst_case"] is not None:
        rows.append(["worst case", "", "", *_accuracy(record["worst_case"], "robust_accuracy"), *[""] * 7])
    return rows


def markdown(record: Mapping[str, Any]) -> str:
    """Return a record as a Markdown table, with the doubts of the attacks below it."""
    titles, *rows = table_rows(record)
    lines = ["| " + " | ".join(row) + " |" for row in (titles, ["---"] * len(titles), *rows)]
    lines += [
        "",
        f"{record['samples']} samples; successes are of those attacked; min to max are norms of the successful",
        "perturbations (where the smallest is looked for, without eps, the median is of all attacked, failures inf);",
        "queries are forward passes per attacked sample, s is seconds.",
    ]
    doubts = [f"- {name}: {flag}" for name, numbers in record["attacks"].items() for flag in numbers["flags"]]
    return "\n".join([*lines, *(["", *doubts] if doubts else [])]) + "\n"


@figure_style()
def plot_examples(examples: Sequence[Example], path: str | Path) -> None:
    """Draw samples, their adversarial ones and the perturbations, with the answers."""
    count = max(len(examples), 1)
    figure = new_figure(1.7 * count + 0.6, 6)
    axes = figure.subplots(3, count, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    for number, example in enumerate(examples):
        delta = example.adversarial - example.image
        largest = float(delta.abs().max())
        scaled = delta / (2 * largest) + 0.5 if largest > 0 else torch.full_like(delta, 0.5)
        verdict = f"answer {example.after}" if example.success else f"answer {example.after}, held"
        for row, (image, text) in enumerate(
            (
                (example.image, f"answer {example.before}"),
                (example.adversarial, verdict),
                (scaled, f"{example.attack}\nlargest {largest:.3g}"),
            )
        ):
            axes[row, number].imshow(_picture(image), cmap="gray", vmin=0, vmax=1)
            axes[row, number].set_title(text, fontsize=8)
    if not examples:
        axes[1, 0].set_title("no sample was attacked", fontsize=8)
    for row, text in enumerate(("image", "adversarial", "perturbation")):
        axes[row, 0].set_ylabel(text)
    save_figure(figure, path)


def _picture(image: Tensor) -> Any:
    """Return gray ``(height, width)`` or colour ``(height, width, 3)`` in [0, 1]."""
    channels = image.reshape(-1, *image.shape[-2:]) if image.ndim > 1 else image.reshape(1, 1, -1)
    channels = channels.clamp(0, 1)
    return channels.permute(1, 2, 0).numpy() if len(channels) == 3 else channels[0].numpy()


def _share(name: str, count: int, total: int) -> dict[str, Any]:
    return {name: count / total, "interval": list(wilson_interval(count, total))}


def _accuracy(numbers: Mapping[str, Any], name: str) -> list[str]:
    lower, upper = numbers["interval"]
    return [f"{100 * numbers[name]:.2f} %", f"{100 * lower:.2f} to {100 * upper:.2f}"]


def _jsonable(value: float) -> float | str | None:
    """Return a number, ``inf`` as a text, which JSON has no number for, or ``None`` where there is nothing."""
    return None if math.isnan(value) else value if math.isfinite(value) else "inf"


def _short(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.4g}"
