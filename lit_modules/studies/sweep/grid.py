"""What ``--over`` says: the axes of a sweep, and the points of their grid."""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from lit_modules.utils.errors import UsageError
from lit_modules.utils.files import write_whole

SEED = "seed_everything"
"""The axis over which tables give mean and spread."""
_PAIRS = {")": "(", "]": "[", "}": "{"}


@dataclass(frozen=True)
class Axis:
    """An argument of the command line and the values that it takes.

    Args:
        key: Dotted name, such as ``data.variant.kernel_size``.
        values: Its values, as YAML reads them.
    """

    key: str
    values: tuple[Any, ...]

    @property
    def texts(self) -> list[str]:
        """Return the values as the command line takes them."""
        return [write_value(value) for value in self.values]


@dataclass(frozen=True)
class Point:
    """One point of the grid.

    Args:
        name: Name of its folder, such as ``kernel_size=1,seed_everything=0``.
        values: A value for each axis.
    """

    name: str
    values: tuple[Any, ...]


def read_axis(text: str) -> Axis:
    """Read ``key=value,value,...``; each value is YAML, and a comma within brackets or quotes separates nothing.

    Raises:
        UsageError: If there is no key, a value is empty or not valid YAML, or two values are equal.

    Example:
        >>> read_axis("data.variant.p=1,2,inf").values
        (1, 2, inf)
        >>> read_axis("model.widths=[8,8],[16,16]").values
        ([8, 8], [16, 16])
    """
    key, equals, values = text.partition("=")
    key = key.strip().removeprefix("--")
    if not key or not equals:
        raise UsageError(f"--over must be NAME=VALUE,VALUE,..., got {text!r}.")
    parts = split_values(values)
    if not all(parts):
        raise UsageError(f"--over {key} must have a value before and after each comma, got {values!r}.")
    read = []
    for part in parts:
        try:
            read.append(read_value(part))
        except yaml.YAMLError:
            raise UsageError(f"--over {key} must have values that are valid YAML, got {part!r}.") from None
    marks = [_mark(value) for value in read]
    for part, mark in zip(parts, marks, strict=True):
        if marks.count(mark) > 1:
            raise UsageError(f"--over {key} must have distinct values, got {part!r} {marks.count(mark)} times.")
    return Axis(key, tuple(read))


def split_values(text: str) -> list[str]:
    """Split at the commas outside brackets and quotes.

    Raises:
        UsageError: If a bracket or a quote is not closed.
    """
    parts, opened, quote = [""], list[str](), ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and not parts[-1].strip(" [{(,:"):
            quote = character
        elif character in _PAIRS.values():
            opened.append(character)
        elif character in _PAIRS and (not opened or opened.pop() != _PAIRS[character]):
            raise UsageError(f"--over must close the brackets that it opens, got {text!r}.")
        elif character == "," and not opened:
            parts.append("")
            continue
        parts[-1] += character
    if opened or quote:
        raise UsageError(f"--over must close the brackets and quotes that it opens, got {text!r}.")
    return [part.strip() for part in parts]


def read_value(text: str) -> Any:
    """Read a value as YAML, and ``inf``, ``nan`` and ``1e-3`` as the numbers that they are.

    Example:
        >>> [read_value(text) for text in ("3", "-inf", "1e-3", "null", "true", "Smooth", "[1, 2]")]
        [3, -inf, 0.001, None, True, 'Smooth', [1, 2]]
    """
    value = yaml.safe_load(text)
    if isinstance(value, str) and value == text:  # without quotes
        try:
            return float(value)
        except ValueError:
            return value
    return value if value is None or isinstance(value, bool | int | float | str | list | dict) else text


def write_value(value: Any) -> str:
    """Return a value as the command line takes it: YAML in one line, strings as they are.

    Example:
        >>> [write_value(value) for value in (3, float("inf"), None, True, "Smooth", [1, 2])]
        ['3', '.inf', 'null', 'true', 'Smooth', '[1, 2]']
    """
    if isinstance(value, str):
        return value
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def show_value(value: Any) -> str:
    """Return a value as tables and folders show it: a class by its name.

    Example:
        >>> show_value(float("inf")), show_value({"class_path": "lit_modules.datamodules.variants.Smooth"})
        ('inf', 'Smooth')
    """
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value or not math.isfinite(value) else repr(value)
    if isinstance(value, dict) and "class_path" in value:
        arguments = value.get("init_args") or {}
        name = str(value["class_path"]).rpartition(".")[2]
        return f"{name}({', '.join(f'{k}={show_value(v)}' for k, v in arguments.items())})" if arguments else name
    return write_value(value)


def short_names(axes: Sequence[Axis]) -> list[str]:
    """Return the last word of each key, or the whole key where two end alike.

    Example:
        >>> short_names([Axis("data.variant.kernel_size", (1, 2)), Axis("seed_everything", (0,))])
        ['kernel_size', 'seed_everything']
    """
    last = [axis.key.rpartition(".")[2] for axis in axes]
    return [name if last.count(name) == 1 else axis.key for name, axis in zip(last, axes, strict=True)]


def check_axes(axes: Sequence[Axis], arguments: Sequence[str]) -> None:
    """Check that no argument is given twice, and that none is the sweep's own.

    Args:
        axes: Axes of the sweep.
        arguments: Arguments of every point.

    Raises:
        UsageError: If one is.
    """
    keys = [_bare(axis.key) for axis in axes]
    given = {_bare(argument.removeprefix("--").partition("=")[0]) for argument in arguments if argument[:2] == "--"}
    for key, axis in zip(keys, axes, strict=True):
        if keys.count(key) > 1:
            raise UsageError(f"{axis.key} must be swept once, got it {keys.count(key)} times.")
        if key in given:
            raise UsageError(f"{axis.key} must be swept or given, not both.")
    for key in ("trainer.default_root_dir", "config", "print_config"):
        if key in keys or (key == "trainer.default_root_dir" and key in given):
            raise UsageError(f"{key} is not for a sweep: each point has its own folder within --folder.")


def grid(axes: Sequence[Axis]) -> list[Point]:
    """Return every point of the grid, the last axis fastest.

    Example:
        >>> [point.name for point in grid([Axis("data.size", (1, 2)), Axis("seed_everything", (0, 1))])][:2]
        ['size=1,seed_everything=0', 'size=1,seed_everything=1']
    """
    names = short_names(axes)
    points = []
    for values in product(*(axis.values for axis in axes)):
        parts = [f"{name}={file_name(value)}" for name, value in zip(names, values, strict=True)]
        name = ",".join(parts)
        points.append(Point(name if len(name) <= 200 else f"{name[:180]}-{_digest(name)}", values))
    return points


def write_json(path: Path, record: Any) -> None:
    """Write a record in one step, so that a file that is there is complete."""
    write_whole(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _bare(key: str) -> str:
    """Return a key as its short form has it."""
    return ".".join(part for part in key.removesuffix("+").split(".") if part != "init_args")


def _mark(value: Any) -> str:
    """Return what two values share if the command line cannot tell them apart."""
    value = read_value(write_value(value))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return json.dumps(float(value) if number else value, sort_keys=True, default=str)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def file_name(value: Any) -> str:
    """Return a value as part of a folder's name; what was left out is told apart by a digest."""
    text = show_value(value)
    plain = re.sub(r"[^A-Za-z0-9._+-]+", "_", text)[:48].strip("_") or "_"
    exact = plain == text and not isinstance(value, dict | list)
    return plain if exact else f"{plain}-{_digest(write_value(value))}"
