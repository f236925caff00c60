"""Short names of classes on the command line."""

from collections.abc import Sequence
from functools import wraps
from types import ModuleType
from typing import Any

FIRST = ("lit_modules.", "datamodules.", "callbacks.", "torch.", "lightning.")
"""Packages whose classes short names mean, if classes of further packages have the same names."""


def preferred(paths: Sequence[str]) -> list[str]:
    """Return the paths of classes of one short name that the name may mean: those of the first package that has some.

    Example:
        >>> preferred(["bitsandbytes.optim.adamw.AdamW", "torch.optim.AdamW"])
        ['torch.optim.AdamW']
        >>> preferred(["mine.Net", "yours.Net"])
        ['mine.Net', 'yours.Net']
    """
    meant = ([path for path in paths if path.startswith(package)] for package in FIRST)
    return next(filter(None, meant), list(paths))


def prefer_first_packages() -> None:
    """Let short names mean the classes of :data:`FIRST`, also where other libraries have classes of the same names.

    ``--model.optimizer=AdamW`` is torch's, whatever else is installed: libraries such as bitsandbytes, which others
    import if it is there, have an AdamW that is a subclass of torch's optimizer too, and jsonargparse refuses names of
    two classes. It has no setting for that, so the list that it looks names up in is shortened.
    """
    from jsonargparse import _typehints

    listed: Any = _typehints.get_all_subclass_paths
    if hasattr(listed, "__wrapped__"):
        return

    @wraps(listed)
    def paths(*args: Any, **kwargs: Any) -> list[str]:
        by_name: dict[str, list[str]] = {}
        for path in listed(*args, **kwargs):
            by_name.setdefault(path.rpartition(".")[2], []).append(path)
        return [path for same in by_name.values() for path in preferred(same)]

    _typehints.get_all_subclass_paths = paths


def load_public(*modules: ModuleType) -> None:
    """Import the public classes of modules, so that a parser knows them by their short names.

    Args:
        modules: Modules with ``__all__``; none takes all that ``fit`` may name.
    """
    import lit_modules.attacks
    import lit_modules.callbacks
    import lit_modules.datamodules
    import lit_modules.metrics
    import lit_modules.networks
    import lit_modules.synthia

    prefer_first_packages()
    everything = (lit_modules, lit_modules.attacks, lit_modules.metrics, lit_modules.networks, lit_modules.synthia)
    for module in modules or (*everything, lit_modules.datamodules, lit_modules.callbacks):
        for name in module.__all__:
            getattr(module, name)
