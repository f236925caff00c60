"""The learning rate along the stages of a curriculum: the same share for each, after a resume and a promotion too."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks import Curriculum
from datamodules import DrawnObjects
from lit_modules.synthia import StagedLR, Synthia


class Rates(Callback):
    """Keeps the stage and the learning rate of each optimizer step."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        stage = trainer.train_dataloader.sampler.stage
        self.seen.append((0 if stage is None else stage, optimizer.param_groups[0]["lr"]))

    def shares(self) -> list[float]:
        total = sum(rate for _, rate in self.seen)
        stages = sorted({stage for stage, _ in self.seen})
        return [sum(rate for each, rate in self.seen if each == stage) / total for stage in stages]


def rates_of(**arguments: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule, rates = StagedLR(optimizer, **arguments), []
    for _ in range(sum(arguments["steps"])):
        rates += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    return rates


def test_the_rate_rises_and_falls_in_each_stage() -> None:
    assert rates_of(warmup=0.5, steps=[4, 2]) == pytest.approx([2 / 3, 4 / 3, 2.0, 1.0, 1.0, 2.0])
    assert rates_of(warmup=0.25, decay="linear", steps=[4]) == pytest.approx([1.0, 2.0, 4 / 3, 2 / 3])
    assert rates_of(warmup=0.0, decay="none", steps=[3, 5, 1]) == [2.0] * 9  # the reference's
    past = StagedLR(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0), 0.0, "linear", [2, 4])
    assert [past.factor(step) for step in (5, 6, 600)] == [0.25] * 3
    for decay in ("cosine", "linear", "none"):  # stages of one length have one share
        rates = rates_of(warmup=0.0667, decay=decay, steps=[500] * 3)
        shares = [sum(rates[start : start + 500]) / sum(rates) for start in (0, 500, 1000)]
        assert shares == pytest.approx([1 / 3] * 3)
    rate = torch.tensor(1.0)
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=rate, capturable=False, foreach=False)
    StagedLR(optimizer, warmup=0.5).set_stages([4])
    assert optimizer.param_groups[0]["lr"] is rate  # a tensor stays one
    assert float(rate) == pytest.approx(1 / 3)
    for more, message in (
        ({"warmup": 1.0}, r"a share of a stage in \[0, 1\), got 1.0"),
        ({"steps": [3, 0]}, "at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            StagedLR(optimizer, **more)  # type: ignore[arg-type]


Fit = Callable[..., Rates]


@pytest.fixture
def fit(synthia: Callable[..., Synthia], pairs: Callable[..., DrawnObjects], trainer: Callable[..., Trainer]) -> Fit:
    """Tune a small module on six pairs in three stages, one pair a batch."""

    def run(
        curriculum: Callback | None = None,
        scheduler: Callable[..., Any] = StagedLR,
        mode: str = "staged",
        resume: Path | None = None,
        others: Sequence[Callback] = (),
        **arguments: Any,
    ) -> Rates:
        rates = Rates()
        callbacks = [rates, *others, *([] if curriculum is None else [curriculum])]
        made = trainer(callbacks=callbacks, **{"max_epochs": 12, "limit_val_batches": 0} | arguments)
        data = pairs(batch_size=1, mode=mode, epochs=12)
        made.fit(synthia(scheduler=scheduler), data, ckpt_path=resume, weights_only=True if resume else None)
        return rates

    return run


def test_every_stage_of_a_run_has_the_same_share(fit: Fit) -> None:
    rates = fit(Curriculum())
    assert len(rates.seen) == 24
    assert rates.shares() == pytest.approx([1 / 3] * 3)
    assert fit(None, partial(StagedLR, steps=[8, 8, 8])).seen == rates.seen  # lengths that are given need no callback


@pytest.mark.parametrize(
    ("arguments", "schedule"),
    [
        ({"accumulate_grad_batches": 2, "scheduler": partial(StagedLR, warmup=0.5)}, {"warmup": 0.5, "steps": [4] * 3}),
        ({"mode": "random"}, {"warmup": 0.05, "steps": [24]}),
        ({"max_epochs": 14}, {"steps": [8, 8, 12]}),
        ({"max_epochs": -1, "max_steps": 30}, {"steps": [8, 8, 14]}),
    ],
    ids=["accumulated", "one stage", "longer run", "ended by steps"],
)
def test_lengths_of_stages(fit: Fit, arguments: dict[str, Any], schedule: dict[str, Any]) -> None:
    rates = [rate * 2000 for _, rate in fit(Curriculum(), **arguments).seen]
    assert rates == pytest.approx(rates_of(**schedule))


class Save(Callback):
    """Writes a checkpoint after a step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("stops", [(7,), pytest.param((9, 16, 19), marks=pytest.mark.slow)])
def test_a_resumed_run_has_the_rates_of_one_that_was_not_stopped(
    fit: Fit, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    whole, parts, resume, begin = fit(Curriculum()).seen, [], None, 0
    for stop in (*stops, 24):
        path = tmp_path / f"{stop}.ckpt"
        parts += fit(Curriculum(), resume=resume, others=[Save(stop, path)]).seen[: stop - begin]
        resume, begin = path, stop
    assert parts == whole


def test_the_next_stage_begins_with_its_warm_up_when_it_is_brought_forward(fit: Fit) -> None:
    class Promote(Callback):
        """Brings stage 1 forward from epoch 4 to epoch 2."""

        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                assert trainer.train_dataloader.sampler.promote()

    rates = fit(Curriculum(), others=[Promote()])
    expected = [*rates_of(steps=[8])[:4], *rates_of(steps=[12, 8])]
    assert [rate * 2000 for _, rate in rates.seen] == pytest.approx(expected)


def test_stages_that_nothing_gives_are_asked_for(fit: Fit) -> None:
    class Endless(Callback):
        """Takes the number of epochs from the sampler."""

        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            del trainer.train_dataloader.sampler.epochs

    with pytest.raises(RuntimeError, match=r"StagedLR does not know the stages.*add callbacks.Curriculum"):
        fit(None)
    with pytest.raises(TypeError, match=r"StagedLR asks for the lengths of the stages, and CurriculumSampler has no"):
        fit(Curriculum(), others=[Endless()])
