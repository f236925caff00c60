"""What watches or steers a run, a callback each, imported when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from callbacks.adaptive_lr import AdaptiveLR
    from callbacks.adversarial_weight_perturbation import AdversarialWeightPerturbation
    from callbacks.curriculum import Curriculum
    from callbacks.ema import EMA
    from callbacks.forget_stopping import ForgetStopping
    from callbacks.generation_log import GenerationLog
    from callbacks.last_checkpoint import LastCheckpoint
    from callbacks.result_record import ResultRecord
    from callbacks.robustness_record import RobustnessRecord
    from callbacks.sample_grid import SampleGrid
    from callbacks.sample_table import SampleTable
    from callbacks.save_pretrained import SavePretrained

__all__ = [
    "EMA",
    "AdaptiveLR",
    "AdversarialWeightPerturbation",
    "Curriculum",
    "ForgetStopping",
    "GenerationLog",
    "LastCheckpoint",
    "ResultRecord",
    "RobustnessRecord",
    "SampleGrid",
    "SampleTable",
    "SavePretrained",
]

_MODULES = {
    "AdaptiveLR": "adaptive_lr",
    "AdversarialWeightPerturbation": "adversarial_weight_perturbation",
    "Curriculum": "curriculum",
    "EMA": "ema",
    "ForgetStopping": "forget_stopping",
    "GenerationLog": "generation_log",
    "LastCheckpoint": "last_checkpoint",
    "ResultRecord": "result_record",
    "RobustnessRecord": "robustness_record",
    "SampleGrid": "sample_grid",
    "SampleTable": "sample_table",
    "SavePretrained": "save_pretrained",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
