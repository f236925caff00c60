"""Benchmarks' numbers as ``torchmetrics`` objects and functions, each imported when first used.

An argument of another range or shape than its description says is a ``ValueError`` that names it; ``Raises`` lists what
else is refused.
"""

from typing import TYPE_CHECKING

from lit_modules.utils.lazy import lazy_names

if TYPE_CHECKING:
    from lit_modules.metrics.affordances import (
        BinnedMean,
        BinnedMetric,
        PartAffordanceRecall,
        PartNovelty,
        affordance_scores,
        nearest_concept,
    )
    from lit_modules.metrics.concept_images import read_concept_images
    from lit_modules.metrics.data_statistics import (
        edge_fraction,
        inter_class_distance,
        intra_class_distance,
        log_volume,
        nearest_other_class_distance,
        volume_fraction,
    )
    from lit_modules.metrics.drawn_objects import DrawnObjectScore
    from lit_modules.metrics.drift import Drift
    from lit_modules.metrics.few_shot import NWayAccuracy, PairAccuracy
    from lit_modules.metrics.gibberish import cleanness
    from lit_modules.metrics.harness import read_accuracies
    from lit_modules.metrics.image_text import ImageTextEncoder
    from lit_modules.metrics.judge import JudgeComparison, JudgeScore
    from lit_modules.metrics.lume import LUMEScore
    from lit_modules.metrics.membership import (
        AttackAUC,
        attack_auc,
        gradient_norm_attack,
        loss_attack,
        min_k_attack,
        min_k_plus_plus_attack,
        reference_attack,
        zlib_attack,
    )
    from lit_modules.metrics.mmlu import evaluate_mmlu, read_mmlu
    from lit_modules.metrics.muse import MUSEScore, privacy_leakage, read_retrained_auc
    from lit_modules.metrics.robustness import (
        BoundaryDistance,
        RobustAccuracy,
        distance_statistics,
        median_distance,
        perturbation_norm,
        wilson_interval,
    )
    from lit_modules.metrics.synthia import (
        AffordanceCLIPScore,
        AffordanceRecall,
        Diversity,
        NoveltyDistance,
        PositiveNegativeGap,
        SingleObject,
        SynthiaScore,
    )
    from lit_modules.metrics.tofu import TOFUScore
    from lit_modules.metrics.tofu_scores import forget_quality, read_log, score_log, truth_ratio
    from lit_modules.metrics.wmdp import WMDPScore
else:
    __getattr__, __dir__ = lazy_names(__name__, __file__)

__all__ = [
    "AffordanceCLIPScore",
    "AffordanceRecall",
    "AttackAUC",
    "BinnedMean",
    "BinnedMetric",
    "BoundaryDistance",
    "Diversity",
    "DrawnObjectScore",
    "Drift",
    "ImageTextEncoder",
    "JudgeComparison",
    "JudgeScore",
    "LUMEScore",
    "MUSEScore",
    "NWayAccuracy",
    "NoveltyDistance",
    "PairAccuracy",
    "PartAffordanceRecall",
    "PartNovelty",
    "PositiveNegativeGap",
    "RobustAccuracy",
    "SingleObject",
    "SynthiaScore",
    "TOFUScore",
    "WMDPScore",
    "affordance_scores",
    "attack_auc",
    "cleanness",
    "distance_statistics",
    "edge_fraction",
    "evaluate_mmlu",
    "forget_quality",
    "gradient_norm_attack",
    "inter_class_distance",
    "intra_class_distance",
    "log_volume",
    "loss_attack",
    "median_distance",
    "min_k_attack",
    "min_k_plus_plus_attack",
    "nearest_concept",
    "nearest_other_class_distance",
    "perturbation_norm",
    "privacy_leakage",
    "read_accuracies",
    "read_concept_images",
    "read_log",
    "read_mmlu",
    "read_retrained_auc",
    "reference_attack",
    "score_log",
    "truth_ratio",
    "volume_fraction",
    "wilson_interval",
    "zlib_attack",
]
