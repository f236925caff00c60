"""A folder that a run can be killed at any point of and go on from: whole files only, one writer, stable hashes."""

import hashlib
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from lit_modules.utils.hashing import stable_hash

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,150}")
_RESERVED = ("tmp", "events", "locks")


class StoreInUse(RuntimeError):
    """Another process writes to the store."""


class Store:
    """Keep the records and images of a run.

    Files are written beside their place and moved there, so each is whole or absent. A unit of work is done when its
    record is there, its key fits, and the files it names have the hashes it says. One process writes, or one for each
    shard; a lock that the operating system lifts when a process dies refuses others. Names that come from models or
    data are never used for files, and no path can leave the folder.

    Args:
        folder: Folder of the store; it is made.
        shard: ``(number, total)`` with number from 1, if several machines share the folder and each does its part;
            ``None`` for all.
        writable: Whether to write; a reader takes no lock.

    Raises:
        StoreInUse: If another process writes to it.
        ValueError: If the shard is out of its range.
        FileNotFoundError: If a reader's folder is not there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
        ...     store.write_json(["pair", "features.json"], {"key": "abc"})
        ...     store.read_json(["pair", "features.json"])
        {'key': 'abc'}
    """

    def __init__(self, folder: str | Path, shard: tuple[int, int] | None = None, writable: bool = True) -> None:
        if shard is not None and not 1 <= shard[0] <= shard[1]:
            raise ValueError(f"shard must be (number, total) with 1 <= number <= total, got {shard}.")
        self.folder = Path(folder)
        self.shard = shard
        self.writable = writable
        self._locks: list[IO[bytes]] = []
        self._label = "all" if shard is None else f"{shard[0]}-of-{shard[1]}"
        self._number = 0
        if not writable:
            if not self.folder.is_dir():
                raise FileNotFoundError(
                    f"There is no store {self.folder}; `lit-modules coda augment`, or `Store(folder)`, makes it."
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_locks()
        shutil.rmtree(self._temporary, ignore_errors=True)  # what a killed run left half written
        self._temporary.mkdir(parents=True)

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes write."""
        for lock in self._locks:
            lock.close()
        self._locks.clear()
        self.writable = False

    @property
    def _temporary(self) -> Path:
        return self.folder / "tmp" / self._label

    def path(self, parts: list[str]) -> Path:
        """Return the place of a file.

        Args:
            parts: Names of folders and file: letters, digits, points, hyphens and underscores, not a point first.

        Raises:
            ValueError: If a name could leave the folder, or a link does.
        """
        for part in parts:
            if not _PART.fullmatch(part) or part.endswith("."):
                raise ValueError(f"{part!r} cannot be the name of a file in the store; take safe_name of it.")
        if not parts or (len(parts) > 1 and parts[0] in _RESERVED):
            raise ValueError(f"{'/'.join(parts)!r} is no place for a file in the store.")
        place = self.folder.joinpath(*parts)
        if not place.parent.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"{place} leads out of the store by a link.")
        return place

    def write_bytes(self, parts: list[str], data: bytes) -> str:
        """Write a file at once or not at all.

        Returns:
            Its SHA-256.

        Raises:
            RuntimeError: If the store is closed or was opened for reading.
            OSError: If the disk is full or the folder cannot be written to.
        """
        if not self.writable:
            raise RuntimeError(f"The store {self.folder} is not open for writing.")
        place = self.path(parts)
        place.parent.mkdir(parents=True, exist_ok=True)
        self._number += 1
        part = self._temporary / str(self._number)
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, place)
        finally:
            part.unlink(missing_ok=True)
        return hashlib.sha256(data).hexdigest()

    def write_json(self, parts: list[str], value: Mapping[str, Any]) -> None:
        """Write a record at once or not at all; one that is there already is left alone."""
        data = (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
        place = self.path(parts)
        if self.writable and place.is_file() and place.read_bytes() == data:
            return
        self.write_bytes(parts, data)

    def read_json(self, parts: list[str]) -> dict[str, Any] | None:
        """Return a record, or ``None`` if it is not there or damaged, which a warning tells."""
        place = self.path(parts)
        try:
            value = json.loads(place.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            value = None
        if not isinstance(value, dict):
            warnings.warn(f"{place} is damaged and is made again.", stacklevel=2)
            return None
        return value

    def read_done(self, parts: list[str], key: str) -> dict[str, Any] | None:
        """Return a record if it was made from what ``key`` is the hash of; otherwise ``None``."""
        record = self.read_json(parts)
        return record if record is not None and record.get("key") == key else None

    def read_file(self, parts: list[str], digest: str | None = None) -> bytes | None:
        """Return a file's bytes if it is there and has the SHA-256, if one is given; otherwise ``None``."""
        try:
            data = self.path(parts).read_bytes()
        except FileNotFoundError:
            return None
        return data if digest is None or hashlib.sha256(data).hexdigest() == digest else None

    def log(self, event: Mapping[str, Any]) -> None:
        """Append a line on finished work to the shard's ``events-*.jsonl`` (``events.jsonl`` without shards)."""
        name = "events.jsonl" if self.shard is None else f"events-{self._label}.jsonl"
        line = json.dumps(event, sort_keys=True).encode() + b"\n"
        with (self.folder / name).open("ab") as file:
            if file.tell() and not self._ends_line(self.folder / name):
                line = b"\n" + line  # a killed run left half a line
            file.write(line)

    @staticmethod
    def _ends_line(place: Path) -> bool:
        with place.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the finished work of all runs and shards; half lines of killed runs are passed over."""
        for place in sorted(self.folder.glob("events*.jsonl")):
            for line in place.read_bytes().splitlines():
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if isinstance(event, dict):
                    yield event

    def content_hashes(self) -> dict[str, str]:
        """Return the SHA-256 of all results by place: what a killed and resumed run has in common with a whole one."""
        found = {}
        for place in sorted(self.folder.rglob("*")):
            relative = place.relative_to(self.folder)
            top = relative.parts[0]
            if place.is_file() and top not in ("tmp", "locks") and not top.startswith("events"):
                found[relative.as_posix()] = hashlib.sha256(place.read_bytes()).hexdigest()
        return found

    def _take_locks(self) -> None:
        folder = self.folder / "locks"
        folder.mkdir(exist_ok=True)
        try:
            # shards share the whole store; a run without shards has it alone
            self._locks.append(_locked(folder / "all", shared=self.shard is not None))
            if self.shard is not None:
                self._locks.append(_locked(folder / self._label, shared=False))
                for other in sorted(folder.glob("*-of-*")):
                    if not other.name.endswith(f"-of-{self.shard[1]}"):
                        _locked(other, shared=False).close()  # parts of another division would overlap
        except StoreInUse as error:
            self.close()
            raise StoreInUse(
                f"Another process writes to the store {self.folder} ({error}); wait for it, take another folder, or "
                "divide the pairs by the same number of shards."
            ) from None


def stage_key(stage: str, inputs: Mapping[str, Any]) -> str:
    """Return the hash of a stage's name and inputs; a changed input makes the stage, and what follows it, anew."""
    return stable_hash(stage, inputs)


def _locked(place: Path, shared: bool) -> IO[bytes]:
    file = place.open("a+b")
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise StoreInUse(f"lock {place.name}") from error
    return file
