from pathlib import Path

import pytest

from lit_modules.coda.backends.local import ClipEmbedder, LocalChat
from lit_modules.synthia.backbones.stable_diffusion import StableDiffusion
from lit_modules.synthia.pairs.images import PipelineImages
from lit_modules.synthia.pairs.preparation import Preparation, Sources
from lit_modules.utils.model_versions import model_version
from lit_modules.utils.ontology import Ontology


def test_a_change_anywhere_in_a_large_file_is_seen(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    shard = tmp_path / "model.safetensors"
    with shard.open("wb") as file:
        file.truncate(65 * 2**20)
    first = model_version(str(tmp_path), None, "config.json")
    for place in (500_000, 33_000_000, 65 * 2**20 - 1):
        with shard.open("r+b") as file:
            file.seek(place)
            file.write(b"1")
        second = model_version(str(tmp_path), None, "config.json")
        assert second != first
        first = second


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commits a and b of a model of the Hub, and the file that says which one is the newest."""
    model = tmp_path / "models--some--model"
    for commit in ("a" * 40, "b" * 40):
        folder = model / "snapshots" / commit
        folder.mkdir(parents=True)
        for name in ("config.json", "model_index.json"):
            (folder / name).write_text("{}")
    newest = model / "refs" / "main"
    newest.parent.mkdir()
    newest.write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return newest


def test_a_moved_revision_of_the_hub_is_seen(hub: Path, tmp_path: Path) -> None:
    ontology = Ontology.from_file("household")

    def identities() -> list[object]:
        maker = PipelineImages("some/model")
        preparation = Preparation(ontology, tmp_path / "pairs", sources=Sources(None, maker, clip_model="some/model"))
        return [
            LocalChat("some/model").identity,
            ClipEmbedder("some/model").identity,
            StableDiffusion("some/model").identity("text"),
            preparation.inputs("images"),
            preparation.inputs("negatives"),
            preparation.inputs("filter"),
        ]

    before = identities()
    assert "a" * 40 in str(before[0])
    hub.write_text("b" * 40)
    assert all(one != other for one, other in zip(before, identities(), strict=True))
