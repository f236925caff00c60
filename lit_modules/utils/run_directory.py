"""Resumable directory of a run: whole files, one writer, and a record of what is done."""

import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from lit_modules.utils.errors import UsageError
from lit_modules.utils.files import write_whole
from lit_modules.utils.hashing import stable_hash
from lit_modules.utils.json_lines import parse_json

MANIFEST = "manifest.json"
LOCKS = "locks"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._,=+ -]{0,200}")
_DIGEST = re.compile(r"[0-9a-f]{12,64}")


class DirectoryInUse(RuntimeError):
    """Another process writes to the run directory."""


class RunDirectory:
    """Resumable directory of a run, which may be killed at any point and goes on with the same command.

    - *Whole files.* A file is whole or absent.
    - *Done or missing.* A stage writes its record last, with the :func:`stage_key` of its inputs. :meth:`read_done`
      returns the record only if the key fits, so a changed input runs the stage again. :meth:`missing` lists the
      folders without such a record.
    - *One writer.* A second process is refused, until the first ends or dies. Several shards may share a directory.
      Readers take no lock.
    - *Manifest.* :meth:`claim` records the settings of the run, and refuses a directory made with others.
    - *Events.* :meth:`log` appends a line to a file that only grows, such as finished items and what they cost.

    No path leads out of the directory.

    Args:
        folder: The directory; a writer makes it.
        shard: ``(number, total)`` with number from 1, if several processes share the directory and each does its part.
        writable: Whether to write.
        noun: Name of such a run in messages, such as ``"sweep"``.

    Raises:
        DirectoryInUse: If another process writes to it.
        ValueError: If the shard is out of its range.
        FileNotFoundError: If a reader's directory does not exist.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, RunDirectory(folder) as directory:
        ...     directory.claim({"size": 3})
        ...     key = stage_key("square", {"x": 3})
        ...     print(directory.read_done(["squares", "square.json"], key))
        ...     directory.write_json(["squares", "square.json"], {"key": key, "value": 9})
        ...     print(directory.read_done(["squares", "square.json"], key)["value"])
        ...     directory.log({"stage": "square", "calls": 1})
        ...     print(list(directory.events()))
        None
        9
        [{'calls': 1, 'stage': 'square'}]
    """

    def __init__(
        self,
        folder: str | Path,
        shard: tuple[int, int] | None = None,
        writable: bool = True,
        noun: str = "run",
    ) -> None:
        if shard is not None and not 1 <= shard[0] <= shard[1]:
            raise ValueError(f"shard must be (number, total) with 1 <= number <= total, got {shard}.")
        self.folder = Path(folder)
        self.shard = shard
        self.writable = writable
        self.noun = noun
        self._lock: FileLock | None = None
        if writable:
            self._take_lock()
        elif not self.folder.is_dir():
            raise FileNotFoundError(f"There is no {noun} {self.folder}; start the run that writes it.")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes write."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        self.writable = False

    def path(self, parts: Sequence[str]) -> Path:
        """Return the path of a file, by the names of its folders and its own.

        A name has ASCII letters, digits and ``._,=+ -``, with a letter, digit or underscore first.

        Raises:
            ValueError: If a name could leave the directory, or a link does.
        """
        for part in parts:
            if not _NAME.fullmatch(part) or part.endswith((".", " ")):
                raise ValueError(f"{part!r} cannot be the name of a file in the {self.noun}; take safe_name of it.")
        if not parts or parts[0] == LOCKS:
            raise ValueError(f"{'/'.join(parts)!r} cannot be a file in the {self.noun}.")
        path = self.folder.joinpath(*parts)
        if not path.parent.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"{path} leads out of the {self.noun} by a link.")
        return path

    def write_bytes(self, parts: Sequence[str], data: bytes) -> str:
        """Write a file at once or not at all, and return its SHA-256.

        Raises:
            RuntimeError: If the directory is closed or was opened for reading.
        """
        if not self.writable:
            raise RuntimeError(f"The {self.noun} {self.folder} is not open for writing.")
        write_whole(self.path(parts), data)
        return hashlib.sha256(data).hexdigest()

    def write_json(self, parts: Sequence[str], value: Mapping[str, Any], allow_nan: bool = False) -> None:
        """Write a record at once or not at all; an equal one is left alone.

        Raises:
            ValueError: If a number is not finite, without ``allow_nan``.
        """
        data = (json.dumps(value, indent=1, sort_keys=True, allow_nan=allow_nan) + "\n").encode()
        path = self.path(parts)
        if not (self.writable and path.is_file() and path.read_bytes() == data):
            self.write_bytes(parts, data)

    def read_json(self, parts: Sequence[str]) -> dict[str, Any] | None:
        """Return a record, or ``None`` if it is missing or damaged; warns of damage."""
        path = self.path(parts)
        try:
            value = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            value = None
        if not isinstance(value, dict):
            warnings.warn(f"{path} is damaged and is made again.", stacklevel=2)
            return None
        return value

    def read_done(self, parts: Sequence[str], key: str) -> dict[str, Any] | None:
        """Return a record if its ``"key"`` is this :func:`stage_key`; otherwise ``None``."""
        record = self.read_json(parts)
        return record if record is not None and record.get("key") == key else None

    def read_file(self, parts: Sequence[str], digest: str | None = None) -> bytes | None:
        """Return a file's bytes if it exists and has the SHA-256, if one is given; otherwise ``None``."""
        try:
            data = self.path(parts).read_bytes()
        except FileNotFoundError:
            return None
        return data if digest is None or hashlib.sha256(data).hexdigest() == digest else None

    def missing(self, names: Iterable[str], record: str) -> list[str]:
        """Return those of the folders that do not hold a file of the name ``record``, in their order."""
        return [name for name in names if not self.path([name, record]).is_file()]

    def settings(self, part: str = "run") -> dict[str, Any] | None:
        """Return the settings with which a part of the run was begun; ``None`` for a new one."""
        settings: dict[str, Any] | None = self._manifest().get(part)
        return settings

    def check(
        self,
        settings: Mapping[str, Any],
        part: str = "run",
        growing: Sequence[str] = (),
        beside: Sequence[str] | None = None,
    ) -> None:
        """Refuse a directory that was made with other settings.

        Args:
            settings: Plain values that decide the results: arguments, hashes of input files.
            part: Part of the run that they decide; each part may be begun and redone on its own.
            growing: Settings that are lists and may gain items.
            beside: Files that a directory without a manifest may hold; ``None`` for any.

        Raises:
            UsageError: If a setting differs, naming the first; or if there is no manifest but other files.
        """
        manifest = self._manifest()
        others = beside is not None and any(path.name not in (LOCKS, *beside) for path in self.folder.iterdir())
        if others and not manifest:
            raise UsageError(f"{self.folder} holds something that is no {self.noun}; take another folder.")
        if part not in manifest:
            return
        before, now = manifest[part], json.loads(json.dumps(settings))
        fixed_before, fixed_now = ({key: s[key] for key in s if key not in growing} for s in (before, now))
        difference = first_difference(fixed_before, fixed_now)
        if difference is not None:
            raise UsageError(f"{self.folder} holds a {self.noun} with {difference}; take another folder.")
        for key in growing:
            if any(item not in now[key] for item in before.get(key, [])):
                difference = first_difference(before[key], now[key], key)
                raise UsageError(
                    f"{self.folder} holds a {self.noun} with {difference}: values may be added, not left out; take "
                    "another folder."
                )

    def claim(
        self,
        settings: Mapping[str, Any],
        part: str = "run",
        growing: Sequence[str] = (),
        beside: Sequence[str] | None = None,
    ) -> None:
        """Record the settings in the manifest, unless :meth:`check` refuses them."""
        self.check(settings, part, growing=growing, beside=beside)
        self.write_json([MANIFEST], {**self._manifest(), part: settings}, allow_nan=True)

    def forget(self, part: str) -> None:
        """Remove a part from the manifest, so that it may be begun with other settings."""
        manifest = self._manifest()
        if manifest.pop(part, None) is not None:
            self.write_json([MANIFEST], manifest, allow_nan=True)

    def log(self, event: Mapping[str, Any], name: str = "events") -> None:
        """Append a line to ``NAME.jsonl``, or to the shard's own ``NAME-1-of-2.jsonl``."""
        path = self.path([f"{name}.jsonl" if self.shard is None else f"{name}-{self._label}.jsonl"])
        with path.open("a+b") as file:
            end = file.tell()
            file.seek(max(0, end - 1))
            if end and file.read(1) != b"\n":  # half a line of a run that was killed
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write(json.dumps(event, sort_keys=True).encode() + b"\n")

    def events(self, name: str = "events") -> Iterator[dict[str, Any]]:
        """Yield the events of all runs and shards; half a line of a killed run does not count.

        Raises:
            ValueError: If a finished line is damaged; names it.
        """
        for path in sorted(self.folder.glob(f"{name}.jsonl")) + sorted(self.folder.glob(f"{name}-*-of-*.jsonl")):
            for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
                yield parse_json(line.decode(errors="replace"), f"{path}:{number}")

    def content_hashes(self) -> dict[str, str]:
        """Return the SHA-256 of all results by path; a killed and resumed run has the same as an unbroken one."""
        hashes = {}
        for path in sorted(self.folder.rglob("*")):
            relative = path.relative_to(self.folder)
            top = relative.parts[0]
            if path.is_file() and top != LOCKS and not top.startswith("events") and not path.name.startswith("."):
                hashes[relative.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
        return hashes

    @property
    def _label(self) -> str:
        return "all" if self.shard is None else f"{self.shard[0]}-of-{self.shard[1]}"

    def _manifest(self) -> dict[str, Any]:
        return self.read_json([MANIFEST]) or {}

    def _take_lock(self) -> None:
        """Lock the directory, or the shard's part of it against all but the other shards of the same division."""
        folder = self.folder / LOCKS
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{self._label}.lock", thread_local=False)
        try:
            with FileLock(folder / "gate", timeout=10):  # one process at a time looks whether another writes
                for other in folder.glob("*.lock"):
                    parallel = self.shard is not None and other.stem.endswith(f"-of-{self.shard[1]}")
                    if other.stem != self._label and not parallel:
                        with FileLock(other, timeout=0):
                            pass
                lock.acquire(timeout=0)
        except Timeout as error:
            raise DirectoryInUse(
                f"Another process writes to the {self.noun} {self.folder} (lock {Path(error.lock_file).stem}); wait "
                "for it, take another folder, or divide the work by the same number of shards."
            ) from None
        self._lock = lock


def stage_key(stage: str, inputs: Mapping[str, Any]) -> str:
    """Return the hash of a stage's name and inputs, the same in every process; see :func:`stable_hash`."""
    return stable_hash(stage, inputs)


def first_difference(before: Any, now: Any, key: str = "") -> str | None:
    """Return the first value in which two settings differ, in words, or ``None``.

    Example:
        >>> first_difference({"a": {"b": 1}}, {"a": {"b": 2}})
        'a.b=1, got a.b=2'
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            inner = f"{key}.{name}" if key else str(name)
            if name not in now or name not in before:
                other = f"{inner}={_shown(before.get(name, now.get(name)))}"
                return f"{other}, got none" if name not in now else f"no {inner}, got {other}"
            difference = first_difference(before[name], now[name], inner)
            if difference:
                return difference
        return None
    if json.dumps(before, sort_keys=True) == json.dumps(now, sort_keys=True):  # NaN equals itself
        return None
    if all(isinstance(value, str) and _DIGEST.fullmatch(value) for value in (before, now)):
        return f"another content of {key}"
    return f"{key}={_shown(before)}, got {key}={_shown(now)}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
