"""What the tests of the data share."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from datamodules import LUME
from datamodules.common.bpe import train_bpe


@pytest.fixture(scope="session")
def lume_root(data_folder: Path) -> Path:
    """Folder of the real files."""
    root = data_folder / "lume"
    if not (root / "forget.jsonl").is_file():
        pytest.skip(f"no real LUME files in {root}")
    return root


@pytest.fixture(scope="session")
def tokenizer(lume_folder: Path) -> PreTrainedTokenizerBase:
    return train_bpe([(lume_folder / "retain.jsonl").read_text(encoding="utf-8")], 300)


@pytest.fixture
def write_sets(tmp_path: Path) -> Callable[..., Path]:
    """Write sets of rows ``{(document, task): [kinds]}`` and return their folder."""

    def write(
        forget: Mapping[tuple[str, str], tuple[str, ...]], retain: Mapping[tuple[str, str], tuple[str, ...]]
    ) -> Path:
        for name, documents in (("forget", forget), ("retain", retain)):
            rows = [
                {"id": document + kind, "input": f"{document} {kind} asks", "output": f"{document} says", "task": task}
                for (document, task), kinds in documents.items()
                for kind in kinds
            ]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return tmp_path

    return write


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """Serve a folder on this machine and return its address."""
    servers = []

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None: ...

    def start(folder: Path) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def lume(tokenizer: PreTrainedTokenizerBase, lume_folder: Path) -> Callable[..., LUME]:
    """Make a datamodule of the tests' rows, or of other arguments, that is set up."""

    def make(**changed: Any) -> LUME:
        data = LUME(**{"tokenizer": tokenizer, "root": str(lume_folder), "num_workers": 0, **changed})
        data.setup("fit")
        return data

    return make
