from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from callbacks.ema import EMA
from callbacks.sample_grid import SampleGrid
from tests.small_runs import OneWeight, Tables, quiet_trainer

PAIRS = (("sit", "store"), ("pour",))


class Painter(OneWeight):
    """Paints a brightness for each image, and keeps what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Any, int]] = []
        self.weights: list[Tensor] = []
        self.drawn: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.drawn.append(float(torch.rand(())))
        return super().training_step(batch, batch_idx)

    def generate(self, affordances: Any, num_images: int = 1, seed: int = 0) -> Tensor:
        torch.rand(3)
        self.asked.append((affordances, seed))
        self.weights.append(self.layer.bias.detach().clone())
        levels = torch.arange(num_images).view(-1, 1, 1, 1) / 4
        return levels.expand(-1, 3, 8, 6)


class Grey(Painter):
    def generate(self, affordances: Any, num_images: int = 1, seed: int = 0) -> Tensor:
        return torch.zeros(num_images, 1, 8, 6)


class Broken(Painter):
    def generate(self, affordances: Any, num_images: int = 1, seed: int = 0) -> Tensor:
        return torch.tensor([torch.nan, 2.0, -1.0, torch.inf]).view(-1, 1, 1, 1).expand(-1, 3, 8, 6)


class Rows(Dataset[dict[str, Any]]):
    """Rows with affordances, of which some repeat, the other way round too."""

    names = (("sit", "store"), ("store", "sit"), ("pour", "fly"), ("sit", "store"), ("cut", "roll"), ("a", "b"))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.zeros(1), "affordances": self.names[index]}


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"x": torch.stack([row["x"] for row in rows]), "affordances": [row["affordances"] for row in rows]}


class Board(CSVLogger):
    """A logger whose experiment takes images, as TensorBoard's."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.images: list[tuple[str, tuple[int, ...], int]] = []

    @property
    def experiment(self) -> Any:
        return self

    def add_image(self, tag: str, image: Tensor, step: int) -> None:
        self.images.append((tag, tuple(image.shape), step))

    def log_metrics(self, *_: Any, **__: Any) -> None: ...

    def save(self) -> None: ...


def fit(module: LightningModule, folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    data: Any = DataLoader(Rows(), batch_size=2, collate_fn=collate)
    runner = quiet_trainer(folder, *callbacks, **{"limit_train_batches": 2, "num_sanity_val_steps": 2, **options})
    runner.fit(module, data, data)
    return runner


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png*"))


def test_a_grid_for_each_row_and_validation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, images, board = Painter(), Tables(tmp_path), Board(tmp_path)
    fit(module, tmp_path, SampleGrid(PAIRS, seed=3), logger=[images, board], max_epochs=2)
    torch.manual_seed(0)
    fit(plain := Painter(), tmp_path, max_epochs=2)
    assert module.drawn == plain.drawn  # training meets the same random numbers
    assert module.asked == [(row, 3) for row in PAIRS] * 2  # none from the sanity check
    run = tmp_path / "lightning_logs" / "version_0" / "samples"
    names = ["00_sit_store", "01_pour"]
    assert files(run) == [f"step_{step}/{name}.png" for step in ("000002", "000004") for name in names]
    picture = Image.open(run / "step_000002" / "00_sit_store.png")
    assert picture.size == (2 * 8 + 2, 2 * 10 + 2)  # two columns of images of 6 x 8 with margins of 2
    assert [picture.getpixel(place) for place in ((2, 2), (10, 2), (2, 12), (10, 12))] == [
        (round(level * 255 / 4),) * 3 for level in range(4)
    ]
    key, pictures, more = images.images[0]
    assert (key, more) == ("val/sample_grid", {"step": 2, "caption": ["sit, store", "pour"]})
    assert [more["step"] for *_, more in images.images] == [2, 4]
    assert pictures[0].tobytes() == picture.tobytes()
    assert board.images[:2] == [(f"val/sample_grid/{name}", (3, 22, 18), 2) for name in names]


def test_wandb_takes_the_grids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    fit(Painter(), tmp_path, SampleGrid(PAIRS), logger=WandbLogger(save_dir=tmp_path))
    assert [Path(name).name for name in files(tmp_path)] == ["00_sit_store.png", "01_pour.png"]


def test_the_first_different_rows_of_the_batches_are_drawn(tmp_path: Path) -> None:
    callback, module = SampleGrid(num_images=1, max_grids=3), Painter()
    runner = fit(module, tmp_path, callback, max_epochs=2)
    wanted = [("sit", "store"), ("pour", "fly"), ("cut", "roll")]
    assert [row for row, _ in module.asked] == wanted * 2
    runner.save_checkpoint(tmp_path / "run.ckpt")
    again, resumed = SampleGrid(num_images=1, max_grids=3), Painter()
    fit(resumed, tmp_path, again, max_epochs=2).validate(
        resumed, DataLoader(Rows(), collate_fn=collate), ckpt_path=tmp_path / "run.ckpt", verbose=False
    )
    assert again.state_dict() == {"validations": 2, "affordances": [list(row) for row in wanted]}


def test_every_second_validation(tmp_path: Path) -> None:
    callback = SampleGrid(PAIRS, every_n_validations=2)
    runner = fit(Painter(), tmp_path, callback, max_epochs=3)
    assert {Path(name).parent.name for name in files(tmp_path)} == {"step_000004"}
    runner.save_checkpoint(tmp_path / "run.ckpt")
    data: Any = DataLoader(Rows(), batch_size=2, collate_fn=collate)
    resumed = quiet_trainer(tmp_path, SampleGrid(PAIRS, every_n_validations=2), max_epochs=4, limit_train_batches=2)
    resumed.fit(Painter(), data, data, ckpt_path=tmp_path / "run.ckpt", weights_only=True)
    assert {Path(name).parent.name for name in files(tmp_path)} == {"step_000004", "step_000008"}


def test_averaged_weights_draw(tmp_path: Path) -> None:
    module, grid, ema = Painter(), SampleGrid(PAIRS), EMA()
    fit(module, tmp_path, grid, ema)
    assert torch.equal(module.weights[0], ema.state_dict()["averages"]["layer.bias"])
    assert not torch.equal(module.weights[0], module.layer.bias)


def test_names_of_files_are_safe(tmp_path: Path) -> None:
    rows = (("../../etc", "a\\b:*?"), ("Größe",), ("持つ",), ("x" * 300, "y"), ("CON",))
    fit(Painter(), tmp_path, SampleGrid(rows, num_images=1))
    names = [Path(name).name for name in files(tmp_path / "samples")]
    assert names == ["00_etc_a_b.png", "01_groe.png", "02.png", f"03_{'x' * 60}.png", "04_con.png"]


def test_images_that_are_not_finite_are_black(tmp_path: Path) -> None:
    fit(Broken(), tmp_path, SampleGrid(PAIRS[:1]))
    picture = Image.open(next(tmp_path.rglob("*.png")))
    levels = [picture.getpixel(place) for place in ((2, 2), (10, 2), (2, 12), (10, 12))]
    assert levels == [(0, 0, 0), (255, 255, 255), (0, 0, 0), (0, 0, 0)]


def test_a_folder_that_cannot_be_written_is_told_and_a_development_run_writes_nothing(tmp_path: Path) -> None:
    module = Painter()
    fit(module, tmp_path, SampleGrid(PAIRS), fast_dev_run=True)
    assert len(module.asked) == 2
    assert not list(tmp_path.iterdir())
    (tmp_path / "samples").write_text("in the way")
    with pytest.warns(UserWarning, match="SampleGrid cannot write pictures to"):
        fit(Painter(), tmp_path, SampleGrid(PAIRS))


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_processes_share_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    """Each rank is run after the other; what a collective would exchange is put together here."""
    rows = tuple((name,) for name in "abc")
    rounds = -(-len(rows) // processes)
    monkeypatch.setattr(SingleDeviceStrategy, "all_gather", lambda self, tensor: tensor)
    monkeypatch.setattr(Trainer, "world_size", processes)
    found = []
    for rank in range(processes):
        monkeypatch.setattr(Trainer, "global_rank", rank)
        module = Painter()
        SampleGrid(rows)._grids(quiet_trainer(tmp_path), module)
        assert len(module.asked) == rounds  # as often on every process
        found.append([row for row, _ in module.asked])
    together = [row for number in range(rounds) for row in (ranks[number] for ranks in found)]
    assert tuple(together[: len(rows)]) == rows


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        TypeError, match=r"asks for OneWeight\.generate\(affordances, num_images=, seed=\), which is"
    ):
        fit(OneWeight(), tmp_path, SampleGrid(PAIRS))
    with pytest.raises(TypeError, match=r"of shape \(4, 3, height, width\), got torch.float32 \(4, 1, 8, 6\)"):
        fit(Grey(), tmp_path, SampleGrid(PAIRS))
    data: Any = DataLoader([{"x": torch.zeros(1)}])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"asks for batch\['affordances'\] in validation, and found x; give it"):
        quiet_trainer(tmp_path, SampleGrid()).fit(Painter(), data, data)
    for rows in (((),), ("sit",), (("sit", " "),), (("sit", 3),)):
        with pytest.raises(ValueError, match="affordances must hold a tuple of names for each grid, got"):
            SampleGrid(rows)  # type: ignore[arg-type]
    for name in ("num_images", "every_n_validations", "max_grids"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            SampleGrid(**{name: 0})  # type: ignore[arg-type]
