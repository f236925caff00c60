"""Downloads that are checked, and go on where they were cut off."""

import hashlib
import os
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

CHUNK = 1 << 16


def download(url: str, path: str | Path, sha256: str, timeout: float = 30.0) -> Path:
    """Download a file and check it.

    What has come so far lies in ``<path>.part``; a later call asks the server for the rest, or begins anew if the
    server gives no parts. Only a file with the right checksum gets the name ``path``. A file that is there with the
    right checksum is not downloaded again.

    Args:
        url: Address.
        path: File to write; its folder is made.
        sha256: Checksum in hexadecimal digits.
        timeout: Seconds without an answer after which to give up.

    Returns:
        The path.

    Raises:
        ConnectionError: If the server cannot be reached, answers with an error or stops too early.
        ValueError: If the downloaded file, or one that is there, has another checksum.
    """
    path = Path(path)
    if path.exists():
        found = checksum(path)
        if found != sha256:
            raise ValueError(f"{path} must have the SHA-256 {sha256}, got {found}; move it away to download it again.")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        missing = _fetch(url, part, timeout)
    except HTTPError as error:
        raise ConnectionError(f"{url} cannot be downloaded: the server answers {error.code} {error.reason}.") from error
    except (OSError, HTTPException) as error:
        raise ConnectionError(f"{url} cannot be downloaded: {error}; call again to go on.") from error
    if missing:
        raise ConnectionError(f"{url} cannot be downloaded: {missing} bytes did not come; call again to go on.")
    found = checksum(part)
    if found != sha256:
        part.unlink()
        raise ValueError(f"The file at {url} must have the SHA-256 {sha256}, got {found}; it was not kept.")
    os.replace(part, path)
    return path


def checksum(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(url: str, part: Path, timeout: float) -> int:
    """Write the rest of a file to its part; return the number of bytes that did not come."""
    have = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urlopen(request, timeout=timeout)
    except HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return 0  # nothing is left to fetch; the checksum decides
        raise
    with answer, part.open("ab" if answer.status == HTTPStatus.PARTIAL_CONTENT else "wb") as file:
        written = 0
        while chunk := answer.read(CHUNK):
            written += file.write(chunk)
        length = answer.headers.get("Content-Length")
    return 0 if length is None else int(length) - written
