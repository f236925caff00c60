"""Update of an image classifier on few pictures of new concepts."""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_modules.coda.core.image_classifiers import Normalisation, is_head, load_classifier, load_image_processor
from lit_modules.coda.core.multiple_choice import Batch, Prediction
from lit_modules.coda.core.update import UpdateArguments, UpdateModule
from lit_modules.utils.adapters import own_config
from lit_modules.utils.arguments import Unpack
from lit_modules.utils.model_cards import model_card, of_transformers


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
        shared: Arguments of :class:`~lit_modules.coda.core.update.UpdateModule`, by name.

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
        **shared: Unpack[UpdateArguments],
    ) -> None:
        super().__init__(model=model, warmup_ratio=warmup_ratio, **shared)
        if tuning not in ("full", "head", "none"):
            raise ValueError(f"tuning must be 'full', 'head' or 'none', got {tuning!r}.")
        for name, rate in (("learning_rate", learning_rate), ("head_learning_rate", head_learning_rate)):
            if not 0 <= rate < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {rate}.")
        if num_classes is not None and num_classes < 2:
            raise ValueError(f"num_classes must be at least 2 or None, got {num_classes}.")
        self.num_classes, self.tuning = num_classes, tuning
        self.learning_rate, self.head_learning_rate = learning_rate, head_learning_rate
        self.mean, self.std = mean, std

    def configure_model(self) -> None:
        """Load the classifier with a head for the classes, and freeze what does not train, once, in training mode."""
        if self._configured:
            return
        datamodule = getattr(self._trainer, "datamodule", None)  # the user's own may have no classes
        number = self.num_classes or getattr(datamodule, "num_classes", None)
        if self.model is None:
            if number is None:
                raise ValueError("num_classes must be given without a datamodule that has it.")
            names = list(getattr(datamodule, "classes", [])) or [f"class {label}" for label in range(number)]
            if len(names) != number:
                raise ValueError(f"num_classes is {number} and the data have {len(names)} classes.")
            self.model = load_classifier(str(self.model_name), names)
        if own_config(self.model) is not None:
            raise ValueError(
                "ClassifierUpdate trains weights of the model itself, and this one carries an adapter; give the merged "
                "model, `peft.PeftModel.from_pretrained(base, folder).merge_and_unload()`."
            )
        if number is not None and self.model.config.num_labels != number:
            raise ValueError(f"The model has {self.model.config.num_labels} classes and the data {number}.")
        name = str(self.model_name or self.model.config.name_or_path)
        self.normalise = Normalisation(name, self.mean, self.std)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self.tuning == "full" or (self.tuning == "head" and is_head(name)))
        self.model.train()
        self._configured = True

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, ``(batch, classes)``, of pictures, floats in [0, 1], ``(batch, 3, height, width)``.

        Raises:
            TypeError: If the pictures are no tensor.
        """
        self.configure_model()
        if not isinstance(images, Tensor):
            raise TypeError("ClassifierUpdate takes pictures as one tensor; set image_size of the datamodule.")
        logits: Tensor = self.model(pixel_values=self.normalise(images)).logits
        return logits

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy, with the weights of classes where pictures are mixed."""
        logits = self(batch["image"]).float()
        targets: Tensor = batch["label_weights"] if "label_weights" in batch else batch["label"]
        return torch.nn.functional.cross_entropy(logits, targets)

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int = 0) -> Prediction:
        """Return the likeliest option of each picture of a batch, ``image``, ``options`` and ``option_label``.

        Returns:
            Lists: ``options``, ``option``, the index of the likeliest, its ``name``, which is the ``answer`` too, and
            ``option_scores``, log-probabilities over all classes.
        """
        scores = self(batch["image"]).float().log_softmax(1).gather(1, batch["option_label"])
        chosen: list[int] = scores.argmax(1).tolist()
        names = [options[index] for options, index in zip(batch["options"], chosen, strict=True)]
        answers: Prediction = {"options": list(batch["options"]), "option": chosen, "name": names, "answer": names}
        return {**answers, "option_scores": scores.tolist()}

    def save_pretrained(self, folder: str) -> None:
        """Write classifier, image processor if there is one, and model card, as the Auto classes load them."""
        self.configure_model()
        with model_card(self, folder, of_transformers(self.model, task="image-classification")):
            self.model.save_pretrained(folder)
        if self.model_name is not None and (self.mean is None or self.std is None):
            load_image_processor(self.model_name).save_pretrained(folder)

    def configure_optimizers(self) -> Any:
        """Build the optimizer, with the head in a group of its own, and the schedule."""
        groups: dict[bool, list[torch.nn.Parameter]] = {False: [], True: []}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups[is_head(name)].append(parameter)
        return self.scheduled([(groups[False], self.learning_rate), (groups[True], self.head_learning_rate)])
