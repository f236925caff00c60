"""Classifiers of other libraries: the same logits as the library's own way, attacks on pixels, training, bad input."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from datamodules import Digits
from lit_modules import PGDTraining, StandardTraining
from lit_modules.attacks import FGSM, AutoAttack, LinfPGD
from lit_modules.networks import (
    ExportedClassifier,
    PixelClassifier,
    TimmClassifier,
    TorchvisionClassifier,
    TransformersClassifier,
)
from lit_modules.networks.classifiers import FixedBatch, read_preprocessing
from lit_modules.utils.fingerprint import identify
from tests.small_runs import quiet_trainer

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def images(count: int = 5, size: int = 16, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(count))


def network(classes: int = 10, size: int = 16, dropout: float = 0.0) -> nn.Sequential:
    """A convolutional network with batch normalisation, whose statistics are not the initial ones."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * (size // 2) ** 2, classes))
    model(torch.randn(32, 3, size, size))
    return model.eval()


def exported(model: nn.Module, size: int = 16, batch: int | None = None) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim.DYNAMIC},) if batch is None else None
    return torch.export.export(model, (torch.rand(batch or 4, 3, size, size),), dynamic_shapes=shapes)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny classifier of 16 x 16 pixels with its image processor."""
    folder = tmp_path_factory.mktemp("vit")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, num_labels=10, **sizes)).save_pretrained(folder)
    processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=MEAN, image_std=STD)
    processor.save_pretrained(folder)
    return folder


SQUARE = {"height": 16, "width": 16}
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("ViTImageProcessor", {"size": SQUARE}),
    "ConvNeXt": ("ConvNextImageProcessor", {"size": {"shortest_edge": 16}}),
    "EfficientNet, twice normalised": ("EfficientNetImageProcessor", {"size": SQUARE}),
    "EfficientNet, from -1 to 1": (
        "EfficientNetImageProcessor",
        {"size": SQUARE, "rescale_factor": 1 / 127.5, "rescale_offset": True, "include_top": False},
    ),
    "MobileViT, blue first, not normalised": (
        "MobileViTImageProcessor",
        {"size": {"shortest_edge": 16}, "crop_size": SQUARE},
    ),
    "CLIP": ("CLIPImageProcessor", {"size": {"shortest_edge": 16}, "crop_size": SQUARE}),
    "SigLIP": ("SiglipImageProcessor", {"size": SQUARE}),
    "BEiT": ("BeitImageProcessor", {"size": SQUARE, "crop_size": SQUARE}),
    "LeViT": ("LevitImageProcessor", {"size": SQUARE, "crop_size": SQUARE}),
    "not resized": ("ViTImageProcessor", {"do_resize": False}),
    "of values to 255": ("ViTImageProcessor", {"size": SQUARE, "do_rescale": False, "do_normalize": False}),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_preprocessing_is_that_of_the_image_processor(name: str) -> None:
    kind, arguments = PROCESSORS[name]
    processor = getattr(transformers, kind)(**arguments)

    def process(pictures: Tensor) -> Tensor:
        return processor(list(pictures), return_tensors="pt", input_data_format="channels_first")["pixel_values"]

    own = read_preprocessing(process, 3, name)
    colours = torch.randint(0, 256, (8, 3, 1, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pictures = colours.expand(-1, -1, 16, 16).contiguous()  # of one colour: some processors resize them
    same = PixelClassifier(nn.Flatten(), own)
    assert own.image_size == (None if name == "not resized" else (16, 16))
    expected = process(pictures)
    torch.testing.assert_close(same(pictures / 255), expected.flatten(1).float(), atol=1e-5, rtol=1e-5)


def test_transformers_classifier_answers_as_model_and_processor(vit: Path) -> None:
    classifier = TransformersClassifier(str(vit))
    assert all(module.training for module in classifier.modules())
    assert {parameter.dtype for parameter in classifier.parameters()} == {torch.float32}
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    processor: Any = transformers.AutoImageProcessor.from_pretrained(vit)
    model: Any = ViTForImageClassification.from_pretrained(vit)
    with torch.no_grad():
        expected = model(**processor(picture, return_tensors="pt")).logits
        got = classifier.eval()(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_attack_acts_on_the_pixels(vit: Path) -> None:
    """The radius is of pixels, so the normalised input moves by the radius over the deviation of its channel."""
    classifier = TransformersClassifier(str(vit))
    seen: list[Tensor] = []
    classifier.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    x, eps = images(), 0.02
    with torch.no_grad():
        y = classifier.eval()(x).argmax(1)
    result = LinfPGD(eps=eps, steps=4, step_size=eps, keep="last").run(classifier, x, y)
    assert float(result.distance.max()) == pytest.approx(eps, rel=1e-3)
    moved = (seen[-1] - seen[0]).abs().amax((0, 2, 3))
    torch.testing.assert_close(moved, eps / torch.tensor(STD), atol=1e-4, rtol=1e-3)


def test_raw_transformers_model_is_attacked_too(vit: Path) -> None:
    model: Any = ViTForImageClassification.from_pretrained(vit)
    adversarial = FGSM(eps=0.1)(model, images())
    assert bool(((adversarial - images()).abs() <= 0.1 + 1e-6).all())


def test_size_and_head(vit: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes images of 16 x 16 pixels, got 8 x 8; let the data have that size, or"):
        TransformersClassifier(str(vit))(images(2, 8))
    resized = TransformersClassifier(str(vit), resize=True, num_classes=3)
    assert resized(images(2, 8)).shape == (2, 3)
    assert LinfPGD(eps=0.1, steps=2)(resized, images(2, 8)).shape == (2, 3, 8, 8)
    torch.manual_seed(0)
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 4], "depths": [1, 1], "num_labels": 3}
    grey = ResNetForImageClassification(ResNetConfig(num_channels=1, **sizes))
    grey.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"No image processor lies beside the model .*; give mean and std"):
        TransformersClassifier(str(tmp_path))
    given = TransformersClassifier(str(tmp_path), mean=[0.5], std=[0.25], image_size=12).eval()
    torch.testing.assert_close(given(images(2, 12, 1)), grey.eval()((images(2, 12, 1) - 0.5) / 0.25).logits)
    transformers.ConvNextImageProcessor(size={"shortest_edge": 12}, image_mean=[0.1], image_std=[0.5]).save_pretrained(
        tmp_path
    )
    read = TransformersClassifier(str(tmp_path)).eval()
    torch.testing.assert_close(read(images(2, 12, 1)), grey((images(2, 12, 1) - 0.1) / 0.5).logits)


@pytest.fixture
def cached_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Random weights of a ShuffleNet where torchvision looks before it downloads."""
    from torchvision.models import ShuffleNet_V2_X0_5_Weights, shufflenet_v2_x0_5

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model: nn.Module = shufflenet_v2_x0_5()
    torch.save(model.state_dict(), folder / ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.url.rpartition("/")[2])
    return model.eval()


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "DEFAULT"])
def test_torchvision_classifier_answers_as_its_transforms(name: str, cached_weights: nn.Module) -> None:
    from torchvision.models import ShuffleNet_V2_X0_5_Weights

    classifier = TorchvisionClassifier(f"ShuffleNet_V2_X0_5_Weights.{name}").eval()
    assert classifier.image_size == (224, 224)
    picture = torch.randint(0, 256, (1, 3, 256, 256), dtype=torch.uint8)
    transform = ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.transforms()  # 256 to its middle, which is of 224
    with torch.no_grad():
        expected = cached_weights(transform(picture))
        got = classifier(picture[:, :, 16:-16, 16:-16] / 255)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_torchvision_classifier_with_a_new_head(cached_weights: nn.Module) -> None:
    classifier = TorchvisionClassifier("ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1", num_classes=3, resize=True)
    assert classifier(images(2, 32)).shape == (2, 3)
    state = classifier.network.state_dict()
    kept = [name for name, value in cached_weights.state_dict().items() if state[name].equal(value)]
    assert {name for name in state if name not in kept and "num_batches" not in name} == {"fc.weight", "fc.bias"} | {
        name
        for name in state
        if "running" in name  # the pass above moved them
    }


def test_timm_classifier_answers_as_its_data_configuration(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet.r160_in1k")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    classifier = TimmClassifier("test_resnet.r160_in1k", checkpoint=str(tmp_path / "weights.pth")).eval()
    data = timm.data.resolve_model_data_config(model)
    size = data["input_size"][1]
    assert classifier.image_size == (size, size)
    x = images(2, size)
    normalised = (x - torch.tensor(data["mean"]).view(3, 1, 1)) / torch.tensor(data["std"]).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(classifier(x), model.eval()(normalised), atol=1e-4, rtol=1e-4)
    assert LinfPGD(eps=0.1, steps=2)(classifier, x).shape == x.shape


def test_timm_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r'needs timm, which is not installed: pip install "lit-modules\[timm\]"'):
        TimmClassifier("resnet18")


@pytest.mark.parametrize("batch", [None, 1, 2, 4])
def test_exported_program_answers_as_its_module(batch: int | None, tmp_path: Path) -> None:
    model = network()
    torch.export.save(exported(model, batch=batch), tmp_path / "net.pt2")
    classifier = ExportedClassifier(str(tmp_path / "net.pt2"))
    assert classifier.image_size == (16, 16)
    assert isinstance(classifier.network, FixedBatch) == (batch is not None)
    for count in (1, 3, 5):
        torch.testing.assert_close(classifier(images(count)), model(images(count)), atol=1e-5, rtol=1e-5)
    y = model(images()).argmax(1)
    attack = LinfPGD(eps=0.05, steps=5, step_size=0.02)
    ours, theirs = attack.run(classifier, images(), y), attack.run(model, images(), y)
    torch.testing.assert_close(ours.adversarial, theirs.adversarial, atol=1e-4, rtol=1e-4)
    assert ours.success.equal(theirs.success)
    result = AutoAttack(norm="linf", eps=0.05).run(classifier, images(), y)
    assert result.flags == ()


def test_exported_program_is_told_apart(tmp_path: Path) -> None:
    """Its hash, by which finished samples are found again, is that of what it computes."""
    torch.export.save(exported(network()), tmp_path / "net.pt2")
    first, again = (ExportedClassifier(str(tmp_path / "net.pt2")) for _ in range(2))
    assert identify(first) == identify(again)
    other = network()
    other[2] = nn.Tanh()
    changed = network()
    nn.init.ones_(changed[-1].bias)
    hashes = {identify(ExportedClassifier(exported(each))) for each in (network(), other, changed)}
    assert len(hashes) == 3
    assert identify(ExportedClassifier(exported(network()))) == identify(ExportedClassifier(exported(network())))


def test_program_of_training_mode_is_warned_of() -> None:
    model = network(dropout=0.5).train()
    with pytest.warns(UserWarning, match=r"exported in training mode.*aten.batch_norm.*aten.dropout.*Call eval\(\)"):
        ExportedClassifier(exported(model))


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="aot_eager")


def test_compiled_module_is_attacked_as_its_own() -> None:
    model = network()
    y = model(images()).argmax(1)
    for attack in (LinfPGD(eps=0.05, steps=5, step_size=0.02), FGSM(eps=0.05)):
        ours, theirs = attack.run(compiled(model), images(), y), attack.run(model, images(), y)
        torch.testing.assert_close(ours.adversarial, theirs.adversarial, atol=1e-5, rtol=1e-4)
    assert not model.training


@pytest.mark.slow
def test_compiled_module_under_autoattack() -> None:
    model = network()
    y = model(images()).argmax(1)
    ours, theirs = (AutoAttack(norm="linf", eps=0.02).run(each, images(), y) for each in (compiled(model), model))
    assert ours.flags == theirs.flags == ()
    assert ours.robust == theirs.robust


class Colours(LightningDataModule):
    """Batches of random colour images of two classes, by their brightness."""

    num_classes = 2

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        x = torch.rand(24, 3, 16, 16, generator=random) * 0.4 + 0.4 * (torch.arange(24) % 2).view(-1, 1, 1, 1)
        self.rows = [
            {"image": scale * image, "label": torch.tensor(i % 2), "index": torch.tensor(i)}
            for i, image in enumerate(x)
        ]

    def train_dataloader(self) -> Any:
        return DataLoader(self.rows, batch_size=8)  # type: ignore[arg-type]

    val_dataloader = test_dataloader = train_dataloader


def in_front(model: nn.Module) -> nn.Module:
    """A program of torch.export, as `ExportedProgram.module` gives it, behind a layer of the user's."""
    return nn.Sequential(nn.Identity(), exported(model).module())


TRAINED: dict[str, Callable[[Path], nn.Module]] = {
    "transformers": lambda vit: TransformersClassifier(str(vit), num_classes=2),
    "exported": lambda vit: ExportedClassifier(exported(network(2)), mean=MEAN, std=STD),
    "exported, raw": lambda vit: in_front(network(2)),
    "compiled": lambda vit: compiled(network(2)),
    "own": lambda vit: PixelClassifier(network(2), mean=MEAN, std=STD),
}


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.filterwarnings("ignore:The '(train|val|test)_dataloader' does not have many workers")
def test_classifier_is_trained_and_tested(name: str, vit: Path, tmp_path: Path) -> None:
    classifier = TRAINED[name](vit)
    attack = LinfPGD(eps=0.02, steps=2, step_size=0.01, keep="last")
    tests = {"pgd": LinfPGD(eps=0.02, steps=3, step_size=0.01)}
    module = PGDTraining(classifier, attack, lambda p: torch.optim.Adam(p, 1e-2), test_attacks=tests)
    trainer = quiet_trainer(tmp_path, max_epochs=8)
    trainer.fit(module, Colours())
    assert trainer.callback_metrics["val/robust_accuracy"] > 0.9
    trainer.test(module, Colours(), verbose=False)
    first = module.results()
    assert first["attacks"]["pgd"]["robust_accuracy"] > 0.9
    with pytest.MonkeyPatch.context() as patch:  # all that is finished is found again: no attack runs
        patch.setattr(LinfPGD, "attack", None)
        trainer.test(module, Colours(), verbose=False)
    assert module.results()["attacks"] == first["attacks"]


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
@pytest.mark.parametrize(
    ("classes", "scale", "message"),
    [
        (10, 1.0, "gives 10 logits, and the data has 2 classes, so labels and logits mean different classes"),
        (2, 255.0, r"outside the bounds 0 to 1; normalise inside the model"),
    ],
)
def test_data_that_does_not_fit(stage: str, classes: int, scale: float, message: str, tmp_path: Path) -> None:
    module = StandardTraining(network(classes))
    trainer = quiet_trainer(tmp_path, num_sanity_val_steps=1)
    with pytest.raises(ValueError, match=message):
        getattr(trainer, stage)(module, datamodule=Colours(scale))


def test_labels_beyond_the_logits() -> None:
    data = Digits()
    batch = data.split("test")[range(8)]
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(ValueError, match="y must be from 0 to 3, the model's classes, got"):
        LinfPGD(eps=0.1)(model, batch["image"], batch["label"])


def two_inputs() -> torch.export.ExportedProgram:
    class Pair(nn.Module):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return x.flatten(1) * scale

    return torch.export.export(Pair(), (torch.rand(2, 3, 4, 4), torch.rand(1)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: PixelClassifier(nn.Identity(), mean=[0.5]), r"mean and std must be given both or neither, got mean"),
        (lambda f: PixelClassifier(nn.Identity(), resize=True), "resize needs the size .*; give image_size"),
        (lambda f: PixelClassifier(nn.Identity(), image_size=0), "image_size must be at least 1 pixel, got 0"),
        (lambda f: TransformersClassifier(str(f / "no")), "no' does not load as an image classifier"),
        (lambda f: TransformersClassifier(str(f), num_classes=1), "num_classes must be at least 2 or None, got 1"),
        (
            lambda f: TorchvisionClassifier("ResNet18_Weight"),
            r"must name an image classifier of torchvision, got 'ResN",
        ),
        (lambda f: TorchvisionClassifier("ResNet18_Weights.V1"), "got 'ResNet18_Weights.V1'; did you mean 'ResNet18_"),
        (lambda f: TorchvisionClassifier("FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1"), "must name an image classif"),
        (lambda f: ExportedClassifier(str(f / "no.pt2")), "There is no file .*no.pt2 for program"),
        (lambda f: ExportedClassifier(__file__), "is no program of torch.export.save"),
        (lambda f: ExportedClassifier(two_inputs()), "must take one batch of images, got 2 inputs: x, scale"),
        (
            lambda f: read_preprocessing(lambda p: p.float().mean(1, keepdim=True).expand(-1, 3, -1, -1), 3, "grey"),
            "preprocessing of 'grey' is no normalisation of each channel; give mean and std",
        ),
        (lambda f: read_preprocessing(lambda p: p.float().pow(2), 3, "square"), "is no normalisation of each channel"),
        (
            lambda f: read_preprocessing(lambda p: p.flatten(1), 3, "flat"),
            r"must give images of 3 channels, .* got \(5,",
        ),
    ],
)
def test_bad_input(call: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        call(tmp_path)


def test_timm_bad_input(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="'resnet_18' does not load as a model of timm"):
        TimmClassifier("resnet_18")
    with pytest.raises(FileNotFoundError, match=r"There is no file .*no\.pth for checkpoint"):
        TimmClassifier("resnet18", checkpoint=str(tmp_path / "no.pth"))
