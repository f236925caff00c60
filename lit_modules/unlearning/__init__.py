"""Machine unlearning of causal language models: a file per method, and what they share."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_modules.unlearning.ceu import CEU
    from lit_modules.unlearning.dpo import DPO
    from lit_modules.unlearning.fine_tuning import CausalLMFineTuning
    from lit_modules.unlearning.gradient_ascent import GradientAscent
    from lit_modules.unlearning.gradient_difference import GradientDifference
    from lit_modules.unlearning.idk import IDK
    from lit_modules.unlearning.kl_minimisation import KLMinimisation
    from lit_modules.unlearning.loss_norm import LossNorm
    from lit_modules.unlearning.ngdiff import NGDiff
    from lit_modules.unlearning.npo import NPO
    from lit_modules.unlearning.pdu import PDU
    from lit_modules.unlearning.rmu import RMU
    from lit_modules.unlearning.sat_imp import SatImp
    from lit_modules.unlearning.simnpo import SimNPO
    from lit_modules.unlearning.task_vector import TaskVector
    from lit_modules.unlearning.undial import UNDIAL
    from lit_modules.unlearning.wga import WGA

__all__ = [  # noqa: RUF022 - in the order of sorted()
    "CEU",
    "CausalLMFineTuning",
    "DPO",
    "GradientAscent",
    "GradientDifference",
    "IDK",
    "KLMinimisation",
    "LossNorm",
    "NGDiff",
    "NPO",
    "PDU",
    "RMU",
    "SatImp",
    "SimNPO",
    "TaskVector",
    "UNDIAL",
    "WGA",
]

_MODULES = {
    "CEU": "ceu",
    "CausalLMFineTuning": "fine_tuning",
    "DPO": "dpo",
    "GradientAscent": "gradient_ascent",
    "GradientDifference": "gradient_difference",
    "IDK": "idk",
    "KLMinimisation": "kl_minimisation",
    "LossNorm": "loss_norm",
    "NGDiff": "ngdiff",
    "NPO": "npo",
    "PDU": "pdu",
    "RMU": "rmu",
    "SatImp": "sat_imp",
    "SimNPO": "simnpo",
    "TaskVector": "task_vector",
    "UNDIAL": "undial",
    "WGA": "wga",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
