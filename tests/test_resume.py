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
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint
from peft import LoraConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Dataset
from transformers import ViTConfig, ViTForImageClassification

import lit_modules
import lit_modules.adversarial
import lit_modules.unlearning
from callbacks import (
    EMA,
    AdaptiveLR,
    AdversarialWeightPerturbation,
    Curriculum,
    ExactResume,
    ForgetStopping,
    LastCheckpoint,
)
from datamodules import DrawnObjects
from datamodules.common.sampling import BatchSampler, batch_loader, training_loader
from lit_modules.attacks import LinfPGD
from lit_modules.synthia import PixelDiffusion
from lit_modules.synthia.ontology.curriculum import build_curriculum
from lit_modules.utils.ontology import Ontology
from tests.coda.test_updating import make as make_coda
from tests.coda.test_updating import rows
from tests.coda.tiny_llava import write as write_llava
from tests.unlearning.conftest import Workbench, make_task

EPOCHS, BATCHES = 2, 3
ADAMW = partial(torch.optim.AdamW, lr=1e-2)
HALVING = partial(StepLR, step_size=1, gamma=0.5)


class Ready(Dataset[Any]):
    """Batches that are made already, of which a sampler says the order."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __getitem__(self, places: tuple[int]) -> Any:
        return copy.deepcopy(self.batches[places[0]])


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
        self.folder, self.story, self.places = folder, story, {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, o: Any, b: Any, batch_idx: int) -> None:
        number = trainer.fit_loop.total_batch_idx + 1
        self.places[number] = len(self.story.events)
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


def loaders(batches: list[Any], validation: list[Any]) -> dict[str, Any]:
    train = batch_loader(Ready(batches), BatchSampler(len(batches), 1, seed=0))
    return {"train_dataloaders": train, "val_dataloaders": DataLoader(validation, batch_size=None)}  # type: ignore[arg-type]


def unlearning(name: str, folder: Path, **arguments: Any) -> tuple[Any, dict[str, Any]]:
    bench = Workbench(folder)
    extra = {"layer": 0} if name == "RMU" else {}
    settings: dict[str, Any] = {"tokenizer": bench.tokenizer(), "optimizer": ADAMW, "scheduler": HALVING}
    module = getattr(lit_modules, name)(bench.network(), **settings | extra | arguments)
    pairs = [{"forget": make_task(2, seed), "retain": make_task(2, 10 + seed)} for seed in range(BATCHES)]
    asked = {**make_task(2, 20), "split": ["forget", "retain"]}
    return module, loaders(pairs, [asked])


def fine_tuning(folder: Path) -> tuple[Any, dict[str, Any]]:
    module = lit_modules.CausalLMFineTuning(Workbench(folder).network(), optimizer=ADAMW)
    return module, loaders([make_task(2, seed) for seed in range(BATCHES)], [make_task(2, 20)])


def adversarial(name: str, folder: Path, **arguments: Any) -> tuple[Any, dict[str, Any]]:
    del folder
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    attack = LinfPGD(eps=0.1, steps=2, step_size=0.06, keep="last")
    settings: dict[str, Any] = {"validation_attack": attack, "test_attacks": [attack]}
    if name == "FreeTraining":
        settings |= {"eps": 0.1, "replays": 2}
    elif name != "StandardTraining":
        settings["attack"] = attack
    if name == "FastTraining":
        settings |= {"guard": "warn", "guard_attack": attack}
    images = torch.rand(BATCHES + 1, 6, 1, 8, 8)
    labels = torch.arange(6).remainder(3)
    batches = [{"image": image, "label": labels, "index": torch.arange(6)} for image in images]
    return getattr(lit_modules, name)(net, **settings | arguments), loaders(batches[:-1], batches[-1:])


def pictures(name: str, folder: Path, **arguments: Any) -> tuple[Any, dict[str, Any]]:
    del folder
    seed_everything(0, verbose=False)
    module = getattr(lit_modules, name)(PixelDiffusion(image_size=16, widths=(8, 16)), optimizer=ADAMW, **arguments)
    prompts, batches = ["a thing to sit", "a thing to pour"], []
    for number in range(BATCHES + 1):
        positive, negative = torch.rand(2, 3, 16, 16) * 2 - 1, torch.rand(2, 1, 3, 16, 16) * 2 - 1
        pair = {"pos": positive, "neg": negative, "neg_mask": torch.ones(2, 1, dtype=torch.bool)}
        ids = torch.tensor([2 * number, 2 * number + 1])
        rows_of = {"pair_id": ids, **pair} if name == "Synthia" else {"index": ids, "image": positive}
        batches.append({"prompt": prompts, **rows_of})
    return module, loaders(batches[:-1], batches[-1:])


def curriculum(folder: Path) -> tuple[Any, dict[str, Any]]:
    if not (folder / "ontology.json").exists():
        DrawnObjects.write_ontology(str(folder / "ontology.json"))
        ontology = Ontology.from_file(str(folder / "ontology.json"))
        build_curriculum(ontology, num_pairs=6, num_test_pairs=2).save(folder)
    settings: dict[str, Any] = {"image_size": 16, "batch_size": 1, "negatives": 1, "images_per_concept": 1}
    settings |= {"mode": "cumulative", "epochs": 3, "positives": 1, "num_workers": 0}
    return pictures("Synthia", folder)[0], {"datamodule": DrawnObjects(str(folder), task="pairs", **settings)}


def coda(folder: Path) -> tuple[Any, dict[str, Any]]:
    if not (folder / "config.json").exists():
        write_llava(folder)
    module = make_coda(str(folder), dropout=0.3, learning_rate=1e-2)
    return module, loaders([rows(1, swapped=bool(number % 2)) for number in range(BATCHES)], [rows(1)])


def classifier(folder: Path) -> tuple[Any, dict[str, Any]]:
    del folder
    seed_everything(0, verbose=False)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    network = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=2, **sizes))
    module = lit_modules.ClassifierUpdate(network, mean=[0.5] * 3, std=[0.5] * 3, learning_rate=1e-2)
    batches = [rows(1) | {"image": torch.rand(2, 3, 8, 8)} for _ in range(BATCHES + 1)]
    return module, loaders(batches[:-1], batches[-1:])


Build = Callable[[Path], tuple[Any, dict[str, Any]]]
UNLEARNING = sorted({*lit_modules.unlearning.__all__} - {"CausalLMFineTuning"})
ADVERSARIAL = sorted({*lit_modules.adversarial.__all__} & {*lit_modules.__all__})
MODULES: dict[str, Build] = {
    **{name: partial(unlearning, name) for name in UNLEARNING},
    **{name: partial(adversarial, name) for name in ADVERSARIAL},
    **{name: partial(pictures, name) for name in ("Synthia", "TextToImageTraining")},
    "CausalLMFineTuning": fine_tuning,
    "ClassifierUpdate": classifier,
    "CoDA": coda,
}
NGDIFF = partial(unlearning, "NGDiff", scheduler=None)


def unvalidated(build: Build, folder: Path) -> tuple[Any, dict[str, Any]]:
    module, given = build(folder)
    return module, {"train_dataloaders": given["train_dataloaders"]}


VARIANTS: dict[str, tuple[Build, Callable[[], list[Callback]]]] = {
    "NGDiff(accumulate=2)": (partial(unlearning, "NGDiff", accumulate=2), list),
    "FastTraining(guard_interval=2)": (partial(adversarial, "FastTraining", guard_interval=2), list),
    "FreeTraining(scheduler_interval='epoch')": (
        partial(adversarial, "FreeTraining", scheduler_interval="epoch", scheduler=HALVING),
        list,
    ),
    "AdaptiveLR(accumulate=2)": (partial(NGDIFF, accumulate=2), lambda: [AdaptiveLR(period=1, scale="cosine")]),
    "EMA": (NGDIFF, lambda: [EMA(decay=0.9)]),
    "ForgetStopping": (NGDIFF, lambda: [ForgetStopping(level=0.1, window=2, action="warn")]),
    "AdversarialWeightPerturbation": (
        partial(adversarial, "PGDTraining"),
        lambda: [AdversarialWeightPerturbation(warmup_epochs=1)],
    ),
    "NPO(peft_config)": (
        lambda folder: unlearning("NPO", folder, peft_config=LoraConfig(r=2, target_modules=["q_proj"])),
        list,
    ),
    "NGDiff(accumulate=2), no validation": (partial(unvalidated, partial(NGDIFF, accumulate=2)), list),
    "NGDiff, validated in every second epoch": (NGDIFF, list),
    "NGDiff, validated after every second batch": (NGDIFF, list),
    "PGDTraining, validated after every batch": (partial(adversarial, "PGDTraining"), list),
    "Curriculum": (curriculum, lambda: [Curriculum(monitor="val/gap", patience=1, min_delta=1e9)]),
}


class Foreign(LightningModule):
    """A module that is none of ours, and brings nothing that mends how it resumes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).pow(2).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def foreign(folder: Path) -> tuple[Any, dict[str, Any]]:
    del folder
    given = loaders([torch.tensor([[float(number)]]) for number in range(BATCHES)], [])
    return Foreign(), {"train_dataloaders": given["train_dataloaders"]}


VARIANTS["a module of other origin"] = (foreign, lambda: [ExactResume()])
SETTINGS: dict[str, dict[str, Any]] = {
    "NGDiff, validated in every second epoch": {"check_val_every_n_epoch": 2},
    "NGDiff, validated after every second batch": {"val_check_interval": 2},
    "PGDTraining, validated after every batch": {"val_check_interval": 1},
}
CASES: dict[str, tuple[Build, Callable[[], list[Callback]]]] = {
    **{name: (build, list) for name, build in MODULES.items()},
    **VARIANTS,
}


def run(name: str, data: Path, folder: Path, resume: Path | None = None) -> tuple[Story, dict[int, int], Any]:
    """Train, perhaps from a checkpoint; return the story, its length at each checkpoint, and the weights."""
    build, callbacks = CASES[name]
    module, given = build(data)
    story = Story()
    saver = EveryBatch(folder, story)
    seed_everything(1 if resume is None else 99, verbose=False)
    settings: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    settings |= {
        "enable_model_summary": False,
        "max_epochs": 3 if "datamodule" in given else EPOCHS,
        "default_root_dir": folder,
        **SETTINGS.get(name, {}),
    }
    trainer = Trainer(callbacks=[*callbacks(), story, saver], num_sanity_val_steps=0, **settings)
    trainer.fit(module, ckpt_path=resume, weights_only=True, **given)
    return story, saver.places, copy.deepcopy(module.state_dict())


def test_every_module_that_trains_is_among_the_cases() -> None:
    assert set(MODULES) == set(lit_modules.__all__) - {"InContext"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "generations"),
    [
        *((name, 2) for name in ("NGDiff", "FastTraining", "Synthia", "CoDA", "AdaptiveLR(accumulate=2)")),
        *(pytest.param(name, 3, marks=pytest.mark.slow) for name in CASES),
    ],
)
def test_a_run_goes_on_from_every_step(name: str, generations: int, tmp_path: Path) -> None:
    folders = [tmp_path / part for part in ("data", "whole", "second", "third")]
    for folder in folders:
        folder.mkdir()
    data, first, second, third = folders
    whole, places, weights = run(name, data, first)
    end = max(places)
    final = torch.load(first / f"{end}.ckpt", weights_only=True)

    def check(resumed: tuple[Story, dict[int, int], Any], step: int, folder: Path) -> None:
        story, saved, after = resumed
        assert story.events == whole.events[places[step] :], (name, step)
        assert same(after, weights), (name, step)
        if step < end:
            found = torch.load(folder / f"{end}.ckpt", weights_only=True)
            assert saved
            for key in final.keys() - {"loops"}:
                assert same(found[key], final[key]), (name, step, key)

    for step in range(1, end + 1):
        check(run(name, data, second, first / f"{step}.ckpt"), step, second)
        if step < end and generations == 3:
            check(run(name, data, third, second / f"{step + 1}.ckpt"), step + 1, third)


class Data(LightningDataModule):
    """The batches of a case, in a datamodule, as every run of the command line has one."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__()
        self.ready = given["train_dataloaders"].dataset
        self.validation = given["val_dataloaders"]

    def train_dataloader(self) -> Any:
        return training_loader(self, self.ready, BatchSampler(len(self.ready.batches), 1, seed=0), 0)

    def val_dataloader(self) -> Any:
        return self.validation


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
        build, callbacks = CASES[name]
        module, given = build(tmp_path)
        if name in ("FastTraining", "AdversarialWeightPerturbation"):
            # a step that broke off has moved the statistics and drawn the dropout
            module.classifier[2], module.classifier[4].p = nn.Identity(), 0.0
        given["val_dataloaders"] = DataLoader(given["val_dataloaders"].dataset * 3, batch_size=None)
        story = Story()
        settings: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
        settings |= {"enable_model_summary": False, "max_epochs": EPOCHS, "num_sanity_val_steps": 0}
        trainer = Trainer(callbacks=[*callbacks(), story, *more], default_root_dir=tmp_path, **settings)
        raised: Any = None
        try:
            trainer.fit(module, datamodule=Data(given), ckpt_path=resume)
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
    module, given = unlearning("NGDiff", tmp_path, accumulate=2, scheduler=None)
    adaptive = AdaptiveLR(period=1)
    settings: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    settings |= {"enable_progress_bar": False, "max_epochs": 1}
    trainer = Trainer(callbacks=[adaptive, Stop("on_train_batch_end", 1)], **settings)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        trainer.fit(module, given["train_dataloaders"])
    assert module._group == []
    assert adaptive.state_dict()["batches"] == []
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_horizon_ends_with_the_training(accumulate: int, tmp_path: Path) -> None:
    module, given = unlearning("NGDiff", tmp_path, accumulate=accumulate, scheduler=None)
    adaptive, left = AdaptiveLR(period=1, scale="linear"), []

    class Horizon(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            left.append(adaptive._horizon(trainer))

    settings: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    settings |= {"enable_progress_bar": False, "max_epochs": 4}
    Trainer(callbacks=[adaptive, Horizon()], **settings).fit(module, given["train_dataloaders"])
    assert left == pytest.approx([1 - place / 12 for place in range(12)])
