"""Configuration of a test of metrics, and the runs that it asks for."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lit_modules.cli.lightning_cli import ProjectParser
from lit_modules.studies.arguments import file_name
from lit_modules.studies.compare.settings import Evaluation, Start, Tokenizer
from lit_modules.utils.errors import UsageError

KINDS = {
    "facts": "the forget rows as they are",
    "partial": "half of the forget rows, drawn with the seed",
    "paraphrased": "the forget questions with paraphrased answers",
    "questions": "the questions among the forget rows, and not the documents",
    "documents": "the documents among the forget rows, and not the questions",
    "retain": "no forget row",
    "exchanged": "the forget rows, each with the answer of another",
    "wrong": "the forget questions with wrong answers",
}
"""Rows that the models of a pool learn beside the retain rows, by kind."""
START, REFERENCE, FACTS, RETAIN = "start", "reference", "facts", "retain"
REFERENCE_SEED = 10_000
"""Seed of the model of the retain rows that metrics compare with, which is in no pool."""


@dataclass
class Pools:
    """Pools of models, each trained from the start on the retain rows and what its kind says.

    Args:
        knowing: Kinds of models that have the forget knowledge: facts, partial, paraphrased (TOFU), questions and
            documents (LUME).
        ignorant: Kinds that do not: retain, exchanged, wrong (TOFU).
        steps: Optimizer steps.
        batch_size: Rows of a step.
        learning_rate: Rate of AdamW without decay, which a cosine takes to 0.
    """

    knowing: list[str]
    ignorant: list[str]
    steps: int
    batch_size: int
    learning_rate: float = 1e-3


@dataclass
class Unlearning:
    """Unlearned models, each from the model of its seed that knows the facts.

    Args:
        methods: Methods, each with ``name``, ``class_path`` and ``learning_rate``, and if wanted ``init_args``.
        steps: Optimizer steps.
        batch_size: Rows of each set in a step.
    """

    methods: list[dict[str, Any]]
    steps: int
    batch_size: int


@dataclass
class Attacks:
    """Attacks on unlearned models, and on those of the retain rows.

    Args:
        relearning_steps: Steps of fine-tuning on the forget rows.
        relearning_rate: Its rate.
        bits: Bits of a quantized weight, 8 or 4.
    """

    relearning_steps: int
    relearning_rate: float
    bits: int = 4


@dataclass
class Settings:
    """Configuration of a test of metrics.

    Args:
        data: Class and arguments of the datamodule; ``{data}`` stands for the folder of the texts.
        start: Model that all begin with, trained on the retain rows.
        pools: Models with and without the forget knowledge.
        unlearning: Unlearned models.
        attacks: Relearning and quantization.
        evaluation: Metric of all models; ``{retain_log}`` stands for the log of a model of the retain rows.
        seeds: Seeds of the order of the rows, of weights where the start has none, and of partial sets.
        tokenizer: Tokenizer to train; ``None`` takes that of the start.
        trainer: Arguments of the trainer.
        least_kept: Share of the retain number that an unlearned model must have kept to count for robustness.
    """

    data: dict[str, Any]
    start: Start
    pools: Pools
    unlearning: Unlearning
    attacks: Attacks
    evaluation: Evaluation
    seeds: list[int]
    tokenizer: Tokenizer | None = None
    trainer: dict[str, Any] = field(default_factory=dict)
    least_kept: float = 0.8


KEYS = tuple(Settings.__dataclass_fields__)


@dataclass(frozen=True)
class Run:
    """Run of a test of metrics.

    Args:
        role: ``"start"``, ``"reference"``, ``"knowing"``, ``"ignorant"`` or ``"unlearned"``.
        name: Kind of the model, or name of the method.
        seed: Seed.
    """

    role: str
    name: str
    seed: int

    @property
    def folder(self) -> str:
        """Name of the run's folder."""
        return self.role if self.role in (START, REFERENCE) else f"{self.role},{file_name(self.name)},seed={self.seed}"


def waves(settings: Mapping[str, Any]) -> list[list[Run]]:
    """Return the runs in the order of what they need: the start, the reference, the pools, the unlearned models."""
    pools, methods = settings["pools"], settings["unlearning"]["methods"]
    members = [
        Run(role, kind, seed) for role in ("knowing", "ignorant") for kind in pools[role] for seed in settings["seeds"]
    ]
    unlearned = [Run("unlearned", method["name"], seed) for method in methods for seed in settings["seeds"]]
    return [[Run(START, START, 0)], [Run(REFERENCE, RETAIN, REFERENCE_SEED)], members, unlearned]


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check a configuration as far as no class need be known.

    Raises:
        UsageError: If a key is missing, unknown or out of its range.
    """
    parser = ProjectParser(prog="lit-modules metrics")
    parser.add_class_arguments(Settings)
    parser.parse_object(copy.deepcopy(dict(settings)))  # which it changes
    if "class_path" not in settings["data"]:
        raise UsageError(f"data needs 'class_path'; it has {', '.join(settings['data']) or 'nothing'}.")
    pools = settings["pools"]
    for role, needed in (("knowing", FACTS), ("ignorant", RETAIN)):
        for kind in pools[role]:
            if kind not in KINDS:
                raise UsageError(f"pools.{role} must be of {', '.join(KINDS)}, got {kind!r}.")
        if needed not in pools[role]:
            raise UsageError(f"pools.{role} must name {needed!r}, which robustness is measured by, got {pools[role]}.")
    methods = settings["unlearning"]["methods"]
    names = [file_name(method.get("name")) for method in methods]
    for method in methods:
        lacking = [key for key in ("name", "class_path", "learning_rate") if key not in method]
        if lacking:
            raise UsageError(f"Each of unlearning.methods needs {', '.join(lacking)}, got {method}.")
        if names.count(file_name(method["name"])) > 1:
            raise UsageError(f"unlearning.methods must have distinct names, got {method['name']!r} more than once.")
    numbers = {
        "pools.steps": pools["steps"],
        "pools.batch_size": pools["batch_size"],
        "unlearning.steps": settings["unlearning"]["steps"],
        "unlearning.batch_size": settings["unlearning"]["batch_size"],
        "attacks.relearning_steps": settings["attacks"]["relearning_steps"],
    }
    for name, number in numbers.items():
        if number < 1:
            raise UsageError(f"{name} must be at least 1, got {number}.")
    seeds = settings["seeds"]
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= REFERENCE_SEED:
        raise UsageError(f"seeds must be distinct, from 0 to {REFERENCE_SEED - 1}, and at least one, got {seeds}.")
    if settings["attacks"].get("bits", 4) not in (4, 8):
        raise UsageError(f"attacks.bits must be 4 or 8, got {settings['attacks']['bits']}.")
    if not 0 <= settings.get("least_kept", 0.8) < math.inf:
        raise UsageError(f"least_kept must be 0 or more, got {settings['least_kept']}.")
