import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from datamodules import LUME
from tests.small_runs import OneWeight, quiet_trainer, zeros


def ids(batches: Any) -> list[str]:
    return [i for batch in batches for i in batch["id"]]


def test_batches_can_be_sent_to_workers(lume: Callable[..., LUME]) -> None:
    data = lume(num_workers=2)
    assert ids(data.predict_dataloader()) == ids(lume().predict_dataloader())
    for loader in (data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()):
        pickle.dumps(loader.dataset)  # as workers that are spawned and not forked need it


class Recorder(OneWeight):
    """Keeps the rows of training, and checks what the other stages are given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        self.seen += batch["forget"]["id"]
        return super().training_step(next(iter(zeros())), batch_idx)

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        assert set(batch["split"]) == {("forget", "retain")[dataloader_idx]}

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        assert ("kind", "member")[dataloader_idx] in batch

    def predict_step(self, batch: dict[str, Any]) -> list[str]:
        names: list[str] = batch["id"]
        return names


def test_every_stage_of_a_trainer(lume: Callable[..., LUME], tmp_path: Path) -> None:
    data, module = lume(), Recorder()
    run = quiet_trainer(tmp_path)
    run.fit(module, data)
    assert len(module.seen) == 20
    run.validate(module, data, verbose=False)
    run.test(module, data, verbose=False)
    predicted: Any = run.predict(module, data)
    assert [i for names in predicted for i in names] == ids(data.predict_dataloader())
    few = Recorder()
    with pytest.warns(UserWarning, match="You requested to overfit"):
        quiet_trainer(tmp_path, max_epochs=3, overfit_batches=2).fit(few, lume())
    assert few.seen[:2] * 3 == few.seen
    assert len(few.seen) == 6


def test_two_ranks_share_every_loader(
    lume: Callable[..., LUME], tokenizer: PreTrainedTokenizerBase, lume_folder: Path
) -> None:
    ranks = []
    for rank in (0, 1):
        data: Any = LUME(tokenizer, root=str(lume_folder), batch_size=2, eval_batch_size=4, num_workers=0)
        data.trainer = SimpleNamespace(callbacks=[], global_rank=rank, world_size=2, limit_train_batches=None)
        data.setup("fit")
        ranks.append(data)
    one = lume(batch_size=4, eval_batch_size=8)
    for a, b, whole in zip(*(data.train_dataloader() for data in (*ranks, one)), strict=True):
        for name in ("forget", "retain"):
            assert a[name]["id"] + b[name]["id"] == whole[name]["id"]
    for loaders in zip(*(data.test_dataloader() + data.val_dataloader() for data in (*ranks, one)), strict=True):
        a, b, whole = map(ids, loaders)
        assert sorted(a + b) == sorted(whole)  # nothing twice
