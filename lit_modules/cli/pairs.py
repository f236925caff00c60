"""``lit-modules pairs``: make pairs of affordances with captions and images, to train a text-to-image model on."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_modules.utils.errors import UsageError

if TYPE_CHECKING:
    from lit_modules.synthia.pairs.preparation import Preparation
    from lit_modules.synthia.pairs.sources import Sources, Step
    from lit_modules.utils.endpoints import Endpoint

DESCRIPTION = """\
Make pairs of affordances for datamodules.AffordancePairs, in steps: curriculum (which pairs, from close to distant),
captions (of new designs that offer both), images (of the captions), negatives (images of existing concepts that offer
one of them) and filter (the best images by CLIP; writes stage0.jsonl and so on and test.jsonl). What is finished is
kept: the same line, given again, makes what is missing. A key of an endpoint is read from the environment variable
alone.
"""
EXAMPLE = """\
ONTOLOGY is YAML or JSON, or `household` for the ontology that comes with the package.

examples:
  lit-modules pairs household --folder data/pairs --image-model stabilityai/sd-turbo --dry-run
  lit-modules pairs household --folder data/pairs --image-model stabilityai/sd-turbo --image-steps 4
  lit-modules pairs household --folder data/pairs --steps captions --caption-endpoint http://127.0.0.1:8000/v1 \\
    --caption-model NAME
"""
_SHOWN = 20


def main(args: list[str]) -> int:
    """Make pairs, or what is missing of them.

    Args:
        args: Ontology, folder and options; see ``lit-modules pairs --help``.

    Returns:
        0, or 1 if some captions or images could not be made.

    Raises:
        UsageError: If options do not go together.
        FileNotFoundError: If there is no such ontology or folder of images.
        ValueError: If an option is out of its range, or what a step is made from has changed.
        OSError: If an endpoint cannot be used, or files cannot be written.
    """
    options = _read_options(args)
    from lit_modules.synthia.ontology.graph import Ontology
    from lit_modules.synthia.pairs.preparation import Preparation
    from lit_modules.synthia.pairs.sources import STEPS, Amounts

    amounts = Amounts(
        options.num_pairs, options.test_pairs, options.captions, options.keep, options.negatives, options.seed
    )
    preparation = Preparation(
        Ontology.from_file(options.ontology),
        options.folder,
        amounts,
        _sources(options),
        options.workers,
        _progress,
    )
    steps: list[Step] = list(STEPS) if "all" in options.steps else options.steps
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


def print_counts(preparation: "Preparation", steps: "list[Step]") -> None:
    """Print how many items each step has, how many are finished and what is to be done; nothing is written.

    Args:
        preparation: What is to be run.
        steps: Steps to run.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"dry run in {preparation.folder}", title_justify="left")
    table.add_column("step")
    for name in ("items", "finished", "to do"):
        table.add_column(name, justify="right")
    for step, (total, done) in preparation.counts().items():
        table.add_row(step, str(total), str(done), str(total - done) if step in steps else "-")
    Console().print(table, markup=False)


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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


def _sources(options: argparse.Namespace) -> "Sources":
    from lit_modules.synthia.pairs.images import EndpointImages, ImageMaker, PipelineImages
    from lit_modules.synthia.pairs.sources import Sources

    if bool(options.caption_endpoint) != bool(options.caption_model):
        raise UsageError("--caption-endpoint and --caption-model must be given together.")
    if options.image_endpoint and not options.image_model:
        raise UsageError("--image-endpoint needs --image-model, the endpoint's name of the model.")
    maker: ImageMaker | None = None
    facts: dict[str, Any] = {"model": options.image_model, "size": options.image_size}
    if options.image_endpoint:
        if options.image_steps is not None or options.image_guidance is not None:
            raise UsageError("--image-steps and --image-guidance are for pipelines; an endpoint does not take them.")
        size = options.image_size or 1024
        maker = EndpointImages(_endpoint(options, options.image_endpoint, options.image_model), size)
        facts |= {"source": "endpoint", "size": size}
    elif options.image_model:
        steps, guidance, precision = options.image_steps, options.image_guidance, options.image_precision
        maker = PipelineImages(options.image_model, options.image_size, steps, guidance, precision, options.device)
        facts |= {"source": "pipeline", "steps": steps, "guidance": guidance, "precision": precision}
    writer = None
    if options.caption_endpoint:
        writer = _endpoint(options, options.caption_endpoint, options.caption_model)
    return Sources(
        writer,
        maker,
        tuple(facts.items()),
        Path(options.negative_images) if options.negative_images else None,
        None if options.clip_model == "none" else options.clip_model,
        options.device or "cpu",
    )


def _endpoint(options: argparse.Namespace, url: str, model: str) -> "Endpoint":
    from lit_modules.utils.endpoints import Endpoint

    return Endpoint(url, model, options.key_variable, options.timeout, options.attempts, options.pause)


def _read_options(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="lit-modules pairs",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("ontology", metavar="ONTOLOGY", help="YAML or JSON file, or household")
    parser.add_argument("--folder", required=True, help="folder of all files; it is made")
    parser.add_argument(
        "--steps",
        nargs="+",
        choices=("curriculum", "captions", "images", "negatives", "filter", "all"),
        default=["all"],
        metavar="STEP",
        help="curriculum, captions, images, negatives, filter or all (default: all)",
    )
    parser.add_argument("--dry-run", action="store_true", help="show how much there is to do, and do nothing")
    parser.add_argument(
        "--fresh", action="store_true", help="drop first what the steps, and those that build on them, have made"
    )
    parser.add_argument("--device", help="cpu, cuda and so on (default: a GPU for images if there is one)")

    amounts = parser.add_argument_group("how much")
    for name, default, text in (
        ("--num-pairs", 600, "training pairs"),
        ("--test-pairs", 60, "test pairs, with one caption and one image each"),
        ("--captions", 10, "captions and images for each training pair"),
        ("--keep", 3, "images of these that are kept"),
        ("--negatives", 5, "images of each existing concept"),
        ("--seed", 42, "seed of pairs, captions and images"),
    ):
        amounts.add_argument(name, type=int, default=default, metavar="N", help=f"{text} (default: %(default)s)")

    captions = parser.add_argument_group("captions; from templates unless an endpoint is given")
    captions.add_argument(
        "--caption-endpoint", metavar="URL", help="OpenAI-compatible, such as http://127.0.0.1:8000/v1"
    )
    captions.add_argument("--caption-model", metavar="NAME", help="the endpoint's name of the model")

    images = parser.add_argument_group("images")
    images.add_argument("--image-model", metavar="NAME", help="name or folder of a pipeline of diffusers")
    images.add_argument(
        "--image-endpoint", metavar="URL", help="OpenAI-compatible; --image-model is its name of the model"
    )
    images.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="side (default: the model's, 1024 of an endpoint)"
    )
    images.add_argument("--image-steps", type=int, metavar="N", help="steps of the sampler (default: the model's)")
    images.add_argument("--image-guidance", type=float, metavar="SCALE", help="guidance (default: the model's)")
    images.add_argument(
        "--image-precision",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="type of the weights (default: %(default)s)",
    )
    images.add_argument(
        "--negative-images",
        metavar="FOLDER",
        help="real images of existing concepts, a subfolder each (default: --image-model makes them)",
    )
    images.add_argument(
        "--clip-model",
        default="openai/clip-vit-base-patch32",
        metavar="NAME",
        help="name or folder of the CLIP that chooses images; none keeps the first ones (default: %(default)s)",
    )

    requests = parser.add_argument_group("requests to endpoints")
    requests.add_argument(
        "--key-variable",
        default="LIT_MODULES_API_KEY",
        metavar="NAME",
        help="environment variable of the key (default: %(default)s)",
    )
    requests.add_argument("--workers", type=int, default=4, metavar="N", help="at a time (default: %(default)s)")
    requests.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="default: %(default)s")
    requests.add_argument("--attempts", type=int, default=6, metavar="N", help="of a request (default: %(default)s)")
    requests.add_argument(
        "--pause", type=float, default=1.0, metavar="SECONDS", help="before the second attempt, then twice as long"
    )
    return parser.parse_args(args)
