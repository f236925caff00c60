"""Options of a command, declared once as a dataclass and read by jsonargparse."""

import json
import re
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_args, get_origin

from jsonargparse import DefaultHelpFormatter, Namespace

from lit_modules.cli.lightning_cli import ProjectParser, RecipeFile
from lit_modules.cli.messages import silence_noise

Options = TypeVar("Options")


class _HelpFormatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Show types and defaults, and keep the lines of descriptions and examples."""


def read_options(
    options: type[Options],
    args: Sequence[str],
    command: str,
    description: str,
    example: str = "",
    passes_on: bool = False,
    defaults: Callable[[Namespace], dict[str, Any]] | None = None,
) -> tuple[Options, list[str]]:
    """Read the options of a command, and build the classes that they name.

    A field is an option of its name, with its docstring as help; a field without a default comes without a name,
    unless it is keyword-only. ``--flag`` stands for ``--flag true``, ``--sizes 1 2`` for ``--sizes "[1, 2]"``, a list
    that is given twice grows, and hyphens may stand for underscores.

    Args:
        options: A dataclass.
        args: Words of the command line behind the command.
        command: Name of the command, such as ``"sweep"``.
        description: Text of the help.
        example: Examples below the help.
        passes_on: Whether other options are passed on to ``fit`` and ``test``, with the words that follow them.
        defaults: Returns other defaults for what was read, which is then read again over them; its command takes
            ``-c`` with a configuration file.

    Returns:
        The options, and the words to pass on.

    Raises:
        UsageError: If an option does not exist or does not take its value.
        ValueError: If a class refuses its arguments.
        SystemExit: After ``--help``.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Stress:
        ...     folder: str
        ...     steps: tuple[int, ...] = (1, 5)
        ...     dry_run: bool = False
        >>> read_options(Stress, ["out", "--steps", "1", "2", "--dry-run"], command="stress", description="Test.")
        (Stress(folder='out', steps=(1, 2), dry_run=True), [])
        >>> read_options(Stress, ["out", "-c", "a.yaml"], command="stress", description="Test.", passes_on=True)
        (Stress(folder='out', steps=(1, 5), dry_run=False), ['-c', 'a.yaml'])
    """
    silence_noise()
    parser = ProjectParser(
        prog=f"lit-modules {command}", description=description, epilog=example, formatter_class=_HelpFormatter
    )
    if defaults is not None:
        parser.add_argument("-c", "--config", action=RecipeFile, help=RecipeFile.help)
    parser.add_class_arguments(options, as_positional=True)
    types = {action.dest: getattr(action, "_typehint", None) for action in parser._actions}
    unnamed = [action.dest for action in parser._actions if not action.option_strings]
    words: list[str] = []
    values: dict[str, list[str]] = {}
    rest: list[str] = []
    for option, following in _grouped(args):
        start, equals, value = option.partition("=")
        name = {"-h": "help", "-c": "config"}.get(start, start.removeprefix("--").replace("-", "_"))
        if not option:
            for name in unnamed:
                taken = len(following) if _is_list(types[name]) else 1
                words += [_text(following[:taken], types[name])] if following else []
                following = following[taken:]
        elif name in types:
            argument = [value, *following] if equals else following
            if _is_list(types[name]):
                values.setdefault(name, []).extend(argument)
                continue
            if not argument and types[name] is bool:
                argument = ["true"]
            words += [f"--{name}={argument[0]}"] if argument else [f"--{name}"]
            following = argument[1:]
        elif passes_on:
            rest.append(option)
        else:
            words.append(f"--{name}{equals}{value}" if option.startswith("--") else option)
        (rest if passes_on else words).extend(following)
    words += [f"--{name}={_text(items, types[name])}" for name, items in values.items()]
    parser.words = words
    ProjectParser.line = words
    config = parser.parse_args(words)
    if changed := defaults(config) if defaults else {}:
        parser.set_defaults(changed)
        config = parser.parse_args(words)
    built: Any = parser.instantiate(config)
    return options(**{name: built[name] for name in options.__dataclass_fields__}), rest  # type: ignore[attr-defined]


def _grouped(args: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return each option with the words behind it; the words before the first have the option ``""``."""
    groups: list[tuple[str, list[str]]] = [("", [])]
    for word in args:
        if re.match(r"-[^\d.]", word):
            groups.append((word, []))
        else:
            groups[-1][1].append(word)
    return groups


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) in (list, tuple)


def _text(values: Sequence[str], annotation: Any) -> str:
    """Return the words of an option as the parser takes them."""
    if not _is_list(annotation) or (len(values) == 1 and values[0].startswith("[")):
        return values[0]
    return json.dumps(values) if get_args(annotation)[0] is str else f"[{', '.join(values)}]"
