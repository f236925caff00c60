"""``lit-modules pairs``: make pairs of affordances with captions and images, to train a text-to-image model on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lit_modules.cli.options import read_options
from lit_modules.studies.tables import print_table
from lit_modules.synthia.pairs.images import EndpointImages, ImageMaker, PipelineImages
from lit_modules.synthia.pairs.preparation import STEPS, Amounts, Preparation, Sources, Step
from lit_modules.utils.endpoints import Endpoint
from lit_modules.utils.errors import UsageError
from lit_modules.utils.ontology import Ontology

DESCRIPTION = """\
Make pairs of affordances for datamodules.AffordancePairs, in steps: curriculum (which pairs, from close to distant),
captions (of new designs that offer both), images (of the captions), negatives (images of existing concepts that offer
one of them) and filter (the best images by CLIP; writes stage0.jsonl and so on and test.jsonl). What is finished is
kept: the same line, given again, makes what is missing. A key of an endpoint is read from the environment variable
alone.
"""
EXAMPLE = """\
An ontology is YAML or JSON, or `household` for the one that comes with the package.

examples:
  lit-modules pairs household --folder data/pairs --image-model stabilityai/sd-turbo --dry-run
  lit-modules pairs household --folder data/pairs --image-model stabilityai/sd-turbo --image-steps 4
  lit-modules pairs household --folder data/pairs --steps captions --caption-endpoint http://127.0.0.1:8000/v1 \\
    --caption-model NAME
"""
_SHOWN = 20


@dataclass
class PairOptions:
    """Pairs to make.

    Args:
        ontology: YAML or JSON file, or household.
        folder: Folder of all files; it is made.
        steps: Of curriculum, captions, images, negatives, filter, or all.
        dry_run: Show how much there is to do, and do nothing.
        fresh: Drop first what the steps, and those that build on them, have made.
        device: Device as cpu or cuda; by default a GPU for images if there is one.
        num_pairs: Training pairs.
        test_pairs: Test pairs, with one caption and one image each.
        captions: Captions and images for each training pair.
        keep: Images of these that are kept.
        negatives: Images of each existing concept.
        seed: Seed of pairs, captions and images.
        caption_endpoint: OpenAI-compatible, such as http://127.0.0.1:8000/v1; by default captions are templates.
        caption_model: Name of the model at the endpoint.
        image_model: Name or folder of a pipeline of diffusers.
        image_endpoint: OpenAI-compatible; image_model is its name of the model.
        image_size: Side in pixels; by default the model's, 1024 of an endpoint.
        image_steps: Steps of the sampler; by default the model's.
        image_guidance: Scale of guidance; by default the model's.
        image_precision: Type of the weights.
        negative_images: Folder of real images of existing concepts, a subfolder each; by default the image model makes
            them.
        clip_model: Name or folder of the CLIP that chooses images; none keeps the first ones.
        key_variable: Environment variable of the endpoints' key.
        workers: Requests to an endpoint at a time.
        timeout: Seconds that a request may take.
        attempts: Attempts of a request.
        pause: Seconds before the second attempt, then twice as long.
    """

    ontology: str
    folder: str = field(kw_only=True)
    steps: tuple[Literal["curriculum", "captions", "images", "negatives", "filter", "all"], ...] = ("all",)
    dry_run: bool = False
    fresh: bool = False
    device: str | None = None
    num_pairs: int = 600
    test_pairs: int = 60
    captions: int = 10
    keep: int = 3
    negatives: int = 5
    seed: int = 42
    caption_endpoint: str | None = None
    caption_model: str | None = None
    image_model: str | None = None
    image_endpoint: str | None = None
    image_size: int | None = None
    image_steps: int | None = None
    image_guidance: float | None = None
    image_precision: Literal["float32", "bfloat16", "float16"] = "float32"
    negative_images: str | None = None
    clip_model: str = "openai/clip-vit-base-patch32"
    key_variable: str = "LIT_MODULES_API_KEY"
    workers: int = 4
    timeout: float = 120.0
    attempts: int = 6
    pause: float = 1.0


def main(args: list[str]) -> int:
    """Make pairs, or what is missing of them; return 0, or 1 if some captions or images could not be made."""
    options, _ = read_options(PairOptions, args, "pairs", DESCRIPTION, EXAMPLE)
    preparation = Preparation(
        Ontology.from_file(options.ontology),
        options.folder,
        Amounts(**{name: getattr(options, name) for name in Amounts.__dataclass_fields__}),
        sources=_sources(options),
        workers=options.workers,
        progress=_progress,
    )
    steps = [step for step in STEPS if step in options.steps or "all" in options.steps]
    if options.dry_run:
        print_counts(preparation, steps)
        return 0
    try:
        preparation.run(steps, options.fresh)
    finally:
        _print_problems(preparation.problems)
    if not preparation.problems and "filter" in steps:
        print(f"{len(preparation.pairs)} pairs are in {options.folder}; train on them with")
        print(f"  lit-modules fit --data AffordancePairs --data.root {options.folder} ...")
    return 1 if preparation.problems else 0


def print_counts(preparation: Preparation, steps: list[Step]) -> None:
    """Print how many items each step has, how many are finished and what is to be done; nothing is written."""
    rows = [
        [step, str(total), str(done), str(total - done) if step in steps else "-"]
        for step, (total, done) in preparation.counts().items()
    ]
    print_table([["step", "items", "finished", "to do"], *rows], f"dry run in {preparation.folder}")


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)


def _print_problems(problems: list[str]) -> None:
    if not problems:
        return
    print(f"{len(problems)} items could not be made; the same line tries again those whose content was not refused:")
    for problem in problems[:_SHOWN]:
        print(f"  {problem if problem.isprintable() else ascii(problem)}")
    if len(problems) > _SHOWN:
        print(f"  and {len(problems) - _SHOWN} more")


def _sources(options: PairOptions) -> Sources:
    if bool(options.caption_endpoint) != bool(options.caption_model):
        raise UsageError("--caption-endpoint and --caption-model must be given together.")
    if options.image_endpoint and not options.image_model:
        raise UsageError("--image-endpoint needs --image-model, the endpoint's name of the model.")

    def endpoint(url: str, model: str) -> Endpoint:
        patience = {name: getattr(options, name) for name in ("key_variable", "timeout", "attempts", "pause")}
        return Endpoint(url, model, **patience)

    maker: ImageMaker | None = None
    facts: dict[str, Any] = {"model": options.image_model, "size": options.image_size}
    if options.image_endpoint and options.image_model:
        if options.image_steps is not None or options.image_guidance is not None:
            raise UsageError("--image-steps and --image-guidance are for pipelines; an endpoint does not take them.")
        size = options.image_size or 1024
        maker = EndpointImages(endpoint(options.image_endpoint, options.image_model), size)
        facts |= {"source": "endpoint", "size": size}
    elif options.image_model:
        maker = PipelineImages(
            options.image_model,
            size=options.image_size,
            num_steps=options.image_steps,
            guidance=options.image_guidance,
            precision=options.image_precision,
            device=options.device,
        )
        facts |= {"source": "pipeline", "steps": options.image_steps}
        facts |= {"guidance": options.image_guidance, "precision": options.image_precision}
    writer = None
    if options.caption_endpoint and options.caption_model:
        writer = endpoint(options.caption_endpoint, options.caption_model)
    return Sources(
        writer,
        maker,
        tuple(facts.items()),
        negative_images=Path(options.negative_images) if options.negative_images else None,
        clip_model=None if options.clip_model == "none" else options.clip_model,
        device=options.device or "cpu",
    )
