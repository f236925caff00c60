"""Run directory of the CoDA augmentation."""

from pathlib import Path

from lit_modules.utils.run_directory import DirectoryInUse as StoreInUse
from lit_modules.utils.run_directory import RunDirectory, stage_key

__all__ = ["Store", "StoreInUse", "stage_key"]


class Store(RunDirectory):
    """Records and images of a run of the augmentation; see :class:`~lit_modules.utils.run_directory.RunDirectory`.

    A unit of work is done when its record exists, the record's key fits, and the files that it names have the hashes
    that it says. Names that come from models or data are never used for files.

    Args:
        folder: The directory; a writer makes it.
        shard: ``(number, total)`` with number from 1, if several machines share the folder and each does its part;
            ``None`` for all.
        writable: Whether to write; a reader takes no lock.

    Raises:
        StoreInUse: If another process writes to it.
        ValueError: If the shard is out of its range.
        FileNotFoundError: If a reader's folder does not exist.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
        ...     store.write_json(["pair", "features.json"], {"key": "abc"})
        ...     store.read_json(["pair", "features.json"])
        {'key': 'abc'}
    """

    def __init__(self, folder: str | Path, shard: tuple[int, int] | None = None, writable: bool = True) -> None:
        super().__init__(folder, shard, writable, noun="store")
