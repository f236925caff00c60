"""Mistakes on the command line in one sentence, with the closest valid name."""

import inspect
import linecache
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import NamedTuple

from lit_modules.utils.arguments import argument_names, import_class
from lit_modules.utils.errors import UsageError
from lit_modules.utils.suggestions import did_you_mean

_KEY = re.compile(r'Parser key "([^"]+)"')
_CLASS = re.compile(r"class_path[ =]'([^']+)'")
_VALUE = re.compile(r"Given value: (?:NestedArg\(key='([^']*)', val='?(.*?)'?\)|(.*))$|Got value: (.*)$", re.M)
_OPTION = re.compile(r"Option '([^']+)' is not accepted|unrecognized arguments: --([^\s=]+)")
_REQUIRED = re.compile(r"the following arguments are required: (.+?)(?:\. Got value|$)", re.M)
_NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)|has no attribute '[^']+'|No module named '([^']+)'")
_NO_SUBCLASS = re.compile(r"does not correspond to a subclass of (\S+)")
_ABSTRACT = re.compile(r"Expected an instantiatable class, but (\S+) is abstract")
_HELP = re.compile(r"--(\S+)\.help: ")
_TYPE = re.compile(r"Expected an? (?:<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[([^]]*)\])")
_BASES = ("Callback", "LightningDataModule", "LightningModule", "LRScheduler", "Optimizer", "PeftConfig", "Union")
"""Names that a parser gives to a class that was not chosen."""


def is_for_user(error: BaseException) -> bool:
    """Return whether the message of an error is a sentence for the user, who needs no traceback.

    It is if this project raised it, if a class refused an argument of the configuration, if Lightning refuses a
    setting, or the operating system a file. All else is a defect to be traced.

    Example:
        >>> is_for_user(ZeroDivisionError("division by zero"))
        False
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    if isinstance(error, (UsageError, MisconfigurationException)):
        return True
    if isinstance(error, OSError) and error.filename is not None:
        return True
    frames = list(traceback.walk_tb(error.__traceback__))
    if isinstance(error, NotImplementedError) or not isinstance(error, Exception) or not frames:
        return False
    frame, line = frames[-1]
    ours = str(frame.f_globals.get("__name__")).partition(".")[0] == "lit_modules"
    building = any(each.f_code.co_name == "instantiate_classes" for each, _ in frames)
    return (ours or building) and linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("raise ")


def explain(message: str, command: str, options: Iterable[str]) -> str:
    """Turn a message of jsonargparse, which lists all that it tried, into one sentence and at most one hint."""
    options = sorted(options)
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        name = match[1].partition("=")[0]
        if not name.startswith("-"):
            return f"There is no place for the argument {name!r}; options begin with --."
        return f"There is no option {name!r}{closest_option(name, options) or f'; `{command} --help` lists them.'}"
    if match := re.match(r"(?:Subcommand '\w+' does not accept option|Key) '([^']+)'", message):
        return unknown_key(match[1], [option.removeprefix("--") for option in options])
    if match := re.match(r"Group '([^']+)' does not accept option '([^']+)'", message):
        return unknown_key(f"{match[1]}.{match[2]}", [option.removeprefix("--") for option in options])
    if match := re.match(r"argument (?:\S+/)?(\S+): expected one argument", message):
        return f"{match[1]} needs a value."
    if match := re.match(r'Parser key "([^"]+)":\s+Unable to load config \'([^\']+)\'', message):
        return f"{match[1]} must be a mapping of its arguments, got {match[2]!r}."
    if match := _REQUIRED.match(message):
        names = [name.strip().split(".", 1)[-1] for name in match[1].split(",")]
        listed = ", ".join(f"--{name}" for name in names)
        return f"{' and '.join(names)} must be given: add {listed}, or -c with a configuration file."
    if match := re.match(r"--(\S+)\.help: Expected a dot import path string: (\S+)", message):
        return f"There is no class {match[2]!r} for {match[1]}{_closest_class(match[2], match[1])}"
    text = " ".join(message.split())
    return _sentence(_deepest(message), command) or (text if len(text) <= 300 else text[:297] + "...")


def closest_option(name: str, options: Iterable[str]) -> str:
    """Return the end of a sentence on an option that does not exist: those that it may stand for, at most three.

    Options come in groups, so an option also stands for those that end with it, or have it as a word of their name.

    Args:
        name: Option given.
        options: Options that exist.

    Example:
        >>> closest_option("--epochs", ["--trainer.max_epochs", "--data.root"])
        "; did you mean '--trainer.max_epochs'?"
    """
    options = list(dict.fromkeys(options))
    close, wanted = get_close_matches(name, options, n=1, cutoff=0.8), name.lstrip("-")
    if not close:
        close = [option for option in options if f".{option.lstrip('-')}".endswith(f".{wanted}")]
        close += [option for option in options if f"_{wanted}_" in f"_{option.lstrip('-').rpartition('.')[2]}_"]
    if not close:
        close = [option for option in options if get_close_matches(option.rpartition(".")[2], [wanted], cutoff=0.8)]
    close = list(dict.fromkeys(close))
    return f"; did you mean {' or '.join(map(repr, close[:3]))}?" if close else ""


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return a sentence on a key of a configuration that does not exist, with the closest one that does.

    Args:
        key: Dotted key.
        known: Dotted keys that exist.

    Example:
        >>> unknown_key("modle.class_path", ["model", "trainer.max_epochs"])
        "There is no key 'modle'; did you mean 'model'?"
    """
    parts, paths = key.split("."), [name.split(".") for name in known]
    for depth in range(1, len(parts) + 1):
        head = parts[:depth]
        if not any(path[:depth] == head for path in paths):
            level = {".".join(path[:depth]) for path in paths if path[: depth - 1] == head[:-1] and len(path) >= depth}
            return f"There is no key {'.'.join(head)!r}{did_you_mean('.'.join(head), sorted(level))}"
    return f"There is no key {key!r}."


class _Problem(NamedTuple):
    """Innermost problem of a parser's message."""

    keys: list[str]
    reasons: str
    class_path: str
    """Class whose argument the last key is, or that the reasons are about."""
    outer: str
    """Class of the first key."""
    value: str
    nested: str
    """Argument of the value, where the value is no class."""


def _deepest(message: str) -> _Problem:
    """Return the innermost problem: the reasons below the last key, up to the value that was given."""
    stack: list[tuple[int, str]] = []
    for line in message.splitlines():
        if match := _KEY.search(line):
            indent = len(line) - len(line.lstrip(" -"))
            stack = [(depth, key) for depth, key in stack if depth < indent] + [(indent, match[1])]
    start = max((match.end() for match in _KEY.finditer(message)), default=0)
    value = _VALUE.search(message, start)
    end = value.end() if value else len(message)
    classes = _CLASS.findall(message, start, end) or _CLASS.findall(message, 0, start)[-1:] or [""]
    outer = _CLASS.search(message)
    nested, *values = value.groups() if value else ("",)
    got = next((each for each in values if each is not None), "").partition(". Got value: ")[0].strip("'\"")
    reasons = message[start : value.start() if value else end]
    return _Problem([key for _, key in stack], reasons, classes[0], outer[1] if outer else "", got, nested or "")


def _sentence(problem: _Problem, command: str) -> str:
    """Return what is wrong; an empty text if no reason is known."""
    if not problem.keys:
        return ""
    key, reasons, nested = ".".join(problem.keys), problem.reasons, problem.nested
    short, outer = problem.class_path.rpartition(".")[2], problem.outer.rpartition(".")[2]
    chosen = f"--{problem.keys[0]} {outer} " if len(problem.keys) > 1 else ""
    hint = f"\n`{command} {chosen}--{key}.help {short}` lists its arguments."
    option, abstract, no_class = _OPTION.search(reasons), _ABSTRACT.search(reasons), _NO_CLASS.search(reasons)
    if option or (abstract and nested):
        name = (nested or (option[1] or option[2] if option else "")).removeprefix("init_args.").partition(".")[0]
        if short in _BASES or abstract:
            remedy = f"add --{key} with the name of a class, or -c with a configuration file."
            return f"{key} must be given before its argument {name!r}: {remedy}"
        known = [each for each in _arguments(problem.class_path) if each != name]  # a class may set one of its base's
        return f"{short} has no argument {name!r}{did_you_mean(name, known)}{hint}"
    if required := _REQUIRED.search(reasons):
        return f"{short} needs {required[1]}: add --{key}.{required[1].split(',')[0]}.{hint}"
    if abstract:
        return f"{key} must be a class that can be built, and {abstract[1]} is abstract."
    if subclass := _NO_SUBCLASS.search(reasons):
        return f"{key} must be a {subclass[1].rpartition('.')[2]}, got {problem.value!r}."
    types = [name if name else literal.replace(", ", " or ") for name, literal in _TYPE.findall(reasons)]
    types = ["None" if name == "NoneType" else name for name in dict.fromkeys(types)]
    if no_class and (not no_class[1] or set(types) <= {"None", "list"} or _is_class_name(no_class[1])):
        name = no_class[1] or problem.class_path
        if no_class[2] and name.split(".")[0] != no_class[2].split(".")[0]:
            return f"{name} for {key} cannot be imported: no module named {no_class[2]!r}."
        inner = _HELP.search(reasons)
        key = f"{key}.{inner[1]}" if inner else key
        return f"There is no class {name!r} for {key}{_closest_class(name, key)}"
    allowed = " or ".join(types)
    if not allowed:
        return ""
    if nested:
        return f"{key} must be {allowed}, so it has no argument {nested.partition('.')[0]!r}."
    close = get_close_matches(problem.value, [word.strip("'") for word in allowed.split(" or ")], n=1)
    return f"{key} must be {allowed}, got {problem.value!r}" + (f"; did you mean {close[0]!r}?" if close else ".")


def _is_class_name(text: str) -> bool:
    return text.rpartition(".")[2][:1].isupper()


def _arguments(path: str) -> list[str]:
    """Return the arguments that the class or function of an import path takes."""
    target = import_class(path)
    return argument_names(target) if isinstance(target, type) else list(inspect.signature(target).parameters)


def _class_paths(key: str = "") -> dict[str, str]:
    """Return the classes that a configuration may name, and others that are imported: public paths by short names.

    Args:
        key: Option that takes a class; all classes if its kind is not known by its name.
    """
    from lightning.pytorch import Callback, LightningDataModule, LightningModule
    from lightning.pytorch.loggers import Logger
    from peft import PeftConfig
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler
    from torchmetrics import Metric

    import lit_modules.attacks
    import lit_modules.datamodules
    import lit_modules.networks
    from lit_modules.cli.public import import_public

    import_public()

    def below(base: type) -> Iterator[type]:
        kind: type
        for kind in type.__subclasses__(base):
            yield kind
            yield from below(kind)

    bases: dict[str, type] = {
        "model": LightningModule,
        "data": LightningDataModule,
        "callbacks": Callback,
        "logger": Logger,
        "attack": lit_modules.attacks.Attack,
        "metric": Metric,
        "optimizer": Optimizer,
        "scheduler": LRScheduler,
        "peft_config": PeftConfig,
    }
    kind_of_key = bases.get(key.rpartition(".")[2])
    kinds = [kind for base in ([kind_of_key] if kind_of_key else bases.values()) for kind in below(base)]
    if kind_of_key is None:
        kinds += [kind for kind in vars(lit_modules.datamodules.variants).values() if isinstance(kind, type)]
        kinds += [getattr(lit_modules.networks, name) for name in lit_modules.networks.__all__]
    return {kind.__name__: _public_path(kind) for kind in kinds if not kind.__name__.startswith("_")}


def _public_path(kind: type) -> str:
    """Return the shortest class path."""
    parts = kind.__module__.split(".")
    modules = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
    module = next((name for name in modules if getattr(sys.modules.get(name), kind.__name__, None) is kind), None)
    return f"{module or kind.__module__}.{kind.__name__}"


def _closest_class(path: str, key: str) -> str:
    """Return the end of a sentence on a class that does not exist: a class of its name, else those like it."""
    folder, _, name = path.rpartition(".")
    if not folder:
        paths = _class_paths(key)
        holding = [each for each in paths if name in each]
        longer = sorted(holding, key=lambda each: (not each.endswith(name), len(each)))[:6]
        return f"; did you mean {' or '.join(map(repr, longer))}?" if longer else did_you_mean(name, paths)
    paths = _class_paths()
    if name in paths:
        return f"; did you mean {paths[name]!r}?"
    beside = (folder, f"lit_modules.{folder}")  # callbacks and datamodules are packages of their own as well
    return did_you_mean(path, [each for each in paths.values() if each.rpartition(".")[0] in beside])
