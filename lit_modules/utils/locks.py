"""Lock that one process holds on a folder or file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def exclusive(path: str | Path, message: str) -> Iterator[None]:
    """Hold a lock file, whose folder is made, while the block runs; a process that dies gives it back.

    Raises:
        OSError: If another process holds the lock, with the message.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OSError(message) from error
    try:
        yield
    finally:
        lock.release()
