"""What a preparation that can be stopped and resumed keeps in its folder: a manifest, journals, whole files."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_modules.utils.files import write_whole

FORMAT = 1


class Journal:
    """A file of JSON lines, one for each finished item; a line that was cut off by a kill does not count.

    Args:
        path: The file; it need not exist.

    Raises:
        ValueError: If a line that was finished is no JSON object.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the finished lines."""
        data = self.path.read_bytes() if self.path.exists() else b""
        for number, line in enumerate(data.split(b"\n")[:-1], 1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("no object")
            except ValueError as error:
                raise ValueError(f"{self.path}, line {number}, is damaged: {error}. Remove the line.") from error
            yield row

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            end = file.tell()
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":  # of a run that was killed
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


class Manifest:
    """What each step of a preparation was made from, with a hash; ``manifest.json`` in its folder.

    Args:
        folder: Folder of the preparation.
        foreign: Files that a folder without a manifest must not hold, as they would be overwritten.

    Raises:
        ValueError: If the folder holds such files, or a manifest of another format.
    """

    def __init__(self, folder: Path, foreign: Iterable[str] = ()) -> None:
        self.path = folder / "manifest.json"
        self.steps: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            try:
                data = json.loads(self.path.read_bytes())
                known = data["format"] == FORMAT
                self.steps = dict(data["steps"])
            except (ValueError, KeyError, TypeError):
                known = False
            if not known:
                raise ValueError(f"{self.path} is no manifest of format {FORMAT}; take another --folder.")
            return
        held = next((name for name in foreign if (folder / name).exists()), None)
        if held is not None:
            raise ValueError(
                f"{folder} holds {held} but no manifest.json, so it was not made here; take another --folder."
            )

    def changes(self, step: str, inputs: Mapping[str, Any]) -> list[str]:
        """Return what differs from the inputs that a step was begun with, in words; nothing for a new step."""
        if step not in self.steps or self.steps[step]["sha256"] == digest(inputs):
            return []
        before = self.steps[step]["inputs"]
        names = [name for name in {**before, **inputs} if before.get(name) != inputs.get(name)]
        return [f"{name} was {_shown(before.get(name))}, is {_shown(inputs.get(name))}" for name in names]

    def begin(self, step: str, inputs: Mapping[str, Any]) -> None:
        """Write down the inputs of a step."""
        self.steps[step] = {"inputs": dict(inputs), "sha256": digest(inputs)}
        self._save()

    def forget(self, step: str) -> None:
        """Take a step out."""
        if self.steps.pop(step, None) is not None:
            self._save()

    def _save(self) -> None:
        text = json.dumps({"format": FORMAT, "steps": self.steps}, indent=1, ensure_ascii=False)
        write_whole(self.path, f"{text}\n".encode())


def digest(value: Any) -> str:
    """Return a hash of plain data.

    Example:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Let no second run work in the folder.

    Raises:
        OSError: If another run does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # where files cannot be locked like this
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(f"Another run is working in {folder}; wait for its end, or take another --folder.") from error
        yield


def remove(path: Path) -> None:
    """Remove a file, or a folder of files and such folders; links are removed, not followed."""
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            remove(inner)
        os.rmdir(path)
    else:
        path.unlink(missing_ok=True)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"{text[:12]}..." if len(text) == 64 and set(text) <= set("0123456789abcdef") else text
