"""Methods of papers as Lightning modules: ``lit_modules.NGDiff`` and its kin, each imported when first used."""

from typing import TYPE_CHECKING

from lit_modules.utils.lazy import lazy_names

if TYPE_CHECKING:
    from lit_modules.adversarial import MART, TRADES, FastTraining, FreeTraining, PGDTraining, StandardTraining
    from lit_modules.coda import ClassifierUpdate, CoDA, InContext
    from lit_modules.synthia.synthia import Synthia
    from lit_modules.synthia.text_to_image import TextToImageTraining
    from lit_modules.unlearning import (
        CEU,
        DPO,
        IDK,
        NPO,
        PDU,
        RMU,
        UNDIAL,
        WGA,
        AltPO,
        CausalLMFineTuning,
        GradientAscent,
        GradientDifference,
        KLMinimisation,
        LossNorm,
        NGDiff,
        SatImp,
        SimNPO,
        TaskVector,
    )
else:
    __getattr__, __dir__ = lazy_names(__name__, __file__)

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 - in the order of sorted()
    "AltPO",
    "CEU",
    "CausalLMFineTuning",
    "ClassifierUpdate",
    "CoDA",
    "DPO",
    "FastTraining",
    "FreeTraining",
    "GradientAscent",
    "GradientDifference",
    "IDK",
    "InContext",
    "KLMinimisation",
    "LossNorm",
    "MART",
    "NGDiff",
    "NPO",
    "PDU",
    "PGDTraining",
    "RMU",
    "SatImp",
    "SimNPO",
    "StandardTraining",
    "Synthia",
    "TRADES",
    "TaskVector",
    "TextToImageTraining",
    "UNDIAL",
    "WGA",
]
