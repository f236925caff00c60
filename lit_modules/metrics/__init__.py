"""Benchmarks' numbers as ``torchmetrics`` objects and functions, each imported when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_modules.metrics.affordances import (
        BinnedMean,
        PartAffordanceRecall,
        PartNovelty,
        affordance_scores,
        nearest_concept,
    )
    from lit_modules.metrics.data_statistics import (
        edge_fraction,
        inter_class_distance,
        intra_class_distance,
        log_volume,
        nearest_other_class_distance,
        volume_fraction,
    )
    from lit_modules.metrics.lume import LUMEScore
    from lit_modules.metrics.mmlu import evaluate_mmlu, read_mmlu
    from lit_modules.metrics.robustness import (
        BoundaryDistance,
        RobustAccuracy,
        distance_statistics,
        perturbation_norm,
        wilson_interval,
    )

__all__ = [
    "BinnedMean",
    "BoundaryDistance",
    "LUMEScore",
    "PartAffordanceRecall",
    "PartNovelty",
    "RobustAccuracy",
    "affordance_scores",
    "distance_statistics",
    "edge_fraction",
    "evaluate_mmlu",
    "inter_class_distance",
    "intra_class_distance",
    "log_volume",
    "nearest_concept",
    "nearest_other_class_distance",
    "perturbation_norm",
    "read_mmlu",
    "volume_fraction",
    "wilson_interval",
]

_MODULES = {
    "BinnedMean": "affordances",
    "BoundaryDistance": "robustness",
    "LUMEScore": "lume",
    "PartAffordanceRecall": "affordances",
    "PartNovelty": "affordances",
    "RobustAccuracy": "robustness",
    "affordance_scores": "affordances",
    "distance_statistics": "robustness",
    "edge_fraction": "data_statistics",
    "evaluate_mmlu": "mmlu",
    "inter_class_distance": "data_statistics",
    "intra_class_distance": "data_statistics",
    "log_volume": "data_statistics",
    "nearest_concept": "affordances",
    "nearest_other_class_distance": "data_statistics",
    "perturbation_norm": "robustness",
    "read_mmlu": "mmlu",
    "volume_fraction": "data_statistics",
    "wilson_interval": "robustness",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
