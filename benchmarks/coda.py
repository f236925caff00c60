"""Cost of CoDA, as ratios against the plain way or the floor in the same run.

    python benchmarks/coda.py                # all parts
    python benchmarks/coda.py --part update

The parts stand in files of their own: `coda_scores.py` (scores), `coda_runs.py` (embeddings, resume),
`coda_generation.py` (generation) and `coda_update.py` (update). What is compared takes turns. On the CPU times are of
the processor, by default of one thread.
"""

import argparse
import logging
import tempfile
import warnings
from typing import Any

import torch
import transformers
from coda_generation import generation, questions, texts
from coda_models import save_llava
from coda_runs import runs
from coda_scores import scores
from coda_update import update
from timing import Table, end


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("all", "scores", "embeddings", "generation", "verdicts", "update", "resume")
    parser.add_argument("--part", choices=parts, default="all", help="what to time")
    numbers = {
        "rounds": (5, "repetitions, of which the median counts"),
        "attributes": (200, "attributes of the scores"),
        "images": (100, "images on either side of the scores"),
        "pairs": (3, "pairs of the run"),
        "num-images": (20, "synthetic images of each concept and kind in the run"),
        "questions": (48, "questions of each kind of the generation"),
        "batch-size": (16, "questions in a batch of the generation"),
        "rows": (2, "rows of a batch of the update"),
        "steps": (10, "steps of the update in a round"),
        "hidden-size": (320, "width of the language model of generation and update"),
        "threads": (1, "threads of torch on the CPU"),
        "layers": (5, "layers of that language model"),
        "tile": (112, "side in pixels of the tiles that its images are read in, 14 pixels a token"),
    }
    for name, (usual, what) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=usual, help=f"{what} (default: {usual})")
    options = parser.parse_args()
    for name in numbers:
        if getattr(options, name.replace("-", "_")) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name.replace('-', '_'))}")
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    quiet: Any = transformers.logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    table = Table("CoDA", options.rounds, "transformers", "peft")
    part = options.part
    if part in ("all", "scores"):
        scores(table, options.attributes, options.images, options.rounds)
    if part in ("all", "embeddings", "resume"):
        runs(table, part, options.pairs, options.num_images, options.rounds)
    if part in ("all", "generation", "verdicts", "update"):
        with tempfile.TemporaryDirectory() as folder:
            save_llava(folder, options.hidden_size, options.layers, texts(), options.tile)
            if part != "update":
                asked = questions(options.questions)
                asked = {name: asked[name] for name in asked if part in ("all", "generation", name)}
                generation(table, folder, asked, options.batch_size, options.rounds)
            if part in ("all", "update"):
                update(table, folder, options.rows, options.steps, options.rounds)
    end(table)


if __name__ == "__main__":
    main()
