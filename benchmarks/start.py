"""Time to start: help, configuration and first training step of small recipes against the import of Lightning alone.

    python benchmarks/start.py --rounds 5

Each line is a fresh process, whose processor time is counted; the floor is what ``LightningCLI`` cannot do without,
``import lightning.pytorch.cli``, in the same turn.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from resource import RUSAGE_CHILDREN, getrusage

from timing import Table, end, in_turns

PROGRAM = ["-m", "lit_modules"]
STEP = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--trainer.logger=false"]
STEP += ["--trainer.enable_checkpointing=false", "--trainer.callbacks=[]"]
TORCH, FLOOR = "import torch", "import lightning.pytorch.cli"
LINES = {
    TORCH: ["-c", TORCH],
    "import lit_modules.attacks": ["-c", "import lit_modules.attacks"],
    FLOOR: ["-c", FLOOR],
    "lit-modules --help": [*PROGRAM, "--help"],
    "fit --help": [*PROGRAM, "fit", "--help"],
    "-c pgd/digits.yaml --print_config": [*PROGRAM, "fit", "-c", "pgd/digits.yaml", "--print_config"],
    "-c ngdiff/lume.yaml --print_config": [*PROGRAM, "fit", "-c", "ngdiff/lume.yaml", "--print_config"],
    "-c pgd/digits.yaml, one step": [*PROGRAM, "fit", "-c", "pgd/digits.yaml", *STEP],
}


def process(arguments: list[str], folder: str) -> Callable[[], float]:
    """Return a work that starts a Python process in a folder, and tells the processor time it took."""

    def run() -> float:
        before = getrusage(RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, check=True)
        after = getrusage(RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}
    return run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each line")
    options = parser.parse_args()
    table = Table("Start", options.rounds, "lightning", "transformers", time="processor time of fresh processes")
    with tempfile.TemporaryDirectory() as folder:
        works = [process(arguments, folder) for arguments in LINES.values()]
        for work in works:
            work()  # fills the caches of files and of bytecode
        times = dict(zip(LINES, in_turns(options.rounds, *works), strict=True))
    for name, own in times.items():
        if name not in (TORCH, FLOOR):
            table.add(name, own, {FLOOR: times[FLOOR]}, most=None)
    table.add(FLOOR, times[FLOOR], {TORCH: times[TORCH]}, most=None)
    end(table)


if __name__ == "__main__":
    main()
