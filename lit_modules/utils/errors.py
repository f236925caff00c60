"""Errors of the command line: one sentence that says what is wrong and what was probably meant."""

import dis
import inspect
import re
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib import import_module

_KEY = re.compile(r'Parser key "([^"]+)"')
_CLASS_PATH = re.compile(r"(?:class_path '|class_path=')([^']+)'")
_OPTION = re.compile(r"(?:Option '|unrecognized arguments: --)([^'\s=]+)")
_MODULE = re.compile(r"No module named '([^']+)'")
_ATTRIBUTE = re.compile(r"module '([^']+)' has no attribute '([^']+)'")
_NO_PATH = re.compile(r"(?:(\S+)\.help: )?Expected a dot import path string: (\S+)")
_ABSTRACT = re.compile(r"Expected an instantiatable class, but (\S+) is abstract")
_DECLARED = re.compile(r"Subtypes: \[(.*)\]$")
_REQUIRED = re.compile(r"the following arguments are required: (.+)")
_TYPE = re.compile(r"Expected an? (<class '[^']+'>|typing\.Literal\[[^]]*\]|\S+?)(?:\. Got value: (.*))?$")
_VALUE = re.compile(r"Given value: (?:NestedArg\(key='([^']*)', val=(.*)\)|(.*))$")
_SUBCLASS = re.compile(r"Import path (?:\S+ )?does not correspond to a subclass of (\S+)")


_BASES = ("Callback", "LightningDataModule", "LightningModule", "LRScheduler", "Optimizer", "PeftConfig", "Union")
"""Names that a parser gives to a class that was not chosen."""
_TOLD = (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, ImportError)


class UsageError(ValueError):
    """The command line or a configuration file says something that cannot be understood."""


def is_told(error: BaseException) -> bool:
    """Return whether the message of an error is for the user, who needs no traceback.

    It is so if a ``raise`` statement of this project raised it; if a ``raise`` statement anywhere refused
    an argument while classes were built from the configuration; if Lightning refuses a setting, or the operating system
    a file. All else, such as a wrong index or an error deep in a library, is a defect to be traced.

    Args:
        error: An error that was raised.

    Example:
        >>> is_told(ZeroDivisionError("division by zero"))
        False
    """
    if isinstance(error, UsageError):
        return True
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, _TOLD) and not isinstance(error, NotImplementedError) and frames:
        ours = str(frames[-1].f_globals.get("__name__")).partition(".")[0] == "lit_modules"
        building = any(frame.f_code.co_name == "instantiate_classes" for frame in frames)
        if (ours or building) and _raised_by_statement(error):
            return True
    if isinstance(error, OSError) and error.filename is not None:
        return True
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    return isinstance(error, MisconfigurationException)


def _raised_by_statement(error: BaseException) -> bool:
    """Return whether a ``raise`` statement raised an error, and not an expression that could not be evaluated."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return False
    instructions = dis.get_instructions(last.tb_frame.f_code)
    return any(it.offset == last.tb_lasti and it.opname == "RAISE_VARARGS" for it in instructions)


def closest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence on a name that does not exist: the closest one that does, or all if they are few.

    Args:
        name: The name given.
        known: The names that exist.

    Example:
        >>> "There is no command 'fitt'" + closest("fitt", ["fit", "test"])
        "There is no command 'fitt'; did you mean 'fit'?"
    """
    known = list(known)
    close = [k for k in known if k.lower() == name.lower()] or get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are {', '.join(known)}." if 0 < len(known) <= 12 else "."


@dataclass
class _Finding:
    """One reason that a parser gives, at the end of a chain of keys."""

    kind: str
    words: tuple[str, ...]
    keys: tuple[str, ...]
    class_path: str | None
    value: str | None = None
    outer: str | None = None
    """Class of the first key."""
    declared: str = ""
    """Types that the key takes, as the parser writes them."""
    nested: str | None = None
    """Argument of the value that was given, where the value is no class."""

    @property
    def key(self) -> str:
        return ".".join(self.keys)


def condense(message: str, command: str, options: Iterable[str], classes: dict[str, list[str]]) -> str:
    """Turn a message of jsonargparse, which lists what it tried, into one sentence and at most one hint.

    Args:
        message: Message of the parser.
        command: Command in use, such as ``"lit-modules fit"``.
        options: Options of the command, such as ``"--trainer.max_epochs"``.
        classes: Names of the classes that fit a key, by the last part of the key.

    Returns:
        One or two lines.
    """
    options = sorted(options)
    unrecognised = re.match(r"unrecognized arguments: (\S+)", message)
    if unrecognised:
        name = unrecognised[1].partition("=")[0]
        if not name.startswith("-"):
            return f"There is no place for the argument {name!r}; options begin with --."
        return f"There is no option {name!r}{closest_option(name, options) or f'; `{command} --help` lists them.'}"
    refused = re.match(r"(?:Subcommand '\w+' does not accept option|Key) '([^']+)'", message)
    if refused:
        return unknown_key(refused[1], [option.removeprefix("--") for option in options])
    empty = re.match(r"argument (?:\S+/)?(\S+): expected one argument", message)
    if empty:
        return f"{empty[1]} needs a value."
    unread = re.match(r'Parser key "([^"]+)":\s+Unable to load config \'([^\']+)\'', message)
    if unread:
        return f"{unread[1]} must be a mapping of its arguments, got {unread[2]!r}."
    required = _REQUIRED.match(message)
    if required:
        names = [name.strip().split(".", 1)[-1] for name in required[1].split(",")]
        given = ", ".join(f"--{name}" for name in names)
        return f"{' and '.join(names)} must be given: add {given}, or -c with a configuration file."
    finding = _worst(_findings(message))
    if finding is None:
        text = " ".join(message.split())
        return text if len(text) <= 300 else text[:297] + "..."
    return _sentence(finding, command, classes)


def closest_option(name: str, options: Iterable[str]) -> str:
    """Return the end of a sentence on an option that does not exist: those that it may stand for, at most three.

    Options come in groups, so an option also stands for those that end with it, or have it as a word of their name.

    Args:
        name: The option given.
        options: The options that exist.

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
            name = ".".join(head)
            return f"There is no key {name!r}{closest(name, sorted(level))}"
    return f"There is no key {key!r}."


def _findings(message: str) -> list[_Finding]:
    """Read the reasons in a parser's message, with the keys and classes that they are about."""
    context: list[tuple[int, str, str]] = []
    found: list[_Finding] = []
    declared: dict[tuple[str, ...], str] = {}
    for line in message.splitlines():
        text = line.lstrip(" -")
        if not text:
            continue
        indent = len(line) - len(text)
        while context and context[-1][0] >= indent:
            context.pop()
        inner = re.match(r"Type .* expects a function or a callable class: (.*)", text)
        if inner:
            path = _CLASS_PATH.search(text)
            if path:
                context.append((indent, "class", path[1]))
            text = inner[1]
        key, path = _KEY.match(text), re.match(r"Problem with given " + _CLASS_PATH.pattern, text)
        if key:
            context.append((indent, "key", key[1]))
            continue
        if path:
            context.append((indent, "class", path[1]))
            continue
        keys = tuple(name for _, kind, name in context if kind == "key")
        owners: list[str | None] = [name for _, kind, name in context if kind == "class"] or [None]
        types = _DECLARED.match(text)
        if types:
            declared[keys] = types[1]
            continue
        value = _VALUE.match(text)
        if value:
            for finding in found:
                if finding.keys == keys and finding.value is None:
                    finding.value = (value[2] or value[3] or "").partition(". Got value: ")[0].strip("'\"")
                    finding.nested = value[1]
                    built = _CLASS_PATH.search(finding.value)
                    if finding.kind == "required" and built:  # a class that the parser was to call
                        finding.class_path = built[1]
            continue
        for kind, pattern in (
            ("option", _OPTION),
            ("required", _REQUIRED),
            ("attribute", _ATTRIBUTE),
            ("subclass", _SUBCLASS),
            ("module", _MODULE),
            ("abstract", _ABSTRACT),
            ("path", _NO_PATH),
            ("type", _TYPE),
        ):
            match = pattern.match(text)
            if match:
                words = tuple(word for word in match.groups() if word)
                got = match[2] if kind == "type" else None
                if kind == "path" and match[1]:  # of an option that asks for help on a class
                    keys, words = (*keys, match[1]), words[1:]
                finding = _Finding(kind, words[:1] if kind == "type" else words, keys, owners[-1], got)
                finding.outer, finding.declared = owners[0], declared.get(keys, "")
                found.append(finding)
                break
    return found


def _worst(found: list[_Finding]) -> _Finding | None:
    """Choose the reason that says most: the one furthest down, types joined to one."""
    if not found:
        return None
    depth = max(len(finding.keys) for finding in found)
    deepest = [finding for finding in found if len(finding.keys) == depth]
    for kind in ("option", "required", "attribute", "subclass", "module", "abstract"):
        for finding in deepest:
            if finding.kind == kind:
                return finding
    types = [finding for finding in deepest if finding.kind == "type"]
    names = sorted(dict.fromkeys(_type_name(finding.words[0]) for finding in types), key=lambda name: name == "None")
    paths = [finding for finding in deepest if finding.kind == "path"]
    if paths and (set(names) <= {"None", "list"} or ("str" not in names and _is_class_name(paths[0].words[0]))):
        return paths[0]
    if types:
        value = next((finding for finding in types if finding.value is not None), types[0])
        return replace(value, words=tuple(names))
    return deepest[0]


def _is_class_name(text: str) -> bool:
    return text.rpartition(".")[2][:1].isupper()


def _type_name(text: str) -> str:
    inner = re.match(r"<class '(?:\w+\.)*(\w+)'>", text)
    if inner:
        return "None" if inner[1] == "NoneType" else inner[1]
    literal = re.match(r"typing\.Literal\[(.*)\]", text)
    return literal[1].replace(", ", " or ") if literal else text


def _sentence(finding: _Finding, command: str, classes: dict[str, list[str]]) -> str:
    words, key = finding.words, finding.key
    short = finding.class_path.rpartition(".")[2] if finding.class_path else ""
    argument = finding.keys[-1] if finding.keys else ""
    outer = (finding.outer or "").rpartition(".")[2]
    given = f"--{finding.keys[0]} {outer} " if len(finding.keys) > 1 else ""
    listing = f"`{command} {given}--{key}.help {short}` lists its arguments."
    if finding.kind == "option" or (finding.kind == "abstract" and finding.nested):
        name = (finding.nested or words[0]).removeprefix("init_args.").partition(".")[0]
        if short in _BASES or finding.kind == "abstract":
            remedy = f"add --{key} with the name of a class, or -c with a configuration file."
            return f"{key} must be given before its argument {name!r}: {remedy}"
        return f"{short} has no argument {name!r}{closest(name, _arguments(finding.class_path))}\n{listing}"
    if finding.kind == "required":
        return f"{short} needs {words[0]}: add --{key}.{words[0].split(',')[0]}.\n{listing}"
    if finding.kind in ("attribute", "module"):
        wanted = finding.class_path or ".".join(words)
        if finding.kind == "module" and wanted.split(".")[0] != words[0].split(".")[0]:
            return f"{wanted} for {key} cannot be imported: no module named {words[0]!r}."
        return f"There is no class {wanted!r} for {key}{_closest_class(wanted, _subclasses(finding.declared))}"
    if finding.kind == "abstract":
        return f"{key} must be a class that can be built, and {words[0]} is abstract."
    if finding.kind == "subclass":
        return f"{key} must be a {words[0].rpartition('.')[2]}, got {finding.value!r}."
    if finding.kind == "path":
        known = list(_subclasses(finding.declared)) or classes.get(argument.rpartition(".")[2], [])
        return f"There is no class {words[0]!r} for {key}{closest(words[0], known)}"
    if finding.nested:
        return f"{key} must be {' or '.join(words)}, so it has no argument {finding.nested.partition('.')[0]!r}."
    value = "" if finding.value is None else f", got {finding.value!r}"
    close = get_close_matches(finding.value or "", [word.strip("'") for word in " or ".join(words).split(" or ")], n=1)
    meant = f"; did you mean {close[0]!r}?" if close else "."
    return f"{key} must be {' or '.join(words)}{value}{meant}"


def _subclasses(declared: str) -> dict[str, str]:
    """Return the classes, as far as they are imported, that fit types as the parser writes them: paths by names."""
    found: dict[str, str] = {}
    for path in re.findall(r"[A-Za-z_]\w*(?:\.\w+)+", re.sub(r"\[\[.*?\]", "", declared)):
        module, _, name = path.rpartition(".")
        base = getattr(import_module(module), name, None)
        waiting = [base] if isinstance(base, type) and module != "collections.abc" else []
        while waiting:
            kind = waiting.pop()
            waiting += type.__subclasses__(kind)
            if not kind.__name__.startswith("_") and kind is not base:
                found[kind.__name__] = _public_path(kind)
    return dict(sorted(found.items()))


def _public_path(kind: type) -> str:
    """Return the shortest class path."""
    parts = kind.__module__.split(".")
    modules = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
    module = next((name for name in modules if getattr(sys.modules.get(name), kind.__name__, None) is kind), None)
    return f"{module or kind.__module__}.{kind.__name__}"


def _closest_class(path: str, classes: dict[str, str]) -> str:
    """Return the end of a sentence on a class path that does not exist: a class of its name, else one beside it."""
    same = classes.get(path.rpartition(".")[2])
    return f"; did you mean {same!r}?" if same else closest(path, _beside(path))


def _arguments(class_path: str | None) -> list[str]:
    """Return the arguments that a class or function takes."""
    if class_path is None:
        return []
    module, _, name = class_path.rpartition(".")
    return list(inspect.signature(getattr(import_module(module), name)).parameters)


def _beside(class_path: str) -> list[str]:
    """Return the public classes of the module that a class path begins with, as class paths; none without a module."""
    folder = class_path.rpartition(".")[0]
    try:
        module = import_module(folder)
    except ImportError:
        return []
    public = getattr(module, "__all__", [name for name in dir(module) if not name.startswith("_")])
    return [f"{folder}.{name}" for name in public if isinstance(getattr(module, name), type)]
