"""``lit-modules demo``: a method from end to end, offline, in minutes."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser

from lit_modules.demos.record import Claim, Numbers, run_seeds
from lit_modules.utils.errors import UsageError
from lit_modules.utils.interrupts import stoppable


def main(args: list[str]) -> int:
    """Run the demonstration of a method.

    Args:
        args: Name of the method, and options; see ``lit-modules demo --help``.

    Returns:
        0; 130 if it was interrupted.
    """
    parser = ArgumentParser(prog="lit-modules demo", description=str(demo.__doc__).partition("\n")[0])
    parser.add_function_arguments(demo, as_group=False, as_positional=True, skip={"from_scratch"})
    parser.add_argument(
        "--from-scratch",
        action="store_true",
        help="train the models anew that the demonstration starts from, instead of loading the shipped ones",
    )
    options = parser.parse_args(args)
    folder = options.folder or f"runs/demo-{options.method}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        with stoppable():
            demo(options.method, folder, seed=options.seed, seeds=options.seeds, from_scratch=options.from_scratch)
    except KeyboardInterrupt:
        line = f"lit-modules demo {options.method} --folder {folder} --seed {options.seed} --seeds {options.seeds}"
        line += " --from-scratch" * options.from_scratch
        print(f"Interrupted; `{line}` resumes.")
        return 130
    return 0


def demo(
    method: Literal["ngdiff", "pgd", "synthia", "coda"],
    folder: str | None = None,
    seed: int = 0,
    seeds: int = 1,
    from_scratch: bool = False,
) -> None:
    """Run a method from end to end on the CPU, without network, with evaluation before and after.

    Args:
        method: Method to show.
        folder: Folder of the run, where an unfinished run goes on; a new one in runs/ by default.
        seed: Seed of data, weights and order.
        seeds: Number of seeds, from --seed on; several make the record of the claims again, in record.json.
        from_scratch: Train the models anew that the demonstration starts from, instead of loading the shipped ones.
    """
    path = Path(str(folder))
    weights = path / "weights" if from_scratch else None
    claims: Sequence[Claim]
    run: Callable[[Path, int], Numbers]
    if from_scratch and method in ("ngdiff", "pgd"):
        raise UsageError(f"The demonstration {method} starts from no shipped weights; leave out --from-scratch.")
    if method == "ngdiff":
        from lit_modules.demos import ngdiff

        claims, run = ngdiff.CLAIMS, ngdiff.unlearning
    elif method == "pgd":
        from lit_modules.demos import pgd

        claims, run = pgd.CLAIMS, pgd.adversarial
    elif method == "synthia":
        from lit_modules.demos.synthia import story as synthia

        claims, run = synthia.CLAIMS, partial(synthia.affordances, from_scratch=from_scratch)
    else:
        from lit_modules.demos.coda import models, story

        if weights is not None:
            models.train_models(weights)
        claims, run = story.CLAIMS, partial(story.new_creatures, weights=weights)
    run_seeds(method, claims, run, folder=path, seeds=range(seed, seed + seeds))
