"""Few pictures of new concepts, in pairs with the known concepts that a model takes them for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict, get_args

from lightning.pytorch import LightningDataModule

from lit_modules.utils.images import FORMATS, MAX_PIXELS

from ..common.checks import check_at_least, check_choices
from ..common.download import check_dataset_name, download_dataset
from ..common.sampling import ResumableLoader, ordered_loader, place_of, training_loader
from ..images.base import AugmentedSampler
from .images import Picture
from .layouts import Concept, ConceptFolder, Layout, no_folder, read_folder
from .pairs import official_folders, read_features, read_pairs
from .questions import OFFICIAL_EVALUATION_QUESTION, QUESTION, Mix, QuerySet, QuestionForm, UpdateSet
from .selection import READ_METHODS, Method, Pair, Sample, Selection, Update, check_pictures, resolve

_CHOICES = 2**31
Sampling = Literal["fixed", "probability"]
QuerySource = Literal["auto", "validation", "test", "train"]
Preset = Literal["default", "official"]
_PICTURES = ("*.parquet", *(f"*{suffix}" for suffix in FORMATS))
_NOTES = ("README.md", "*metadata.jsonl", "*metadata.csv", "pairs.json", "concepts.jsonl")
"""Patterns of the files of a dataset on the hub that are read."""


class FewShotArguments(TypedDict, total=False):
    """Arguments of :class:`FewShotPairs` that :class:`~datamodules.drawn.species.DrawnSpecies` has too."""

    pairs: str | list[dict[str, Any]] | None
    n_real: int
    n_synthetic: int
    method: Method
    synthetic_root: str | None
    synthetic_kind: str | None
    n_source: int | None
    sampling: Sampling
    synthetic_probability: float
    n_validation: int | None
    n_orders: int
    n_way: int
    pair: str | None
    replay_pairs: str | None
    replay_ratio: float
    retention_pairs: str | None
    preset: Preset
    question: str
    eval_question: str | None
    features: str | None
    feature_context: bool
    n_context: int
    image_size: int | None
    mix: Mix
    batch_size: int
    eval_batch_size: int
    seed: int
    query_seed: int
    num_workers: int


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
    - ``options``: list of tuples of str, the names in the order asked; ``answer_option``: int64 ``(batch,)``, the
      right one; ``option_label``: int64 ``(batch, options)``, their places in ``classes``; ``aliases``: list of
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
        download: Name of a dataset on the Hugging Face Hub, ``OWNER/NAME`` or ``OWNER/NAME@REVISION``, whose Parquet
            files or pictures, and notes on them, are put into ``root``; what is there is not downloaded again.
            ``True`` takes the one of the class, ``hub``.
        n_real: Real training pictures of each concept; the paper has 5 or 20, and 1 is an extension of ours.
        n_synthetic: Further training pictures of each concept.
        method: Source of the further pictures: ``real`` has none, ``crop``, ``flip`` (also upside down) and
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
        features: File of attributes, see :func:`~datamodules.few_shot.pairs.read_features`.
        feature_context: Whether the attributes of all options stand before each question of validation and test.
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
        ConnectionError: If a dataset is to be downloaded and cannot be.

    References:
        Zhou et al., "Contrastive Visual Data Augmentation", arXiv 2502.17709.
    """

    home: ClassVar[str] = "data/few_shot"
    """Folder of the pictures if no other is given."""
    kind: ClassVar[str | None] = None
    """Kind of the concepts if neither ``concepts.jsonl`` nor the layout says it: ``animal``, ``scene`` or another."""
    hub: ClassVar[str | None] = None
    """Dataset on the Hugging Face Hub that ``download: true`` gets, if the class has one."""
    licence: ClassVar[str | None] = None
    """Licence of the data, for the card of a model that learned from them; ``None`` for files of the user's."""

    def __init__(
        self,
        root: str | None = None,
        pairs: str | list[dict[str, Any]] | None = None,
        layout: Layout = "auto",
        folders: dict[str, str] | None = None,
        annotations: str | None = None,
        download: bool | str = False,
        n_real: int = 5,
        n_synthetic: int = 0,
        method: Method = "real",
        synthetic_root: str | None = None,
        synthetic_kind: str | None = None,
        n_source: int | None = None,
        sampling: Sampling = "fixed",
        synthetic_probability: float = 0.5,
        n_query: int | None = 20,
        query_from: QuerySource = "auto",
        n_validation: int | None = None,
        n_orders: int = 2,
        n_way: int = 2,
        pair: str | None = None,
        replay_pairs: str | None = None,
        replay_ratio: float = 0.0,
        retention_pairs: str | None = None,
        preset: Preset = "default",
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
        # hparams hold what the command line was given, which leaves out what a derived class has set
        args = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        # loggers refuse a module and data that both have a preset or a seed, and not the same
        self.save_hyperparameters(logger=False)
        _check_arguments(args)
        if download is True and self.hub is None:
            raise ValueError(
                f"download must name a dataset on the Hugging Face Hub, as {type(self).__name__} has none of its own; "
                "got True."
            )
        if isinstance(download, str):
            check_dataset_name(download)
        self._dataset = self.hub if download is True else download or None
        self.arguments = args
        """The arguments of this class."""
        self.root = Path(self.home if root is None else root)
        self._content: tuple[ConceptFolder, dict[str, list[Pair]]] | None = None
        self._sets: dict[str, UpdateSet | QuerySet] = {}

    @property
    def folder(self) -> ConceptFolder:
        """Content of ``root``, read once."""
        return self._read()[0]

    @property
    def selection(self) -> Selection:
        """Choice of the pictures."""
        folder, pairs = self._read()
        return Selection(self.arguments, pairs, folder.splits)

    @property
    def pairs(self) -> list[Pair]:
        """Pairs to update on and to ask about."""
        return self._read()[1]["pairs"]

    @property
    def concepts(self) -> dict[str, Concept]:
        """Concepts of all pairs by key, in the order of the labels: those of ``pairs`` first."""
        folder, pairs = self._read()
        keys = [sorted({concept.key for pair in part for _, concept in pair.sides}) for part in pairs.values()]
        return {key: folder.concepts[key] for part in keys for key in part}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return tuple(concept.name for concept in self.concepts.values())

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.concepts)

    def prepare_data(self) -> None:
        """Download the dataset, if asked for."""
        if self._dataset is not None:
            download_dataset(self._dataset, self.root, _PICTURES, notes=_NOTES)

    def setup(self, stage: str) -> None:
        """Read, choose and check the pictures that the stage needs, once."""
        for name in {"fit": ("train", "validation"), "validate": ("validation",)}.get(stage, ("test",)):
            self.split(name)

    def split(self, name: str) -> UpdateSet | QuerySet:
        """Return the set ``train``, ``validation`` or ``test``, checked.

        Raises:
            ValueError: If the name is unknown or anything is wrong with the data; the message lists all of it.
        """
        check_choices(("train", "validation", "test"), split=name)
        if name not in self._sets:
            self._prepare(name == "train")
        return self._sets[name]

    def train_dataloader(self) -> ResumableLoader:
        """Return shuffled samples; the order of the options is drawn anew in each epoch."""
        data, args = self.split("train"), self.arguments
        sampler = AugmentedSampler(len(data), args["batch_size"], args["seed"], *place_of(self), choices=_CHOICES)
        return training_loader(self, data, sampler, args["num_workers"])

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
        """Describe the data, a line each: pairs, pictures of each split, and what is updated on and asked about."""
        args, pairs = self.arguments, self.pairs
        concepts = {concept.key: concept for pair in pairs for _, concept in pair.sides}.values()
        lines = [f"{len(pairs)} pairs of {len(concepts)} concepts in {self.root}"]
        for split in self.folder.splits:
            numbers = [len(concept.pictures.get(split, [])) for concept in concepts]
            lines.append(f"{split}: {min(numbers)} to {max(numbers)} pictures of each concept")
        validation, test = (self.selection.split_of(name) for name in ("validation", "test"))
        lines.append(
            f"update: {args['n_real']}:{args['n_synthetic']} real:{args['method']} pictures of each concept; "
            f"validation asks about {validation}, test about {test}"
        )
        return "\n".join(lines)

    def _read(self) -> tuple[ConceptFolder, dict[str, list[Pair]]]:
        """Return the folder and the pairs of each part, ``pairs``, ``replay`` and ``retention``; read once."""
        if self._content is not None:
            return self._content
        if not self.root.is_dir():
            raise no_folder(self.root, "" if self.hub is None else f"; `download: true` gets {self.hub}")
        args = self.arguments
        source = self._pair_source()
        folders: Mapping[str, str] | None = args["folders"]
        if folders is None and isinstance(source, str):
            official = official_folders(source)
            official.pop("synthetic", None)
            if official and all((self.root / folder).is_dir() for folder in official.values()):
                folders = official
        folder = read_folder(self.root, args["layout"], folders, annotations=args["annotations"])
        problems = list(folder.problems)
        listed = read_pairs(source)
        if args["pair"] is not None:
            ids = [pair.pair_id for pair in listed]
            if args["pair"] not in ids:
                raise ValueError(f"pair must be one of {', '.join(ids)}, got {args['pair']!r}.")
            listed = [pair for pair in listed if pair.pair_id == args["pair"]]
        pairs = {"pairs": resolve(listed, folder, problems)}
        for part in ("replay", "retention"):
            path = args[f"{part}_pairs"]
            pairs[part] = [] if path is None else resolve(read_pairs(path), folder, problems)
        trained = {concept.key for pair in (*pairs["pairs"], *pairs["replay"]) for _, concept in pair.sides}
        problems += [
            f"pair {pair.pair_id} of retention_pairs: {concept.name} is trained on."
            for pair in pairs["retention"]
            for _, concept in pair.sides
            if concept.key in trained
        ]
        self._raise(problems)
        for concept in folder.concepts.values():
            concept.kind = concept.kind or self.kind
        self._content = folder, pairs
        return self._content

    def _pair_source(self) -> str | list[dict[str, Any]]:
        source: str | list[dict[str, Any]] | None = self.arguments["pairs"]
        if source is not None:
            return source
        paths = [self.root / name for name in ("pairs.json", "config.json")]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise FileNotFoundError(
                f"There is no {paths[0]}; give `pairs`, or find the pairs that a model confuses with "
                f"`lit-modules coda pairs ... --output {paths[0]}`."
            )
        return str(path)

    def _prepare(self, training: bool) -> None:
        """Choose the pictures, check all of them at once, and make the sets."""
        args, selection, problems = self.arguments, self.selection, list[str]()
        # pictures to ask about alone are enough to ask a model that is not updated
        training = training or "train" in self.folder.splits
        updates = selection.updates(problems) if training else []
        asked = {name: selection.queries(name, problems) for name in ("validation", "test")}
        ours = [sample for real, further in updates for sample in (real, *further)] + selection.examples(problems)
        theirs = [sample for samples in asked.values() for sample in samples]
        problems += check_pictures(ours, theirs, args["max_pixels"], near=args["near_duplicates"])
        self._raise(problems)
        if training:
            self._sets["train"] = self._update_set(updates)
        self._sets |= {name: self._query_set(samples) for name, samples in asked.items()}

    def _raise(self, problems: Sequence[str]) -> None:
        unique = list(dict.fromkeys(problems))
        if unique:
            head = f"{self.root} has {len(unique)} problem{'s'[: len(unique) > 1]}:"
            raise ValueError("\n- ".join([head, *unique]))

    def _form(self, question: str, feature_context: bool) -> QuestionForm:
        args = self.arguments
        return QuestionForm(
            question,
            self.concepts,
            capitalize=args["preset"] == "official",
            features={} if args["features"] is None else read_features(args["features"]),
            feature_context=feature_context,
            image_size=args["image_size"],
            max_pixels=args["max_pixels"],
        )

    def _update_set(self, updates: list[Update]) -> UpdateSet:
        args = self.arguments
        drawn = args["sampling"] == "probability"
        return UpdateSet(
            [sample for sample, _ in updates],
            self._form(args["question"], False),
            args["seed"],
            replacements=[further or [sample] for sample, further in updates] if drawn else None,
            probability=args["synthetic_probability"],
            mix=args["mix"],
        )

    def _query_set(self, samples: list[Sample]) -> QuerySet:
        args, selection = self.arguments, self.selection
        question = args["eval_question"] or args["question"]
        if args["preset"] == "official" and args["eval_question"] is None and not args["feature_context"]:
            question = OFFICIAL_EVALUATION_QUESTION
        form, number = self._form(question, args["feature_context"]), args["n_context"]
        examples = {key: selection.support(concept)[:number] for key, concept in form.concepts.items() if number}
        options = [selection.options(sample.pair, form.concepts) for sample in samples]
        return QuerySet(samples, options, form, orders=args["n_orders"], seed=args["query_seed"], examples=examples)

    def _evaluation(self, name: str) -> ResumableLoader:
        args = self.arguments
        return ordered_loader(self, self.split(name), args["eval_batch_size"], args["seed"], args["num_workers"])


def _check_arguments(args: Mapping[str, Any]) -> None:
    """Raise a ``ValueError`` if an argument is out of its range or two contradict each other."""
    choices = {"method": Method, "sampling": Sampling, "query_from": QuerySource, "preset": Preset, "mix": Mix}
    for name, choice in {**choices, "layout": Layout}.items():
        check_choices(get_args(choice), **{name: args[name]})
    check_at_least(0, **{name: args[name] for name in ("n_real", "n_synthetic", "n_context", "num_workers")})
    positive = ("n_source", "n_query", "n_validation", "n_orders", "batch_size", "eval_batch_size")
    check_at_least(1, **{name: args[name] for name in positive})
    check_at_least(2, n_way=args["n_way"], image_size=args["image_size"])
    check_at_least(4, max_pixels=args["max_pixels"])
    method, real, number = args["method"], args["n_real"], args["n_synthetic"]
    chance, ratio, size = args["synthetic_probability"], args["replay_ratio"], args["image_size"]
    expected = "n_synthetic 0" if method == "real" else "a positive n_synthetic"
    kind = args["synthetic_kind"] if method == "armada_lite" else None
    changes = method not in ("real", *READ_METHODS)
    problems = {
        "n_real and n_synthetic must not both be 0; nothing would be left to train on.": not real + number,
        f"n_orders must be at most 2 for two options, got {args['n_orders']}.": args["n_way"] == 2 < args["n_orders"],
        f"synthetic_probability must be from 0 to 1, got {chance}.": not 0 <= chance <= 1,
        f"replay_ratio must be positive with replay_pairs and 0 without, got {ratio} and {args['replay_pairs']!r}.": (
            ratio < 0 or (ratio > 0) != (args["replay_pairs"] is not None)
        ),
        f"method {method!r} goes with {expected}, got {number}.": (method == "real") != (number == 0),
        f"method {method!r} needs synthetic_root, the folder of the pictures; got None.": (
            method in READ_METHODS and args["synthetic_root"] is None
        ),
        f"method 'armada_lite' has a kind of its own; got synthetic_kind {kind!r}.": kind not in (None, "armada_lite"),
        f"method {method!r} with n_real 0 needs n_source, the number of pictures to change; got None.": (
            changes and not (args["n_source"] or real)
        ),
        "sampling 'probability' needs real pictures and others that replace them.": (
            args["sampling"] == "probability" and (method == "real" or not real)
        ),
        "feature_context needs features, the file of the attributes; got None.": (
            args["feature_context"] and args["features"] is None
        ),
        f"n_context must be at most n_real, {real}, as examples are supports; got {args['n_context']}.": (
            args["n_context"] > real
        ),
        f"n_context is for models that read texts: leave image_size out, got {size}.": (
            args["n_context"] and size is not None
        ),
        f"mix {args['mix']!r} needs image_size, as it is for classifiers; got None.": args["mix"] != "none"
        and not size,
    }
    for message, wrong in problems.items():
        if wrong:
            raise ValueError(message)
    for name in ("question", "eval_question"):
        if args[name] is not None and "{options}" not in args[name]:
            raise ValueError(f"{name} must have the place '{{options}}', got {args[name]!r}.")
