"""What tells the weights of two models apart, and where models compute."""

import hashlib
from pathlib import Path

_WHOLE = 2**26  # larger files are read in parts
_PARTS, _PART = 64, 2**16


def model_version(model: str, revision: str | None, config: str) -> str:
    """Return a model's name with what tells its weights apart.

    For a folder, that is the hash of its files, and not its path: a model may move. Of files over 64 MiB the size and
    64 parts of equal distance are hashed. For a model on the Hub it is the commit, which the file ``config`` tells.

    Args:
        model: Name or folder.
        revision: Branch, tag or commit; ``None`` for the newest.
        config: File that every such model has.

    Raises:
        FileNotFoundError: If the folder does not have that file, or there is neither a folder nor a model of the Hub.
    """
    folder = Path(model)
    if not folder.is_dir():
        import huggingface_hub

        try:
            found = Path(huggingface_hub.hf_hub_download(model, config, revision=revision))
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise FileNotFoundError(
                f"{model!r} is neither a folder nor a model that the Hub gives: {reason} Give the folder of a saved "
                "model, or a name of the Hub with a connection to it."
            ) from error
        return f"{model}@{found.parent.name}"
    if not (folder / config).is_file():
        raise FileNotFoundError(f"{model} has no {config}; give the folder of a saved model.")
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        size = path.stat().st_size
        total.update(f"{name.as_posix()} {size} ".encode())
        with path.open("rb") as file:
            if size <= _WHOLE:
                total.update(file.read())
                continue
            for part in range(_PARTS):
                file.seek(part * (size - _PART) // (_PARTS - 1))
                total.update(file.read(_PART))
    return f"{folder.resolve().name}@{total.hexdigest()[:16]}"


def chosen_device(name: str | None) -> str:
    """Return a device's name; for ``None`` that of a GPU if there is one."""
    import torch

    return name or ("cuda" if torch.cuda.is_available() else "cpu")
