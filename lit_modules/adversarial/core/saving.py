"""Classifier of a trained module as a folder that other programs load; imports the libraries of Hugging Face."""

from dataclasses import replace
from pathlib import Path

from lightning.pytorch import LightningModule
from safetensors.torch import save_model
from torch import nn

from lit_modules.networks import TransformersClassifier
from lit_modules.utils.model_cards import Origin, model_card, of_transformers

TASK = "image-classification"


def save_classifier(module: LightningModule, folder: str) -> None:
    """Write the ``classifier`` of a module and a model card; see ``AdversarialTraining.save_pretrained``."""
    held = module.classifier
    classifier = held._orig_mod if hasattr(held, "_orig_mod") else held  # torch.compile's wrapper
    assert isinstance(classifier, nn.Module)
    kind = type(classifier)
    if isinstance(classifier, TransformersClassifier):
        origin = of_transformers(classifier.network, task=TASK)
        usage = f'from lit_modules.networks import {kind.__name__}\n\nclassifier = {kind.__name__}("FOLDER")'
        with model_card(module, folder, replace(origin, usage=usage)):
            classifier.save_pretrained(folder)
        return
    usage = "from safetensors.torch import load_model\n\n"
    usage += f'load_model(classifier, "FOLDER/model.safetensors")  # a {kind.__name__} built as in the training'
    with model_card(module, folder, Origin("pytorch", usage, task=TASK)):
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        save_model(classifier, str(path / "model.safetensors"))
