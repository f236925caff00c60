"""Options of ``lit-modules coda``: one file for all actions, each value of which the command line may override."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

from jsonargparse import Namespace

import lit_modules.coda
import lit_modules.datamodules
from lit_modules.cli.options import read_options
from lit_modules.cli.public import know_public
from lit_modules.coda.augmentation.features import FeatureKind
from lit_modules.coda.augmentation.settings import CoDASettings, preset
from lit_modules.coda.backends.protocols import ChatModel, Embedder, ImageGenerator, Prices
from lit_modules.coda.backends.remote import BoundedEndpoint, Budget
from lit_modules.datamodules import FewShotPairs
from lit_modules.utils.errors import UsageError

Options = TypeVar("Options", bound="CodaOptions")
_SHARD = re.compile(r"(\d{1,6})/(\d{1,6})")


@dataclass(frozen=True)
class Bounds:
    """Bounds of the endpoints of a run together.

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
    """Search for confusable pairs.

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


@dataclass(kw_only=True)
class CodaOptions:
    """Options of all actions.

    Args:
        data: pairs and their support images
        chat: model that is asked for features, and for pairs
        verifier: model that is asked what images show; null takes chat
        generator: model that makes images
        embedder: model of scores and references, such as CLIP
        preset: what the settings start from; official is the released code
        settings: settings of the run
        store: folder of the run; it is made
        shard: part of the pairs that this machine does, such as 1/4 for the first of 4
        prices: prices, in one currency
        budget: what the endpoints may take together
        confusions: how confused pairs are found
    """

    data: FewShotPairs | None = None
    chat: ChatModel | None = None
    verifier: ChatModel | None = None
    generator: ImageGenerator | None = None
    embedder: Embedder | None = None
    preset: Literal["default", "official"] = "default"
    settings: CoDASettings = field(default_factory=CoDASettings)
    store: str = "runs/coda"
    shard: str | None = None
    prices: Prices = field(default_factory=Prices)
    budget: Bounds = field(default_factory=Bounds)
    confusions: Confusions = field(default_factory=Confusions)

    action = ""  # no option: its name on the command line

    def need(self, *names: str) -> None:
        """Refuse a command line without these."""
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise UsageError(
                f"`lit-modules coda {self.action}` needs {' and '.join(missing)}: add "
                f"{', '.join(f'--{name}' for name in missing)}, or -c with a configuration file."
            )

    def parse_shard(self) -> tuple[int, int] | None:
        """Return number, from 1, and total of the parts."""
        if self.shard is None:
            return None
        match = _SHARD.fullmatch(self.shard.strip())
        number, total = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= number <= total:
            raise UsageError(f"shard must be i/n with i from 1 to n, such as 1/4; got {self.shard!r}.")
        return number, total

    def prepare_data(self) -> FewShotPairs:
        """Return the datamodule, with its files written."""
        self.need("data")
        assert self.data is not None
        self.data.prepare_data()
        return self.data

    def apply_budget(self) -> None:
        """Let all endpoints share the budget; refuses one that no endpoint keeps."""
        bounds = asdict(self.budget)
        if all(bound is None for bound in bounds.values()):
            return
        models = (self.chat, self.verifier, self.generator, self.embedder)
        endpoints = [getattr(model, "endpoint", None) for model in models]  # local models have none
        bounded = [endpoint for endpoint in endpoints if isinstance(endpoint, BoundedEndpoint)]
        if not bounded:
            raise UsageError("budget bounds what endpoints take, and none of the models is behind one; leave it out.")
        budget = Budget(**bounds, prices=self.prices)
        for endpoint in bounded:
            endpoint.budget = budget


@dataclass(kw_only=True)
class KindOptions(CodaOptions):
    """Options of an action on the images of one kind of features.

    Args:
        kind: kind of features whose images to take
    """

    kind: FeatureKind | None = None

    def chosen_kind(self) -> FeatureKind:
        """Return the kind of features, which must be named if the settings have several."""
        if self.kind is None and len(self.settings.kinds) > 1:
            raise UsageError(
                f"The settings have the kinds {', '.join(self.settings.kinds)}; add --kind with one of them."
            )
        return self.kind or self.settings.kinds[0]


def read_action(options: type[Options], action: str, description: str, args: Sequence[str]) -> Options:
    """Read the arguments of an action and build its classes; see :func:`lit_modules.cli.options.read_options`."""
    know_public(lit_modules.datamodules, lit_modules.coda)
    text = description.removeprefix("... and ").capitalize()
    read, _ = read_options(options, args, f"coda {action}", text, defaults=_preset)
    read.action = action
    return read


def _preset(config: Namespace) -> dict[str, Any]:
    return {} if config["preset"] == "default" else {"settings": preset(config["preset"]).record()}
