import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from datamodules.common.download import download
from lit_modules.utils.hashing import hash_file as checksum
from datamodules.lume import lume
from datamodules.lume.lume import LUME

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves ``CONTENT`` under any path but /missing; what it does is set per test."""

    daemon_threads = True
    ranges = True
    cut_at: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/forget.jsonl"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.path == "/missing":
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : self.server.cut_at])

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    path = download(server.url, tmp_path / "new" / "forget.jsonl", SHA256)
    assert path.read_bytes() == CONTENT
    assert download(server.url, path, SHA256) == path
    assert server.asked == [None]
    assert [file.name for file in path.parent.iterdir()] == ["forget.jsonl"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_was_cut_off_goes_on(ranges: bool, server: Server, tmp_path: Path) -> None:
    path, server.cut_at, server.ranges = tmp_path / "forget.jsonl", 100_000, ranges
    with pytest.raises(ConnectionError, match="156000 bytes did not come; call again to go on"):
        download(server.url, path, SHA256)
    assert not path.exists()
    server.cut_at = None
    assert download(server.url, path, SHA256).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"]


def test_a_part_that_is_complete(server: Server, tmp_path: Path) -> None:
    (tmp_path / "forget.jsonl.part").write_bytes(CONTENT)
    assert download(server.url, tmp_path / "forget.jsonl", SHA256).read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT)}-"]


def test_a_wrong_checksum_is_not_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"must have the SHA-256 {'0' * 64}, got {SHA256}; it was not kept"):
        download(server.url, tmp_path / "forget.jsonl", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_another_file_is_not_written_over(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "forget.jsonl"
    path.write_text("mine")
    with pytest.raises(ValueError, match="move it away to download it again"):
        download(server.url, path, SHA256)
    assert path.read_text() == "mine"
    assert server.asked == []


def test_server_that_fails(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="/missing cannot be downloaded: the server answers 404 Not Found"):
        download(server.url.replace("forget.jsonl", "missing"), tmp_path / "forget.jsonl", SHA256)
    with pytest.raises(ConnectionError, match=r"cannot be downloaded: .* call again to go on"):
        download("http://127.0.0.1:1/forget.jsonl", tmp_path / "forget.jsonl", SHA256)


def test_lume_downloads_its_files(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lume, "HOME", server.url.removesuffix("/forget.jsonl"))
    monkeypatch.setattr(lume, "CHECKSUMS", dict.fromkeys(lume.CHECKSUMS, SHA256))
    LUME("x", root=str(tmp_path / "data"), download=True).prepare_data()
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"forget.jsonl", "retain.jsonl"}


def test_checksums_are_those_of_the_release(lume_root: Path) -> None:
    assert {name: checksum(lume_root / name) for name in lume.CHECKSUMS} == lume.CHECKSUMS


@pytest.mark.network
def test_the_release_can_be_downloaded(tmp_path: Path) -> None:
    LUME("x", root=str(tmp_path), download=True).prepare_data()
    assert {name: checksum(tmp_path / name) for name in lume.CHECKSUMS} == lume.CHECKSUMS
