"""Callbacks that watch or steer a run, a file each, imported when first used."""

from typing import TYPE_CHECKING

from lit_modules.utils.aliases import use_long_name
from lit_modules.utils.lazy import lazy_names

if TYPE_CHECKING:
    from lit_modules.utils.resuming import ExactResume

    from .adaptive_lr import AdaptiveLR
    from .adversarial_weight_perturbation import AdversarialWeightPerturbation
    from .curriculum import Curriculum
    from .ema import EMA
    from .forget_stopping import ForgetStopping
    from .generation_log import GenerationLog
    from .last_checkpoint import LastCheckpoint
    from .prediction_record import PredictionRecord
    from .result_record import ResultRecord
    from .robustness_record import RobustnessRecord
    from .sample_grid import SampleGrid
    from .sample_table import SampleTable
    from .save_pretrained import SavePretrained
elif __name__ == "callbacks":
    use_long_name(__name__)
else:
    __getattr__, __dir__ = lazy_names(__name__, __file__)

__all__ = [
    "EMA",
    "AdaptiveLR",
    "AdversarialWeightPerturbation",
    "Curriculum",
    "ExactResume",
    "ForgetStopping",
    "GenerationLog",
    "LastCheckpoint",
    "PredictionRecord",
    "ResultRecord",
    "RobustnessRecord",
    "SampleGrid",
    "SampleTable",
    "SavePretrained",
]
