"""Downloads that are checked."""

from pathlib import Path
from urllib.error import HTTPError

import torch

from lit_modules.utils.hashing import hash_file


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
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=False)
    except HTTPError as error:
        raise ConnectionError(f"{url} cannot be downloaded: the server answers {error.code} {error.reason}.") from error
    except OSError as error:
        raise ConnectionError(f"{url} cannot be downloaded: {error}.") from error
    except RuntimeError as error:
        raise ValueError(f"The file at {url} was cut off or has changed, and was not kept: {error}.") from error
