"""Two names of one package: ``lit_modules.datamodules`` and the folder ``datamodules`` beside ``lit_modules``.

The modules are those of the long name, which nothing can hide. The short name leads to the same modules, unless a
folder or file of the user's own has it.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


def load_beside(name: str) -> None:
    """Load a folder beside ``lit_modules`` under a name within it, in place of the module that calls.

    Args:
        name: ``__name__`` of the module that calls, such as ``"lit_modules.datamodules"``.
    """
    folder = Path(__file__).parents[2] / name.rpartition(".")[2]
    spec = spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None and spec.loader is not None  # noqa: PT018 - a Python file has both
    sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


def use_long_name(name: str) -> None:
    """Let the short name of a package lead to the modules of its long name.

    Args:
        name: ``__name__`` of the package that calls, such as ``"datamodules"``.
    """
    sys.modules[name] = import_module(f"lit_modules.{name}")
    if _SHORT_NAMES not in sys.meta_path:
        sys.meta_path.insert(0, _SHORT_NAMES)


class _ShortNames(MetaPathFinder, Loader):
    """Import of ``datamodules.lume.lume`` as ``lit_modules.datamodules.lume.lume``."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, inner = fullname.partition(".")
        ours = sys.modules.get(f"lit_modules.{package}")
        if not inner or ours is None or sys.modules.get(package) is not ours:
            return None
        real = find_spec(f"lit_modules.{fullname}")
        if real is None:  # a folder of the user's own without __init__.py, which an installed package comes before
            folder = fullname.rpartition(".")[0].replace(".", os.sep)
            return PathFinder.find_spec(fullname, [os.path.join(entry, folder) for entry in sys.path])
        return ModuleSpec(fullname, self, origin=real.origin, loader_state=real)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return import_module(f"lit_modules.{spec.name}")

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state  # the import system has put that of the short name there


_SHORT_NAMES = _ShortNames()
