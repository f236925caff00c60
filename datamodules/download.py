"""Downloads that are checked, and go on where they were cut off."""

import hashlib
import os
from http import HTTPStatus
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

CHUNK = 1 << 20


def download(url: str, path: str | Path, sha256: str, timeout: float = 30.0) -> Path:
    """Download a file and check it.

    What has come so far lies in ``<path>.part``; a later call asks the server for the rest. Only a file with the right
    checksum gets the name ``path``. A file that is there with the right checksum is not downloaded again.

    Args:
        url: Address.
        path: File to write.
        sha256: Checksum in hexadecimal digits.
        timeout: Seconds without an answer after which to give up.

    Returns:
        The path.

    Raises:
        ConnectionError: If the server cannot be reached or answers with an error; call again to go on.
        ValueError: If the downloaded file, or one that is there, has another checksum.
    """
    path = Path(path)
    if path.exists():
        found = checksum(path)
        if found != sha256:
            raise ValueError(f"{path} has SHA-256 {found} and should have {sha256}; move it away to download it again.")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urlopen(request, timeout=timeout) as answer:
            resumed = have > 0 and answer.status == HTTPStatus.PARTIAL_CONTENT
            expected = answer.headers.get("Content-Length")
            written = 0
            with part.open("ab" if resumed else "wb") as file:
                while chunk := answer.read(CHUNK):
                    written += file.write(chunk)
        if expected is not None and written < int(expected):
            raise ConnectionError(f"{url} was cut off after {written} of {expected} bytes; call again to go on.")
    except HTTPError as error:
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise ConnectionError(f"{url} answers {error.code} {error.reason}.") from error
    except (URLError, OSError) as error:
        raise ConnectionError(f"{url} cannot be downloaded ({error}); what has come lies in {part}, call again to go on.") from error
    found = checksum(part)
    if found != sha256:
        part.unlink()
        raise ValueError(f"The file at {url} has SHA-256 {found} and should have {sha256}; it was thrown away.")
    os.replace(part, path)
    return path


def checksum(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
