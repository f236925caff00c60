"""Synthia: ontology, affordance distance and curriculum, and the objectives of composing affordances."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_modules.synthia.backbones.base import Backbone
    from lit_modules.synthia.backbones.flux import Flux
    from lit_modules.synthia.backbones.kandinsky3 import Kandinsky3, Kandinsky3Flash
    from lit_modules.synthia.backbones.pixel import PixelDiffusion
    from lit_modules.synthia.backbones.stable_diffusion import SDXL, StableDiffusion
    from lit_modules.synthia.backbones.stable_diffusion3 import StableDiffusion3
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
    from lit_modules.synthia.encoding_cache import EncodingCache
    from lit_modules.synthia.guards import RisingError, min_snr_weights
    from lit_modules.synthia.judge import AskingJudge, Judge, NoAnswerError
    from lit_modules.synthia.judge_models import EndpointJudge, LocalJudge
    from lit_modules.synthia.module import Synthia
    from lit_modules.synthia.objectives import Denoise, DenoiseDPO, InfoNCE, Linear, Triplet
    from lit_modules.synthia.ontology import Ontology
    from lit_modules.synthia.ontology_files import Concept
    from lit_modules.synthia.report import PairPictures, Picture, TableRow, plot_grid, table_rows, write_report
    from lit_modules.synthia.sampling import FewStepSampler, NoiseSchedule, cosine_alphas_cumprod, spaced_timesteps
    from lit_modules.synthia.schedule import StagedLR
    from lit_modules.synthia.text_encoders import TextEncoder
    from lit_modules.synthia.text_to_image import TextToImage
    from lit_modules.synthia.training import TextToImageTraining

_MODULES = {
    "backbones.base": ("Backbone",),
    "backbones.flux": ("Flux",),
    "backbones.kandinsky3": (
        "Kandinsky3",
        "Kandinsky3Flash",
    ),
    "backbones.pixel": ("PixelDiffusion",),
    "backbones.stable_diffusion": (
        "SDXL",
        "StableDiffusion",
    ),
    "backbones.stable_diffusion3": ("StableDiffusion3",),
    "curriculum": (
        "Curriculum",
        "CurriculumPair",
        "build_curriculum",
        "split_stages",
        "stage_of_epoch",
        "stratified_sample",
        "transform",
    ),
    "distance": (
        "AffordanceDistance",
        "AffordancePair",
        "AffordanceTable",
    ),
    "encoding_cache": ("EncodingCache",),
    "guards": (
        "RisingError",
        "min_snr_weights",
    ),
    "judge": (
        "AskingJudge",
        "Judge",
        "NoAnswerError",
    ),
    "judge_models": (
        "EndpointJudge",
        "LocalJudge",
    ),
    "module": ("Synthia",),
    "objectives": (
        "Denoise",
        "DenoiseDPO",
        "InfoNCE",
        "Linear",
        "Triplet",
    ),
    "ontology": ("Ontology",),
    "ontology_files": ("Concept",),
    "report": (
        "PairPictures",
        "Picture",
        "TableRow",
        "plot_grid",
        "table_rows",
        "write_report",
    ),
    "sampling": (
        "FewStepSampler",
        "NoiseSchedule",
        "cosine_alphas_cumprod",
        "spaced_timesteps",
    ),
    "schedule": ("StagedLR",),
    "text_encoders": ("TextEncoder",),
    "text_to_image": ("TextToImage",),
    "training": ("TextToImageTraining",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [  # noqa: RUF022 - in the order of sorted()
    "AffordanceDistance",
    "AffordancePair",
    "AffordanceTable",
    "AskingJudge",
    "Backbone",
    "Concept",
    "Curriculum",
    "CurriculumPair",
    "Denoise",
    "DenoiseDPO",
    "EncodingCache",
    "EndpointJudge",
    "FewStepSampler",
    "Flux",
    "InfoNCE",
    "Judge",
    "Kandinsky3",
    "Kandinsky3Flash",
    "Linear",
    "LocalJudge",
    "NoAnswerError",
    "NoiseSchedule",
    "Ontology",
    "PairPictures",
    "Picture",
    "PixelDiffusion",
    "RisingError",
    "SDXL",
    "StableDiffusion",
    "StableDiffusion3",
    "StagedLR",
    "Synthia",
    "TableRow",
    "TextEncoder",
    "TextToImage",
    "TextToImageTraining",
    "Triplet",
    "build_curriculum",
    "cosine_alphas_cumprod",
    "min_snr_weights",
    "plot_grid",
    "spaced_timesteps",
    "split_stages",
    "stage_of_epoch",
    "stratified_sample",
    "table_rows",
    "transform",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
