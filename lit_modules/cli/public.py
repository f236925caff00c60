"""Short names of classes on the command line."""

from collections.abc import Sequence
from functools import wraps
from types import ModuleType
from typing import Any

FIRST = ("lit_modules.", "datamodules.", "callbacks.", "torch.", "lightning.")
"""Packages whose classes short names mean, if classes of further packages have the same names."""
WAITING: list[ModuleType] = []
"""Modules whose public classes are imported when a short name is first looked up."""


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


def import_public() -> None:
    """Import the public classes that a parser was told of and has not looked up yet."""
    while WAITING:
        module = WAITING.pop()
        for name in module.__all__:
            getattr(module, name)


def know_public(*modules: ModuleType) -> None:
    """Let a parser know the public classes of modules by their short names; import them when it first looks one up.

    A configuration that gives import paths, as the shipped recipes do, looks nothing up, and needs no other family.

    A name that classes of several packages have means that of the first in :data:`FIRST`: ``--model.optimizer=AdamW``
    is torch's, although bitsandbytes, which others import if it is there, has an AdamW that is a subclass of torch's
    optimizer too, and jsonargparse refuses names of two classes. It has no setting for either, so the function that
    lists classes for it is wrapped.

    Args:
        modules: Modules with ``__all__``; none takes all that ``fit`` may name.
    """
    from jsonargparse import _typehints

    import lit_modules.attacks
    import lit_modules.callbacks
    import lit_modules.datamodules
    import lit_modules.metrics
    import lit_modules.networks
    import lit_modules.synthia

    everything = (lit_modules, lit_modules.attacks, lit_modules.metrics, lit_modules.networks, lit_modules.synthia)
    WAITING.extend(modules or (*everything, lit_modules.datamodules, lit_modules.callbacks))
    listed: Any = _typehints.get_all_subclass_paths
    if hasattr(listed, "__wrapped__"):
        return

    @wraps(listed)
    def paths(*args: Any, **kwargs: Any) -> list[str]:
        import_public()
        by_name: dict[str, list[str]] = {}
        for path in listed(*args, **kwargs):
            by_name.setdefault(path.rpartition(".")[2], []).append(path)
        return [path for same in by_name.values() for path in preferred(same)]

    _typehints.get_all_subclass_paths = paths
