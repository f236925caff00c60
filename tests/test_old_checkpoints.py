"""Checkpoints of version 0.1.0 load, and their training goes on as it did then.

``tests/data/checkpoints/make.py`` wrote them with the cases of this file: two steps of each method, from models in
folders of the working folder. ``outputs.json`` holds numbers of each module as it was saved and a step later.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lit_modules.datamodules.common.sampling import BatchSampler, training_loader
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast, ViTConfig, ViTForImageClassification

import lit_modules
from lit_modules.attacks import LinfPGD
from lit_modules.callbacks import EMA, AdaptiveLR, ForgetStopping
from lit_modules.datamodules import Digits
from lit_modules.networks import small_llama
from lit_modules.synthia import PixelDiffusion
from tests.coda.tiny_llava import model as llava
from tests.coda.tiny_llava import picture, processor

FOLDER = Path(__file__).parent / "data" / "checkpoints"
STEPS = 2
SGD = partial(torch.optim.SGD, lr=0.1)
ADAMW = partial(torch.optim.AdamW, lr=0.01)
ADAPTIVE = partial(AdaptiveLR, period=2, scale="linear", rule="official", probe_batch="current")
STOPPING = partial(ForgetStopping, level=0.1, window=2, action="warn")
Objects = dict[str, Any]


class Ready(LightningDataModule, Dataset[Any]):
    """Batches that are made already, in the order of a seed."""

    def __init__(self, batches: list[Any]) -> None:
        super().__init__()
        self.batches = batches

    def __getitem__(self, index: tuple[int]) -> Any:
        return dict(self.batches[index[0]])

    def train_dataloader(self) -> Any:
        return training_loader(self, self, BatchSampler(len(self.batches), 1, seed=0), 0)


@dataclass
class Case:
    """A method, as it was trained and as its checkpoint is loaded.

    Args:
        name: Public name of the module.
        outputs: Numbers that the weights decide.
        data: Builds the datamodule.
        hparams: Arguments that the checkpoint holds.
        objects: Builds the arguments that the checkpoint does not hold and loading needs.
        training: Arguments that training alone needs.
        callbacks: Build the callbacks.
    """

    name: str
    outputs: Callable[[Any], Tensor]
    data: Callable[[], LightningDataModule]
    hparams: Objects = field(default_factory=dict)
    objects: Callable[[], Objects] = dict
    training: Objects = field(default_factory=lambda: {"optimizer": SGD})
    callbacks: list[Callable[[], Callback]] = field(default_factory=list)

    @property
    def module(self) -> type[LightningModule]:
        found: type[LightningModule] = getattr(lit_modules, self.name)
        return found

    def fit(self, steps: int, callbacks: list[Callback], ckpt_path: Path | None = None) -> Any:
        """Train to a number of steps, perhaps from a checkpoint, and return the module."""
        seed_everything(0, verbose=False)
        module = self.module(**self.hparams, **self.objects(), **self.training)
        settings: Objects = {"accelerator": "cpu", "devices": 1, "logger": False}
        settings |= {"enable_checkpointing": bool(callbacks), "callbacks": [build() for build in self.callbacks]}
        settings |= {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
        settings["callbacks"] += callbacks
        trainer = Trainer(max_steps=steps * self.optimizer_steps, default_root_dir=".", **settings)
        trainer.fit(module, datamodule=self.data(), ckpt_path=ckpt_path)
        return module

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps of a batch."""
        return int(self.hparams.get("replays", 1))

    def numbers(self, module: LightningModule) -> list[float]:
        """Return a few numbers that the weights of a module decide."""
        module.eval()
        with torch.no_grad():
            values = self.outputs(module).flatten()
        return [float(f"{value:.9g}") for value in values[:: max(1, len(values) // 16)]]


def fill(network: nn.Module, width: float = 2.0) -> Any:
    """Draw all parameters, the same to the last bit whatever a library initialises and whatever the processor."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(network.named_parameters()):
            parameter.copy_((torch.rand(parameter.shape, generator=random) - 0.5) * width)
    return network


def write_models() -> None:
    """Write the models that the checkpoints name into the working folder."""
    words = {word: number for number, word in enumerate(["[END]", "I", "do", "not", "know", ".", "[UNK]"])}
    made: Any = PreTrainedTokenizerFast
    tokenizer = made(tokenizer_object=Tokenizer(WordLevel(words, unk_token="[UNK]")), eos_token="[END]")
    tokenizer.save_pretrained("llama")
    fill(small_llama(vocab_size=64, hidden_size=8, num_layers=1, num_heads=2)).save_pretrained("llama")
    sizes: Objects = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    vit: Any = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **sizes))
    fill(vit).save_pretrained("vit")
    processor().save_pretrained("llava")
    fill(llava(processor().tokenizer)).save_pretrained("llava")


# Unlearning


def task(seed: int) -> Objects:
    ids = torch.randint(7, 64, (2, 8), generator=torch.Generator().manual_seed(seed))
    labels = torch.where(torch.arange(8) < 2, -100, ids)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "id": [f"{seed}a", f"{seed}b"]}


def logits(module: Any) -> Tensor:
    tokens: Tensor = module(input_ids=task(99)["input_ids"]).logits
    return tokens


ROWS = [task(seed) for seed in range(3)]
PAIRS = [{"forget": task(seed), "retain": task(10 + seed)} for seed in range(3)]
SETTINGS: dict[str, Objects] = {  # with which the forget rows of an untrained model count
    "AltPO": {"num_alternates": 2, "max_alternate_tokens": 4},
    "CEU": {"forget_weight": 10.0},
    "RMU": {"layer": 0},
    "SatImp": {"beta1": 0.5, "forget_weight": 1.0},
    "SimNPO": {"beta": 0.1, "forget_weight": 1.0},
    "UNDIAL": {"forget_weight": 10.0},
}
LORA = LoraConfig(r=2, target_modules=["v_proj", "down_proj"])


def unlearning(name: str, accumulate: int = 1, **more: Any) -> Case:
    hparams: Objects = {"model": "llama", "tokenizer": "llama", "accumulate": accumulate}
    return Case(name, logits, partial(Ready, PAIRS), hparams | SETTINGS.get(name, {}), **more)


# Adversarial training


def adversarial_objects(name: str) -> Objects:
    attack = LinfPGD(eps=0.1, steps=2, step_size=0.06, keep="last")
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 10))
    attacked: Objects = {} if name in ("FreeTraining", "StandardTraining") else {"attack": attack}
    return {"classifier": fill(network), "validation_attack": attack, "test_attacks": [attack], **attacked}


def adversarial(name: str) -> Case:
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    hparams = {"eps": 0.1, "replays": 2} if name == "FreeTraining" else {}
    digits = partial(Digits, batch_size=8, validation_size=8, num_workers=0)
    return Case(name, lambda module: module(images), digits, hparams, partial(adversarial_objects, name))


# Synthia


def pictures(name: str, **more: Any) -> Case:
    batches = []
    random = torch.Generator().manual_seed(0)
    for number in range(3):
        positive, negative = (torch.rand(2, 3, 16, 16, generator=random) * 2 - 1 for _ in range(2))
        ids = torch.tensor([2 * number, 2 * number + 1])
        pair = {"pair_id": ids, "pos": positive, "neg": negative[:, None], "neg_mask": torch.ones(2, 1).bool()}
        rows = pair if name == "Synthia" else {"index": ids, "image": positive}
        batches.append({"prompt": ["a thing to sit", "a thing to pour"], **rows})
    return Case(name, denoised, partial(Ready, batches), objects=pixel_objects, **more)


PIXEL_LORA = LoraConfig(r=2, lora_alpha=32, target_modules=["to_v", "to_out.0"])


def pixel_objects() -> Objects:
    backbone = PixelDiffusion(image_size=16, widths=(8,), word_width=8)
    backbone.load("network")
    fill(backbone.network, width=1.0)
    return {"backbone": backbone}


def denoised(module: Any) -> Tensor:
    module.backbone.load("text")
    condition = module.backbone.encode_prompt(["a thing to pour"])
    noised = torch.rand(1, *module.backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
    found: Tensor = module.backbone.denoise(noised, torch.tensor([10]), condition)
    return found


# CoDA


def questions(swapped: bool) -> Objects:
    names = ("Puff Adder", "Adder")
    colours = ("blue", "red") if swapped else ("red", "blue")
    return {
        "image": [picture(colour) for colour in colours],
        "prompt": ["Puff Adder or Adder?"] * 2,
        "answer": list(names),
        "options": [names] * 2,
        "aliases": [((), ())] * 2,
        "role": ["target", "confusable"],
        "path": ["0.png", "1.png"],
        "pair_id": ["pair"] * 2,
        "part": ["pairs"] * 2,
        "answer_option": torch.tensor([0, 1]),
        "query": torch.tensor([0, 1]),
        "option_label": torch.tensor([[0, 1], [0, 1]]),
        "index": torch.arange(2),
        "label": torch.tensor([0, 1]),
    }


def answer_logits(module: Any) -> Tensor:
    inputs = module.encode([picture("red")], ["Puff Adder or Adder?"])
    found: Tensor = module(**inputs).logits[:, -1]
    return found


def class_logits(module: Any) -> Tensor:
    found: Tensor = module(IMAGES[0]["image"])
    return found


QUESTIONS = [questions(False), questions(True), questions(False)]
RANDOM = torch.Generator().manual_seed(0)
IMAGES = [{**batch, "image": torch.rand(2, 3, 8, 8, generator=RANDOM)} for batch in QUESTIONS]
CODA: Objects = {"model": "llava", "preset": "small", "dtype": "float32", "rank": 2, "learning_rate": 0.1}
VIT: Objects = {"model": "vit", "num_classes": 2, "mean": [0.5] * 3, "std": [0.5] * 3, "learning_rate": 0.1}

METHODS = ["AltPO", "CEU", "DPO", "GradientAscent", "GradientDifference", "IDK", "KLMinimisation", "LossNorm", "NGDiff"]
METHODS += ["NPO", "PDU", "RMU", "SatImp", "SimNPO", "TaskVector", "UNDIAL", "WGA"]
TRAININGS = ["FastTraining", "FreeTraining", "MART", "PGDTraining", "StandardTraining", "TRADES"]
ADAPTED: Objects = {"training": {"optimizer": SGD, "peft_config": LORA}}
CASES: dict[str, Case] = {
    **{name: unlearning(name) for name in METHODS},
    "NGDiff-group": unlearning("NGDiff", accumulate=3),
    "NGDiff-lora": unlearning("NGDiff", **ADAPTED),
    "NPO-lora": unlearning("NPO", **ADAPTED),
    "NGDiff-adamw": unlearning(
        "NGDiff", training={"optimizer": ADAMW}, callbacks=[ADAPTIVE, STOPPING, partial(EMA, decay=0.9)]
    ),
    "CausalLMFineTuning": Case("CausalLMFineTuning", logits, partial(Ready, ROWS), {"model": "llama"}),
    **{name: adversarial(name) for name in TRAININGS},
    "Synthia": pictures("Synthia"),
    "TextToImageTraining-lora": pictures(
        "TextToImageTraining", training={"optimizer": partial(SGD, lr=2.0), "peft_config": PIXEL_LORA}
    ),
    "CoDA": Case("CoDA", answer_logits, partial(Ready, QUESTIONS), CODA),
    "ClassifierUpdate": Case("ClassifierUpdate", class_logits, partial(Ready, IMAGES), VIT),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_models()
    return folder


def test_datamodule_loads() -> None:
    saved = torch.load(FOLDER / "PGDTraining.ckpt", weights_only=True)["datamodule_hyper_parameters"]
    assert saved
    assert Digits.load_from_checkpoint(FOLDER / "PGDTraining.ckpt").hparams.items() >= saved.items()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_checkpoint_loads_and_training_goes_on(name: str, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models)
    case, path = CASES[name], FOLDER / f"{name}.ckpt"
    recorded = json.loads((FOLDER / "outputs.json").read_text(encoding="utf-8"))[name]
    saved = torch.load(path, weights_only=True)
    loaded = case.module.load_from_checkpoint(path, **case.objects())
    assert loaded.hparams.items() >= saved["hyper_parameters"].items()
    state = loaded.state_dict()
    assert all(torch.equal(state[key], value) for key, value in saved["state_dict"].items())
    assert case.numbers(loaded) == pytest.approx(recorded["saved"], abs=2e-6)  # other processors differ by 1e-6
    resumed = case.fit(STEPS + 1, [], path)
    assert case.numbers(resumed) == pytest.approx(recorded["resumed"], abs=1e-5)
