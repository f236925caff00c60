"""Synthia: ontology, affordance distance and curriculum, and the objectives of composing affordances."""

from typing import TYPE_CHECKING

from lit_modules.utils.lazy import lazy_names

if TYPE_CHECKING:
    from lit_modules.metrics.judge import Judge
    from lit_modules.synthia.backbones.base import Backbone
    from lit_modules.synthia.backbones.chroma import Chroma
    from lit_modules.synthia.backbones.flux import Flux
    from lit_modules.synthia.backbones.flux2 import Flux2Klein
    from lit_modules.synthia.backbones.hidream import HiDream
    from lit_modules.synthia.backbones.kandinsky3 import Kandinsky3, Kandinsky3Flash
    from lit_modules.synthia.backbones.lumina2 import Lumina2
    from lit_modules.synthia.backbones.pixart import PixArtSigma
    from lit_modules.synthia.backbones.pixel import PixelDiffusion
    from lit_modules.synthia.backbones.qwen_image import QwenImage
    from lit_modules.synthia.backbones.sana import Sana
    from lit_modules.synthia.backbones.stable_diffusion import SDXL, StableDiffusion
    from lit_modules.synthia.backbones.stable_diffusion3 import StableDiffusion3
    from lit_modules.synthia.backbones.z_image import ZImage
    from lit_modules.synthia.core.base import TextToImage
    from lit_modules.synthia.core.encodings import EncodingCache
    from lit_modules.synthia.core.pair_training import ErrorMonitor
    from lit_modules.synthia.core.report import PairPictures, Picture, TableRow, plot_grid, table_rows, write_report
    from lit_modules.synthia.core.sampling import (
        FewStepSampler,
        NoiseSchedule,
        cosine_alphas_cumprod,
        min_snr_weights,
        spaced_timesteps,
    )
    from lit_modules.synthia.core.staged_lr import StagedLR
    from lit_modules.synthia.judge.asking import AskingJudge, NoAnswerError
    from lit_modules.synthia.judge.models import EndpointJudge, LocalJudge
    from lit_modules.synthia.objectives import Denoise, DenoiseDPO, InfoNCE, LinearContrast, Triplet
    from lit_modules.synthia.ontology.curriculum import (
        Curriculum,
        CurriculumPair,
        build_curriculum,
        split_stages,
        stage_of_epoch,
        stratified_sample,
        transform,
    )
    from lit_modules.synthia.ontology.distance import AffordanceDistance, AffordancePair, AffordanceTable
    from lit_modules.synthia.ontology.text_encoder import TextEncoder
    from lit_modules.synthia.synthia import Synthia
    from lit_modules.synthia.text_to_image import TextToImageTraining
    from lit_modules.utils.ontology import Ontology
    from lit_modules.utils.ontology_files import Concept
else:
    __getattr__, __dir__ = lazy_names(__name__, __file__)

__all__ = [  # noqa: RUF022 - in the order of sorted()
    "AffordanceDistance",
    "AffordancePair",
    "AffordanceTable",
    "AskingJudge",
    "Backbone",
    "Chroma",
    "Concept",
    "Curriculum",
    "CurriculumPair",
    "Denoise",
    "DenoiseDPO",
    "EncodingCache",
    "EndpointJudge",
    "ErrorMonitor",
    "FewStepSampler",
    "Flux",
    "Flux2Klein",
    "HiDream",
    "InfoNCE",
    "Judge",
    "Kandinsky3",
    "Kandinsky3Flash",
    "LinearContrast",
    "LocalJudge",
    "Lumina2",
    "NoAnswerError",
    "NoiseSchedule",
    "Ontology",
    "PairPictures",
    "Picture",
    "PixArtSigma",
    "PixelDiffusion",
    "QwenImage",
    "SDXL",
    "Sana",
    "StableDiffusion",
    "StableDiffusion3",
    "StagedLR",
    "Synthia",
    "TableRow",
    "TextEncoder",
    "TextToImage",
    "TextToImageTraining",
    "Triplet",
    "ZImage",
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
