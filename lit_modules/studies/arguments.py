"""Arguments of the runs of a study: values as the command line writes them, checked by the parser of ``fit``."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from lit_modules.cli.lightning_cli import ProjectCLI
from lit_modules.cli.public import know_public
from lit_modules.utils.errors import UsageError
from lit_modules.utils.hashing import stable_hash
from lit_modules.utils.suggestions import did_you_mean

FOLDER = "{folder}"
"""Placeholder for the folder of a run in the arguments of a sweep."""
SEED = "seed_everything"
"""Argument of the seed, over which tables give mean and deviation."""


class _Loader(yaml.SafeLoader):
    """YAML in which ``inf``, ``nan`` and ``1e-3`` are numbers, and dates are strings."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith("timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_NUMBER = re.compile(r"^([-+]?inf|nan|[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.in0123456789"))


def read_value(text: str) -> Any:
    """Read a value as YAML, and ``inf``, ``nan`` and ``1e-3`` as the numbers that they are.

    Raises:
        YAMLError: If it is not valid YAML.

    Example:
        >>> [read_value(text) for text in ("3", "-inf", "1e-3", "'1'", "null", "Smooth", "[1, 2]")]
        [3, -inf, 0.001, '1', None, 'Smooth', [1, 2]]
    """
    return yaml.load(text, _Loader)


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


def file_name(value: Any) -> str:
    """Return a value as part of a folder's name; a hash tells apart what was left out.

    Example:
        >>> file_name(0.1), file_name("a/b")
        ('0.1', 'a_b-1693b0cf')
    """
    text = show_value(value)
    plain = re.sub(r"[^A-Za-z0-9._+-]+", "_", text)[:48].strip("_") or "_"
    exact = plain == text and not isinstance(value, dict | list)
    return plain if exact else f"{plain}-{stable_hash(write_value(value))[:8]}"


class ArgumentReader:
    """Reads the arguments of all runs with one parser of ``fit`` and ``test``, before anything runs.

    Args:
        arguments: Arguments of every run, without the command.

    Raises:
        UsageError: If they are wrong.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        know_public()
        self.arguments = list(arguments)
        self._cli = _ReadOnlyCLI.start(["fit", *_filled(self.arguments, "FOLDER")])
        self._known: dict[str, dict[str, str]] = {}

    def read(self, arguments: Sequence[str], stage: str = "fit") -> Namespace:
        """Return the configuration that arguments describe."""
        self._cli.parse_arguments(self._cli.parser, [stage, *arguments])
        config: Namespace = self._cli.config[stage]
        return config

    def run(self, values: dict[str, Any], folder: Path) -> list[str]:
        """Return the arguments of a run, checked as a whole; runs that differ by an integer seed alone are once."""
        start = _filled(self.arguments, str(folder))
        seed = {key: f"--{key}={value}" for key, value in values.items() if key == SEED and type(value) is int}
        others = repr({key: value for key, value in values.items() if key not in seed})
        if others not in self._known:
            self._known[others] = self._checked(start, values, folder)
        written = self._known[others] | seed
        return [*start, *(written[key] for key in values)]

    def _checked(self, start: list[str], values: dict[str, Any], folder: Path) -> dict[str, str]:
        """Return the argument of each value, checked behind the arguments of every run."""
        arguments = list(start)
        for key, value in values.items():
            null = value is None
            arguments.append(_null(resolve(key, self.read(arguments))) if null else f"--{key}={write_value(value)}")
        try:
            config = self.read(arguments)
        except UsageError:
            for index, key in enumerate(values, start=len(start)):
                resolve(key, self.read(arguments[:index]))  # has the better message if the argument itself is missing
                self.read(arguments[: index + 1])
            raise
        _refuse_shared_folders(config, folder)
        return dict(zip(values, arguments[len(start) :], strict=True))


class _ReadOnlyCLI(ProjectCLI):
    """Command line up to the configuration: it builds and runs nothing."""

    def _set_seed(self) -> None:
        pass

    def before_instantiate_classes(self) -> None:
        self.subcommand = None  # nothing to run

    def instantiate_classes(self) -> None:
        pass


def resolve(key: str, config: Namespace) -> str:
    """Return the full name of an argument, with the ``init_args`` that its short form leaves out.

    A name is followed as far as the configuration knows it: not into lists, nor into values that are no class.

    Args:
        key: Dotted name, short or full.
        config: Configuration in which it would be set.

    Raises:
        UsageError: If there is no such argument; names those that are close.

    Example:
        >>> config = Namespace(data=Namespace(class_path="a.B", init_args=Namespace(size=1)))
        >>> resolve("data.size", config)
        'data.init_args.size'
    """
    parts = key.split(".")
    node: Any = config
    full: list[str] = []
    for depth, part in enumerate(parts):
        owner = ".".join(parts[:depth])
        if node is None:
            raise UsageError(f"{owner} is null, so it has no argument {part!r}: name its class first, --{owner}=CLASS.")
        if not isinstance(node, Namespace) or part == "dict_kwargs":
            return ".".join([*full, *parts[depth:]])
        inner = node.get("init_args")
        if part not in node and isinstance(inner, Namespace) and part in inner:
            full.append("init_args")
            node = inner
        if part in node:
            full.append(part)
            node = node[part]
            continue
        known = [name for name in vars(inner if isinstance(inner, Namespace) else node) if name != "config"]
        if "class_path" in node:
            name = str(node["class_path"]).rpartition(".")[2]
            raise UsageError(f"{name} of {owner} has no argument {part!r}{did_you_mean(part, known)}")
        unknown, prefix = ".".join(parts[: depth + 1]), f"{owner}." if owner else ""
        suggestion = did_you_mean(unknown, [prefix + name for name in known])
        raise UsageError(f"There is no argument {unknown!r}{suggestion}")
    return ".".join(full)


def _refuse_shared_folders(config: Namespace, folder: Path) -> None:
    callbacks = config.trainer.get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        arguments = callback.get("init_args") or {}
        for name in ("dirpath", "folder"):
            path = arguments.get(name)
            if path is not None and not Path(path).absolute().is_relative_to(folder.absolute()):
                raise UsageError(
                    f"{callback.class_path.rpartition('.')[2]} would write every run to {str(path)!r}: leave its "
                    f"{name} out, or let it begin with {FOLDER}, which becomes the folder of the run."
                )


def _filled(arguments: Sequence[str], folder: str) -> list[str]:
    return [argument.replace(FOLDER, folder) for argument in arguments]


def _null(key: str) -> str:
    """Return the argument that sets a full name to null.

    Below a second class the parser takes null for a word; there it wants a mapping.
    """
    parts = key.split(".")
    classes = [number for number, part in enumerate(parts) if part == "init_args"]
    if len(classes) < 2:
        return f"--{key}=null"
    value: Any = None
    for part in reversed(parts[classes[1] :]):
        value = {part: value}
    return f"--{'.'.join(parts[: classes[1]])}={write_value(value)}"


def same_for_parser(value: Any) -> str:
    """Return a text that two values share if the command line cannot tell them apart."""
    value = read_value(write_value(value))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return json.dumps(float(value) if number else value, sort_keys=True, default=str)
