"""What tells the weights of two models apart, and where models compute."""

from lit_modules.utils.model_versions import model_version

__all__ = ["chosen_device", "model_version"]


def chosen_device(name: str | None) -> str:
    """Return a device's name; for ``None`` that of a GPU if there is one."""
    import torch

    return name or ("cuda" if torch.cuda.is_available() else "cpu")
