"""A loop that ended rows leave against transformers' batched `generate`, on prompts and answer lengths of LUME.

    python benchmarks/generation.py --root data/lume

`lit_modules.unlearning.core.generation` calls `generate`; a loop of our own would have to be 1.3 times as fast on
batches as LUME's loader makes them. A Llama with random weights answers prompts of LUME, greedily and padded on the
left. A hook lets each answer end after as many tokens as the true answer has, in both ways alike: a token's number
modulo `CLASSES` says how many tokens are to come, and the network chooses among the tokens of the next class. All
rows are put in order and cut into batches, of which some are taken, evenly spread. The ways take turns on the same
batches; each ratio is of processor times of the same turn, and a row is void unless all answers are equal.
`--runaway` is the share of answers that never end, as some after unlearning.

    python benchmarks/generation.py --part serve

needs no data: `LocalChat` in batches against `transformers serve` asked through `RemoteChat`; see
`generation_serve.py`.
"""

import argparse
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from generation_serve import serve
from timing import Table, end, in_turns, seconds
from torch import Tensor

from datamodules.common.bpe import train_bpe
from lit_modules.networks import small_llama
from lit_modules.unlearning.core.generation import greedy_generate
from lit_modules.utils.kv_cache import cache_argument

CLASSES = 128
Batch = tuple[Tensor, Tensor]


def rows(root: Path, vocabulary: int, runaway: float) -> list[tuple[str, list[int], int]]:
    """Return kind, prompt and answer length of each row of LUME."""
    lines = [json.loads(line) for name in ("forget", "retain") for line in (root / f"{name}.jsonl").open()]
    encode = train_bpe((f"{line['input']} {line['output']}" for line in lines), vocabulary)
    found = []
    for line in random.Random(0).sample(lines, len(lines)):
        prompt = encode(line["input"])["input_ids"]
        length = min(len(encode(" " + line["output"])["input_ids"]), CLASSES - 2)
        endless = random.Random(line["id"]).random() < runaway
        prompt[-1] = prompt[-1] // CLASSES * CLASSES + (0 if endless else length + 1)
        found.append(("sc" if "sc" in line["id"][-4:] else "qa", prompt, length))
    return found


def let_end(network: Any, args: Any, given: dict[str, Any], output: Any) -> None:
    """Leave to the next token the class below that of the last one; class 0 at the end of a prompt never ends."""
    now = given["input_ids"][:, -1:] % CLASSES
    classes = torch.arange(output.logits.shape[-1]) % CLASSES
    output.logits[:, -1].masked_fill_(classes != torch.where(now > 0, now - 1, 0), -torch.inf)
    output.logits[:, -1, 0] = torch.where(now[:, 0] == 1, torch.inf, -torch.inf)  # the end


def padded(prompts: list[list[int]]) -> Batch:
    """Return prompts padded on the left, with their mask."""
    width = max(map(len, prompts))
    ids = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
    return torch.tensor(ids), torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])


def generate(model: Any, batch: Batch, longest: int) -> list[list[int]]:
    """Answer by `generate`, as the modules do."""
    return [answer.tolist() for answer in greedy_generate(model, *batch, longest, 0, 0)]


@torch.inference_mode()
def leaving(model: Any, batch: Batch, longest: int) -> list[list[int]]:
    """Answer by a loop that takes ended rows out of the batch when a fifth of it has ended."""
    tokens, mask = batch
    cached = str(cache_argument(model))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    rows, going = torch.arange(len(tokens)), torch.ones(len(tokens), dtype=torch.bool)
    answers: list[list[int]] = [[] for _ in rows]
    cache = None
    for _ in range(longest):
        given = {"attention_mask": mask, "position_ids": positions, cached: cache}
        output = model(input_ids=tokens, use_cache=True, logits_to_keep=1, **given)
        best, cache = output.logits[:, -1].argmax(-1), output[cached]
        going &= best != 0
        for row, token, on in zip(rows.tolist(), best.tolist(), going.tolist(), strict=True):
            if on:
                answers[row].append(token)
        if not going.any():
            break
        positions, mask = positions[:, -1:] + 1, torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        if going.sum() <= 0.8 * len(rows):
            live = going.nonzero().squeeze(1)
            cache.batch_select_indices(live)
            rows, best, positions, mask, going = rows[live], best[live], positions[live], mask[live], going[live]
        tokens = best.unsqueeze(1)
    return answers


def against_loop(options: argparse.Namespace) -> Table:
    """Compare batched `generate` with the loop; at a ratio of 1.3 the loop would be worth having."""
    torch.manual_seed(0)
    model = small_llama(2048, options.hidden_size, options.layers).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)  # answers that wander
    model.register_forward_hook(let_end, with_kwargs=True)
    asked = rows(options.root, 2048, options.runaway)
    lengths = sorted(length for _, _, length in asked)
    size = f"{model.num_parameters() / 1e6:.1f} M parameters"
    spread = f"answers of {lengths[0]} to {lengths[-1]} tokens, median {lengths[len(lengths) // 2]}"
    table = Table(f"Generation, {size}, {spread}", options.rounds, "transformers")
    orders: dict[str, Callable[[Any], Any]] = {
        "by kind and prompt length, as LUME gives them": lambda row: (row[0], len(row[1])),
        "by prompt length": lambda row: len(row[1]),
        "as they come": lambda row: 0,
    }
    for name, order in orders.items():
        prompts = [prompt for _, prompt, _ in sorted(asked, key=order)]
        starts = range(0, len(prompts), options.batch_size)
        starts = starts[len(starts) // options.batches // 2 :: len(starts) // options.batches]
        batches = [padded(prompts[start : start + options.batch_size]) for start in starts]
        answers: dict[str, list[list[int]]] = {}

        def timed(way: Any, batches: list[Batch] = batches, answers: dict[str, Any] = answers) -> float:
            second, found = seconds(lambda: [way(model, batch, options.max_new_tokens) for batch in batches])
            answers[way.__name__] = [answer for batch in found for answer in batch]
            return second

        leaving(model, batches[0], 2)
        own, other = in_turns(options.rounds, partial(timed, leaving), partial(timed, generate))
        total = len(answers["leaving"])
        equal = sum(one == two for one, two in zip(answers["leaving"], answers["generate"], strict=True))
        results, void = f"{equal} of {total} answers equal", "" if equal == total else "answers differ"
        table.add(name, other, {"a loop that ended rows leave": own}, results, void=void, most=1.3)
    return table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("all", "loop", "serve"), default="all", help="what to compare with")
    parser.add_argument("--root", type=Path, default=Path("data/lume"), help="folder of LUME's two files")
    numbers = {
        "rounds": 5,
        "batches": 6,
        "batch-size": 32,
        "max-new-tokens": 256,
        "hidden-size": 256,
        "layers": 4,
        "questions": 24,
    }
    for name, usual in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=usual, help=f"(default: {usual})")
    parser.add_argument("--runaway", type=float, default=0.0, help="share of answers that never end (default: 0)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    tables = []
    if options.part != "serve":
        tables.append(against_loop(options))
    if options.part != "loop":
        tables += serve(options.questions, options.batch_size, options.rounds)
    end(*tables)


if __name__ == "__main__":
    main()
