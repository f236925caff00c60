"""Networks of papers and recipes, and the classifiers of other libraries; each imported when first used."""

from typing import TYPE_CHECKING

from lit_modules.utils.lazy import lazy_names

if TYPE_CHECKING:
    from lit_modules.networks.classifiers import (
        ExportedClassifier,
        PixelClassifier,
        TimmClassifier,
        TorchvisionClassifier,
        TransformersClassifier,
    )
    from lit_modules.networks.lenet5 import LeNet5
    from lit_modules.networks.llama import small_llama
    from lit_modules.networks.normalisation import Normalise, PerImageStandardise
    from lit_modules.networks.part_recogniser import (
        PartRecogniser,
        SavedRecogniser,
        load_recogniser,
        recogniser_report,
        save_recogniser,
        train_recogniser,
    )
    from lit_modules.networks.preact_resnet import PreActResNet18
    from lit_modules.networks.tiny_clip import attribute_accuracy, build_clip, train_clip
    from lit_modules.networks.tiny_llava import Lesson, build_llava, train_llava
    from lit_modules.networks.wide_resnet import WideResNet
else:
    __getattr__, __dir__ = lazy_names(__name__, __file__)

__all__ = [
    "ExportedClassifier",
    "LeNet5",
    "Lesson",
    "Normalise",
    "PartRecogniser",
    "PerImageStandardise",
    "PixelClassifier",
    "PreActResNet18",
    "SavedRecogniser",
    "TimmClassifier",
    "TorchvisionClassifier",
    "TransformersClassifier",
    "WideResNet",
    "attribute_accuracy",
    "build_clip",
    "build_llava",
    "load_recogniser",
    "recogniser_report",
    "save_recogniser",
    "small_llama",
    "train_clip",
    "train_llava",
    "train_recogniser",
]
