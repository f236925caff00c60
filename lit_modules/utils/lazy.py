"""Public names of a package that are imported when first used."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from lit_modules.utils.libraries import MissingLibrary

_OURS = ("", "lit_modules", "datamodules", "callbacks")


def lazy_names(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package whose public names are imported when first used.

    The names and their modules are those that the package's file imports below ``if TYPE_CHECKING:``, so that type
    checkers, editors and the interpreter read one list. Define both below its ``else:``, or a type checker takes every
    misspelt name for an attribute. A library that is missing is named, with what to install.

    Args:
        package: ``__name__`` of the package.
        file: ``__file__`` of the package.

    Example:
        >>> import lit_modules
        >>> get, names = lazy_names("lit_modules", lit_modules.__file__)
        >>> "NGDiff" in names()
        True
    """
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    guarded = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in guarded for node in block.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: f"{'.' * node.level}{node.module}" for node in imports for alias in node.names}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            home = import_module(homes[name], package)
        except ModuleNotFoundError as error:
            library = (error.name or "").partition(".")[0]
            if library in _OURS:
                raise
            raise MissingLibrary(f"{package}.{name}", library) from error
        return getattr(home, name)

    return get, lambda: sorted({*vars(sys.modules[package]), *homes})
