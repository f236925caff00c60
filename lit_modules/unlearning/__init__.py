"""Machine unlearning of causal language models: a file per method, and what they share.

An argument of another range or shape than its description says is a ``ValueError`` that names it; ``Raises`` lists what
else is refused.
"""

from typing import TYPE_CHECKING

from lit_modules.utils.lazy import lazy_names

if TYPE_CHECKING:
    from lit_modules.unlearning.altpo import AltPO
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
else:
    __getattr__, __dir__ = lazy_names(__name__, __file__)

__all__ = [  # noqa: RUF022 - in the order of sorted()
    "AltPO",
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
