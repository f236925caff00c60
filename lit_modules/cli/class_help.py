"""Help of one class: its own options first, then those that it shares with its family."""

import inspect
from argparse import Action
from collections.abc import Iterable
from typing import Any, get_args

from jsonargparse import ArgumentParser, DefaultHelpFormatter
from torch import Tensor
from torch.nn import Module

FEW = 8
"""Names of classes that are listed; those of this project all are."""
_KNOWN = ", known subclasses: "
_OURS = ("lit_modules.", "datamodules.", "callbacks.")


class ClassHelpFormatter(DefaultHelpFormatter):
    """Show the classes that an option takes by their short names, those of this project first."""

    def _get_help_string(self, action: Action) -> str:
        text, known, paths = super()._get_help_string(action).partition(_KNOWN)
        names = paths.removesuffix(")").split(", ")
        if getattr(action, "_typehint", None) is Module:  # which methods and metrics are, too
            names = [name for name in names if name.startswith("lit_modules.networks.")]
        own = any(name.startswith(_OURS) for name in names)
        if not known or names[0] == "torch.Tensor" or (_takes_plain_values(action) and not own):
            return f"{text})" if known else text
        return f"{text}; {short_names(names)})"


def short_names(paths: Iterable[str]) -> str:
    """Return the names of the classes of this project, filled up with a few of others, and the number of the rest.

    Example:
        >>> short_names(["torchmetrics.Accuracy", "lit_modules.metrics.LUMEScore"])
        'takes LUMEScore, Accuracy'
        >>> short_names(f"torch.optim.Adam{number}" for number in range(9))
        'takes Adam0, Adam1, Adam2, Adam3, Adam4, Adam5, Adam6, Adam7 and 1 more class'
    """
    paths = list(paths)
    own = sorted((path for path in paths if path.startswith(_OURS)), key=lambda path: path.rpartition(".")[2])
    shown = own + [path for path in paths if path not in own][: max(0, FEW - len(own))]
    rest = len(paths) - len(shown)
    more = f" and {rest} more class{'es' if rest > 1 else ''}" if rest else ""
    return f"takes {', '.join(path.rpartition('.')[2] for path in shown)}{more}"


def group_options(parser: ArgumentParser, kind: type, key: str, typed: str) -> None:
    """Arrange a parser of the options of one class: a group of its own, and a group for each base that has some.

    Args:
        parser: Parser whose options are those of the class.
        kind: The class.
        key: Prefix of the options in the parser, such as ``attack`` for a class inside another.
        typed: Prefix of the options on the command line, such as ``model.attack``.
    """
    options = {action.dest.removeprefix(f"{key}."): action for action in parser._actions if _is_option(action)}
    (first,) = [group for group in parser._action_groups if group._group_actions][-1:]
    own = _declared(kind)
    groups = [_group(parser, f"Options of {kind.__name__}", [options[name] for name in options if name in own])]
    rest = {name: action for name, action in options.items() if name not in own}
    for base in kind.__mro__[1:]:
        names = _declared(base)
        shared = [rest.pop(name) for name in list(rest) if name in names]
        if shared:
            groups.append(_group(parser, f"Shared options, of {base.__name__}", shared))
    if rest:
        groups.append(_group(parser, "Further options", rest.values()))
    parser._action_groups = [group for group in groups if group._group_actions]
    needed = "".join(f" --{typed}.{name} {name.upper()}" for name, action in options.items() if action.required)
    parser.usage = f"lit-modules COMMAND --{typed} {kind.__name__}{needed} [--{typed}.OPTION VALUE ...]"
    parser.description = f"{first.title}."
    helps: dict[str, Any] = {name: parser._option_string_actions.get(f"--{key}.{name}.help") for name in options}
    classes = [name for name, action in options.items() if helps[name] and not _takes_plain_values(action)]
    classes = [name for name in classes if set(helps[name]._help_types) != {Tensor}]
    if classes:
        parser.epilog = f"--{typed}.{classes[0]}.help CLASS shows the options of a class that an option takes."
    for action in options.values():
        action.option_strings = [f"--{typed}{option.removeprefix(f'--{key}')}" for option in action.option_strings]


def _takes_plain_values(action: Action) -> bool:
    """Return whether an option takes text or a number as well as a class."""
    types = get_args(getattr(action, "_typehint", None))  # an attribute of jsonargparse
    return any(kind in types for kind in (str, int, float))


def _is_option(action: Action) -> bool:
    return bool(action.option_strings) and not action.dest.endswith(".help") and action.dest != "help"


def _declared(kind: type) -> set[str]:
    """Return the names of the arguments that a class declares itself."""
    if "__init__" not in vars(kind):
        return set()
    own: Any = vars(kind)["__init__"]
    return {parameter.name for parameter in inspect.signature(own).parameters.values()}


def _group(parser: ArgumentParser, title: str, actions: Iterable[Action]) -> Any:
    group = parser.add_argument_group(title)
    group._group_actions = list(actions)
    return group
