"""Adversarial attacks in plain torch: ``attack = LinfPGD(eps=8 / 255)``, then ``attack(model, images, labels)``."""

from typing import TYPE_CHECKING

from lit_modules.utils.lazy import lazy_names

if TYPE_CHECKING:
    from lit_modules.attacks.apgd import APGD, APGDT
    from lit_modules.attacks.boundary import FAB, FABT, DeepFool, TrustRegion
    from lit_modules.attacks.carlini_wagner import CarliniWagner, CarliniWagnerL0, CarliniWagnerLinf, ElasticNet
    from lit_modules.attacks.engine.base import Attack, AttackResult
    from lit_modules.attacks.engine.losses import SoftLogitMarginLoss, ZeroOneLoss
    from lit_modules.attacks.ensembles import AutoAttack, AutoAttackResult, BestOf
    from lit_modules.attacks.fast_feature import FastFeature
    from lit_modules.attacks.gen_attack import GenAttack
    from lit_modules.attacks.jsma import JSMA
    from lit_modules.attacks.lagrangian import ALMA, PDGD, PDPGD
    from lit_modules.attacks.lbfgs import LBFGS
    from lit_modules.attacks.minimum_norm import DDN, FMN
    from lit_modules.attacks.pgd import (
        FGM,
        FGSM,
        L1PGD,
        L2BIM,
        L2PGD,
        L2Momentum,
        LinfBIM,
        LinfMomentum,
        LinfPGD,
        SparseL1Descent,
    )
    from lit_modules.attacks.pixel import LocalSearch, SinglePixel
    from lit_modules.attacks.score_based import NES, SPSA, Bandits, NAttack
    from lit_modules.attacks.sparse import VFGA, SigmaZero
    from lit_modules.attacks.spatial import RotationTranslation, SpatialTransform
    from lit_modules.attacks.square import Square
    from lit_modules.attacks.wrappers import EOT, FiniteDifference, NESGradient
    from lit_modules.utils.model_modes import evaluation_mode, no_parameter_gradients
else:
    __getattr__, __dir__ = lazy_names(__name__, __file__)

__all__ = [
    "ALMA",
    "APGD",
    "APGDT",
    "DDN",
    "EOT",
    "FAB",
    "FABT",
    "FGM",
    "FGSM",
    "FMN",
    "JSMA",
    "L1PGD",
    "L2BIM",
    "L2PGD",
    "LBFGS",
    "NES",
    "PDGD",
    "PDPGD",
    "SPSA",
    "VFGA",
    "Attack",
    "AttackResult",
    "AutoAttack",
    "AutoAttackResult",
    "Bandits",
    "BestOf",
    "CarliniWagner",
    "CarliniWagnerL0",
    "CarliniWagnerLinf",
    "DeepFool",
    "ElasticNet",
    "FastFeature",
    "FiniteDifference",
    "GenAttack",
    "L2Momentum",
    "LinfBIM",
    "LinfMomentum",
    "LinfPGD",
    "LocalSearch",
    "NAttack",
    "NESGradient",
    "RotationTranslation",
    "SigmaZero",
    "SinglePixel",
    "SoftLogitMarginLoss",
    "SparseL1Descent",
    "SpatialTransform",
    "Square",
    "TrustRegion",
    "ZeroOneLoss",
    "evaluation_mode",
    "no_parameter_gradients",
]
