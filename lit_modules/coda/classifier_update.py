"""Updating an image classifier on few pictures of new concepts."""

import math
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torchmetrics import Metric
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from lit_modules.coda.core.base import Batch, UpdateModule, default_optimizer
from lit_modules.utils.adapters import own_config
from lit_modules.utils.weights import only_tensors


class ClassifierUpdate(UpdateModule):
    """Teach an image classifier new concepts from few pictures, and ask it which of the options each picture shows.

    The loss is the cross-entropy over all classes of the data; an answer is the likeliest class among the options, so
    none is invalid and none depends on their order.

    A batch is that of :class:`datamodules.FewShotPairs` with ``image_size``: ``image`` floats in [0, 1], ``(batch, 3,
    height, width)``, ``label``, ``label_weights`` of mixed pictures, and ``option_label``. Pictures are normalised as
    the model's image processor says. Logs ``train/loss``, ``val/loss``, and the metric's numbers as ``val/...`` and
    ``test/...``.

    Args:
        model: Name of an image classifier on a hub, such as a ViT, folder of one, or a classifier with as many classes
            as the data.
        num_classes: Number of classes; ``None`` takes the datamodule's.
        tuning: ``full`` trains all weights, ``head`` the last layer alone, ``none`` asks alone.
        learning_rate: Greatest learning rate of all but the head.
        head_learning_rate: The same of the head.
        warmup_ratio: Share of the steps in which the learning rate rises, in [0, 1]; then it falls by a cosine.
        mean: Mean of each channel; ``None`` takes that of the image processor beside the model.
        std: Standard deviation of each channel; ``None`` likewise.
        seed: Seed of dropout.
        metric: PairAccuracy, or NWayAccuracy for more than two options.
        retention_metric: The same for the data's ``retention_pairs``.
        optimizer: Builds the optimizer from groups of parameters that have their learning rates.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        Zhou et al., "Contrastive Visual Data Augmentation", arXiv 2502.17709, rows of ViT.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        num_classes: int | None = None,
        tuning: Literal["full", "head", "none"] = "full",
        learning_rate: float = 5e-5,
        head_learning_rate: float = 1e-3,
        warmup_ratio: float = 0.03,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        seed: int = 0,
        metric: Metric | None = None,
        retention_metric: Metric | None = None,
        optimizer: OptimizerCallable = default_optimizer,
    ) -> None:
        super().__init__(warmup_ratio, metric, retention_metric, optimizer, seed)
        objects = ["metric", "retention_metric", "optimizer"]
        self.save_hyperparameters(ignore=objects if isinstance(model, str) else ["model", *objects])
        if tuning not in ("full", "head", "none"):
            raise ValueError(f"tuning must be 'full', 'head' or 'none', got {tuning!r}.")
        for name, rate in (("learning_rate", learning_rate), ("head_learning_rate", head_learning_rate)):
            if not 0 <= rate < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {rate}.")
        if num_classes is not None and num_classes < 2:
            raise ValueError(f"num_classes must be at least 2 or None, got {num_classes}.")
        self.model_name = model if isinstance(model, str) else None
        self.model = None if isinstance(model, str) else model
        self.num_classes, self.tuning = num_classes, tuning
        self.learning_rate, self.head_learning_rate = learning_rate, head_learning_rate
        self.mean, self.std = mean, std
        self._configured = False

    def configure_model(self) -> None:
        """Load the classifier with a head for the classes, and freeze what does not train, once, in training mode."""
        if self._configured:
            return
        datamodule = getattr(self._trainer, "datamodule", None)
        number = self.num_classes or getattr(datamodule, "num_classes", None)
        if self.model is None:
            if number is None:
                raise ValueError("num_classes must be given without a datamodule that has it.")
            names = list(getattr(datamodule, "classes", [])) or [f"class {place}" for place in range(number)]
            if len(names) != number:
                raise ValueError(f"num_classes is {number} and the data have {len(names)} classes.")
            try:
                with only_tensors(str(self.model_name)):
                    self.model = AutoModelForImageClassification.from_pretrained(
                        str(self.model_name),
                        id2label=dict(enumerate(names)),
                        label2id={name: place for place, name in enumerate(names)},
                        ignore_mismatched_sizes=True,
                    )
            except (OSError, ValueError, KeyError) as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise ValueError(f"{self.model_name!r} does not load as an image classifier: {reason}") from error
        if own_config(self.model) is not None:
            raise ValueError(
                "ClassifierUpdate trains weights of the model itself, and this one carries an adapter; give the merged "
                "model, `peft.PeftModel.from_pretrained(base, folder).merge_and_unload()`."
            )
        if number is not None and self.model.config.num_labels != number:
            raise ValueError(f"The model has {self.model.config.num_labels} classes and the data {number}.")
        mean, std = self._normalisation()
        self.register_buffer("_mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("_std", torch.tensor(std)[:, None, None], persistent=False)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self.tuning == "full" or (self.tuning == "head" and _is_head(name)))
        self.model.train()
        self._configured = True

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of pictures.

        Args:
            images: Floats in [0, 1], ``(batch, 3, height, width)``.

        Returns:
            ``(batch, classes)``.

        Raises:
            TypeError: If the pictures are no tensor.
        """
        self.configure_model()
        if not isinstance(images, Tensor):
            raise TypeError("ClassifierUpdate takes pictures as one tensor; set image_size of the datamodule.")
        mean, std = self.get_buffer("_mean"), self.get_buffer("_std")
        logits: Tensor = self.model(pixel_values=(images - mean) / std).logits
        return logits

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy, with the weights of classes where pictures are mixed."""
        logits = self(batch["image"]).float()
        targets: Tensor = batch["label_weights"] if "label_weights" in batch else batch["label"]
        return torch.nn.functional.cross_entropy(logits, targets)

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, list[Any]]:
        """Return which option each picture shows.

        Args:
            batch: ``image``, ``options`` and ``option_label``.
            batch_idx: Unused.

        Returns:
            Lists: ``options``, ``option`` the place of the likeliest, ``name`` of it, and its ``answer`` likewise;
            ``option_scores`` are log-probabilities over all classes.
        """
        scores = self(batch["image"]).float().log_softmax(1).gather(1, batch["option_label"])
        chosen: list[int] = scores.argmax(1).tolist()
        names = [options[place] for options, place in zip(batch["options"], chosen, strict=True)]
        found: dict[str, list[Any]] = {"options": list(batch["options"]), "option": chosen, "name": names}
        return {**found, "answer": names, "option_scores": scores.tolist()}

    def save_pretrained(self, folder: str) -> None:
        """Write the classifier, and its image processor if there is one, as the Auto classes load them.

        Args:
            folder: Folder to write to.
        """
        self.configure_model()
        self.model.save_pretrained(folder)
        if self.model_name is not None and (self.mean is None or self.std is None):
            _image_processor(self.model_name).save_pretrained(folder)

    def configure_optimizers(self) -> Any:
        """Build the optimizer, with the head in a group of its own, and the schedule."""
        named = [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        body = [parameter for name, parameter in named if not _is_head(name)]
        head = [parameter for name, parameter in named if _is_head(name)]
        return self.scheduled([(body, self.learning_rate), (head, self.head_learning_rate)])

    def _normalisation(self) -> tuple[list[float], list[float]]:
        if self.mean is not None and self.std is not None:
            return self.mean, self.std
        name = str(self.model_name or getattr(self.model.config, "name_or_path", ""))
        try:
            processor = _image_processor(name)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"No image processor lies beside the model {name!r}; give mean and std.") from error
        return list(self.mean or processor.image_mean), list(self.std or processor.image_std)


def _image_processor(name: str) -> Any:
    auto: Any = AutoImageProcessor
    return auto.from_pretrained(name)


def _is_head(name: str) -> bool:
    return name.split(".")[0] in ("classifier", "head", "fc", "cls_classifier", "distillation_classifier")
