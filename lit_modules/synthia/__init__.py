"""Synthia: ontology, affordance distance and curriculum, and the objectives of composing affordances."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_modules.synthia.curriculum import (
        Curriculum,
        CurriculumPair,
        build_curriculum,
        split_stages,
        stage_of_epoch,
        stratified_sample,
        transform,
    )
    from lit_modules.synthia.distance import AffordanceDistance, AffordancePair, AffordanceTable
    from lit_modules.synthia.objectives import Denoise, DenoiseDPO, InfoNCE, Linear, Triplet
    from lit_modules.synthia.ontology import Ontology
    from lit_modules.synthia.ontology_files import Concept
    from lit_modules.synthia.sampling import FewStepSampler, NoiseSchedule
    from lit_modules.synthia.text_encoders import TextEncoder

_MODULES = {
    "curriculum": (
        "Curriculum",
        "CurriculumPair",
        "build_curriculum",
        "split_stages",
        "stage_of_epoch",
        "stratified_sample",
        "transform",
    ),
    "distance": ("AffordanceDistance", "AffordancePair", "AffordanceTable"),
    "objectives": ("Denoise", "DenoiseDPO", "InfoNCE", "Linear", "Triplet"),
    "ontology": ("Ontology",),
    "ontology_files": ("Concept",),
    "sampling": ("FewStepSampler", "NoiseSchedule"),
    "text_encoders": ("TextEncoder",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AffordanceDistance",
    "AffordancePair",
    "AffordanceTable",
    "Concept",
    "Curriculum",
    "CurriculumPair",
    "Denoise",
    "DenoiseDPO",
    "FewStepSampler",
    "InfoNCE",
    "Linear",
    "NoiseSchedule",
    "Ontology",
    "TextEncoder",
    "Triplet",
    "build_curriculum",
    "split_stages",
    "stage_of_epoch",
    "stratified_sample",
    "transform",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
