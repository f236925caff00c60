"""Few pictures of new concepts, in pairs with the known concepts that a model takes them for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from lightning.pytorch import LightningDataModule

from lit_modules.utils.images import MAX_PIXELS

from ..common.sampling import BatchSampler, ResumableLoader, batch_loader, place_of, training_loader
from ..images.base import AugmentedSampler
from .arguments import check_arguments
from .concepts import Concept, ConceptFolder
from .images import Picture
from .layouts import Layout, read_folder
from .pairs import official_folders, read_pairs
from .samples import (
    ROLES,
    Method,
    Pair,
    Sample,
    check_pictures,
    read_features,
    resolve,
)
from .selection import Selection
from .sets import (
    OFFICIAL_EVALUATION_QUESTION,
    QUESTION,
    Asking,
    Mix,
    QuerySet,
    UpdateSet,
)

_CHOICES = 2**31


class FewShotPairs(LightningDataModule):
    """Few pictures of new concepts, in pairs with the known concepts that a model takes them for.

    ``root`` holds pictures in any layout of :func:`~datamodules.few_shot.layouts.read_folder`, and ``pairs.json``, see
    :func:`~datamodules.few_shot.pairs.read_pairs`. For each pair and both of its concepts, training takes ``n_real``
    pictures and ``n_synthetic`` more: crops or flips of the real ones, or synthetic pictures from a folder. Supports
    are nested: those of one shot are among those of five with the same seed. Queries do not change with the seed.
    ``setup`` opens every picture that is used and raises one error that lists all that is wrong.

    A batch is a dict of columns of equal length. Sample ``i`` is one question about exactly one picture, so that a
    module makes one conversation of it: a user turn of ``image[i]`` and the text ``prompt[i]``, and an assistant turn
    of the text ``answer[i]``. The text holds no placeholder for the picture; the model's chat template puts it.

    - ``image``: list of PIL pictures in RGB, each in its own size; with ``image_size``, float32 in [0, 1], ``(batch, 3,
      image_size, image_size)``, stretched to a square.
    - ``label``: int64 ``(batch,)``, place of the right class in ``classes``.
    - ``prompt``, ``answer``: lists of str, the question with its options in the order asked, and the right name.
    - ``options``: list of tuples of str, the names in the order asked; ``answer_option``: int64 ``(batch,)``, which of
      them is right; ``option_label``: int64 ``(batch, options)``, their places in ``classes``; ``aliases``: list of
      tuples, for each option the tuple of other right answers.
    - ``features``: list of tuples, for each option the tuple of its attributes; empty without ``features``.
    - ``pair_id``, ``role`` (``target`` or ``confusable``: what the picture shows), ``origin`` (``real``, ``crop``,
      ``flip``, ``flip_horizontal``, ``armada_lite``, or the kind of synthetic pictures), ``part`` (``pairs``,
      ``replay`` or ``retention``), ``path``, ``supercategory``: lists of str.
    - ``index``: int64 ``(batch,)``, place in the set. In validation and test also ``query`` and ``order``, int64
      ``(batch,)``: rows of one query ask the same in another order of the options.
    - ``context``: in validation and test with ``n_context``, a list of tuples of examples: for each question the pairs
      of a PIL picture and the name of what it shows, ``n_context`` of each option in an order of the query's own.
    - ``label_weights``: float32 ``(batch, classes)``, in training with ``mix``.

    Args:
        root: Folder of the pictures; ``None`` takes the usual one, ``home``.
        pairs: Pair file, or a list of pairs; ``None`` takes ``pairs.json`` or ``config.json`` in ``root``.
        layout: Layout of ``root``.
        folders: Folder of the splits ``train``, ``validation`` and ``test`` where the usual names do not find it.
        annotations: iNaturalist's JSON with ``categories``, for common names.
        n_real: Real training pictures of each concept; the paper has 5 or 20, and 1 is an extension of ours.
        n_synthetic: Further training pictures of each concept.
        method: What the further pictures are: ``real`` has none, ``crop``, ``flip`` (also upside down) and
            ``flip_horizontal`` change real ones, ``synthetic`` reads ``synthetic_root``; so does ``armada_lite``, for
            real ones edited by instructions of a chat model, which ``lit-modules coda armada-lite`` makes: the outline
            of ARMADA without its knowledge base and its choice by Frechet distance, and not to be reported as ARMADA.
        synthetic_root: Folder of pictures, as ``lit-modules coda export`` and ``coda armada-lite`` write it.
        synthetic_kind: Kind of synthetic pictures to read, such as ``visual_contrastive``.
        n_source: Real pictures that crops and flips are made of; ``None`` takes ``n_real``.
        sampling: ``fixed`` trains on all pictures; ``probability`` goes through the real ones and puts a further one in
            the place of each with ``synthetic_probability``.
        synthetic_probability: Chance of that, in [0, 1].
        n_query: Most pictures of each concept to ask about; ``None`` takes all.
        query_from: Split that queries come from: ``auto`` validates on ``validation`` and tests on ``test``, or takes
            the one there is; ``train`` keeps back training pictures.
        n_validation: Training pictures of each concept, never among the supports, that validation asks about, so that
            a run may stop early without a look at the test; ``None`` validates as ``query_from`` says.
        n_orders: Orders of the options in which each query is asked.
        n_way: Options of a query; above 2, others of the target's super-category join the pair.
        pair: ``pair_id`` of the one pair to update on and ask about; ``None`` takes all.
        replay_pairs: Pair file of known concepts to rehearse.
        replay_ratio: Rehearsed samples as a share of the others.
        retention_pairs: Pair file of known concepts that are asked about and not trained on.
        preset: ``official`` asks and writes names as the released code does: large first letter, small ones else, and
            another question in validation and test.
        question: Question, with the place ``{options}``.
        eval_question: Question of validation and test; ``None`` takes ``question``.
        features: File of attributes, see :func:`~datamodules.few_shot.samples.read_features`.
        feature_context: Whether the attributes of all options stand before each question of validation and test,
            whatever the method.
        n_context: Supports of each option that come with each question of validation and test, as examples for models
            that are asked without an update; at most ``n_real``.
        image_size: Side of the pictures in pixels as one tensor, for classifiers; ``None`` leaves them as they are.
        mix: ``cutmix`` or ``mixup`` mixes training pictures, for classifiers.
        near_duplicates: Whether pictures that differ in size or compression alone count as the same.
        max_pixels: Most pixels of a picture.
        batch_size: Samples in a training batch, on each device.
        eval_batch_size: Questions in a batch of validation and test, on each device.
        seed: Seed of supports, crops, flips and orders.
        query_seed: Seed of the choice and of the orders of queries.
        num_workers: Worker processes of each loader.

    Raises:
        ValueError: If an argument is out of its range; in ``setup``, if anything is wrong with the data.
        FileNotFoundError: If a file or folder is missing.

    References:
        Zhou et al., "Contrastive Visual Data Augmentation", arXiv 2502.17709.
    """

    home: ClassVar[str] = "data/few_shot"
    """Folder of the pictures if no other is given."""
    kind: ClassVar[str | None] = None
    """What concepts are if neither ``concepts.jsonl`` nor the layout says it: ``animal``, ``scene`` or another."""

    def __init__(
        self,
        root: str | None = None,
        pairs: str | list[dict[str, Any]] | None = None,
        layout: Layout = "auto",
        folders: dict[str, str] | None = None,
        annotations: str | None = None,
        n_real: int = 5,
        n_synthetic: int = 0,
        method: Method = "real",
        synthetic_root: str | None = None,
        synthetic_kind: str | None = None,
        n_source: int | None = None,
        sampling: Literal["fixed", "probability"] = "fixed",
        synthetic_probability: float = 0.5,
        n_query: int | None = 20,
        query_from: Literal["auto", "validation", "test", "train"] = "auto",
        n_validation: int | None = None,
        n_orders: int = 2,
        n_way: int = 2,
        pair: str | None = None,
        replay_pairs: str | None = None,
        replay_ratio: float = 0.0,
        retention_pairs: str | None = None,
        preset: Literal["default", "official"] = "default",
        question: str = QUESTION,
        eval_question: str | None = None,
        features: str | None = None,
        feature_context: bool = False,
        n_context: int = 0,
        image_size: int | None = None,
        mix: Mix = "none",
        near_duplicates: bool = True,
        max_pixels: int = MAX_PIXELS,
        batch_size: int = 5,
        eval_batch_size: int = 16,
        seed: int = 0,
        query_seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        # the command line hands the arguments of a derived class to hparams, and these ones alone stand there
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        # loggers refuse a module and data that both have a preset or a seed, and not the same
        self.save_hyperparameters(logger=False)
        self.arguments = given
        """The arguments of this class."""
        self.root = Path(self.home if root is None else root)
        check_arguments(given)
        self._pairs_from: str | list[dict[str, Any]] | None = pairs
        self._folder: ConceptFolder | None = None
        self._sets: dict[str, UpdateSet | QuerySet] = {}
        self._pairs: dict[str, list[Pair]] = {}
        self._selection: Selection | None = None

    @property
    def folder(self) -> ConceptFolder:
        """What ``root`` holds, read once."""
        self._read()
        assert self._folder is not None
        return self._folder

    @property
    def selection(self) -> Selection:
        """What chooses the pictures."""
        self._read()
        assert self._selection is not None
        return self._selection

    @property
    def pairs(self) -> list[Pair]:
        """The pairs to update on and to ask about."""
        self._read()
        return self._pairs["pairs"]

    @property
    def concepts(self) -> dict[str, Concept]:
        """The concepts of all pairs by key, in the order of the labels: those of ``pairs`` first."""
        self._read()
        parts = [self._pairs[part] for part in ("pairs", "replay", "retention")]
        found = [sorted({pair.concept(role).key for pair in pairs for role in ROLES}) for pairs in parts]
        return {key: self.folder.concepts[key] for keys in found for key in keys}

    @property
    def classes(self) -> tuple[str, ...]:
        """The names that ``label`` counts."""
        return tuple(concept.name for concept in self.concepts.values())

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.concepts)

    def setup(self, stage: str) -> None:
        """Read, choose and check the pictures that the stage needs, once."""
        for name in {"fit": ("train", "validation"), "validate": ("validation",)}.get(stage, ("test",)):
            self.split(name)

    def split(self, name: str) -> UpdateSet | QuerySet:
        """Return a set, checked.

        Args:
            name: ``train``, ``validation`` or ``test``.

        Raises:
            ValueError: If the name is unknown or anything is wrong with the data; the message lists all of it.
        """
        if name not in ("train", "validation", "test"):
            raise ValueError(f"A split must be 'train', 'validation' or 'test', got {name!r}.")
        if name not in self._sets:
            self._prepare(name == "train")
        return self._sets[name]

    def train_dataloader(self) -> ResumableLoader:
        """Return shuffled samples; the order of the options is drawn anew in each epoch."""
        data, given = self.split("train"), self.arguments
        sampler = AugmentedSampler(len(data), given["batch_size"], given["seed"], *place_of(self), choices=_CHOICES)
        return training_loader(self, data, sampler, given["num_workers"])

    def val_dataloader(self) -> ResumableLoader:
        """Return the questions of validation in order."""
        return self._evaluation("validation")

    def test_dataloader(self) -> ResumableLoader:
        """Return the questions of the test in order."""
        return self._evaluation("test")

    def predict_dataloader(self) -> ResumableLoader:
        """Return the questions of the test in order."""
        return self._evaluation("test")

    def support(self, concept: Concept) -> list[Picture]:
        """Return the training pictures of a concept, in the order in which they become supports."""
        return self.selection.support(concept)

    def describe(self) -> str:
        """Return what was found, a line each."""
        given, pairs = self.arguments, self.pairs
        concepts = {pair.concept(role).key: pair.concept(role) for pair in pairs for role in ROLES}.values()
        lines = [f"{len(pairs)} pairs of {len(concepts)} concepts in {self.root}"]
        for split in self.folder.splits:
            numbers = [len(concept.pictures.get(split, [])) for concept in concepts]
            lines.append(f"{split}: {min(numbers)} to {max(numbers)} pictures of each concept")
        validation, test = (self.selection.split_of(name) for name in ("validation", "test"))
        lines.append(
            f"update: {given['n_real']}:{given['n_synthetic']} real:{given['method']} pictures of each concept; "
            f"validation asks about {validation}, test about {test}"
        )
        return "\n".join(lines)

    def _prepare(self, training: bool) -> None:
        """Choose the pictures, check all of them at once, and make the sets."""
        self._read()
        given = self.arguments
        problems: list[str] = []
        # pictures to ask about alone are enough to ask a model that is not updated
        training = training or "train" in self.folder.splits
        trained = self.selection.updates(problems) if training else []
        asked = {name: self.selection.queries(name, problems) for name in ("validation", "test")}
        examples = self.selection.examples(problems)
        ours = [sample for real, made in trained for sample in (real, *made)] + examples
        theirs = [sample for samples in asked.values() for sample in samples]
        pictures = [[(s.pair.concept(s.role), s.picture) for s in samples] for samples in (ours, theirs)]
        problems += check_pictures(pictures[0], pictures[1], given["max_pixels"], given["near_duplicates"])
        self._raise(problems)
        if training:
            self._sets["train"] = self._update_set(trained)
        for name, samples in asked.items():
            self._sets[name] = self._query_set(samples)

    def _read(self) -> None:
        """Read folder and pair files."""
        if self._folder is not None:
            return
        given = self.arguments
        root = self.root
        source = self._pair_file(root)
        folders: Mapping[str, str] | None = given["folders"]
        if folders is None and isinstance(source, str):
            named = official_folders(source)
            if named and all((root / folder).is_dir() for name, folder in named.items() if name != "synthetic"):
                folders = {name: folder for name, folder in named.items() if name != "synthetic"}
        folder = read_folder(root, given["layout"], folders, given["annotations"])
        problems = list(folder.problems)
        listed = read_pairs(source)
        if given["pair"] is not None:
            known = [pair.pair_id for pair in listed]
            if given["pair"] not in known:
                raise ValueError(f"pair must be one of {', '.join(known)}, got {given['pair']!r}.")
            listed = [pair for pair in listed if pair.pair_id == given["pair"]]
        resolved = {"pairs": resolve(listed, folder, problems)}
        for part in ("replay", "retention"):
            more = given[f"{part}_pairs"]
            resolved[part] = resolve(read_pairs(more), folder, problems) if more is not None else []
        trained = {p.concept(r).key for part in ("pairs", "replay") for p in resolved[part] for r in ROLES}
        for pair in resolved["retention"]:
            both = [pair.concept(role).name for role in ROLES if pair.concept(role).key in trained]
            problems += [f"pair {pair.pair_id} of retention_pairs: {name} is trained on." for name in both]
        self._raise(problems)
        for concept in folder.concepts.values():
            concept.kind = concept.kind or self.kind
        self._folder, self._pairs = folder, resolved
        self._selection = Selection(given, resolved, folder.splits)

    def _pair_file(self, root: Path) -> str | list[dict[str, Any]]:
        if self._pairs_from is not None:
            return self._pairs_from
        found = next((root / name for name in ("pairs.json", "config.json") if (root / name).is_file()), None)
        if found is None:
            if not root.is_dir():
                read_folder(root)  # says that there is no such folder
            raise FileNotFoundError(
                f"There is no {root / 'pairs.json'}; give `pairs`, or find the pairs that a model confuses with "
                "`lit-modules coda pairs`."
            )
        return str(found)

    def _raise(self, problems: Sequence[str]) -> None:
        found = list(dict.fromkeys(problems))
        if found:
            head = f"{self.root} has {len(found)} problem{'s'[: len(found) > 1]}:"
            raise ValueError("\n- ".join([head, *found]))

    def _asking(self, question: str, with_features: bool) -> Asking:
        given = self.arguments
        features = read_features(given["features"]) if given["features"] is not None else {}
        capitalize = given["preset"] == "official"
        shown = (question, self.concepts, capitalize, features, with_features)
        return Asking(*shown, given["image_size"], given["max_pixels"])

    def _update_set(self, trained: list[tuple[Sample, list[Sample]]]) -> UpdateSet:
        given = self.arguments
        asking = self._asking(given["question"], False)
        replacements = None
        if given["sampling"] == "probability":
            replacements = [made or [sample] for sample, made in trained]
        chance = given["synthetic_probability"]
        return UpdateSet([sample for sample, _ in trained], asking, given["seed"], replacements, chance, given["mix"])

    def _query_set(self, asked: list[Sample]) -> QuerySet:
        given = self.arguments
        question = given["eval_question"] or given["question"]
        if given["preset"] == "official" and given["eval_question"] is None and not given["feature_context"]:
            question = OFFICIAL_EVALUATION_QUESTION
        asking = self._asking(question, given["feature_context"])
        options = [self.selection.options(sample.pair, asking.concepts) for sample in asked]
        examples = {
            key: self.selection.support(concept)[: given["n_context"]]
            for key, concept in asking.concepts.items()
            if given["n_context"]
        }
        return QuerySet(asked, options, asking, given["n_orders"], given["query_seed"], examples)

    def _evaluation(self, name: str) -> ResumableLoader:
        data, given = self.split(name), self.arguments
        sampler = BatchSampler(len(data), given["eval_batch_size"], given["seed"], False, *place_of(self))
        return batch_loader(data, sampler, given["num_workers"])
