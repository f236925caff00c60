"""Downloads that are checked."""

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.error import HTTPError

import torch
from huggingface_hub import is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lit_modules.utils.errors import first_line
from lit_modules.utils.hashing import hash_file
from lit_modules.utils.progress import is_shown


def download(url: str, path: str | Path, sha256: str) -> None:
    """Download a file and check it; one that is there with the right checksum is not downloaded again.

    Args:
        url: Address.
        path: File to write; its folder is made. It appears whole or not at all.
        sha256: Checksum in hexadecimal digits.

    Raises:
        ConnectionError: If the server cannot be reached or answers with an error.
        ValueError: If the downloaded file, or one that is there, has another checksum.
    """
    path = Path(path)
    if path.exists():
        if (checksum := hash_file(path)) != sha256:
            raise ValueError(
                f"{path} must have the SHA-256 {sha256}, got {checksum}; move it away to download it again."
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=is_shown())
    except HTTPError as error:
        raise ConnectionError(f"{url} cannot be downloaded: the server answers {error.code} {error.reason}.") from error
    except OSError as error:
        raise ConnectionError(f"{url} cannot be downloaded: {error}.") from error
    except RuntimeError as error:
        raise ValueError(f"The file at {url} was cut off or has changed, and was not kept: {error}.") from error


def check_dataset_name(name: str) -> None:
    """Check the name of a dataset on the Hugging Face Hub, ``OWNER/NAME`` or ``OWNER/NAME@REVISION``.

    Raises:
        ValueError: If it is none.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name):
        raise ValueError(f"A dataset on the Hugging Face Hub is OWNER/NAME or OWNER/NAME@REVISION, got {name!r}.")


def download_dataset(name: str, folder: str | Path, patterns: Sequence[str], notes: Sequence[str] = ()) -> None:
    """Download files of a dataset on the Hugging Face Hub into a folder, in their places there.

    Files that are there and have not changed on the hub are not downloaded again, so that after a failure the same call
    gets those that are missing. Without a network, what a finished download left is used.

    Args:
        name: Name of the dataset, ``OWNER/NAME`` for the newest state, or ``OWNER/NAME@REVISION``.
        folder: Folder to write to; it is made.
        patterns: Patterns of the names of the files, such as ``"*.parquet"``.
        notes: Patterns of further files, such as the card ``README.md``, that a dataset may do without.

    Raises:
        ConnectionError: If the hub cannot be reached or does not give the dataset.
        ValueError: If the dataset has no files of ``patterns``.
    """
    folder = Path(folder)
    dataset, _, revision = name.partition("@")
    where = f"https://huggingface.co/datasets/{dataset}"
    try:
        snapshot_download(
            dataset,
            repo_type="dataset",
            revision=revision or None,
            local_dir=folder,
            allow_patterns=[*patterns, *notes],
        )
    except Exception as error:  # of the hub's library, of its HTTP client, or of the disk
        reasons = {
            GatedRepoError: "its owner asks for an agreement on that page, and then for `hf auth login`",
            RepositoryNotFoundError: "there is no such dataset, or it is private and needs `hf auth login`",
            RevisionNotFoundError: f"it has no revision {revision!r}",
            LocalEntryNotFoundError: "HF_HUB_OFFLINE is set" if is_offline_mode() else "the hub cannot be reached",
        }
        reason = next((text for kind, text in reasons.items() if isinstance(error, kind)), first_line(error))
        raise ConnectionError(
            f"{where} cannot be downloaded: {reason.rstrip('.')}. The same line, given again, gets what is missing; "
            f"without a network, put its files into {folder} yourself and leave download out."
        ) from error
    if not any(path.is_file() for pattern in patterns for path in folder.rglob(pattern)):
        raise ValueError(
            f"There are no files {', '.join(patterns)} in {folder} nor, if it could be reached, in {where}; give a "
            "dataset of pictures."
        )
