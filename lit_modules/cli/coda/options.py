"""Options of ``lit-modules coda``: one file for all actions, each value of which the command line may override."""

import re
from dataclasses import dataclass
from typing import Any, Literal, cast

from jsonargparse import Namespace

from lit_modules.cli.coda.command import ACTIONS
from lit_modules.cli.lightning_cli import ProjectParser, RecipeFile
from lit_modules.cli.public import load_public
from lit_modules.coda.augmentation.estimate import Prices
from lit_modules.coda.augmentation.presets import CoDASettings, preset
from lit_modules.coda.backends.bounded_endpoint import BoundedEndpoint, Budget
from lit_modules.coda.backends.protocols import ChatModel, Embedder, ImageGenerator
from lit_modules.datamodules import FewShotPairs
from lit_modules.utils.errors import UsageError

_SHARD = re.compile(r"(\d{1,6})/(\d{1,6})")
_MODELS = ("chat", "verifier", "generator", "embedder")


@dataclass(frozen=True)
class Bounds:
    """What the endpoints of a run may take together.

    Args:
        calls: Most answers of chat models; None for any number, as for all others.
        tokens: Most tokens of questions and answers.
        images: Most images.
        cost: Most money, in the currency of the prices.
    """

    calls: int | None = None
    tokens: int | None = None
    images: int | None = None
    cost: float | None = None


@dataclass(frozen=True)
class Confusions:
    """How confused pairs are found.

    Args:
        targets: Concepts whose images are asked about. novel takes those that concepts.jsonl says are not known, each
            among known ones; all draws subsets of each super-category and asks about every concept in them; auto takes
            novel if there are any.
        num_options: Options of a question; None takes all known concepts of the super-category, and the one shown.
        num_images: Most images of each concept.
        num_subsets: Subsets drawn of each super-category, for all.
        splits: Splits that the images come from.
        threshold: A pair's rate must be greater.
        top_n: Most confusables of each concept; None keeps all.
        max_new_tokens: Longest answer, in tokens.
        seed: Seed of subsets, images and orders.
    """

    targets: Literal["auto", "novel", "all"] = "auto"
    num_options: int | None = 15
    num_images: int = 50
    num_subsets: int = 1
    splits: tuple[Literal["train", "validation", "test"], ...] = ("train",)
    threshold: float = 0.2
    top_n: int | None = None
    max_new_tokens: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "splits", tuple(self.splits))
        for name, least in (("num_options", 2), ("num_images", 1), ("num_subsets", 1), ("max_new_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"confusions.{name} must be at least {least}, got {value}.")
        if not self.splits:
            raise ValueError("confusions.splits must name at least one split, got none.")
        if not 0 <= self.threshold <= 1 or (self.top_n is not None and self.top_n < 1):
            raise ValueError(
                "confusions.threshold must be in [0, 1] and top_n at least 1 or null, got "
                f"{self.threshold} and {self.top_n}."
            )


def coda_parser(action: str) -> ProjectParser:
    """Return the parser of an action, with what all actions know.

    Args:
        action: Name of the action.
    """
    description = ACTIONS[action][1].removeprefix("... and ").capitalize()
    parser = ProjectParser(prog=f"lit-modules coda {action}", description=description)
    text = "Configuration file, name of a shipped recipe, or YAML or JSON text; a later one wins."
    parser.add_argument("-c", "--config", action=RecipeFile, help=text)
    parser.add_subclass_arguments(FewShotPairs, "data", required=False, help="pairs and their support images")
    for model, kind, text in (
        ("chat", ChatModel, "model that is asked for features, and for pairs"),
        ("verifier", ChatModel, "model that is asked what images show; null takes chat"),
        ("generator", ImageGenerator, "model that makes images"),
        ("embedder", Embedder, "model of scores and references, such as CLIP"),
    ):
        parser.add_argument(f"--{model}", type=kind, help=text)
    parser.add_argument(
        "--preset",
        type=Literal["default", "official"],
        default="default",
        help="what the settings start from; official is the released code",
    )
    parser.add_argument("--settings", type=CoDASettings, default=preset(), help="settings of the run")
    parser.add_argument("--store", type=str, default="runs/coda", help="folder of the run; it is made")
    parser.add_argument(
        "--shard", type=str | None, help="part of the pairs that this machine does, such as 1/4 for the first of 4"
    )
    parser.add_argument("--prices", type=Prices, default=Prices(), help="prices, in one currency")
    parser.add_argument("--budget", type=Bounds, default=Bounds(), help="what the endpoints may take together")
    parser.add_argument("--confusions", type=Confusions, default=Confusions(), help="how confused pairs are found")
    return parser


@dataclass
class Plan:
    """What an action was told.

    Args:
        action: Name of the action.
        parser: Its parser.
        config: Arguments.
        objects: The arguments with the classes built.
    """

    action: str
    parser: ProjectParser
    config: Namespace
    objects: Namespace

    @property
    def settings(self) -> CoDASettings:
        """Settings of the run."""
        return cast(CoDASettings, self.objects["settings"])

    @property
    def store(self) -> str:
        """Folder of the run."""
        return str(self.config["store"])

    @property
    def shard(self) -> tuple[int, int] | None:
        """Number, from 1, and total of the parts.

        Raises:
            UsageError: If it is no such thing.
        """
        given = self.config["shard"]
        if given is None:
            return None
        found = _SHARD.fullmatch(given.strip())
        number, total = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= number <= total:
            raise UsageError(f"shard must be i/n with i from 1 to n, such as 1/4; got {given!r}.")
        return number, total

    def need(self, *names: str) -> None:
        """Check that these were given.

        Raises:
            UsageError: If one was not; names it.
        """
        missing = [name for name in names if self.objects[name] is None]
        if missing:
            given = ", ".join(f"--{name}" for name in missing)
            raise UsageError(
                f"`lit-modules coda {self.action}` needs {' and '.join(missing)}: add {given}, or -c with a "
                "configuration file."
            )

    def data(self, **changes: Any) -> Any:
        """Return the datamodule, built anew with other arguments if there are any, with its files written."""
        self.need("data")
        data = self.objects["data"]
        if changes:
            arguments = {**self.config["data"].get("init_args", {}), **changes}
            data = type(data)(**arguments)
        data.prepare_data()
        return data

    def apply_budget(self) -> None:
        """Let all endpoints share the budget.

        Raises:
            UsageError: If there is a budget and no endpoint that keeps it.
        """
        bounds = vars(self.objects["budget"])
        if all(bound is None for bound in bounds.values()):
            return
        endpoints = [getattr(self.objects[name], "endpoint", None) for name in _MODELS]
        found = [endpoint for endpoint in endpoints if isinstance(endpoint, BoundedEndpoint)]
        if not found:
            raise UsageError("budget bounds what endpoints take, and none of the models is behind one; leave it out.")
        budget = Budget(**bounds, prices=self.objects["prices"])
        for endpoint in found:
            endpoint.budget = budget


def read_plan(parser: ProjectParser, action: str, args: list[str]) -> Plan:
    """Read the arguments of an action and build its classes.

    Args:
        parser: Parser of the action, with its own options.
        action: Name of the action.
        args: Arguments as on the command line.

    Raises:
        UsageError: If they are wrong; the first line says what.
        ValueError: If a value is out of its range.
    """
    import lit_modules.coda
    import lit_modules.datamodules

    load_public(lit_modules.datamodules, lit_modules.coda)
    parser.words = args
    config = parser.parse_args(args)
    if config["preset"] != "default":
        parser.set_defaults({"settings": preset(config["preset"]).record()})
        config = parser.parse_args(args)
    objects = parser.instantiate(config)
    return Plan(action, parser, config, objects)
