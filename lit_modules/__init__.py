"""Methods of papers as Lightning modules: ``lit_modules.NGDiff`` and its kin, each imported when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_modules.adversarial import MART, TRADES, FastTraining, FreeTraining, PGDTraining, StandardTraining
    from lit_modules.coda import ClassifierUpdate, CoDA, InContext
    from lit_modules.synthia.module import Synthia
    from lit_modules.synthia.training import TextToImageTraining
    from lit_modules.unlearning import (
        CEU,
        DPO,
        IDK,
        NPO,
        PDU,
        RMU,
        UNDIAL,
        WGA,
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

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 - in the order of sorted()
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

_MODULES = {
    "CEU": "unlearning",
    "CausalLMFineTuning": "unlearning",
    "ClassifierUpdate": "coda",
    "CoDA": "coda",
    "DPO": "unlearning",
    "FastTraining": "adversarial",
    "FreeTraining": "adversarial",
    "GradientAscent": "unlearning",
    "GradientDifference": "unlearning",
    "IDK": "unlearning",
    "InContext": "coda",
    "KLMinimisation": "unlearning",
    "LossNorm": "unlearning",
    "MART": "adversarial",
    "NGDiff": "unlearning",
    "NPO": "unlearning",
    "PDU": "unlearning",
    "PGDTraining": "adversarial",
    "RMU": "unlearning",
    "SatImp": "unlearning",
    "SimNPO": "unlearning",
    "StandardTraining": "adversarial",
    "Synthia": "synthia",
    "TRADES": "adversarial",
    "TaskVector": "unlearning",
    "TextToImageTraining": "synthia",
    "UNDIAL": "unlearning",
    "WGA": "unlearning",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
