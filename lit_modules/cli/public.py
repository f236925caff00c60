"""Short names of the public classes on the command line."""

from types import ModuleType


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

    everything = (lit_modules, lit_modules.attacks, lit_modules.metrics, lit_modules.networks, lit_modules.synthia)
    for module in modules or (*everything, lit_modules.datamodules, lit_modules.callbacks):
        for name in module.__all__:
            getattr(module, name)
