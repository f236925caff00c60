"""Folders that appear whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Give a new folder to fill, and move it to its own place, which must be free or empty, when the block ends well.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with whole_folder(f"{folder}/data") as part:
        ...         _ = (part / "note.txt").write_text("done")
        ...     print([file.name for file in Path(folder, "data").iterdir()])
        ['note.txt']
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{uuid4().hex}.part")
    part.mkdir()
    try:
        yield part
        part.replace(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
