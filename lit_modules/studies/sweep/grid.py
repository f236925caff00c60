"""Grid of a sweep: its axes, as ``--over`` gives them, and its points."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import yaml

from lit_modules.studies.arguments import file_name, read_value, same_for_parser, write_value
from lit_modules.utils.errors import UsageError
from lit_modules.utils.hashing import stable_hash


@dataclass(frozen=True)
class Axis:
    """Argument of the command line, and the values that it takes."""

    key: str
    values: tuple[Any, ...]

    @property
    def texts(self) -> list[str]:
        """The values as the command line takes them."""
        return [write_value(value) for value in self.values]


@dataclass(frozen=True)
class Point:
    """Point of the grid."""

    name: str
    values: tuple[Any, ...]


def read_axis(text: str) -> Axis:
    """Read ``key=value,value,...``, the values as in a YAML list.

    Raises:
        UsageError: If there is no key, the values are not valid YAML, or two values are equal.

    Example:
        >>> read_axis("data.variant.p=1,2,inf").values
        (1, 2, inf)
        >>> read_axis("model.widths=[8,8],[16,16]").values
        ([8, 8], [16, 16])
    """
    key, equals, listed = text.partition("=")
    key = key.strip().removeprefix("--")
    if not key or not equals:
        raise UsageError(f"--over must be NAME=VALUE,VALUE,..., got {text!r}.")
    try:
        values = read_value(f"[{listed}]")
    except yaml.YAMLError:
        values = []
    if not values:
        raise UsageError(f"--over {key} must have values with commas between, as in a YAML list, got {listed!r}.")
    marks = [same_for_parser(value) for value in values]
    for value, mark in zip(values, marks, strict=True):
        if marks.count(mark) > 1:
            shown = write_value(value)
            raise UsageError(f"--over {key} must have distinct values, got {shown!r} {marks.count(mark)} times.")
    return Axis(key, tuple(values))


def short_names(axes: Sequence[Axis]) -> list[str]:
    """Return the last word of each key, or the whole key where two end alike.

    Example:
        >>> short_names([Axis("data.variant.kernel_size", (1, 2)), Axis("seed_everything", (0,))])
        ['kernel_size', 'seed_everything']
    """
    last = [axis.key.rpartition(".")[2] for axis in axes]
    return [name if last.count(name) == 1 else axis.key for name, axis in zip(last, axes, strict=True)]


def check_axes(axes: Sequence[Axis], arguments: Sequence[str]) -> None:
    """Check that no argument is given twice, and that none is the sweep's own."""
    keys = [_short(axis.key) for axis in axes]
    fixed = {_short(argument.removeprefix("--").partition("=")[0]) for argument in arguments if argument[:2] == "--"}
    for key, axis in zip(keys, axes, strict=True):
        if keys.count(key) > 1:
            raise UsageError(f"{axis.key} must be swept once, got it {keys.count(key)} times.")
        if key in fixed:
            raise UsageError(f"{axis.key} must be swept or given, not both.")
    for key in ("trainer.default_root_dir", "config", "print_config"):
        if key in keys or (key == "trainer.default_root_dir" and key in fixed):
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
        name = ",".join(f"{name}={file_name(value)}" for name, value in zip(names, values, strict=True))
        points.append(Point(name if len(name) <= 200 else f"{name[:180]}-{stable_hash(name)[:8]}", values))
    return points


def _short(key: str) -> str:
    return ".".join(part for part in key.removesuffix("+").split(".") if part != "init_args")
