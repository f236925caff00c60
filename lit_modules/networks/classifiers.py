"""Classifiers of other libraries, with their normalisation inside: they take pixels in [0, 1] and give logits."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional as F

from lit_modules.networks.normalisation import Normalise
from lit_modules.utils.arguments import Unpack
from lit_modules.utils.checkpoints import only_tensors
from lit_modules.utils.classifiers import input_device, take_logits
from lit_modules.utils.errors import first_line
from lit_modules.utils.model_modes import release_modes
from lit_modules.utils.suggestions import did_you_mean

_SIDE = 67  # of the pictures that a preprocessing is tried on; no network has it as its own


class SizeArguments(TypedDict, total=False):
    """Arguments on the size of images; see :class:`PixelClassifier`."""

    image_size: int | None
    resize: bool


class PixelArguments(SizeArguments, total=False):
    """Arguments that classifiers of pixels share; see :class:`PixelClassifier`."""

    mean: Sequence[float] | None
    std: Sequence[float] | None


@dataclass(frozen=True)
class Preprocessing:
    """Step from pixels in [0, 1] to the input of a network.

    Attributes:
        mean: Mean of each channel, subtracted; ``None``, as for ``std``, leaves the pixels as they are.
        std: Standard deviation of each channel, by which is divided.
        image_size: Height and width of the input, or ``None`` if the network takes any.
        flip_channels: Whether the network takes the channels in reverse order (blue, green, red).
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: tuple[int, int] | None = None
    flip_channels: bool = False


class PixelClassifier(nn.Module):
    """Network behind its own preprocessing, so that an attack acts on pixels in [0, 1].

    The module takes images, float in [0, 1], ``(batch, channel, height, width)``, and gives logits
    ``(batch, classes)``. The gradient goes through all of it.

    Args:
        network: Takes normalised images; gives logits, or an object or mapping that holds them as ``logits``.
        preprocessing: Preprocessing of the network, as far as the other arguments do not replace it.
        mean: Mean of each channel, subtracted from the pixels.
        std: Standard deviation of each channel, by which is divided.
        image_size: Height and width of the images in pixels.
        resize: Whether images of another size are resized inside (bilinear, with antialiasing), so that an attack acts
            on the pixels before; otherwise they are refused.

    Raises:
        ValueError: If ``mean`` and ``std`` do not fit each other; in ``forward``, if the images do not fit.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
        >>> classifier = PixelClassifier(network, mean=[0.5, 0.5, 0.5], std=[0.2, 0.2, 0.2], image_size=8, resize=True)
        >>> classifier(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        image_size: int | None = None,
        resize: bool = False,
    ) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError(f"mean and std must be given both or neither, got mean={mean} and std={std}.")
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {image_size}.")
        own = preprocessing or Preprocessing()
        mean, std = (own.mean, own.std) if mean is None else (mean, std)
        self.image_size = own.image_size if image_size is None else (image_size, image_size)
        if resize and self.image_size is None:
            raise ValueError("resize needs the size that the network takes; give image_size.")
        self.resize = resize
        self.flip_channels = own.flip_channels
        self.normalise = nn.Identity() if mean is None or std is None else Normalise(mean, std)
        device = input_device(network.parameters())
        if device is not None:
            self.normalise.to(device)
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(batch, classes)`` of images ``(batch, channel, height, width)`` in [0, 1]."""
        size = tuple(images.shape[-2:])
        if self.image_size is not None and size != self.image_size:
            if not self.resize:
                wanted = " x ".join(map(str, self.image_size))
                raise ValueError(
                    f"{type(self).__name__} takes images of {wanted} pixels, got {' x '.join(map(str, size))}; let the "
                    f"data have that size, or give resize=True to resize inside the classifier."
                )
            images = F.interpolate(images, self.image_size, mode="bilinear", antialias=True)
        inputs = self.normalise(images)
        return take_logits(self.network(inputs.flip(-3) if self.flip_channels else inputs))

    def extra_repr(self) -> str:
        """Return the size and the order of channels, for printing."""
        return f"image_size={self.image_size}, resize={self.resize}, flip_channels={self.flip_channels}"


class TransformersClassifier(PixelClassifier):
    """Image classifier of transformers, by name or folder, with the normalisation of its image processor.

    Scale, offset, mean, standard deviation, order of channels and size are read off the processor's output, so they are
    those that it was trained with. Resizing and cropping of pictures is the data's business.

    Args:
        model: Name on the Hugging Face hub, or folder of ``save_pretrained``, with its image processor.
        num_classes: Number of classes of a new head, in place of the trained one; ``None`` keeps that.
        mean: Mean of each channel; given, the image processor is not asked, nor for the size.
        std: Standard deviation of each channel, to be given with ``mean``.
        model_kwargs: Further arguments of ``from_pretrained``, such as ``{"attn_implementation": "eager"}``.
        shared: Arguments of :class:`PixelClassifier`, by name.

    Raises:
        ValueError: If the model or its image processor does not load.
    """

    def __init__(
        self,
        model: str,
        *,
        num_classes: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        **shared: Unpack[SizeArguments],
    ) -> None:
        from lit_modules.utils.model_kwargs import file_options, loading_options  # imports transformers

        more = model_kwargs or {}
        options: dict[str, Any] = {"dtype": torch.float32}
        if num_classes is not None:
            options |= {"num_labels": _checked_classes(num_classes), "ignore_mismatched_sizes": True}
        network = load_image_classifier(model, **options | loading_options(more))
        # a configuration without the number of channels, as of CLIP, has three
        channels = getattr(network.config, "num_channels", 3)
        preprocessing = None if mean is not None else processor_preprocessing(model, channels, **file_options(more))
        super().__init__(network, preprocessing, mean=mean, std=std, **shared)
        self._processor = None if mean is not None else (model, file_options(more))
        self.train()  # from_pretrained gives evaluation mode, and a Trainer keeps the mode that it finds

    def save_pretrained(self, folder: str) -> None:
        """Write the network, and its image processor unless ``mean`` was given, as the Auto classes load them."""
        network: Any = self.network
        network.save_pretrained(folder)
        if self._processor is not None:
            from transformers import AutoImageProcessor

            model, options = self._processor
            auto: Any = AutoImageProcessor
            auto.from_pretrained(model, **options).save_pretrained(folder)


class TorchvisionClassifier(PixelClassifier):
    """Classifier of torchvision by the name of its weights, with the normalisation and size of their transforms.

    Args:
        weights: Name such as ``ResNet50_Weights.IMAGENET1K_V2``, as ``torchvision.models.get_weight`` takes it; the
            file is downloaded into the folder of ``torch.hub`` unless it is there.
        num_classes: Number of classes of a new head, in place of the trained one; ``None`` keeps that.
        shared: Arguments of :class:`PixelClassifier`, by name.

    Raises:
        ValueError: If there are no such weights of an image classifier.
        ConnectionError: If they cannot be downloaded.
    """

    def __init__(self, weights: str, *, num_classes: int | None = None, **shared: Unpack[PixelArguments]) -> None:
        if num_classes is not None:
            _checked_classes(num_classes)
        network, transform, trained = _load_torchvision(weights)
        if num_classes is not None:
            _replace_heads(network, trained, num_classes)
        super().__init__(network, read_preprocessing(transform, 3, weights), **shared)


class TimmClassifier(PixelClassifier):
    """Classifier of timm (PyTorch Image Models) by name, with the normalisation and size of its data configuration.

    Args:
        model: Name such as ``resnet50.a1_in1k``, or ``hf-hub:USER/NAME``; ``timm.list_models(pretrained=True)`` lists
            them.
        checkpoint: File of weights of yours; ``None`` takes those of the name.
        num_classes: Number of classes; with a ``checkpoint`` those of the file, else of a new head. ``None`` keeps
            those of the name.
        model_kwargs: Further arguments of ``timm.create_model``.
        shared: Arguments of :class:`PixelClassifier`, by name.

    Raises:
        ImportError: If timm is not installed.
        FileNotFoundError: If there is no file ``checkpoint``.
        ValueError: If the model or its weights do not load.
    """

    def __init__(
        self,
        model: str,
        *,
        checkpoint: str | None = None,
        num_classes: int | None = None,
        model_kwargs: dict[str, Any] | None = None,
        **shared: Unpack[PixelArguments],
    ) -> None:
        options = dict(model_kwargs or {})
        if num_classes is not None:
            options["num_classes"] = _checked_classes(num_classes)
        network, preprocessing = _load_timm(model, checkpoint, options)
        super().__init__(network, preprocessing, **shared)


class ExportedClassifier(PixelClassifier):
    """Program of ``torch.export`` as a classifier.

    A program computes the same in training and evaluation mode. One of a fixed batch size takes any batch here, in
    parts of that size, the last filled up with copies of its last image. Opening a ``.pt2`` file may run code of
    whoever wrote it: take files that you trust. The constants of a program stay on the device that it was exported on.

    Args:
        program: Program of ``torch.export.export``, or the ``.pt2`` file of ``torch.export.save``; takes one batch of
            images.
        shared: Arguments of :class:`PixelClassifier`, by name; normalisation that the program contains is not to be
            given again.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no program, or takes more than one input.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10)).eval()
        >>> program = torch.export.export(network, (torch.rand(4, 3, 8, 8),))
        >>> ExportedClassifier(program)(torch.rand(5, 3, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(self, program: str | ExportedProgram, **shared: Unpack[PixelArguments]) -> None:
        if isinstance(program, str):
            program = _load_program(program)
        shape = _input_shape(program)
        training = sorted({str(node.target) for node in program.graph.nodes if _is_of_training(node)})
        if training:
            warnings.warn(
                f"The program was exported in training mode, and stays in it ({', '.join(training)}): its answers are "
                "random or depend on the batch. Call eval() before torch.export.export.",
                stacklevel=2,
            )
        network: nn.Module = program.module()
        release_modes(network)
        batch, *rest = (size if isinstance(size, int) else None for size in shape)
        height, width = (rest[1], rest[2]) if len(rest) == 3 else (None, None)
        size = None if height is None or width is None else (height, width)
        network = network if batch is None else FixedBatch(network, batch)
        super().__init__(network, Preprocessing(image_size=size), **shared)


class FixedBatch(nn.Module):
    """Network that takes batches of one size alone, asked with batches of any.

    Args:
        network: Gives logits, or an object or mapping that holds them.
        size: Its batch size.
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network = network
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(batch, classes)`` of a batch of any size."""
        parts = []
        for start in range(0, len(images), self.size):
            part = images[start : start + self.size]
            copies = part[-1:].expand(self.size - len(part), *part.shape[1:])
            parts.append(take_logits(self.network(torch.cat([part, copies])))[: len(part)])
        return torch.cat(parts)

    def extra_repr(self) -> str:
        """Return the size, for printing."""
        return f"size={self.size}"


def read_preprocessing(process: Callable[[Tensor], Tensor], channels: int, name: str) -> Preprocessing:
    """Return the preprocessing that a function from pictures to a network's input carries out.

    It is read off the inputs made of pictures of one colour: black, each channel alone, and grey. So it holds for every
    combination of scales, offsets and orders of channels that a library may have.

    Args:
        process: Takes pictures, uint8 ``(batch, channel, height, width)``, and gives inputs, float of that form.
        channels: Number of channels of the pictures.
        name: Name of the model, for messages.

    Returns:
        The preprocessing, its numbers rounded to 6 digits.

    Raises:
        ValueError: If it is no normalisation of each channel.

    Example:
        >>> read_preprocessing(lambda pictures: (pictures / 255 - 0.5) / 0.25, 1, "mine")
        Preprocessing(mean=(0.5,), std=(0.25,), image_size=None, flip_channels=False)
    """
    grey = 128
    colours = torch.cat([torch.zeros(1, channels), 255 * torch.eye(channels), torch.full((1, channels), grey)])
    pictures = colours.to(torch.uint8)[..., None, None].expand(-1, -1, _SIDE, _SIDE)
    inputs = process(pictures.contiguous())
    if inputs.ndim != 4 or inputs.shape[:2] != colours.shape:
        raise ValueError(
            f"The preprocessing of {name!r} must give images of {channels} channels, (batch, {channels}, height, "
            f"width), got {tuple(inputs.shape)} for {len(colours)} images; give mean and std."
        )
    height, width = inputs.shape[-2:]
    values = inputs[:, :, height // 2, width // 2].double()
    slopes = values[1:-1] - values[0]  # of each input channel along each colour
    order = slopes.abs().argmax(1)
    straight = torch.arange(channels)
    flipped = channels > 1 and bool((order == straight.flip(0)).all())
    scale, offset = slopes[straight, order], values[0, order]
    linear = torch.allclose(values[-1], values[0] + slopes.sum(0) * grey / 255, atol=1e-3)
    alone = torch.allclose(slopes.abs().sum(1), scale.abs(), atol=1e-4)
    if not (linear and alone and bool((scale > 0).all()) and (flipped or bool((order == straight).all()))):
        raise ValueError(f"The preprocessing of {name!r} is no normalisation of each channel; give mean and std.")
    mean, std = -offset / scale, 1 / scale
    return Preprocessing(
        mean=tuple(round(value, 6) + 0.0 for value in mean.tolist()),
        std=tuple(float(f"{value:.6g}") for value in std.tolist()),
        image_size=None if (height, width) == (_SIDE, _SIDE) else (height, width),
        flip_channels=flipped,
    )


def _checked_classes(num_classes: int) -> int:
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2 or None, got {num_classes}.")
    return num_classes


def load_image_classifier(name: str, **options: Any) -> Any:
    """Load an image classifier of transformers, in evaluation mode.

    Args:
        name: Name on the Hugging Face hub, or folder.
        options: Arguments of ``from_pretrained``.

    Raises:
        ValueError: If it does not load, or its weights are more than tensors.
    """
    from transformers import AutoModelForImageClassification

    auto: Any = AutoModelForImageClassification
    try:
        with only_tensors(name):
            return auto.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{name!r} does not load as an image classifier: {first_line(error)}") from error


def processor_preprocessing(name: str, channels: int = 3, **options: Any) -> Preprocessing:
    """Return the preprocessing that the image processor beside a model of transformers carries out.

    Args:
        name: Name on the Hugging Face hub, or folder.
        channels: Number of channels of the pictures.
        options: Arguments of ``from_pretrained``.

    Raises:
        ValueError: If there is no image processor, or what it does is no normalisation of each channel.
    """
    from transformers import AutoImageProcessor

    auto: Any = AutoImageProcessor
    try:
        processor = auto.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"No image processor lies beside the model {name!r}; give mean and std.") from error

    def process(pictures: Tensor) -> Tensor:
        made = processor(list(pictures), return_tensors="pt", input_data_format="channels_first")
        inputs: Tensor = made[processor.model_input_names[0]]
        return inputs

    return read_preprocessing(process, channels, name)


def _load_torchvision(name: str) -> tuple[nn.Module, Callable[[Tensor], Tensor], int]:
    """Return a network with its weights, the transform of its pictures, and the number of its classes."""
    from torchvision import models

    try:
        weights = models.get_weight(name)
    except (ValueError, KeyError):
        weights = None
    builders = {builder: models.get_model_weights(builder) for builder in models.list_models(module=models)}
    builder = next((builder for builder, kind in builders.items() if isinstance(weights, kind)), None)
    if builder is None or weights is None:
        names = [str(each) for kind in builders.values() for each in kind]
        hint = did_you_mean(name, names)
        raise ValueError(f"weights must name an image classifier of torchvision, got {name!r}{hint}")
    try:
        network = models.get_model(builder, weights=weights)
    except OSError as error:
        raise ConnectionError(
            f"{name} cannot be downloaded ({error}); put {weights.url} into {torch.hub.get_dir()}/checkpoints."
        ) from error
    return network, weights.transforms(), len(weights.meta["categories"])


def _replace_heads(network: nn.Module, trained: int, num_classes: int) -> None:
    """Put new layers in the place of those that give the trained classes: the head, and auxiliary ones."""
    for name, layer in list(network.named_modules()):
        new: nn.Module
        if isinstance(layer, nn.Linear) and layer.out_features == trained:
            new = nn.Linear(layer.in_features, num_classes, layer.bias is not None)
        elif isinstance(layer, nn.Conv2d) and layer.out_channels == trained and layer.kernel_size == (1, 1):
            new = nn.Conv2d(layer.in_channels, num_classes, 1, bias=layer.bias is not None)
        else:
            continue
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, new)


def _load_timm(name: str, checkpoint: str | None, options: dict[str, Any]) -> tuple[nn.Module, Preprocessing]:
    try:
        import timm
        from timm.data.config import resolve_model_data_config
    except ImportError as error:
        needed = 'TimmClassifier needs timm, which is not installed: pip install "lit-modules[timm]".'
        raise ImportError(needed) from error
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise FileNotFoundError(f"There is no file {checkpoint} for checkpoint; give a file of weights.")
    weights = {"pretrained": True} if checkpoint is None else {"checkpoint_path": checkpoint}
    try:
        network = timm.create_model(name, **weights, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{name!r} does not load as a model of timm: {first_line(error)}") from error
    data = resolve_model_data_config(network)  # type: ignore[no-untyped-call, unused-ignore]
    _, height, width = data["input_size"]
    return network, Preprocessing(tuple(data["mean"]), tuple(data["std"]), (height, width))


def _load_program(path: str) -> ExportedProgram:
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path} for program; give the .pt2 file of torch.export.save.")
    try:
        return torch.export.load(path)
    except Exception as error:  # torch raises many kinds for a file of another format
        raise ValueError(f"{path} is no program of torch.export.save: {first_line(error)}") from error


def _input_shape(program: ExportedProgram) -> Sequence[Any]:
    """Return the shape of the one input of a program; sizes that may change are no ``int``."""
    names = program.graph_signature.user_inputs
    if len(names) != 1:
        listed = ", ".join(map(str, names))
        raise ValueError(f"The program must take one batch of images, got {len(names)} inputs: {listed}.")
    node = next(node for node in program.graph.nodes if node.name == names[0])
    shape: Sequence[Any] = node.meta["val"].shape
    return shape


def _is_of_training(node: Any) -> bool:
    """Return whether an operation of a program is told to act as in training: dropout, batch normalisation."""
    schema = getattr(node.target, "_schema", None)  # operators have one; control flow and functions of Python none
    if schema is None:
        return False
    values = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | node.kwargs
    return any(values.get(name) is True for name in ("train", "training"))
