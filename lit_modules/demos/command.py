"""``lit-modules demo``: a method from end to end, offline, in minutes."""

import argparse
import time
from pathlib import Path

from lit_modules.utils.interrupts import stoppable

METHODS = ("ngdiff", "pgd", "synthia", "coda")


def main(args: list[str]) -> int:
    """Run the demonstration of a method.

    Args:
        args: Name of the method, and options; see ``lit-modules demo --help``.

    Returns:
        0; 130 if it was interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="lit-modules demo",
        description="Run a method from end to end on the CPU, without network, with evaluation before and after.",
    )
    parser.add_argument("method", choices=METHODS, help="method to show")
    parser.add_argument(
        "--folder", help="folder of the run; an unfinished run in it goes on (default: a new one in runs/)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of data, weights and order (default: 0)")
    options = parser.parse_args(args)
    folder = Path(options.folder or f"runs/demo-{options.method}-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        with stoppable():
            _show(options.method, folder, options.seed)
    except KeyboardInterrupt:
        print(f"Interrupted; `lit-modules demo {options.method} --folder {folder} --seed {options.seed}` goes on.")
        return 130
    return 0


def _show(method: str, folder: Path, seed: int) -> None:
    if method == "pgd":
        from lit_modules.demos.pgd import adversarial

        adversarial(folder, seed)
    elif method == "synthia":
        from lit_modules.demos.synthia import affordances

        affordances(folder, seed)
    elif method == "coda":
        from lit_modules.demos.coda.story import new_creatures

        new_creatures(folder, seed)
    else:
        from lit_modules.demos.ngdiff import unlearning

        unlearning(folder, seed)
