import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.common.download import download
from datamodules.lume import lume
from datamodules.lume.lume import LUME
from lit_modules.utils.hashing import hash_file

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(serve: Callable[[Path], str], tmp_path: Path) -> str:
    """Address of a server of two files."""
    for name in ("forget.jsonl", "retain.jsonl"):
        (tmp_path / "served").mkdir(exist_ok=True)
        (tmp_path / "served" / name).write_bytes(CONTENT)
    return serve(tmp_path / "served")


def test_a_file_is_downloaded_once(server: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "forget.jsonl"
    download(f"{server}/forget.jsonl", path, SHA256)
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["forget.jsonl"]
    download("http://127.0.0.1:1/forget.jsonl", path, SHA256)  # asks nobody
    path.write_text("mine")
    with pytest.raises(ValueError, match="move it away to download it again"):
        download(f"{server}/forget.jsonl", path, SHA256)
    assert path.read_text() == "mine"


def test_a_failed_download_leaves_nothing(server: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "forget.jsonl"
    with pytest.raises(ValueError, match=rf"forget.jsonl was cut off or has changed, and was not kept: .*{SHA256}"):
        download(f"{server}/forget.jsonl", path, "0" * 64)
    with pytest.raises(ConnectionError, match=r"/missing cannot be downloaded: the server answers 404"):
        download(f"{server}/missing", path, SHA256)
    with pytest.raises(ConnectionError, match=r"cannot be downloaded: .*refused"):
        download("http://127.0.0.1:1/forget.jsonl", path, SHA256)
    assert list(path.parent.iterdir()) == []


def test_lume_downloads_its_files(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lume, "HOME", server)
    monkeypatch.setattr(lume, "CHECKSUMS", dict.fromkeys(lume.CHECKSUMS, SHA256))
    LUME("x", root=str(tmp_path / "data"), download=True).prepare_data()
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"forget.jsonl", "retain.jsonl"}


def test_checksums_are_those_of_the_release(lume_root: Path) -> None:
    assert {name: hash_file(lume_root / name) for name in lume.CHECKSUMS} == lume.CHECKSUMS


@pytest.mark.network
def test_the_release_can_be_downloaded(tmp_path: Path) -> None:
    LUME("x", root=str(tmp_path), download=True).prepare_data()
    assert {name: hash_file(tmp_path / name) for name in lume.CHECKSUMS} == lume.CHECKSUMS
