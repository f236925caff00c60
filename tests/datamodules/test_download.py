import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from datamodules.common.download import download
from datamodules.lume import lume
from datamodules.lume.lume import LUME
from lit_modules.utils.hashing import hash_file

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Address of a server of two files."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None: ...

    folder = tmp_path / "served"
    folder.mkdir()
    for name in ("forget.jsonl", "retain.jsonl"):
        (folder / name).write_bytes(CONTENT)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


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
