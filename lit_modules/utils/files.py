"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a place to write a file to, and move it to its own place when the block ends well.

    A process that is killed, a power cut or an error leaves what was there before. Several processes may write the
    same file; one of them is the last.

    Args:
        path: File; its folder is made.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with whole_file(f"{folder}/runs/note.txt") as part:
        ...         _ = part.write_text("done")
        ...     print([file.name for file in Path(folder, "runs").iterdir()])
        ['note.txt']
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{uuid4().hex}.part")  # short, as the target's name may be as long as names can be
    try:
        yield part
        if part.is_file():
            with part.open("rb+") as file:
                os.fsync(file.fileno())  # else a power cut could leave the name without the content
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: str | Path, content: str | bytes) -> Path:
    """Write a text, in UTF-8 and with its own line ends, or bytes; see :func:`whole_file`.

    Returns:
        The file.
    """
    with whole_file(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)
