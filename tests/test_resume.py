"""Every module that trains goes on from every step, in two and three generations, as if it had not been stopped.

By default one of each family goes on once; the slow tests take all, and a third generation.
"""

import copy
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint
from peft import LoraConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

import lit_modules
from callbacks import (
    EMA,
    AdaptiveLR,
    AdversarialWeightPerturbation,
    Curriculum,
    ExactResume,
    ForgetStopping,
    LastCheckpoint,
)
from datamodules import Digits, DrawnObjects
from datamodules.common.sampling import BatchSampler, batch_loader
from lit_modules.synthia.ontology.curriculum import build_curriculum
from lit_modules.utils.ontology import Ontology
from tests.test_old_checkpoints import CASES, METHODS, TRAININGS, Ready, task, write_models

EPOCHS, BATCHES = 2, 3
HALVING = partial(StepLR, step_size=1, gamma=0.5)
QUIET: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
QUIET |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "limit_train_batches": BATCHES}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_models()
        DrawnObjects.write_ontology("ontology.json")
        build_curriculum(Ontology.from_file("ontology.json"), num_pairs=6, num_test_pairs=2).save(folder)
    return folder


@pytest.fixture(autouse=True)
def working_folder(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models)


class Story(Callback):
    """Tell what a run does."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        self.events.append(("epoch begins", trainer.current_epoch))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.events.append(("batch", trainer.current_epoch, batch_idx, trainer.global_step, fingerprint(batch)))

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        numbers = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/")}
        self.events.append(("validated", trainer.current_epoch, numbers))

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        self.events.append(("epoch ends", trainer.current_epoch))


class EveryBatch(Checkpoint):
    """Save after every batch, behind all other callbacks, as ModelCheckpoint does."""

    def __init__(self, folder: Path, story: Story) -> None:
        self.folder, self.story, self.lengths = folder, story, {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, o: Any, b: Any, batch_idx: int) -> None:
        number = trainer.fit_loop.total_batch_idx + 1
        self.lengths[number] = len(self.story.events)
        trainer.save_checkpoint(self.folder / f"{number}.ckpt")


def fingerprint(batch: Any) -> float:
    """Add up all that a batch holds."""
    if isinstance(batch, Tensor):
        return float(batch.double().mul(torch.arange(1, batch.numel() + 1).view(batch.shape)).sum())
    if isinstance(batch, dict):
        return sum(fingerprint(value) for value in batch.values())
    return sum(map(fingerprint, batch)) if isinstance(batch, list | tuple) else 0.0


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


class Validated(Ready):
    """Batches that are made already, and the first of them three times for validation."""

    def val_dataloader(self) -> Any:
        shown = self.batches[0]
        if "forget" in shown:
            shown = {**task(20), "split": ["forget", "retain"]}
        return DataLoader([shown] * 3, batch_size=None)  # type: ignore[arg-type]


def build(name: str, **arguments: Any) -> tuple[Any, Any]:
    """Return a module of a public name and its data, the same at each call."""
    seed_everything(0, verbose=False)
    case = next(case for case in CASES.values() if case.name == name)
    objects = case.objects()
    more: dict[str, Any] = {"optimizer": partial(torch.optim.AdamW, lr=1e-2)}
    data: Any = case.data()
    if name in METHODS:
        more["scheduler"] = HALVING
    if name in TRAININGS:
        objects["classifier"].append(nn.Dropout(0.3))
        data = Digits(batch_size=8, eval_batch_size=8, validation_size=24, num_workers=0)
    else:
        data = Validated(data.batches)
    if name == "FastTraining":
        more |= {"guard": "warn", "guard_attack": objects["attack"]}
    if name == "CoDA":
        more["dropout"] = 0.3
    return case.module(**case.hparams | objects | more | arguments), data


def curriculum() -> tuple[Any, Any]:
    settings: dict[str, Any] = {"image_size": 16, "batch_size": 1, "negatives": 1, "images_per_concept": 1}
    settings |= {"mode": "cumulative", "epochs": 3, "positives": 1, "num_workers": 0}
    return build("Synthia")[0], DrawnObjects(".", task="pairs", **settings)


class Foreign(LightningModule):
    """A module that is none of ours, and brings nothing that mends how it resumes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.layer(batch["number"]).pow(2).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def foreign() -> tuple[Any, Any]:
    data = Ready([{"number": torch.tensor([[float(number)]])} for number in range(BATCHES)])
    return Foreign(), batch_loader(data, BatchSampler(BATCHES, 1, seed=0))


Build = Callable[[], tuple[Any, Any]]
NGDIFF = partial(build, "NGDiff", scheduler=None)
GROUP = partial(NGDIFF, accumulate=2)
PEFT = LoraConfig(r=2, target_modules=["q_proj"])
UNVALIDATED = {"limit_val_batches": 0}
VARIANTS: dict[str, tuple[Build, list[Callable[[], Callback]], dict[str, Any]]] = {
    "NGDiff(accumulate=2)": (partial(build, "NGDiff", accumulate=2), [], {}),
    "NGDiff(accumulate=2), no validation": (GROUP, [], UNVALIDATED),
    "NGDiff, validated in every second epoch": (NGDIFF, [], {"check_val_every_n_epoch": 2}),
    "NGDiff, validated after every second batch": (NGDIFF, [], {"val_check_interval": 2}),
    "NPO(peft_config)": (partial(build, "NPO", peft_config=PEFT), [], {}),
    "AdaptiveLR(accumulate=2)": (GROUP, [partial(AdaptiveLR, period=1, scale="cosine")], {}),
    "EMA": (NGDIFF, [partial(EMA, decay=0.9)], {}),
    "ForgetStopping": (NGDIFF, [partial(ForgetStopping, level=0.1, window=2, action="warn")], {}),
    "FastTraining(guard_interval=2)": (partial(build, "FastTraining", guard_interval=2), [], {}),
    "FreeTraining(scheduler_interval='epoch')": (
        partial(build, "FreeTraining", scheduler_interval="epoch", scheduler=HALVING),
        [],
        UNVALIDATED,
    ),
    "PGDTraining, validated after every batch": (partial(build, "PGDTraining"), [], {"val_check_interval": 1}),
    "AdversarialWeightPerturbation": (
        partial(build, "PGDTraining"),
        [partial(AdversarialWeightPerturbation, warmup_epochs=1)],
        {},
    ),
    "Curriculum": (
        curriculum,
        [partial(Curriculum, monitor="val/gap", patience=1, min_delta=1e9)],
        {"max_epochs": 3, "limit_train_batches": None},
    ),
    "a module of other origin, without datamodule": (foreign, [ExactResume], UNVALIDATED),
}
RUNS = {**{name: (partial(build, name), [], {}) for name in {case.name for case in CASES.values()}}, **VARIANTS}


def run(name: str, folder: Path, resume: Path | None = None) -> tuple[Story, dict[int, int], Any]:
    """Train, perhaps from a checkpoint; return the story, its length at each checkpoint, and the weights."""
    start, callbacks, settings = RUNS[name]
    module, data = start()
    story = Story()
    saver = EveryBatch(folder, story)
    seed_everything(1 if resume is None else 99, verbose=False)
    settings = {**QUIET, "max_epochs": EPOCHS, "limit_val_batches": 1, "default_root_dir": folder, **settings}
    trainer = Trainer(callbacks=[*(make() for make in callbacks), story, saver], **settings)
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return story, saver.lengths, copy.deepcopy(module.state_dict())


def test_every_module_that_trains_is_among_the_cases() -> None:
    assert {case.name for case in CASES.values()} == set(lit_modules.__all__) - {"InContext"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "generations"),
    [
        *((name, 2) for name in ("NGDiff", "FastTraining", "Synthia", "CoDA", "AdaptiveLR(accumulate=2)")),
        *(pytest.param(name, 3, marks=pytest.mark.slow) for name in sorted(RUNS)),
    ],
)
def test_a_run_goes_on_from_every_step(name: str, generations: int, tmp_path: Path) -> None:
    first, second, third = (tmp_path / part for part in ("first", "second", "third"))
    for folder in (first, second, third):
        folder.mkdir()
    whole, lengths, weights = run(name, first)
    end = max(lengths)
    final = torch.load(first / f"{end}.ckpt", weights_only=True)

    def check(resumed: tuple[Story, dict[int, int], Any], step: int, folder: Path) -> None:
        story, saved, after = resumed
        assert story.events == whole.events[lengths[step] :], (name, step)
        assert same(after, weights), (name, step)
        if step < end:
            last = torch.load(folder / f"{end}.ckpt", weights_only=True)
            assert saved
            for key in final.keys() - {"loops"}:
                assert same(last[key], final[key]), (name, step, key)

    for step in range(1, end + 1):
        check(run(name, second, first / f"{step}.ckpt"), step, second)
        if step < end and generations == 3:
            check(run(name, third, second / f"{step + 1}.ckpt"), step + 1, third)


class Stop(Callback):
    """Stop a run at an event of its story, by an error or a signal."""

    def __init__(self, hook: str, number: int, signal_number: int | None = None) -> None:
        self.left = number

        def stop(*_: Any) -> None:
            self.left -= 1
            if not self.left and signal_number is not None:
                os.kill(os.getpid(), signal_number)
            elif not self.left:
                raise RuntimeError("stopped by the test")

        setattr(self, hook, stop)


STOPS: dict[str, tuple[Callable[[], Stop], int | None]] = {
    "error before a step": (lambda: Stop("on_before_optimizer_step", 2), None),
    "error as a batch begins": (lambda: Stop("on_train_batch_start", 6), None),
    "error as a batch ends": (lambda: Stop("on_train_batch_end", 5), None),
    "error in a validation": (lambda: Stop("on_validation_batch_start", 4), None),
    "error as an epoch ends": (lambda: Stop("on_train_epoch_end", 1), None),
    "Ctrl-C in a batch": (lambda: Stop("on_train_batch_start", 2, signal.SIGINT), 130),
    "Ctrl-C in the last batch of an epoch": (lambda: Stop("on_train_batch_start", 3, signal.SIGINT), 130),
    "Ctrl-C in a validation": (lambda: Stop("on_validation_batch_start", 4, signal.SIGINT), 1),
    "kill in a batch": (lambda: Stop("on_train_batch_start", 4, signal.SIGTERM), 143),
}
EXACT = ["NGDiff(accumulate=2)", "AdaptiveLR(accumulate=2)", "EMA", "FastTraining", "AdversarialWeightPerturbation"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "stop"),
    [
        pytest.param(name, stop, marks=[] if EXACT[index % len(EXACT)] == name else pytest.mark.slow)
        for name in EXACT
        for index, stop in enumerate(STOPS)
    ],
)
def test_what_stops_a_run_leaves_a_state_to_go_on_from(name: str, stop: str, tmp_path: Path) -> None:
    def start(more: list[Callback], resume: Path | None = None) -> tuple[list[Any], Any, Any]:
        make, callbacks, _ = RUNS[name]
        module, data = make()
        if hasattr(module, "classifier"):  # a step that broke off has moved the statistics and drawn the dropout
            module.classifier[2], module.classifier[5] = nn.Identity(), nn.Identity()
        story = Story()
        own = [make() for make in callbacks]
        trainer = Trainer(callbacks=[*own, story, *more], max_epochs=EPOCHS, default_root_dir=tmp_path, **QUIET)
        raised: Any = None
        try:
            trainer.fit(module, data, ckpt_path=resume)
        except (RuntimeError, SystemExit) as error:
            raised = error
        return story.events, copy.deepcopy(module.state_dict()), raised

    whole, weights, _ = start([])
    make_stop, code = STOPS[stop]
    first, _, raised = start([make_stop(), LastCheckpoint(str(tmp_path))])
    assert isinstance(raised, SystemExit if code else RuntimeError), raised
    assert code is None or raised.code == code
    second, resumed, _ = start([], tmp_path / "last.ckpt")
    assert same(resumed, weights)
    trained = [event for event in (*first, *second) if event[0] == "batch"]
    assert [event for event in whole if event[0] == "batch"] == list(dict.fromkeys(trained))
    assert second == whole[len(whole) - len(second) :]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_exception_leaves_nothing_for_the_next_training(tmp_path: Path) -> None:
    module, data = GROUP()
    adaptive = AdaptiveLR(period=1)
    trainer = Trainer(callbacks=[adaptive, Stop("on_train_batch_end", 1)], default_root_dir=tmp_path, **QUIET)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        trainer.fit(module, data)
    assert module._group == []
    assert adaptive.state_dict()["batches"] == []
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_horizon_ends_with_the_training(accumulate: int, tmp_path: Path) -> None:
    module, data = build("NGDiff", scheduler=None, accumulate=accumulate)
    adaptive, left = AdaptiveLR(period=1, scale="linear"), []

    class Horizon(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            left.append(adaptive._horizon(trainer))

    Trainer(callbacks=[adaptive, Horizon()], max_epochs=4, default_root_dir=tmp_path, **QUIET).fit(module, data)
    assert left == pytest.approx([1 - batch / 12 for batch in range(12)])
