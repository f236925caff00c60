"""Order of pairs, and weight and choice of negatives, without pixels: a denoiser of part bits, tuned in many ways.

A picture is the bits of its 25 parts, so a run takes seconds, and nothing has to be recognised. Base, pairs, held-out
pairs, prompts, objective and learning rate are the demonstration's. Prints a line for each setting with mean and
deviation over seeds: the share of held-out pairs' samples that show both, and the novelty of those that do.

    python benchmarks/synthia_parts.py --seeds 3
"""

import argparse
import copy
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import fmean, stdev

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from datamodules import DrawnObjects
from datamodules.affordances.loaders import TEMPLATE
from datamodules.affordances.sampling import CurriculumSampler, Mode
from datamodules.drawn.objects import _nameless, caption, part_mask
from datamodules.drawn.ontology import CONCEPTS, composed_parts
from lit_modules.demos.synthia.scores import Scores
from lit_modules.demos.synthia.world import build_world
from lit_modules.metrics.affordances import affordance_scores, part_novelty
from lit_modules.synthia import Denoise, PixelDiffusion, StagedLR
from lit_modules.synthia.ontology.curriculum import Curriculum, CurriculumPair

DATA = DrawnObjects()
WORDS = PixelDiffusion()
BATCH = 12
BASE_STEPS, BASE_BATCH = 1800, 24
SAMPLES = 16
RATE, DROPPED = 2e-3, 0.1
Item = tuple[str, Tensor, Tensor | None]
"""Prompt, bits of the design, and those of an existing concept to contrast it with."""


@dataclass(frozen=True)
class Setting:
    """Way of tuning.

    Args:
        mode: Order of the pairs.
        weight: Weight of the negatives.
        margin: Margin of the hinge.
        nearest: Whether the negative is the owner whose parts are nearest to the design's, not a random one.
        steps: Updates.
    """

    mode: Mode = "random"
    weight: float = 0.1
    margin: float = 0.02
    nearest: bool = False
    steps: int = 1000

    def __str__(self) -> str:
        """Return its name in the table."""
        negatives = f"weight {self.weight}, margin {self.margin}" if self.weight else "no negatives"
        return f"{self.mode}, {self.steps} steps, {negatives}" + ", nearest" * self.nearest


ORDERS: tuple[Mode, ...] = ("random", "staged", "cumulative", "competence")
SETTINGS = (
    *(Setting(mode, steps=steps) for steps in (120, 300, 1000) for mode in ORDERS),
    Setting(weight=0.0),
    *(Setting(weight=weight, margin=margin) for weight, margin in ((0.1, 0.1), (0.5, 0.1), (0.9, 0.1), (0.5, 0.5))),
    *(Setting(weight=weight, margin=margin, nearest=True) for weight, margin in ((0.1, 0.02), (0.5, 0.1), (0.9, 0.1))),
)


class PartDenoiser(nn.Module):
    """Two layers of attention to the words of the prompt, on one vector of all bits.

    Args:
        width: Channels.
        num_heads: Heads of attention.
    """

    def __init__(self, width: int = 96, num_heads: int = 4) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(len(DATA.parts), width), nn.Linear(width, len(DATA.parts))
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        attention = {"kdim": WORDS.word_width, "vdim": WORDS.word_width, "batch_first": True}
        self.attend = nn.ModuleList(nn.MultiheadAttention(width, num_heads, **attention) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.feed = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)) for _ in range(2)
        )

    def forward(self, noised: Tensor, times: Tensor, words: dict[str, Tensor]) -> Tensor:
        """Return the velocity of bits ``(batch, parts)`` at times ``(batch,)``."""
        angles = torch.exp(torch.linspace(0, 5, 16)) * times[:, None] * math.pi
        hidden = self.enter(noised) + self.time(torch.cat([angles.sin(), angles.cos()], 1))
        context, absent = words["prompt_embeds"], ~words["prompt_mask"]
        for layer in range(2):
            query = self.norms[2 * layer](hidden)[:, None]
            read, _ = self.attend[layer](query, context, context, key_padding_mask=absent, need_weights=False)
            hidden = hidden + read[:, 0]
            hidden = hidden + self.feed[layer](self.norms[2 * layer + 1](hidden))
        velocity: Tensor = self.leave(hidden)
        return velocity


def bits(parts: Sequence[str]) -> Tensor:
    """Return 1 for parts that are there and -1 for the others."""
    return part_mask(parts).float() * 2 - 1


def fit(
    network: PartDenoiser,
    batches: Callable[[], list[Item]],
    stages: Sequence[int],
    objective: Denoise,
    seed: int,
) -> None:
    """Train by flow matching with the contrastive objective; the network ends with averaged weights."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.01)
    schedule = StagedLR(optimizer, steps=stages)
    average = get_ema_multi_avg_fn(0.99)  # type: ignore[no-untyped-call]
    averaged = AveragedModel(network, multi_avg_fn=average)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(sum(stages)):
        items = batches()
        kept = torch.rand(len(items), generator=generator) >= DROPPED
        words = WORDS.encode_prompt([item[0] if keep else "" for item, keep in zip(items, kept, strict=True)])
        designs = torch.stack([item[1] for item in items])
        noise, times = torch.randn(designs.shape, generator=generator), torch.rand(len(items), generator=generator)

        def errors(
            clean: Tensor, noise: Tensor = noise, times: Tensor = times, words: dict[str, Tensor] = words
        ) -> Tensor:
            noised = (1 - times)[:, None] * clean + times[:, None] * noise
            wrong: Tensor = (network(noised, times, words) - (noise - clean)).square().mean(1)
            return wrong

        negatives = torch.empty(len(items), 0)
        if objective.negative_weight:
            negatives = errors(torch.stack([item[1] if item[2] is None else item[2] for item in items]))[:, None]
        loss = objective(errors(designs), negatives, torch.ones_like(negatives).bool())["loss"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        averaged.update_parameters(network)
    network.load_state_dict(averaged.module.state_dict())


def train_base(pairs: Curriculum, seed: int) -> PartDenoiser:
    """Train on existing concepts and on nameless objects, half of each, as the demonstration's base is."""
    torch.manual_seed(seed)
    network, random = PartDenoiser(), Random(seed)
    withheld = [pair.pos_prompts for pair in pairs.test]

    def batch() -> list[Item]:
        items: list[Item] = []
        for index in range(BASE_BATCH):
            if index % 2:
                name = random.choice(DATA.concepts)
                items.append((caption(name, TEMPLATE, random), bits(tuple(CONCEPTS[name].parts)), None))
            else:
                parts = _nameless(random, withheld).parts
                items.append((f"an object with {', '.join(random.sample(parts, len(parts)))}", bits(parts), None))
        return items

    fit(network, batch, [BASE_STEPS], Denoise(0.0), seed)
    return network


def tune(base: PartDenoiser, pairs: Curriculum, setting: Setting, seed: int) -> PartDenoiser:
    """Return the base tuned in one way."""
    network, random = copy.deepcopy(base), Random(seed + 7)
    longest = max(map(len, pairs.stages()))
    epochs = max(pairs.num_stages, round(setting.steps / math.ceil(longest / BATCH)))
    stages, distances = ([getattr(pair, name) for pair in pairs.train] for name in ("stage", "tdistance"))
    sampler = CurriculumSampler(stages, epochs, BATCH, setting.mode, distances, seed=seed)
    order = (index for epoch in range(epochs) for index in _epoch(sampler, epoch))

    def batch() -> list[Item]:
        items: list[Item] = []
        for index in next(order):
            pair = pairs.train[index]
            design = bits(composed_parts(pair.pos_prompts, random))
            owners = [bits(tuple(CONCEPTS[name].parts)) for name in pair.neg_prompts]
            if setting.nearest:
                negative = max(owners, key=lambda owner: float(F.cosine_similarity(owner + 1, design + 1, dim=0)))
            else:
                negative = random.choice(owners)
            items.append((TEMPLATE.format(affordances=", ".join(pair.pos_prompts)), design, negative))
        return items

    per_epoch = math.ceil(longest / BATCH)
    counts = [epochs * per_epoch]
    if sampler.starts:
        ends = [*sampler.starts[1:], epochs]
        counts = [(end - start) * per_epoch for start, end in zip(sampler.starts, ends, strict=True)]
    fit(network, batch, counts, Denoise(setting.weight, setting.margin), seed)
    return network


def _epoch(sampler: CurriculumSampler, epoch: int) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return [list(batch) for batch in sampler]


@torch.no_grad()
def evaluate(network: PartDenoiser, pairs: Sequence[CurriculumPair], guidance: float = 3.0, steps: int = 20) -> Scores:
    """Sample the pairs with classifier-free guidance, and score the bits."""
    generator = torch.Generator().manual_seed(1)
    count = len(pairs) * SAMPLES
    prompts = [TEMPLATE.format(affordances=", ".join(pair.pos_prompts)) for pair in pairs for _ in range(SAMPLES)]
    words, empty = WORDS.encode_prompt(prompts), WORDS.encode_prompt([""] * count)
    sample = torch.randn(count, len(DATA.parts), generator=generator)
    for step in range(steps):
        times = torch.full((count,), 1 - step / steps)
        without = network(sample, times, empty)
        sample = sample - (without + guidance * (network(sample, times, words) - without)) / steps
    parts = (sample > 0).float()
    wanted = torch.tensor([[DATA.affordances.index(name) for name in pair.pos_prompts] for pair in pairs])
    found = (affordance_scores(parts, DATA.seen_by) > 0.5).gather(1, wanted.repeat_interleave(SAMPLES, 0))
    owners = torch.tensor([[name in pair.neg_prompts for name in DATA.concepts] for pair in pairs])
    novelty, _ = part_novelty(parts, DATA.concept_parts.float(), owners.repeat_interleave(SAMPLES, 0))
    return Scores(found.reshape(len(pairs), SAMPLES, 2), novelty.reshape(len(pairs), SAMPLES))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 (default: 3)")
    parser.add_argument("--only", default="", help="settings whose name contains this (default: all)")
    seeds = range(parser.parse_args().seeds)
    only = parser.parse_args().only
    torch.set_num_threads(1)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        pairs = build_world(Path(folder) / "ontology.json")
    bases = [train_base(pairs, seed) for seed in seeds]
    print("| setting | both, held-out pairs | novelty if both |\n| --- | --- | --- |")
    print(_row("frozen", [evaluate(base, pairs.test) for base in bases]), flush=True)
    for setting in SETTINGS:
        if only in str(setting):
            tuned = [tune(base, pairs, setting, seed) for seed, base in zip(seeds, bases, strict=True)]
            print(_row(str(setting), [evaluate(network, pairs.test) for network in tuned]), flush=True)
    print(f"{time.process_time() - began:.0f} s of processor time")


def _row(name: str, scores: Sequence[Scores]) -> str:
    columns = ([each.shown().mean for each in scores], [each.novelty_if_shown().mean for each in scores])
    shown = (f"{fmean(values):.3f} ± {stdev(values) if len(values) > 1 else math.nan:.3f}" for values in columns)
    return f"| {name} | {' | '.join(shown)} |"


if __name__ == "__main__":
    main()
