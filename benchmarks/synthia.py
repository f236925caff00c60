"""Cost of Synthia: affordance distances against the plain loop, and training steps against each other and their floor.

    python benchmarks/synthia.py                # distances and training
    python benchmarks/synthia.py --part cases

Distances: a random ontology of the paper's size (30 superordinate categories, 590 concepts, 439 affordances of
concepts, 686 in all, two parts to a concept). The loop is the definition: for each pair of affordances the mean over
the concepts that own them, each distance of two concepts computed from its sets when it is met. It is timed on a share
of the pairs, drawn at random, and scaled to all; that share is also compared with the matrix, and the row is void where
a distance differs by more than 1e-6.

Training and cases: a Stable Diffusion built from its configuration (U-Net of about 11 million parameters, text encoder
and autoencoder in proportion), saved and loaded as a real one is. The floor of a training step is the network's forward
and backward passes and the optimizer on random tensors of the same shapes, in turn with the Trainer's steps, so no
results are compared. Cases run each in a process of its own: the
step and the memory beyond that before the first step (on a GPU, the allocator's peak) of the objective `LinearContrast`
with gradients through all four steps and through the last one, and of `Denoise`, with and without the cache of
encodings, the recomputation of activations, and compiled blocks. An indented case is compared with the one above it
that is not.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import torch
from timing import Table, clock, end, in_turns, seconds
from torch import Tensor

from lit_modules.synthia import AffordanceDistance, Concept, Denoise, LinearContrast, Ontology, StableDiffusion, Synthia

CONCEPTS, CATEGORIES, WHOLE, ALL = 590, 30, 439, 686
SIZE, BATCH, NEGATIVES = 64, 4, 1
CASES: dict[str, dict[str, Any]] = {
    "linear, gradients through 4 steps": {"truncation": None},
    "  with recomputed steps": {"truncation": None, "sampler_checkpointing": True},
    "linear, through the last step": {"truncation": 1},
    "  with recomputed steps ": {"truncation": 1, "sampler_checkpointing": True},
    "denoise": {"denoise": True},
    "  without the cache": {"denoise": True, "cached": False},
    "  with recomputed activations": {"denoise": True, "gradient_checkpointing": True},
    "  with compiled blocks": {"denoise": True, "compile": True},
    "  with LoRA": {"denoise": True, "lora": True},
}


def ontology(seed: int) -> Ontology:
    """Return a random ontology in which every affordance has an owner."""
    generator = random.Random(seed)
    names = [f"affordance {number}" for number in range(ALL)]
    whole: list[set[str]] = [set(generator.sample(names[:WHOLE], 4)) for _ in range(CONCEPTS)]
    parts: list[list[set[str]]] = [[set(generator.sample(names, 2)) for _ in range(2)] for _ in range(CONCEPTS)]
    for number, name in enumerate(names[:WHOLE]):
        whole[number % CONCEPTS].add(name)
    for number, name in enumerate(names[WHOLE:]):
        parts[number % CONCEPTS][0].add(name)
    concepts = [
        Concept(
            f"category {number % CATEGORIES}",
            f"concept {number}",
            tuple(sorted(whole[number])),
            (),
            {f"part {place}": tuple(sorted(own)) for place, own in enumerate(parts[number])},
        )
        for number in range(CONCEPTS)
    ]
    return Ontology(concepts, "random")


def difference(first: frozenset[str], second: frozenset[str]) -> float:
    """Return the Jaccard distance of two sets."""
    either = first | second
    return 1 - len(first & second) / len(either) if either else 0.0


def loop(objects: Ontology, pairs: list[tuple[str, str]]) -> list[float]:
    """Return the distances of pairs of affordances by the definition."""
    sets = [(concept.affordances, concept.part_affordances) for concept in objects.concepts]
    found = []
    for first, second in pairs:
        values = [
            0.6 * difference(sets[one][0], sets[other][0]) + 0.4 * difference(sets[one][1], sets[other][1])
            for one in range(len(sets))
            if first in sets[one][0]
            for other in range(len(sets))
            if second in sets[other][0] and one != other
        ]
        found.append(sum(values) / len(values) if values else float("nan"))
    return found


def distances(count: int, rounds: int, seed: int) -> Table:
    """Time the matrix of distances against the loop."""
    objects = ontology(seed)
    counts = objects.stats()
    every = list(combinations(objects.affordances("concept"), 2))
    some = random.Random(seed).sample(every, min(count, len(every)))
    found: dict[str, Any] = {}

    def timed(name: str, work: Callable[[], Any]) -> float:
        second, found[name] = seconds(work)
        return second

    fast, slow = in_turns(
        rounds,
        partial(timed, "matrix", lambda: AffordanceDistance()(objects)),
        lambda: timed("loop", lambda: loop(objects, some)) * len(every) / len(some),
    )
    pairs = zip(some, found["loop"], strict=True)
    error = max(abs(found["matrix"].between(*pair) - value) for pair, value in pairs if value == value)
    table = Table("Affordance distances", rounds, "numpy")
    table.add(
        f"{counts['concepts']} concepts, {counts['concept_affordances']} affordances, {len(every)} pairs",
        fast,
        {f"the definition, on {len(some)} pairs": slow},
        f"within {error:.0e}",
        void="distances differ" if error > 1e-6 else "",
    )
    return table


def save_model(folder: str) -> None:
    """Build a small Stable Diffusion from its configuration, and save it as a pipeline."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz,"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer({word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)  # type: ignore[call-arg]
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=8,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
            block_out_channels=[32, 64, 64],
            latent_channels=4,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=SIZE // 4,
            block_out_channels=(96, 192),
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            layers_per_block=1,
            attention_head_dim=8,
            cross_attention_dim=256,
        ),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def batches(number: int) -> list[dict[str, Any]]:
    """Return batches that repeat the same few pairs, as epochs do."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 1 + NEGATIVES, 3, SIZE, SIZE), generator=generator).float() / 127.5 - 1
    found = []
    for start in range(number):
        rows = [(start * BATCH + row) % 8 for row in range(BATCH)]
        found.append(
            {
                "prompt": [f"a new design that has functions of thing {'abcdefgh'[row]}, thing" for row in rows],
                "pos": pixels[rows, 0],
                "neg": pixels[rows, 1:],
                "neg_mask": torch.ones(BATCH, NEGATIVES, dtype=torch.bool),
                "pair_id": torch.tensor(rows),
            }
        )
    return found


def module(folder: str, case: dict[str, Any]) -> Synthia:
    """Return the module of a case."""
    from peft import LoraConfig

    more = {name: case[name] for name in ("compile", "gradient_checkpointing", "truncation") if name in case}
    tuned = Synthia(
        StableDiffusion(folder, image_size=SIZE, precision="float32"),
        objective=Denoise() if case.get("denoise") else LinearContrast(),
        num_steps=4,
        sampler_checkpointing=case.get("sampler_checkpointing", False),
        peft_config=LoraConfig(r=16, lora_alpha=16) if case.get("lora") else None,
        optimizer=partial(torch.optim.AdamW, lr=1e-5),
        **more,
    )
    if not case.get("cached", True):
        tuned.encoder.cache = None
    return tuned


def peak() -> int:
    """Return the largest memory so far, in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


class Ticker:
    """Times of the steps of a fit, and the memory before them."""

    def __init__(self, tuned: Synthia, steps: int) -> None:
        from lightning.pytorch import Callback, Trainer
        from torch.utils.data import DataLoader

        self.times: list[float] = []
        self.before = 0
        ticker = self

        class Tick(Callback):
            """Marks the beginning of each batch."""

            def on_train_batch_start(self, *arguments: Any, **named: Any) -> None:
                """Mark the time."""
                ticker.before = ticker.before or peak()
                ticker.times.append(clock())

        trainer = Trainer(
            max_epochs=1,
            callbacks=[Tick()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            devices=1,
        )
        trainer.fit(tuned, DataLoader(batches(steps), batch_size=None))  # type: ignore[arg-type]
        self.seconds = [later - earlier for earlier, later in pairwise(self.times)]


def one_case(folder: str, name: str, steps: int) -> None:
    """Run a case and print its numbers as JSON."""
    ticker = Ticker(module(folder, CASES[name]), steps)
    print(json.dumps({"seconds": statistics.median(ticker.seconds[3:]), "memory": peak() - ticker.before}))


def cases(folder: str, steps: int, rounds: int) -> list[Table]:
    """Print the time and the memory of each case against the one that it varies."""
    memory: dict[str, list[float]] = {name: [] for name in CASES}

    def run(name: str) -> float:
        command = [sys.executable, __file__, "--case", name, "--folder", folder, "--steps", str(steps)]
        numbers = json.loads(
            subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
        )
        memory[name].append(numbers["memory"] / 2**20)
        return float(numbers["seconds"])

    times = dict(zip(CASES, in_turns(rounds, *(partial(run, name) for name in CASES)), strict=True))
    tables = [
        Table(f"Synthia, {what}", rounds, "diffusers", time=time)
        for what, time in (("steps", None), ("memory", "peak beyond the start"))
    ]
    for table, costs, unit in zip(tables, (times, memory), ("ms", "MiB"), strict=True):
        base = ""
        for name, found in costs.items():
            base = base if name.startswith(" ") else name
            if name != base:
                table.add(name.rstrip(), found, {base: costs[base]}, most=None, unit=unit)
    return tables


def floor(folder: str, steps: int, rounds: int) -> Table:
    """Time a training step against its forward and backward passes."""

    def ours() -> float:
        return statistics.median(Ticker(module(folder, {"denoise": True}), steps).seconds[3:])

    def bare() -> float:
        tuned = module(folder, {"denoise": True})
        tuned.configure_model()
        backbone, network = tuned.backbone.to(tuned.device), tuned.network
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)
        batch = batches(1)[0]
        condition = {k: v.repeat_interleave(1 + NEGATIVES, 0) for k, v in tuned.conditions(batch).items()}
        latents: Tensor = torch.randn(BATCH * (1 + NEGATIVES), *backbone.latent_shape())
        target, timesteps = torch.randn_like(latents), torch.randint(1000, (len(latents),))
        times = []
        for _ in range(steps):
            began = clock()
            errors = (backbone.denoise(latents, timesteps, condition) - target).square().flatten(1).mean(1)
            torch.autograd.backward(errors.mean())
            optimizer.step()
            optimizer.zero_grad()
            times.append(clock() - began)
        return statistics.median(times[3:])

    own, least = in_turns(rounds, ours, bare)
    table = Table("Synthia, training", rounds, "diffusers", "lightning")
    table.add("Denoise training step", own, {"its passes": least}, most=1.05, unit="ms")
    return table


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--part",
        choices=("all", "distances", "training", "cases"),
        default="all",
        help="what to time; all is without the cases",
    )
    parser.add_argument("--pairs", type=int, default=2000, help="pairs that the loop is timed on (default: 2000)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (default: 5)")
    parser.add_argument("--steps", type=int, default=15, help="steps of each training case (default: 15)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the ontology and the pairs (default: 0)")
    parser.add_argument("--case", choices=tuple(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", default=str(Path.cwd()), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        one_case(options.folder, options.case, options.steps)
        return
    tables = []
    if options.part in ("all", "distances"):
        tables.append(distances(options.pairs, options.rounds, options.seed))
    with tempfile.TemporaryDirectory() as folder:
        if options.part != "distances":
            save_model(folder)
        if options.part in ("all", "training"):
            tables.append(floor(folder, options.steps, options.rounds))
        if options.part == "cases":
            tables += cases(folder, options.steps, options.rounds)
    end(*tables)


if __name__ == "__main__":
    main()
