import resource
import warnings
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lit_modules.synthia.core.encodings import EncodingCache, image_key, text_key


class Encoder:
    """Encodes a prompt as its letters, and remembers what it was asked for."""

    def __init__(self, prompts: list[str]) -> None:
        self.prompts = prompts
        self.asked: list[int] = []

    @property
    def keys(self) -> list[str]:
        return [text_key("letters", prompt) for prompt in self.prompts]

    def __call__(self, places: list[int]) -> list[dict[str, Tensor]]:
        self.asked += places
        rows = torch.stack([torch.tensor([*self.prompts[place].encode()]) for place in places])
        # views of one tensor, as the rows of a batch are
        return [
            {"letters": row, "half": row.bfloat16().requires_grad_(), "length": row.numel() + 0 * row[0]}
            for row in rows
        ]


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("on_disk", [False, True])
def test_only_what_is_missing_is_made_and_once(tmp_path: Path, on_disk: bool) -> None:
    encoder = Encoder(["pour", "ride", "pour"])
    cache = EncodingCache(str(tmp_path) if on_disk else None)
    first = cache.get_many(encoder.keys, encoder)
    assert encoder.asked == [0, 1]
    assert bytes(first[2]["letters"].tolist()) == b"pour"
    assert not first[0]["half"].requires_grad
    assert first[0]["letters"].untyped_storage().nbytes() == 4 * 8
    later = EncodingCache(str(tmp_path)) if on_disk else cache
    again = later.get_many(encoder.keys[:2], encoder)
    assert (encoder.asked, later.hits, later.misses) == ([0, 1], 2, 0 if on_disk else 2)
    for row, other in zip(first, again, strict=False):
        assert {name: row[name].dtype for name in row} == {name: other[name].dtype for name in other}
        assert all(torch.equal(row[name], other[name]) and row[name].shape == other[name].shape for name in row)
    wanted = sorted({key[:2] for key in encoder.keys}) if on_disk else []
    assert [path.parent.name for path in entries(tmp_path)] == wanted


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "misplaced"])
def test_a_damaged_entry_is_made_again(tmp_path: Path, damage: str) -> None:
    encoder = Encoder(["pour", "ride"])
    EncodingCache(str(tmp_path)).get_many(encoder.keys, encoder)
    path = next(path for path in entries(tmp_path) if path.stem == encoder.keys[0])
    other = next(path for path in entries(tmp_path) if path.stem == encoder.keys[1])
    data = path.read_bytes()
    changed = {
        "flipped": data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
        "truncated": data[:-5],
        "empty": b"",
        "misplaced": other.read_bytes(),
    }
    path.write_bytes(changed[damage])
    again = EncodingCache(str(tmp_path))
    with pytest.warns(UserWarning, match=f"{path.name} is damaged and is made again") as said:
        rows = again.get_many(encoder.keys, encoder)
    assert len(said) == 1
    assert encoder.asked == [0, 1, 0]
    assert bytes(rows[0]["letters"].tolist()) == b"pour"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EncodingCache(str(tmp_path)).get_many(encoder.keys, encoder)


def test_memory_is_bounded() -> None:
    encoder = Encoder(["pour", "ride", "hold"])  # 48 bytes each
    cache = EncodingCache(None, memory_bytes=100)
    assert len(cache.get_many(encoder.keys, encoder)) == 3
    cache.get_many(encoder.keys[1:], encoder)
    assert encoder.asked == [0, 1, 2]
    cache.get_many(encoder.keys[:1], encoder)
    assert encoder.asked == [0, 1, 2, 0]
    none = EncodingCache(None, memory_bytes=0)
    assert bytes(none.get_many(encoder.keys, encoder)[1]["letters"].tolist()) == b"ride"


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    encoder = Encoder(["pour"])
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match=r"cache of encodings in .*file cannot be read: Not a directory\. Choose another"):
        EncodingCache(str(tmp_path / "file")).get_many(encoder.keys, encoder)
    assert encoder.asked == []  # before the work
    (tmp_path / "file").unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))  # no file may become longer
    try:
        with pytest.raises(OSError, match=f"cache of encodings in {tmp_path} cannot be written to: File too large"):
            EncodingCache(str(tmp_path)).get_many(encoder.keys, encoder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert entries(tmp_path) == []


def write_numbers(folder: str) -> None:
    keys = [text_key("n", str(number)) for number in range(40)]
    rows = EncodingCache(folder).get_many(keys, lambda places: [{"n": torch.full((500,), place)} for place in places])
    assert all(bool((row["n"] == number).all()) for number, row in enumerate(rows))


def test_processes_write_the_same_keys(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks in a process that has threads
        running = [get_context("fork").Process(target=write_numbers, args=(str(tmp_path),)) for _ in range(3)]
        for process in running:
            process.start()
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0, 0, 0]
    assert len(entries(tmp_path)) == 40
    write_numbers(str(tmp_path))


def test_keys() -> None:
    image = torch.arange(12, dtype=torch.uint8).reshape(3, 2, 2)
    keys = {*(text_key(*pair) for pair in ("ab", "ac", "bb")), image_key("a", image), image_key("a", image + 1)}
    keys |= {image_key("b", image), image_key("a", image.reshape(3, 4, 1)), image_key("a", image.flip(-1))}
    assert len(keys) == 8
    assert image_key("a", image.flip(-1)) == image_key("a", image.flip(-1).contiguous())
    with pytest.raises(TypeError, match=r"image must be uint8.* got torch\.float32"):
        image_key("a", image.float())
