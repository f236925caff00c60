"""The arguments of each point of a sweep, read by the parser of ``fit`` and ``test`` before anything runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lit_modules.cli.lightning_cli import ProjectCLI
from lit_modules.cli.public import load_public
from lit_modules.studies.sweep.grid import Axis, write_value
from lit_modules.utils.errors import UsageError
from lit_modules.utils.suggestions import did_you_mean

FOLDER = "{folder}"
"""Stands for the folder of the point in the arguments of a sweep."""


class _ReadOnly(ProjectCLI):
    """The command line up to the configuration: it builds and runs nothing."""

    def _set_seed(self) -> None:
        pass

    def before_instantiate_classes(self) -> None:
        self.subcommand = None  # nothing to run

    def instantiate_classes(self) -> None:
        pass


class ArgumentReader:
    """Reads arguments into a configuration, with one parser for all.

    Args:
        arguments: Arguments of every point, without the command.

    Raises:
        UsageError: If they are wrong; the first line says what.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        load_public()
        self.arguments = list(arguments)
        self._cli = _ReadOnly.start(["fit", *_in(self.arguments, "FOLDER")])

    def read(self, arguments: Sequence[str], stage: str = "fit") -> Namespace:
        """Return the configuration that arguments describe.

        Raises:
            UsageError: If they are wrong.
        """
        self._cli.parse_arguments(self._cli.parser, [stage, *arguments])
        config: Namespace = self._cli.config[stage]
        return config

    def point(self, axes: Sequence[Axis], values: Sequence[Any], folder: Path) -> list[str]:
        """Return the arguments of a point, checked as a whole.

        Args:
            axes: Axes of the sweep.
            values: A value for each.
            folder: Folder of the point.

        Raises:
            UsageError: If an argument does not exist or does not take the value, or if a callback or logger would
                write where the other points write.
        """
        arguments = _in(self.arguments, str(folder))
        for axis, value in zip(axes, values, strict=True):
            arguments.append(self._argument(axis.key, value, arguments))
        refuse_shared_folders(self.read(arguments), folder)
        return arguments

    def _argument(self, key: str, value: Any, before: list[str]) -> str:
        """Return ``--key=value`` in a form that the parser takes after what stands before."""
        argument = f"--{key}={write_value(value)}"
        if value is None:
            argument = _null(resolve(key, self.read(before)))
        try:
            self.read([*before, argument])
        except UsageError:
            resolve(key, self.read(before))  # says it better where the argument itself is missing
            raise
        return argument


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
        if part in node:
            full.append(part)
            node = node[part]
            continue
        inner = node.get("init_args")
        if isinstance(inner, Namespace) and part in inner:
            full += ["init_args", part]
            node = inner[part]
            continue
        known = [name for name in vars(inner if isinstance(inner, Namespace) else node) if name != "config"]
        if "class_path" in node:
            name = str(node["class_path"]).rpartition(".")[2]
            raise UsageError(f"{name} of {owner} has no argument {part!r}{did_you_mean(part, known)}")
        raise UsageError(
            f"There is no argument {'.'.join(parts[: depth + 1])!r}"
            f"{did_you_mean('.'.join(parts[: depth + 1]), ['.'.join([*parts[:depth], name]) for name in known])}"
        )
    return ".".join(full)


def refuse_shared_folders(config: Namespace, folder: Path) -> None:
    """Check that callbacks write into the folder of the point, or wherever the run does.

    Raises:
        UsageError: If one names another folder, into which all points would write.
    """
    callbacks = config.trainer.get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        arguments = callback.get("init_args") or {}
        for name in ("dirpath", "folder"):
            given = arguments.get(name)
            if given is not None and not Path(given).absolute().is_relative_to(folder.absolute()):
                raise UsageError(
                    f"{callback.class_path.rpartition('.')[2]} would write every point to {str(given)!r}: leave its "
                    f"{name} out, or let it begin with {FOLDER}, which becomes the folder of the point."
                )


def _in(arguments: Sequence[str], folder: str) -> list[str]:
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
