"""Identity of a model's weights, wherever an earlier answer of it may be used again."""

from pathlib import Path

from lit_modules.utils.errors import first_line
from lit_modules.utils.hashing import hash_folder


def model_version(model: str, revision: str | None, config: str) -> str:
    """Return a model's name with what tells its weights apart.

    For a folder, that is the hash of the whole content of its files, and not its path: a model may move. For a model on
    the Hub it is the commit that the revision stands for now; ``None`` is the newest.

    Raises:
        FileNotFoundError: If the folder lacks ``config``, a file that every such model has, or there is neither a
            folder nor a model of the Hub.
    """
    folder = Path(model)
    if not folder.is_dir():
        return f"{model}@{hub_commit(model, revision, config)}"
    if not (folder / config).is_file():
        raise FileNotFoundError(f"{model} has no {config}; give the folder of a saved model.")
    return f"{folder.resolve().name}@{hash_folder(folder)[:16]}"


def hub_commit(model: str, revision: str | None, file: str) -> str:
    """Return the commit that a revision of a model on the Hub stands for now; without a connection, the one here.

    ``file``, which the model has, is fetched if it is not here.

    Raises:
        FileNotFoundError: If there is no such model.
    """
    import huggingface_hub

    try:
        found = Path(huggingface_hub.hf_hub_download(model, file, revision=revision))
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise FileNotFoundError(
            f"{model!r} is neither a folder nor a model that the Hub gives: {reason} Give the folder of a saved "
            "model, or a name of the Hub with a connection to it."
        ) from error
    return found.parents[len(Path(file).parts) - 1].name
