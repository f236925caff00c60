"""Adversarial training of classifiers, a file per method, and attacks on whole sets of data."""

from typing import TYPE_CHECKING

from lit_modules.utils.lazy import lazy_names

if TYPE_CHECKING:
    from lit_modules.adversarial.core.adversarial_set import AdversarialSet, attack_dataset
    from lit_modules.adversarial.fast import FastTraining
    from lit_modules.adversarial.free import FreeTraining
    from lit_modules.adversarial.mart import MART
    from lit_modules.adversarial.pgd import PGDTraining
    from lit_modules.adversarial.standard import StandardTraining
    from lit_modules.adversarial.trades import KLPGD, TRADES
else:
    __getattr__, __dir__ = lazy_names(__name__, __file__)

__all__ = [  # noqa: RUF022 - in the order of sorted()
    "AdversarialSet",
    "FastTraining",
    "FreeTraining",
    "KLPGD",
    "MART",
    "PGDTraining",
    "StandardTraining",
    "TRADES",
    "attack_dataset",
]
