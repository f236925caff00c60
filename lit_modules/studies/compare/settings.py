"""Configuration of a comparison, read and checked, and the runs that it asks for."""

import copy
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lit_modules.cli.lightning_cli import ProjectParser
from lit_modules.cli.recipes import find_recipe
from lit_modules.studies.arguments import file_name, read_value, show_value
from lit_modules.utils.arguments import argument_names
from lit_modules.utils.errors import UsageError
from lit_modules.utils.suggestions import did_you_mean

METHOD = ("name", "class_path", "init_args", "learning_rates", "seeds", "callbacks")
SHARED = ("model", "metric", "max_new_tokens", "accumulate", "optimizer")
"""Arguments of a method that the comparison gives, the same to all."""


@dataclass
class Tokenizer:
    """Tokenizer that is trained on the texts.

    Args:
        vocab_size: Number of tokens.
        files: JSON lines of the data to train on.
        fields: Fields of a line.
    """

    vocab_size: int
    files: list[str]
    fields: list[str]


@dataclass
class Start:
    """Model that all methods unlearn, trained on both sets, and the one of the retain set alone.

    Args:
        model: Class that builds it, whose ``vocab_size`` is that of the tokenizer; or name or folder of a model.
        steps: Optimizer steps.
        batch_size: Rows of a step.
        clip_norm: Largest norm of the gradient.
        optimizer: Class and arguments of the optimizer; AdamW at 1e-3 by default.
        seed: Seed of weights and order.
    """

    model: str | dict[str, Any]
    steps: int
    batch_size: int
    clip_norm: float | None = None
    optimizer: dict[str, Any] | None = None
    seed: int = 0


@dataclass
class Evaluation:
    """Evaluation of all runs.

    Args:
        metric: Class and arguments of the metric; ``{retain_log}`` stands for the log of the model of the retain set.
        max_new_tokens: Longest answer.
        harness: Tasks of lm-eval that each model is asked too, such as ``[wmdp_bio, wmdp_cyber, mmlu]``; their
            accuracies are ``harness/<task>`` in the report.
        harness_limit: Questions of each task; ``None`` asks all.
        stress: Arguments of :class:`~lit_modules.studies.stress.callback.StressTest`, by which each model is attacked
            as well; the numbers after an attack are ``stress/<attack>/<number>``. ``None`` attacks none.
    """

    metric: dict[str, Any]
    max_new_tokens: int = 256
    harness: list[str] = field(default_factory=list)
    harness_limit: int | None = None
    stress: dict[str, Any] | None = None


@dataclass
class Report:
    """Numbers of the report.

    Args:
        forget: Number that is low if the forget set is forgotten.
        retain: Number that is high if the rest is kept.
        columns: Numbers of the table.
        pareto: Panels of the Pareto figure: ``x``, ``y``, and if wanted ``log_x`` and ``label``.
        published: Model of TOFU's or MUSE's published numbers to print beside ours, such as ``Llama-3.2-1B-Instruct``;
            by default the one whose name ``start.model`` holds.
    """

    forget: str
    retain: str
    columns: list[str] | None = None
    pareto: list[dict[str, Any]] | None = None
    published: str | None = None


@dataclass
class Settings:
    """Configuration of a comparison.

    Args:
        data: Class and arguments of the datamodule; ``{data}`` stands for the folder of the texts.
        start: Model to start from.
        methods: Methods, each with ``name`` and ``class_path``, and if wanted ``init_args``, ``callbacks``,
            ``learning_rates`` and ``seeds`` of its own.
        seeds: Seeds of the order of the data.
        learning_rates: Learning rates.
        max_steps: Optimizer steps of each run.
        effective_batch: Rows of each set in a step.
        batch_size: Rows that fit at once.
        optimizer: Class and arguments of the optimizer, without the learning rate.
        evaluation: Metric of all runs.
        report: Numbers of the report.
        tokenizer: Tokenizer to train; ``None`` takes that of the start.
        trainer: Arguments of the trainer.
    """

    data: dict[str, Any]
    start: Start
    methods: list[dict[str, Any]]
    seeds: list[Any]
    learning_rates: list[Any]
    max_steps: int
    effective_batch: int
    batch_size: int
    optimizer: dict[str, Any]
    evaluation: Evaluation
    report: Report
    tokenizer: Tokenizer | None = None
    trainer: dict[str, Any] = field(default_factory=dict)


KEYS = tuple(Settings.__dataclass_fields__)


@dataclass(frozen=True)
class Method:
    """Method of the comparison."""

    name: str
    class_path: str
    init_args: dict[str, Any]
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    callbacks: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Run:
    """Run of a method at a learning rate, with a seed."""

    method: Method
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{file_name(self.method.name)},lr={self.learning_rate:g},seed={self.seed}"


def read_settings(files: Sequence[str], overrides: Sequence[str], keys: Sequence[str] = KEYS) -> dict[str, Any]:
    """Read configuration files, later ones over earlier ones, and the values of the command line over them.

    Mappings merge and a list replaces; ``methods+`` adds to the methods.

    Args:
        files: Files, or names of shipped recipes.
        overrides: Words ``--name value`` and ``--name=value``, the values as YAML. An item of a list is named by its
            ``name``, the ``init_args`` of a class may be left out, and a name that ends with ``+`` adds to a list.
        keys: Keys that a configuration may have.

    Raises:
        UsageError: If a file is missing or no mapping, or a key does not exist.
    """
    settings: dict[str, Any] = {}
    for name in files:
        try:
            content = yaml.safe_load(find_recipe(name).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UsageError(str(error)) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"{name}: not valid YAML: {' '.join(str(error).split())}.") from None
        if not isinstance(content, dict):
            raise UsageError(f"{name}: a configuration must be a mapping with the keys {', '.join(keys)}.")
        settings = _merged(settings, content)
    words = iter(overrides)
    for word in words:
        key, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            raise UsageError(f"There is no place for the argument {word!r}; values are given as --max_steps=20.")
        if not equals:
            value = next(words, None)
            if value is None:
                raise UsageError(f"--{key} needs a value.")
            text = value
        try:
            _put(settings, key, read_value(text), keys=keys)
        except yaml.YAMLError:
            raise UsageError(f"--{key} must be valid YAML, got {text!r}.") from None
    return settings


def check_settings(settings: Mapping[str, Any]) -> list[Method]:
    """Check a configuration as far as no class need be known, and return its methods."""
    parser = ProjectParser(prog="lit-modules compare")
    parser.add_class_arguments(Settings)
    parser.parse_object(copy.deepcopy(dict(settings)))  # which it changes
    for key, value in (("data", settings["data"]), ("optimizer", settings["optimizer"])):
        if "class_path" not in value:
            raise UsageError(f"{key} needs 'class_path'; it has {', '.join(value) or 'nothing'}.")
    if "class_path" not in (settings["start"].get("optimizer") or {"class_path": ""}):
        got = show_value(settings["start"]["optimizer"])
        raise UsageError(f"start.optimizer must be a mapping with a class_path, got {got}.")
    for key in ("max_steps", "effective_batch", "batch_size"):
        if not isinstance(settings[key], int) or settings[key] < 1:
            raise UsageError(f"{key} must be at least 1, got {settings[key]!r}.")
    if settings["effective_batch"] % settings["batch_size"]:
        raise UsageError(
            f"effective_batch must be a multiple of batch_size={settings['batch_size']}, the rows that fit at once, "
            f"got {settings['effective_batch']}."
        )
    if "lr" in (settings["optimizer"].get("init_args") or {}):
        raise UsageError("optimizer has the learning rate 'lr': it belongs into learning_rates, which are compared.")
    check_stress(settings["evaluation"].get("stress"))
    if not settings["methods"]:
        raise UsageError("methods must name at least one method, each with name and class_path; it is empty.")
    methods = [_method(entry, settings) for entry in settings["methods"]]
    names = [file_name(method.name) for method in methods]
    for name, method in zip(names, methods, strict=True):
        if names.count(name) > 1:
            raise UsageError(f"methods must have distinct names, got {method.name!r} {names.count(name)} times.")
    return methods


def check_stress(arguments: Mapping[str, Any] | None) -> None:
    """Check the arguments of the attacks."""
    if arguments is None:
        return
    from lit_modules.studies.stress.callback import StressTest

    known = [name for name in argument_names(StressTest) if name != "filename"]
    for name in arguments:
        if name not in known:
            raise UsageError(f"evaluation.stress has no argument {name!r}{did_you_mean(name, known)}")
    try:
        StressTest(**arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"evaluation.stress: {error}") from None


def chosen_methods(methods: Sequence[Method], only: str | None) -> list[Method]:
    """Return the methods of a list of names with commas, or all."""
    if only is None:
        return list(methods)
    known = [method.name for method in methods]
    chosen = [name.strip() for name in only.split(",")]
    for name in chosen:
        if name not in known:
            raise UsageError(f"There is no method {name!r} for --only{did_you_mean(name, known)}")
    return [method for method in methods if method.name in chosen]


def runs_of(methods: Sequence[Method]) -> dict[str, Run]:
    """Return the runs of the methods by name, those of a method side by side."""
    runs = [Run(method, rate, seed) for method in methods for rate in method.learning_rates for seed in method.seeds]
    return {run.name: run for run in runs}


def filled(value: Any, placeholders: Mapping[str, str]) -> Any:
    """Return a value with the placeholders ``{name}`` in its strings replaced.

    Example:
        >>> filled({"root": "{data}/tofu", "sizes": [1]}, {"data": "/texts"})
        {'root': '/texts/tofu', 'sizes': [1]}
    """
    if isinstance(value, dict):
        return {key: filled(inner, placeholders) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, placeholders) for inner in value]
    if isinstance(value, str):
        for name, text in placeholders.items():
            value = value.replace(f"{{{name}}}", text)
    return value


def data_folder() -> str:
    """Return the folder of the real texts: ``LIT_MODULES_DATA``, else ``../shared/data``."""
    return str(Path(os.environ.get("LIT_MODULES_DATA") or "../shared/data"))


def _method(entry: dict[str, Any], settings: Mapping[str, Any]) -> Method:
    if not isinstance(entry.get("name"), str) or not entry["name"].strip():
        raise UsageError(f"Each of methods must be a mapping with name and class_path, got {show_value(entry)}.")
    name = entry["name"]
    if set(name) & set(".,="):
        raise UsageError(f"The name of a method must have no dot, comma or equals sign, got {name!r}.")
    where = f"The method {name!r}"
    for key in entry:
        if key not in METHOD:
            raise UsageError(f"{where} has no key {key!r}{did_you_mean(str(key), METHOD)}")
    if not isinstance(entry.get("class_path"), str):
        raise UsageError(f"{where} needs a class_path, such as lit_modules.NGDiff.")
    init_args = entry.get("init_args") or {}
    if not isinstance(init_args, dict):
        raise UsageError(f"{where}: init_args must be a mapping, got {show_value(init_args)}.")
    for argument in SHARED:
        if argument in init_args:
            raise UsageError(f"{where} must leave {argument!r} to the comparison, which gives the same to all.")
    rates = entry.get("learning_rates", settings["learning_rates"])
    seeds = entry.get("seeds", settings["seeds"])
    callbacks = entry.get("callbacks") or []
    for key, values in (("learning_rates", rates), ("seeds", seeds), ("callbacks", callbacks)):
        if not isinstance(values, list):
            raise UsageError(f"{where}: {key} must be a list, got {show_value(values)}.")
    _check_numbers(where, "learning_rates", rates)
    _check_numbers(where, "seeds", seeds)
    return Method(
        name,
        entry["class_path"],
        dict(init_args),
        learning_rates=tuple(map(float, rates)),
        seeds=tuple(seeds),
        callbacks=tuple(callbacks),
    )


def _check_numbers(where: str, key: str, values: list[Any]) -> None:
    if not values:
        raise UsageError(f"{where} needs at least one of {key}, got none.")
    whole = key == "seeds"
    words = "whole and not negative" if whole else "positive and finite"
    for value in values:
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not number or not (value >= 0 if whole else 0 < value < math.inf):
            raise UsageError(f"{where}: {key} must be {words}, got {show_value(value)}.")
        if values.count(value) > 1:
            raise UsageError(f"{where}: {key} must be distinct, got {show_value(value)} {values.count(value)} times.")


def _merged(below: Any, above: Any) -> Any:
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    merged = dict(below)
    for key, value in above.items():
        if str(key).endswith("+"):
            merged[str(key)[:-1]] = _longer(merged.get(str(key)[:-1]), value)
        else:
            merged[key] = _merged(merged.get(key), value)
    return merged


def _put(settings: dict[str, Any], key: str, value: Any, keys: Sequence[str]) -> None:
    """Set a dotted name; see :func:`read_settings`."""
    parts = key.removesuffix("+").split(".")
    if parts[0] not in keys:
        raise UsageError(f"There is no argument --{parts[0]}{did_you_mean(parts[0], keys)}")
    node: Any = settings
    for depth, part in enumerate(parts):
        owner = ".".join(parts[:depth])
        if isinstance(node, list):
            items = {entry["name"]: entry for entry in node if isinstance(entry, dict) and "name" in entry}
            if part not in items:
                raise UsageError(f"There is no {part!r} among {owner}{did_you_mean(part, items)}")
            node = items[part]
            continue
        if not isinstance(node, dict):
            raise UsageError(f"{owner} is {show_value(node)}, so it has no argument {part!r}.")
        if "class_path" in node and part not in METHOD:
            node = node.setdefault("init_args", {})
        if depth < len(parts) - 1:
            node = node.setdefault(part, {})
        else:
            node[part] = _longer(node.get(part), value) if key.endswith("+") else value


def _longer(values: list[Any] | None, more: Any) -> list[Any]:
    return [*(values or []), *(more if isinstance(more, list) else [more])]
