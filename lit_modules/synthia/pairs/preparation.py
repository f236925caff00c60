"""Make the pairs of affordances with their captions and images, a step after the other; a stopped run goes on."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_modules.synthia.ontology.curriculum import Curriculum, CurriculumPair, build_curriculum
from lit_modules.synthia.ontology.graph import Ontology
from lit_modules.synthia.pairs.captions import caption_request, read_captions, template_captions
from lit_modules.synthia.pairs.files import Journal, Manifest, digest, only_run, remove
from lit_modules.synthia.pairs.filter import ClipFilter, best
from lit_modules.synthia.pairs.images import CONCEPT, PHOTO, stable_seed
from lit_modules.synthia.pairs.sources import (
    BUILT_ON,
    STEPS,
    Amounts,
    Sources,
    Step,
    concept_images,
    read_curriculum,
)
from lit_modules.synthia.pairs.work import Item, Result, Work
from lit_modules.utils.endpoints import RefusedError
from lit_modules.utils.files import write_whole
from lit_modules.utils.images import FORMATS, read_picture_file
from lit_modules.utils.model_versions import model_version

Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""Takes a title and a number of items; within its context, call what it returns after each item."""


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
        self._captions = Journal(self.folder / "captions.jsonl")
        self._skipped = Journal(self.folder / "skipped.jsonl")
        self._scores = Journal(self.folder / "scores.jsonl")

    @cached_property
    def curriculum(self) -> Curriculum:
        """The pairs: those of the folder, or those that are to be written there."""
        folder = self.folder / "curriculum"
        if not (folder / "test.jsonl").exists():
            given = self.amounts
            return build_curriculum(
                self.ontology, num_pairs=given.num_pairs, num_test_pairs=given.test_pairs, seed=given.seed
            )
        return read_curriculum(folder)

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
        given, sources = self.amounts, self.sources
        if step == "curriculum":
            own: dict[str, Any] = {"ontology": hashlib.sha256(self.ontology.to_json().encode()).hexdigest()}
            return {**own, "num pairs": given.num_pairs, "test pairs": given.test_pairs, "seed": given.seed}
        if step == "captions":
            endpoint = sources.caption_endpoint
            source = "templates" if endpoint is None else "endpoint"  # a server may move, its model counts
            own = {"captions": given.captions, "source": source, "model": None if endpoint is None else endpoint.model}
            return {**own, "seed": given.seed}
        if step == "images":
            return {**self._maker_facts(), "seed": given.seed}
        if step == "filter":
            clip = sources.clip_model
            version = None if clip is None else model_version(clip, None, "config.json")
            return {"CLIP model": clip, "CLIP version": version, "keep": given.keep}
        if sources.negative_images is None:
            return {**self._maker_facts(), "negatives": given.negatives, "seed": given.seed}
        found = self._negative_files()
        contents = {name: [hashlib.sha256(path.read_bytes()).hexdigest() for path in found[name]] for name in found}
        return {"negatives": given.negatives, "images of concepts": digest(contents)}

    def _maker_facts(self) -> dict[str, Any]:
        maker = self.sources.image_maker
        return {**dict(self.sources.image_facts), "version": None if maker is None else maker.version}

    def counts(self) -> dict[Step, tuple[int, int]]:
        """Return, for each step, how many items there are and how many of them are finished; nothing is written."""
        pairs = self.pairs
        wanted = {pair.pair_id: self._captions_of(pair) for pair in pairs}
        captions = self._written()
        skipped = self._skipped_items()
        images = [(pair, number) for pair, total in wanted.items() for number in range(total)]
        negatives = [(place, number) for place in range(len(self.concepts)) for number in range(self.amounts.negatives)]
        done = {
            "curriculum": len(pairs) if (self.folder / "curriculum" / "test.jsonl").exists() else 0,
            "captions": sum(wanted[pair] for pair in captions if pair in wanted),
            "images": sum(item in skipped or self._image(*item).exists() for item in images),
            "negatives": sum(self._negative(*item) is not None for item in negatives),
            "filter": len({row["pair_id"] for row in self._scores.rows()}),
        }
        totals = (len(pairs), sum(wanted.values()), len(images), len(negatives), len(pairs))
        return {step: (total, done[step]) for step, total in zip(STEPS, totals, strict=True)}

    def run(self, steps: Sequence[Step] = STEPS, fresh: bool = False) -> list[str]:
        """Make what is missing of some steps.

        Args:
            steps: The steps; they are taken in their own order.
            fresh: Whether to drop first what these steps, and those that build on them, have made so far.

        Returns:
            What could not be made, a line each: refused captions and images, and answers that could not be read.

        Raises:
            ValueError: If the inputs of a step changed, a step before it is missing, or a source is.
            OSError: If an endpoint cannot be used, files cannot be written, or another run works in the folder.
        """
        chosen = [step for step in STEPS if step in steps]
        names = ["stage0.jsonl", "test.jsonl", "curriculum", "images", "negatives", "captions.jsonl"]
        with only_run(self.folder):
            manifest = Manifest(self.folder, names)
            if fresh:
                self._drop(manifest, {later for step in chosen for later in (step, *BUILT_ON[step])})
            self._check_sources(chosen)
            self.problems = []
            for step in chosen:
                changes = manifest.changes(step, self.inputs(step))
                if changes:
                    redone = " ".join(later for later in STEPS if later == step or later in BUILT_ON[step])
                    raise ValueError(
                        f"What the step {step} in {self.folder} is made from has changed: {'; '.join(changes)}. Add "
                        f"`--steps {redone} --fresh` to make it anew, or take another --folder."
                    )
            for step in chosen:
                if step not in manifest.steps:
                    manifest.begin(step, self.inputs(step))
                getattr(self, f"_make_{step}")()
        return self.problems

    def _drop(self, manifest: Manifest, steps: set[Step]) -> None:
        made = {
            "curriculum": ["curriculum"],
            "captions": ["captions.jsonl"],
            "images": ["images", "skipped.jsonl"],
            "negatives": ["negatives"],
            "filter": ["scores.jsonl", "test.jsonl", *(path.name for path in self.folder.glob("stage*.jsonl"))],
        }
        for step in steps & manifest.steps.keys():
            manifest.forget(step)
            for name in made[step]:
                remove(self.folder / name)
        self.__dict__.pop("curriculum", None)

    def _check_sources(self, steps: Sequence[Step]) -> None:
        sources = self.sources
        needed = [step for step in steps if step == "images" or (step == "negatives" and not sources.negative_images)]
        if needed and sources.image_maker is None:
            raise ValueError(
                f"The step {needed[0]} needs what makes images: give --image-model, the name or folder of a pipeline "
                "of diffusers, or --image-endpoint and --image-model."
            )
        if "negatives" in steps and sources.negative_images:
            self._negative_files()

    def _make_curriculum(self) -> None:
        if not (self.folder / "curriculum" / "test.jsonl").exists():
            self.curriculum.save(self.folder / "curriculum")

    def _make_captions(self) -> None:
        self._need("curriculum")
        done = self._written()
        endpoint, given = self.sources.caption_endpoint, self.amounts

        def write(pair: CurriculumPair) -> list[str]:
            number = self._captions_of(pair)
            if endpoint is None:
                return template_captions(pair.pos_prompts, pair.neg_prompts, number, given.seed)
            request = caption_request(pair.pos_prompts, pair.neg_prompts, number)
            return endpoint.chat(request, lambda answer: read_captions(answer, number))

        def keep(pair: CurriculumPair, captions: list[str]) -> None:
            self._captions.append({"pair_id": pair.pair_id, "captions": captions})

        def name(pair: CurriculumPair) -> str:
            return f"captions of pair {pair.pair_id} ({', '.join(pair.pos_prompts)})"

        items = [pair for pair in self.pairs if pair.pair_id not in done]
        self._work("captions", items, write, keep, name, None if endpoint is None else endpoint.stop)

    def _make_images(self) -> None:
        self._need("captions")
        maker, skipped = self.sources.image_maker, self._skipped_items()
        items = [
            (pair, number, caption)
            for pair, captions in self._written().items()
            for number, caption in enumerate(captions)
            if (pair, number) not in skipped and not self._image(pair, number).exists()
        ]

        def make(item: tuple[int, int, str]) -> bytes:
            assert maker is not None
            return maker(PHOTO.format(caption=item[2]), stable_seed(self.amounts.seed, item[2]))

        def keep(item: tuple[int, int, str], data: bytes) -> None:
            write_whole(self._image(item[0], item[1]), data)

        def record(item: tuple[int, int, str], error: ValueError) -> None:
            if isinstance(error, RefusedError) and error.content:  # it would be refused again
                self._skipped.append({"pair_id": item[0], "number": item[1], "reason": str(error)})

        stop = maker.stop if maker is not None and maker.concurrent else None
        self._work("images", items, make, keep, lambda item: f"image {item[1]} of pair {item[0]}", stop, record)

    def _make_negatives(self) -> None:
        self._need("curriculum")
        concepts, given, maker = self.concepts, self.amounts, self.sources.image_maker
        if self.sources.negative_images is not None:
            for place, paths in enumerate(self._negative_files().values()):
                for number, path in enumerate(paths):
                    if self._negative(place, number) is None:
                        name = f"{number:02d}{path.suffix.lower()}"
                        write_whole(self.folder / "negatives" / f"{place:04d}" / name, path.read_bytes())
            return
        items = [
            (place, number)
            for place in range(len(concepts))
            for number in range(given.negatives)
            if self._negative(place, number) is None
        ]

        def make(item: tuple[int, int]) -> bytes:
            assert maker is not None
            prompt = CONCEPT.format(concept=concepts[item[0]].replace("_", " "))
            return maker(prompt, stable_seed(given.seed, prompt, item[1]))

        def keep(item: tuple[int, int], data: bytes) -> None:
            write_whole(self.folder / "negatives" / f"{item[0]:04d}" / f"{item[1]:02d}.png", data)

        stop = maker.stop if maker is not None and maker.concurrent else None
        self._work(
            "negatives", items, make, keep, lambda item: f"image {item[1]} of the concept {concepts[item[0]]!r}", stop
        )

    def _make_filter(self) -> None:
        self._need("captions")
        there = {pair.pair_id: self._images_of(pair) for pair in self.pairs}
        lacking = [f"pair {pair}" for pair, numbers in there.items() if not numbers]
        negatives = [self._negatives_of(place) for place in range(len(self.concepts))]
        lacking += [f"the concept {name!r}" for name, paths in zip(self.concepts, negatives, strict=True) if not paths]
        if lacking:
            raise ValueError(
                f"{len(lacking)} items have no image: {', '.join(lacking[:10])}{', ...' if len(lacking) > 10 else ''}. "
                "Run the steps images and negatives first, with the same line to make what is missing."
            )
        scored = {row["pair_id"]: dict(zip(row["numbers"], row["scores"], strict=True)) for row in self._scores.rows()}
        clip = None if self.sources.clip_model is None else ClipFilter(self.sources.clip_model, self.sources.device)
        items = [pair for pair in self.pairs if [*scored.get(pair.pair_id, {})] != there[pair.pair_id]]

        def score(pair: CurriculumPair) -> list[float]:
            numbers = there[pair.pair_id]
            if clip is None or pair.stage is None:
                return [0.0] * len(numbers)
            images = [read_picture_file(self._image(pair.pair_id, number)) for number in numbers]
            return clip.scores(images, pair.pos_prompts, pair.neg_prompts)

        def keep(pair: CurriculumPair, scores: list[float]) -> None:
            scored[pair.pair_id] = dict(zip(there[pair.pair_id], scores, strict=True))
            self._scores.append({"pair_id": pair.pair_id, "numbers": there[pair.pair_id], "scores": scores})

        self._work("filter", items, score, keep, lambda pair: f"scores of pair {pair.pair_id}")
        self._write_pairs(scored, dict(zip(self.concepts, negatives, strict=True)))

    def _write_pairs(self, scored: dict[int, dict[int, float]], negatives: dict[str, list[Path]]) -> None:
        """Write the files that training reads, those of the stages first."""
        curriculum = self.curriculum
        sets = {f"stage{number}": rows for number, rows in enumerate(curriculum.stages())}
        for name, pairs in {**sets, "test": list(curriculum.test)}.items():
            lines = []
            for pair in pairs:
                numbers, scores = [*scored[pair.pair_id]], [*scored[pair.pair_id].values()]
                chosen = [self._image(pair.pair_id, numbers[place]) for place in best(scores, self.amounts.keep)]
                row = asdict(pair) | {"pos_paths": [self._relative(path) for path in chosen]}
                row["neg_paths"] = {
                    concept: [{"image_path": self._relative(path)} for path in negatives[concept]]
                    for concept in pair.neg_prompts
                }
                lines.append(json.dumps(row, ensure_ascii=False) + "\n")
            write_whole(self.folder / f"{name}.jsonl", "".join(lines).encode())

    def _work(
        self,
        title: str,
        items: Sequence[Item],
        do: Callable[[Item], Result],
        keep: Callable[[Item, Result], None],
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
            Work(do, keep, refuse, stop or (lambda: None)).run(items, self.workers if stop else 1, advance)

    def _need(self, step: Step) -> None:
        paths = {"curriculum": self.folder / "curriculum" / "test.jsonl", "captions": self._captions.path}
        if not paths[step].exists():
            raise ValueError(f"{self.folder} has no {step} yet; run the step {step} first, or all of them.")

    def _captions_of(self, pair: CurriculumPair) -> int:
        return 1 if pair.stage is None else self.amounts.captions

    def _written(self) -> dict[int, list[str]]:
        """Return the captions of each pair that has some."""
        return {row["pair_id"]: row["captions"] for row in self._captions.rows()}

    def _skipped_items(self) -> set[tuple[int, int]]:
        return {(row["pair_id"], row["number"]) for row in self._skipped.rows()}

    def _image(self, pair: int, number: int) -> Path:
        return self.folder / "images" / f"{pair:05d}" / f"{number:02d}.png"

    def _images_of(self, pair: CurriculumPair) -> list[int]:
        return [number for number in range(self._captions_of(pair)) if self._image(pair.pair_id, number).exists()]

    def _negative(self, place: int, number: int) -> Path | None:
        return next((path for path in self._negatives_of(place) if path.stem == f"{number:02d}"), None)

    def _negatives_of(self, place: int) -> list[Path]:
        folder = self.folder / "negatives" / f"{place:04d}"
        return sorted(path for path in folder.glob("*") if path.suffix in FORMATS)

    def _negative_files(self) -> dict[str, list[Path]]:
        root = self.sources.negative_images
        return {} if root is None else concept_images(root, self.concepts, self.amounts.negatives)

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()
