"""Few-shot data in Parquet files with labels, as the library datasets writes them and the Hugging Face Hub keeps them.

The hub is a small server on this machine; all on this side of the network is the hub's own library.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
from huggingface_hub import constants
from PIL import Image

from datamodules.few_shot.datasets import INaturalistPairs, NovelSpecies, SUNPairs
from datamodules.few_shot.few_shot import FewShotPairs

NAMES = ["Leopardus_pardinoides", "Phyllobates_samperi"]
PAIRS = [{"target": NAMES[0], "confusable": NAMES[1]}]
COMMIT = "0123456789" * 4
CARD = """---
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': Leopardus_pardinoides
          '1': Phyllobates_samperi
---
"""


def png(label: int, index: int) -> bytes:
    buffer = io.BytesIO()
    image = Image.effect_noise((40, 40), 70).convert("RGB")
    image.paste("red" if label else "green", (5, 5, 20 + index, 20))
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: Path, columns: tuple[str, str] = ("image", "label"), noted: bool = True) -> None:
    """Write a training and a test split of six pictures of either class, as `Dataset.push_to_hub` does."""
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    image, label = columns
    features = {image: {"_type": "Image"}, label: {"names": NAMES, "_type": "ClassLabel"}}
    (folder / "data").mkdir(parents=True)
    for split in ("train", "test"):
        rows = [
            {image: {"bytes": png(each, index), "path": f"{index}.png"}, label: each}
            for each in (0, 1)
            for index in range(6)
        ]
        table = arrow.Table.from_pylist(rows)
        if noted:
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        writer.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")


def ready(data: FewShotPairs) -> FewShotPairs:
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


@pytest.mark.parametrize("columns", [("image", "label"), ("photo", "taxon")])
@pytest.mark.parametrize("noted", [True, False])
def test_labelled_parquet_is_read(tmp_path: Path, columns: tuple[str, str], noted: bool) -> None:
    write(tmp_path, columns, noted)
    if not noted:
        card = CARD.replace("name: image", f"name: {columns[0]}").replace("name: label", f"name: {columns[1]}")
        (tmp_path / "README.md").write_text(card)
    data = ready(NovelSpecies(str(tmp_path), PAIRS, n_real=2, near_duplicates=False))
    assert data.classes == ("Leopardus pardinoides", "Phyllobates samperi")
    assert (len(data.split("train")), len(data.split("test"))) == (4, 24)
    batch = next(iter(data.train_dataloader()))
    for image, answer in zip(batch["image"], batch["answer"], strict=True):
        assert image.getpixel((8, 8)) == ((255, 0, 0) if answer == "Phyllobates samperi" else (0, 128, 0))


class Hub(ThreadingHTTPServer):
    """Stand-in of the hub with one dataset, ``owner/birds``."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.broken = files, set[str]()
        self.taken: Counter[str] = Counter()
        """Files that were sent, and how often."""


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: Any) -> None: ...

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path, files = unquote(urlparse(self.path).path), self.server.files
        if path.startswith(("/api/datasets/owner/birds/revision/main", f"/api/datasets/owner/birds/revision/{COMMIT}")):
            facts = {"id": "owner/birds", "sha": COMMIT, "private": False, "downloads": 0, "likes": 0, "tags": []}
            siblings = [{"rfilename": name} for name in files]
            return self.send(200, json.dumps({**facts, "siblings": siblings}).encode())
        if path.startswith("/api/datasets/owner/birds/revision/"):
            return self.send(404, X_Error_Code="RevisionNotFound")
        if path.startswith("/api/datasets/owner/birds/tree/"):
            rows = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            return self.send(200, json.dumps(rows).encode())
        name = path.removeprefix(f"/datasets/owner/birds/resolve/{COMMIT}/")
        if name not in files:
            return self.send(401, X_Error_Code="RepoNotFound")
        if self.command == "GET" and name in self.server.broken:
            return self.send(500)
        if self.command == "GET":
            self.server.taken[name] += 1
        etag = hashlib.sha256(files[name]).hexdigest()
        return self.send(200, files[name], ETag=f'"{etag}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    write(tmp_path / "birds")
    files = {path.relative_to(tmp_path / "birds").as_posix(): path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    server = Hub({**files, "README.md": CARD.encode(), "train.py": b"raise SystemExit"})
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()


def birds(root: Path, **args: Any) -> NovelSpecies:
    return NovelSpecies(str(root), PAIRS, n_real=2, near_duplicates=False, **{"download": "owner/birds", **args})


def test_a_dataset_of_the_hub_is_downloaded_once_and_read(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NovelSpecies, "hub", "owner/birds")
    for download in (True, "owner/birds", "owner/birds@main", f"owner/birds@{COMMIT}"):
        data = ready(birds(tmp_path / "root", download=download))
        assert len(data.split("train")) == 4
        assert set(hub.taken) == set(hub.files) - {"train.py"}
        assert set(hub.taken.values()) == {1}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert len(ready(birds(tmp_path / "root")).split("test")) == 24


def test_a_download_that_broke_off_gets_what_is_missing(hub: Hub, tmp_path: Path) -> None:
    broken = "data/test-00000-of-00001.parquet"
    hub.broken = {broken}
    root = tmp_path / "root"
    with pytest.raises(ConnectionError, match=r"owner/birds cannot be downloaded: .* again, gets what is missing"):
        birds(root).prepare_data()
    assert not (root / broken).exists()
    hub.broken = set()
    assert len(ready(birds(root)).split("test")) == 24
    assert set(hub.taken.values()) == {1}


def test_a_dataset_that_cannot_be_had_is_told_in_a_sentence(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, message in (
        (
            "owner/none",
            "owner/none cannot be downloaded: there is no such dataset, or it is private and needs `hf",
        ),
        ("owner/birds@v2", "owner/birds cannot be downloaded: it has no revision 'v2'"),
    ):
        with pytest.raises(ConnectionError, match=message):
            birds(tmp_path / "root", download=name).prepare_data()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"HF_HUB_OFFLINE is set\. .*put its files into .*root yourself"):
        birds(tmp_path / "root").prepare_data()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.files = {"README.md": b"", "train.zip": b""}
    with pytest.raises(ValueError, match=r"There are no files \*\.parquet, .* give a dataset of pictures"):
        birds(tmp_path / "root").prepare_data()


def test_names_of_datasets_are_checked_at_once() -> None:
    assert (NovelSpecies.hub, INaturalistPairs.hub) == (
        "bryanzhou008/NovelSpecies",
        "bryanzhou008/iNaturalist-CoDA-Subset",
    )
    with pytest.raises(ValueError, match=r"is OWNER/NAME or OWNER/NAME@REVISION, got 'https://huggingface\.co/x/y'"):
        NovelSpecies(download="https://huggingface.co/x/y")
    for kind in (FewShotPairs, SUNPairs):
        with pytest.raises(ValueError, match=f"must name a dataset .* as {kind.__name__} has none of its own"):
            kind(download=True)
    with pytest.raises(FileNotFoundError, match="`download: true` gets bryanzhou008/NovelSpecies"):
        ready(NovelSpecies("no/such/folder"))


@pytest.mark.network
def test_the_published_dataset_can_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    data = NovelSpecies(str(tmp_path), download=True)
    data.prepare_data()
    with pytest.raises(FileNotFoundError, match=r"There is no .*pairs\.json"):
        data.setup("fit")
