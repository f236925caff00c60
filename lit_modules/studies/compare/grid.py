"""What a comparison is: its configuration, read and checked, and the runs that it asks for."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_modules.cli.recipes import find_recipe
from lit_modules.studies.sweep.grid import file_name, read_value, show_value
from lit_modules.utils.errors import UsageError
from lit_modules.utils.suggestions import did_you_mean

KEYS: dict[str, type | tuple[type, ...]] = {
    "data": dict,
    "tokenizer": dict,
    "start": dict,
    "methods": list,
    "seeds": list,
    "learning_rates": list,
    "max_steps": int,
    "effective_batch": int,
    "batch_size": int,
    "optimizer": dict,
    "evaluation": dict,
    "report": dict,
    "trainer": dict,
}
"""What a configuration must have, and of which type."""
PARTS = {
    "tokenizer": ("vocab_size", "files", "fields"),
    "start": ("model", "steps", "batch_size", "clip_norm", "optimizer", "seed"),
    "evaluation": ("metric", "max_new_tokens"),
    "report": ("forget", "retain", "columns", "pareto"),
}
METHOD = ("name", "class_path", "init_args", "learning_rates", "seeds", "callbacks")
OURS = ("model", "metric", "max_new_tokens", "accumulate", "optimizer")
"""Arguments of a method that the comparison gives, the same to all."""


@dataclass(frozen=True)
class Method:
    """A method of the comparison.

    Args:
        name: Its name in tables and figures.
        class_path: Its class.
        init_args: Arguments of the class.
        learning_rates: Its learning rates.
        seeds: Seeds of the order of its data.
        callbacks: Callbacks of its trainer alone.
    """

    name: str
    class_path: str
    init_args: dict[str, Any]
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    callbacks: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Run:
    """One run: a method at a learning rate, with a seed.

    Args:
        method: The method.
        learning_rate: Learning rate, or the initial one.
        seed: Seed of the order of the data.
    """

    method: Method
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{file_name(self.method.name)},lr={self.learning_rate:g},seed={self.seed}"


def read_settings(files: Sequence[str], overrides: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Read configuration files, later ones over earlier ones, and what the command line sets in them.

    Mappings merge and a list replaces; ``methods+`` adds to the methods.

    Args:
        files: Files, or names of shipped recipes.
        overrides: Dotted names and values, as YAML. An item of a list is named by its ``name``, the ``init_args`` of
            a class may be left out, and a name that ends with ``+`` adds to a list.

    Raises:
        UsageError: If a file is missing or no mapping, or a key does not exist.
    """
    settings: dict[str, Any] = {}
    for name in files:
        try:
            path = find_recipe(name)
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UsageError(str(error)) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"{name}: not valid YAML: {' '.join(str(error).split())}.") from None
        if not isinstance(content, dict):
            raise UsageError(f"{name}: a comparison must be a mapping with the keys {', '.join(KEYS)}.")
        settings = _merged(settings, content)
    for key, text in overrides:
        try:
            value = read_value(text)
        except yaml.YAMLError:
            raise UsageError(f"--{key} must be valid YAML, got {text!r}.") from None
        _put(settings, key, value)
    return settings


def check_settings(settings: Mapping[str, Any]) -> list[Method]:
    """Check a configuration as far as no class need be known, and return its methods.

    Raises:
        UsageError: If a key is missing or unknown, a number out of its range, or a name given twice.
    """
    _only("A comparison", settings, KEYS)
    for key, wanted in KEYS.items():
        if key not in settings and key in ("tokenizer", "trainer"):
            continue
        if key not in settings:
            raise UsageError(f"A comparison needs {key!r}; it has {', '.join(settings) or 'nothing'}.")
        if not isinstance(settings[key], wanted) or isinstance(settings[key], bool):
            name = wanted.__name__ if isinstance(wanted, type) else str(wanted)
            words = {"dict": "a mapping", "list": "a list", "int": "a whole number"}
            raise UsageError(f"{key} must be {words[name]}, got {show_value(settings[key])}.")
    for key, known in PARTS.items():
        if key in settings:
            _only(key, settings[key], known)
    for key, needed in (
        ("data", ("class_path",)),
        ("start", ("model", "steps", "batch_size")),
        ("optimizer", ("class_path",)),
        ("evaluation", ("metric",)),
        ("report", ("forget", "retain")),
    ):
        for name in needed:
            if name not in settings[key]:
                raise UsageError(f"{key} needs {name!r}; it has {', '.join(settings[key]) or 'nothing'}.")
    own = settings["start"].get("optimizer")
    if own is not None and (not isinstance(own, dict) or "class_path" not in own):
        raise UsageError(f"start.optimizer must be a mapping with a class_path, got {show_value(own)}.")
    for key in ("max_steps", "effective_batch", "batch_size"):
        if settings[key] < 1:
            raise UsageError(f"{key} must be at least 1, got {settings[key]}.")
    if settings["effective_batch"] % settings["batch_size"]:
        raise UsageError(
            f"effective_batch must be a multiple of batch_size={settings['batch_size']}, the rows that fit at once, "
            f"got {settings['effective_batch']}."
        )
    if "lr" in (settings["optimizer"].get("init_args") or {}):
        raise UsageError("optimizer has the learning rate 'lr': it belongs into learning_rates, which are compared.")
    if not settings["methods"]:
        raise UsageError("methods must name at least one method, each with name and class_path; it is empty.")
    methods = [_method(entry, settings) for entry in settings["methods"]]
    names = [file_name(method.name) for method in methods]
    for name, method in zip(names, methods, strict=True):
        if names.count(name) > 1:
            raise UsageError(f"methods must have distinct names, got {method.name!r} {names.count(name)} times.")
    return methods


def runs_of(methods: Sequence[Method]) -> list[Run]:
    """Return the runs of the methods, those of a method side by side."""
    return [Run(method, rate, seed) for method in methods for rate in method.learning_rates for seed in method.seeds]


def chosen_methods(methods: Sequence[Method], only: str | None) -> list[Method]:
    """Return the methods that a list of names with commas chooses.

    Raises:
        UsageError: If there is no such method.
    """
    if only is None:
        return list(methods)
    known = [method.name for method in methods]
    wanted = [name.strip() for name in only.split(",")]
    for name in wanted:
        if name not in known:
            raise UsageError(f"There is no method {name!r} for --only{did_you_mean(name, known)}")
    return [method for method in methods if method.name in wanted]


def first_difference(there: Any, given: Any, key: str = "") -> str | None:
    """Return in which value two settings differ, or ``None``.

    Example:
        >>> first_difference({"a": {"b": 1}}, {"a": {"b": 2}})
        'a.b=1, got a.b=2'
    """
    if isinstance(there, dict) and isinstance(given, dict):
        for name in dict.fromkeys([*there, *given]):
            inner = f"{key}.{name}" if key else str(name)
            if name not in given or name not in there:
                other = f"{inner}={show_value(there.get(name, given.get(name)))}"
                return f"{other}, got none" if name not in given else f"no {inner}, got {other}"
            found = first_difference(there[name], given[name], inner)
            if found:
                return found
        return None
    return None if there == given else f"{key}={show_value(there)}, got {key}={show_value(given)}"


def filled(value: Any, places: Mapping[str, str]) -> Any:
    """Return a value with ``{name}`` in its strings replaced.

    Example:
        >>> filled({"root": "{data}/tofu", "sizes": [1]}, {"data": "/texts"})
        {'root': '/texts/tofu', 'sizes': [1]}
    """
    if isinstance(value, dict):
        return {key: filled(inner, places) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, places) for inner in value]
    if isinstance(value, str):
        for name, text in places.items():
            value = value.replace(f"{{{name}}}", text)
    return value


def _method(entry: Any, settings: Mapping[str, Any]) -> Method:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"].strip():
        raise UsageError(f"Each of methods must be a mapping with name and class_path, got {show_value(entry)}.")
    name = entry["name"]
    if set(name) & set(".,="):
        raise UsageError(f"The name of a method must have no dot, comma or equals sign, got {name!r}.")
    where = f"The method {name!r}"
    _only(where, entry, METHOD)
    if not isinstance(entry.get("class_path"), str):
        raise UsageError(f"{where} needs a class_path, such as lit_modules.NGDiff.")
    init_args = entry.get("init_args") or {}
    if not isinstance(init_args, dict):
        raise UsageError(f"{where}: init_args must be a mapping, got {show_value(init_args)}.")
    for argument in OURS:
        if argument in init_args:
            raise UsageError(f"{where} must leave {argument!r} to the comparison, which gives the same to all.")
    rates = entry.get("learning_rates", settings["learning_rates"])
    seeds = entry.get("seeds", settings["seeds"])
    callbacks = entry.get("callbacks") or []
    for key, values in (("learning_rates", rates), ("seeds", seeds), ("callbacks", callbacks)):
        if not isinstance(values, list):
            raise UsageError(f"{where}: {key} must be a list, got {show_value(values)}.")
    _numbers(where, "learning_rates", rates, lambda rate: 0 < rate < math.inf, "positive and finite")
    _numbers(where, "seeds", seeds, lambda seed: isinstance(seed, int) and seed >= 0, "whole and not negative")
    return Method(name, entry["class_path"], dict(init_args), tuple(map(float, rates)), tuple(seeds), tuple(callbacks))


def _numbers(where: str, key: str, values: list[Any], allowed: Any, words: str) -> None:
    if not values:
        raise UsageError(f"{where} needs at least one of {key}, got none.")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not allowed(value):
            raise UsageError(f"{where}: {key} must be {words}, got {show_value(value)}.")
        if values.count(value) > 1:
            raise UsageError(f"{where}: {key} must be distinct, got {show_value(value)} {values.count(value)} times.")


def _only(where: str, given: Any, known: Any) -> None:
    if not isinstance(given, dict):
        raise UsageError(f"{where} must be a mapping, got {show_value(given)}.")
    for key in given:
        if key not in known:
            raise UsageError(f"{where} has no key {key!r}{did_you_mean(str(key), known)}")


def _merged(below: Any, above: Any) -> Any:
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    merged = dict(below)
    for key, value in above.items():
        if str(key).endswith("+"):
            bare = str(key)[:-1]
            merged[bare] = [*(merged.get(bare) or []), *(value if isinstance(value, list) else [value])]
        else:
            merged[key] = _merged(merged.get(key), value)
    return merged


def _put(settings: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted name; see :func:`read_settings`."""
    bare, adds = key.removesuffix("+"), key.endswith("+")
    parts = bare.split(".")
    if parts[0] not in KEYS:
        raise UsageError(f"There is no argument --{parts[0]}{did_you_mean(parts[0], KEYS)}")
    node: Any = settings
    for depth, part in enumerate(parts):
        owner = ".".join(parts[:depth])
        if isinstance(node, list):
            names = {entry["name"]: entry for entry in node if isinstance(entry, dict) and "name" in entry}
            if part not in names:
                raise UsageError(f"There is no {part!r} among {owner}{did_you_mean(part, names)}")
            node = names[part]
            continue
        if not isinstance(node, dict):
            raise UsageError(f"{owner} is {show_value(node)}, so it has no argument {part!r}.")
        if "class_path" in node and part not in METHOD:
            node = node.setdefault("init_args", {})
        if depth < len(parts) - 1:
            node = node.setdefault(part, {})
        elif adds:
            node[part] = [*(node.get(part) or []), *(value if isinstance(value, list) else [value])]
        else:
            node[part] = value


def data_folder() -> str:
    """Return the folder of the real texts: ``LIT_MODULES_DATA``, else ``../shared/data``."""
    return str(Path(os.environ.get("LIT_MODULES_DATA") or "../shared/data"))
