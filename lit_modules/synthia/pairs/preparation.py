"""Preparation of pairs of affordances with captions and images, a step after the other; a stopped run goes on."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from lit_modules.metrics.concept_images import image_files, plain_name
from lit_modules.synthia.ontology.curriculum import Curriculum, CurriculumPair, build_curriculum
from lit_modules.synthia.pairs.captions import caption_request, read_captions, template_captions
from lit_modules.synthia.pairs.filter import ClipFilter, best
from lit_modules.synthia.pairs.images import CONCEPT, PHOTO, ImageMaker, image_seed
from lit_modules.synthia.pairs.work import Item, Result, Work
from lit_modules.utils.endpoints import Endpoint, RefusedError
from lit_modules.utils.files import write_whole
from lit_modules.utils.hashing import stable_hash
from lit_modules.utils.images import FORMATS, read_picture_file
from lit_modules.utils.model_versions import model_version
from lit_modules.utils.ontology import Ontology
from lit_modules.utils.run_directory import RunDirectory, first_difference

Step = Literal["curriculum", "captions", "images", "negatives", "filter"]
STEPS: tuple[Step, ...] = get_args(Step)
_BUILT_ON: dict[Step, tuple[Step, ...]] = {
    "curriculum": ("captions", "images", "negatives", "filter"),
    "captions": ("images", "filter"),
    "images": ("filter",),
    "negatives": ("filter",),
    "filter": (),
}
"""Steps that are made from what a step makes."""


@dataclass(frozen=True)
class Amounts:
    """Amounts to make.

    Args:
        num_pairs: Training pairs.
        test_pairs: Test pairs; each gets one caption and one image.
        captions: Captions, and so images, for each training pair.
        keep: Images that are kept of these, the best ones.
        negatives: Images of each existing concept.
        seed: Seed of the curriculum, the template captions and the images.

    Raises:
        ValueError: If a number is out of its range.
    """

    num_pairs: int = 600
    test_pairs: int = 60
    captions: int = 10
    keep: int = 3
    negatives: int = 5
    seed: int = 42

    def __post_init__(self) -> None:
        for name, least in (("num_pairs", 3), ("test_pairs", 0), ("captions", 1), ("keep", 1), ("negatives", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.keep > self.captions:
            raise ValueError(f"keep must be at most the {self.captions} captions of a pair, got {self.keep}.")


@dataclass(frozen=True)
class Sources:
    """Sources of the parts of the pairs.

    Args:
        caption_endpoint: Language model that writes captions; ``None`` takes the templates.
        image_maker: Makes the images.
        image_facts: What the images depend on: model, size and so on; the manifest remembers them.
        negative_images: Folder of images of existing concepts, a subfolder each; ``None`` lets ``image_maker`` make
            them.
        clip_model: Name or folder of the CLIP model that chooses images; ``None`` takes the first ones.
        device: Where CLIP computes, as torch names it.
    """

    caption_endpoint: Endpoint | None = None
    image_maker: ImageMaker | None = None
    image_facts: tuple[tuple[str, Any], ...] = ()
    negative_images: Path | None = None
    clip_model: str | None = None
    device: str = "cpu"


def _concept_images(root: Path, concepts: Sequence[str], number: int) -> dict[str, list[Path]]:
    """Find the first images of each concept, in folders of their names; spaces and underscores are the same.

    Raises:
        FileNotFoundError: If there is no such folder, or concepts have no image; lists them.
        ValueError: If there is an image of a kind that is not read.
    """
    files = {plain_name(name): paths for name, paths in image_files(root).items()}
    images = {name: files.get(plain_name(name), [])[:number] for name in concepts}
    empty = [name for name, paths in images.items() if not paths]
    if empty:
        raise FileNotFoundError(
            f"{root} must hold a subfolder with images for each of {len(images)} concepts; {len(empty)} have none: "
            f"{', '.join(empty[:20])}{', ...' if len(empty) > 20 else ''}."
        )
    return images


Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""Takes a title and a number of items; within its context, call what it returns after each item."""
_MADE: dict[Step, tuple[str, ...]] = {
    "curriculum": ("curriculum",),
    "captions": ("captions.jsonl",),
    "images": ("images", "skipped.jsonl"),
    "negatives": ("negatives",),
    "filter": ("scores.jsonl", "test.jsonl", "stage*.jsonl"),
}
"""Files and folders of each step."""


class Preparation:
    """Make pairs of affordances for ``datamodules.AffordancePairs``.

    The steps are ``curriculum`` (which pairs), ``captions`` (what new designs look like), ``images`` (of them),
    ``negatives`` (images of existing concepts) and ``filter`` (choose the best images and write ``stage0.jsonl`` and so
    on and ``test.jsonl``). Each finished item is kept and never made again. The manifest holds what each step was made
    from; a step whose inputs changed is refused. Files are named by numbers.

    Args:
        ontology: Where affordances and concepts come from.
        folder: Folder of all files.
        amounts: How much is made.
        sources: Where it comes from.
        workers: Requests to an endpoint at a time.
        progress: Shows how far a step is; ``None`` shows nothing.

    References:
        Ha et al., "SYNTHIA: Novel Concept Design with Affordance Composition", arXiv 2502.17793; the order of images by
        CLIP is our choice.
    """

    _directory: RunDirectory
    """Files that a run writes."""

    def __init__(
        self,
        ontology: Ontology,
        folder: str | Path,
        amounts: Amounts | None = None,
        sources: Sources | None = None,
        workers: int = 4,
        progress: Progress | None = None,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}.")
        self.ontology, self.folder = ontology, Path(folder)
        self.amounts, self.sources = amounts or Amounts(), sources or Sources()
        self.workers = workers
        self.progress = progress or (lambda title, total: nullcontext(lambda: None))
        self.problems: list[str] = []

    @cached_property
    def curriculum(self) -> Curriculum:
        """The pairs: those of the folder, or those that are to be written there."""
        if self._has("curriculum/test.jsonl"):
            return Curriculum.load(self.folder / "curriculum")
        amounts = self.amounts
        return build_curriculum(
            self.ontology, num_pairs=amounts.num_pairs, num_test_pairs=amounts.test_pairs, seed=amounts.seed
        )

    @property
    def pairs(self) -> list[CurriculumPair]:
        """Training pairs, then test pairs."""
        return [*self.curriculum.train, *self.curriculum.test]

    @property
    def concepts(self) -> list[str]:
        """Names of the existing concepts that the pairs should not look like, sorted."""
        return sorted({name for pair in self.pairs for name in pair.neg_prompts})

    def inputs(self, step: Step) -> dict[str, Any]:
        """Return what a step is made from; what the steps before it are made from is not repeated."""
        amounts, sources = self.amounts, self.sources
        seed = {"seed": amounts.seed}
        if step == "curriculum":
            ontology = hashlib.sha256(self.ontology.to_json().encode()).hexdigest()
            return {"ontology": ontology, "num pairs": amounts.num_pairs, "test pairs": amounts.test_pairs, **seed}
        if step == "captions":
            endpoint = sources.caption_endpoint
            source = "templates" if endpoint is None else "endpoint"  # a server may move, its model counts
            model = None if endpoint is None else endpoint.model
            return {"captions": amounts.captions, "source": source, "model": model, **seed}
        if step == "filter":
            clip = sources.clip_model
            version = None if clip is None else model_version(clip, None, "config.json")
            return {"CLIP model": clip, "CLIP version": version, "keep": amounts.keep}
        if step == "negatives" and sources.negative_images is not None:
            files = self._negative_files()
            contents = {name: [hashlib.sha256(path.read_bytes()).hexdigest() for path in files[name]] for name in files}
            return {"negatives": amounts.negatives, "images of concepts": stable_hash(contents)}
        maker = sources.image_maker
        facts = {**dict(sources.image_facts), "version": None if maker is None else maker.version, **seed}
        return facts if step == "images" else {**facts, "negatives": amounts.negatives}

    def counts(self) -> dict[Step, tuple[int, int]]:
        """Return, for each step, how many items there are and how many of them are finished; nothing is written."""
        pairs, captions, skipped = self.pairs, self._captions(), self._skipped()
        amounts = {pair.pair_id: self._captions_of(pair) for pair in pairs}
        images = [(pair, number) for pair, total in amounts.items() for number in range(total)]
        negatives = [(index, number) for index in range(len(self.concepts)) for number in range(self.amounts.negatives)]
        return {
            "curriculum": (len(pairs), len(pairs) if self._has("curriculum/test.jsonl") else 0),
            "captions": (sum(amounts.values()), sum(amounts[pair] for pair in captions if pair in amounts)),
            "images": (len(images), sum(item in skipped or self._image(*item).exists() for item in images)),
            "negatives": (len(negatives), sum(self._has_negative(*item) for item in negatives)),
            "filter": (len(pairs), len({row["pair_id"] for row in self._log("scores")})),
        }

    def run(self, steps: Sequence[Step] = STEPS, fresh: bool = False) -> list[str]:
        """Make what is missing of some steps, in their own order; return what could not be made, a line each.

        With ``fresh``, what these steps and those that build on them have made so far is dropped first.

        Raises:
            ValueError: If the inputs of a step changed, a step before it is missing, or a source is.
            UsageError: If the folder holds other files of these names.
            OSError: If an endpoint cannot be used, or files cannot be written.
            DirectoryInUse: If another run works in the folder.
        """
        chosen = [step for step in STEPS if step in steps]
        make = {
            "curriculum": self._make_curriculum,
            "captions": self._make_captions,
            "images": self._make_images,
            "negatives": self._make_negatives,
            "filter": self._make_filter,
        }
        ours = {path.name for names in _MADE.values() for name in names for path in self.folder.glob(name)}
        beside = [path.name for path in self.folder.glob("*") if path.name not in ours]
        with RunDirectory(self.folder, noun="preparation of pairs") as self._directory:
            self._directory.check({}, "new", beside=beside)
            if fresh:
                self._drop({later for step in chosen for later in (step, *_BUILT_ON[step])})
            self._check_sources(chosen)
            self.problems = []
            for step in chosen:
                before = self._directory.settings(step)
                change = first_difference(before, self.inputs(step)) if before is not None else None
                if change:
                    redone = " ".join(later for later in STEPS if later == step or later in _BUILT_ON[step])
                    raise ValueError(
                        f"The step {step} in {self.folder} was made with {change}. Add `--steps {redone} --fresh` to "
                        "make it anew, or take another --folder."
                    )
            for step in chosen:
                self._directory.claim(self.inputs(step), step)
                make[step]()
        return self.problems

    def _drop(self, steps: set[Step]) -> None:
        for step in [step for step in steps if self._directory.settings(step) is not None]:
            self._directory.forget(step)
            for path in [path for name in _MADE[step] for path in self.folder.glob(name)]:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        self.__dict__.pop("curriculum", None)

    def _check_sources(self, steps: Sequence[Step]) -> None:
        real = self.sources.negative_images is not None
        needing = [step for step in steps if step == "images" or (step == "negatives" and not real)]
        if needing and self.sources.image_maker is None:
            raise ValueError(
                f"The step {needing[0]} needs what makes images: give --image-model, the name or folder of a pipeline "
                "of diffusers, or --image-endpoint and --image-model."
            )
        if "negatives" in steps:
            self._negative_files()

    def _make_curriculum(self) -> None:
        if not self._has("curriculum/test.jsonl"):
            self.curriculum.save(self.folder / "curriculum")

    def _make_captions(self) -> None:
        self._need("curriculum", "curriculum/test.jsonl")
        done, endpoint, seed = self._captions(), self.sources.caption_endpoint, self.amounts.seed

        def write(pair: CurriculumPair) -> list[str]:
            number = self._captions_of(pair)
            if endpoint is None:
                return template_captions(pair.pos_prompts, pair.neg_prompts, number, seed)
            request = caption_request(pair.pos_prompts, pair.neg_prompts, number)
            return endpoint.chat(request, lambda answer: read_captions(answer, number))

        self._work(
            "captions",
            [pair for pair in self.pairs if pair.pair_id not in done],
            do=write,
            keep=lambda pair, rows: self._directory.log({"pair_id": pair.pair_id, "captions": rows}, "captions"),
            name=lambda pair: f"captions of pair {pair.pair_id} ({', '.join(pair.pos_prompts)})",
            stop=None if endpoint is None else endpoint.stop,
        )

    def _make_images(self) -> None:
        self._need("captions", "captions.jsonl")
        maker, seed, skipped = self.sources.image_maker, self.amounts.seed, self._skipped()
        assert maker is not None
        items = [
            (pair, number, caption)
            for pair, captions in self._captions().items()
            for number, caption in enumerate(captions)
            if (pair, number) not in skipped and not self._image(pair, number).exists()
        ]

        def record(item: tuple[int, int, str], error: ValueError) -> None:
            if isinstance(error, RefusedError) and error.content:  # it would be refused again
                self._directory.log({"pair_id": item[0], "number": item[1], "reason": str(error)}, "skipped")

        self._work(
            "images",
            items,
            do=lambda item: maker(PHOTO.format(caption=item[2]), image_seed(seed, item[2])),
            keep=lambda item, data: write_whole(self._image(item[0], item[1]), data),
            name=lambda item: f"image {item[1]} of pair {item[0]}",
            stop=maker.stop if maker.concurrent else None,
            record=record,
        )

    def _make_negatives(self) -> None:
        self._need("curriculum", "curriculum/test.jsonl")
        concepts, seed, maker = self.concepts, self.amounts.seed, self.sources.image_maker
        if self.sources.negative_images is not None:
            for index, paths in enumerate(self._negative_files().values()):
                for number, path in enumerate(paths):
                    if not self._has_negative(index, number):
                        name = f"{number:02d}{path.suffix.lower()}"
                        write_whole(self._negative_folder(index) / name, path.read_bytes())
            return
        assert maker is not None
        items = [
            (index, number)
            for index in range(len(concepts))
            for number in range(self.amounts.negatives)
            if not self._has_negative(index, number)
        ]

        def make(item: tuple[int, int]) -> bytes:
            prompt = CONCEPT.format(concept=concepts[item[0]].replace("_", " "))
            return maker(prompt, image_seed(seed, prompt, item[1]))

        self._work(
            "negatives",
            items,
            do=make,
            keep=lambda item, data: write_whole(self._negative_folder(item[0]) / f"{item[1]:02d}.png", data),
            name=lambda item: f"image {item[1]} of the concept {concepts[item[0]]!r}",
            stop=maker.stop if maker.concurrent else None,
        )

    def _make_filter(self) -> None:
        self._need("captions", "captions.jsonl")
        images = {
            pair.pair_id: [n for n in range(self._captions_of(pair)) if self._image(pair.pair_id, n).exists()]
            for pair in self.pairs
        }
        negatives = {name: self._negatives(index) for index, name in enumerate(self.concepts)}
        empty = [f"pair {pair}" for pair, numbers in images.items() if not numbers]
        empty += [f"the concept {name!r}" for name, paths in negatives.items() if not paths]
        if empty:
            raise ValueError(
                f"{len(empty)} items have no image: {', '.join(empty[:10])}{', ...' if len(empty) > 10 else ''}. "
                "Run the steps images and negatives first, with the same line to make what is missing."
            )
        scores = {row["pair_id"]: dict(zip(row["numbers"], row["scores"], strict=True)) for row in self._log("scores")}
        clip = None if self.sources.clip_model is None else ClipFilter(self.sources.clip_model, self.sources.device)

        def score(pair: CurriculumPair) -> list[float]:
            numbers = images[pair.pair_id]
            if clip is None or pair.stage is None:
                return [0.0] * len(numbers)
            pictures = [read_picture_file(self._image(pair.pair_id, number)) for number in numbers]
            return clip.scores(pictures, pair.pos_prompts, pair.neg_prompts)

        def keep(pair: CurriculumPair, values: list[float]) -> None:
            numbers = images[pair.pair_id]
            scores[pair.pair_id] = dict(zip(numbers, values, strict=True))
            self._directory.log({"pair_id": pair.pair_id, "numbers": numbers, "scores": values}, "scores")

        items = [pair for pair in self.pairs if [*scores.get(pair.pair_id, {})] != images[pair.pair_id]]
        self._work("filter", items, do=score, keep=keep, name=lambda pair: f"scores of pair {pair.pair_id}")
        self._write_pairs(scores, negatives)

    def _write_pairs(self, scores: dict[int, dict[int, float]], negatives: dict[str, list[Path]]) -> None:
        """Write the files that training reads, those of the stages first."""
        sets = {f"stage{number}": rows for number, rows in enumerate(self.curriculum.stages())}
        for name, pairs in {**sets, "test": list(self.curriculum.test)}.items():
            lines = []
            for pair in pairs:
                numbers, values = [*scores[pair.pair_id]], [*scores[pair.pair_id].values()]
                chosen = [self._image(pair.pair_id, numbers[index]) for index in best(values, self.amounts.keep)]
                row = asdict(pair) | {"pos_paths": [self._relative(path) for path in chosen]}
                row["neg_paths"] = {
                    concept: [{"image_path": self._relative(path)} for path in negatives[concept]]
                    for concept in pair.neg_prompts
                }
                lines.append(json.dumps(row, ensure_ascii=False) + "\n")
            write_whole(self.folder / f"{name}.jsonl", "".join(lines))

    def _work(
        self,
        title: str,
        items: Sequence[Item],
        *,
        do: Callable[[Item], Result],
        keep: Callable[[Item, Result], object],
        name: Callable[[Item], str],
        stop: Callable[[], None] | None = None,
        record: Callable[[Item, ValueError], None] | None = None,
    ) -> None:
        """Do and keep items; with ``stop``, several at a time; ``record`` those that could not be done."""

        def refuse(item: Item, error: ValueError) -> None:
            self.problems.append(f"{name(item)}: {error}")
            if record is not None:
                record(item, error)

        with self.progress(title, len(items)) as advance:
            Work(do, keep, refuse=refuse, stop=stop or (lambda: None)).run(items, self.workers if stop else 1, advance)

    def _has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def _need(self, step: Step, name: str) -> None:
        if not self._has(name):
            raise ValueError(f"{self.folder} has no {step} yet; run the step {step} first, or all of them.")

    def _log(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the finished items in a log."""
        if self._has(f"{name}.jsonl"):
            yield from RunDirectory(self.folder, writable=False).events(name)

    def _captions_of(self, pair: CurriculumPair) -> int:
        return 1 if pair.stage is None else self.amounts.captions

    def _captions(self) -> dict[int, list[str]]:
        """Return the captions of each pair that has some."""
        return {row["pair_id"]: row["captions"] for row in self._log("captions")}

    def _skipped(self) -> set[tuple[int, int]]:
        return {(row["pair_id"], row["number"]) for row in self._log("skipped")}

    def _image(self, pair: int, number: int) -> Path:
        return self.folder / "images" / f"{pair:05d}" / f"{number:02d}.png"

    def _negative_folder(self, index: int) -> Path:
        return self.folder / "negatives" / f"{index:04d}"

    def _negatives(self, index: int) -> list[Path]:
        return sorted(path for path in self._negative_folder(index).glob("*") if path.suffix in FORMATS)

    def _has_negative(self, index: int, number: int) -> bool:
        return any(path.stem == f"{number:02d}" for path in self._negatives(index))

    def _negative_files(self) -> dict[str, list[Path]]:
        root = self.sources.negative_images
        return {} if root is None else _concept_images(root, self.concepts, self.amounts.negatives)

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()
