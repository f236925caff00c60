"""Cost of unlearning steps, as ratios against a floor in the same run.

    python benchmarks/unlearning.py                   # all parts
    python benchmarks/unlearning.py --part methods

Prints the memory of a step, tensor by tensor, and tables: the NGDiff step against the same two forward and backward
passes without combination, and AdaptiveLR against NGDiff without it, void if the losses of the first step differ by
more than 1e-4 of the model's own; step time and peak memory of every method against its floor and against the same loss
in open-unlearning's form, see `unlearning_methods.py`. Runs on the GPU if there is one. Generation is timed by
`generation.py`.
"""

import argparse
import logging
import os
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else torch's profiler reports each start and end

import torch
import transformers
from lightning.pytorch import Callback, Trainer, seed_everything
from timing import Table, clock, end, in_turns
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM
from unlearning_methods import PASSES, methods

from callbacks import AdaptiveLR
from lit_modules import NGDiff
from lit_modules.networks import small_llama

VOCABULARY, ROWS, TOKENS = 4096, 8, 128


def network() -> LlamaForCausalLM:
    """Build a Llama of 10 million parameters."""
    seed_everything(0, verbose=False)
    return small_llama(VOCABULARY, hidden_size=320, num_layers=5, num_heads=5)


def task(seed: int) -> dict[str, Any]:
    """Draw rows of random tokens of which the second half is scored."""
    ids = torch.randint(2, VOCABULARY, (ROWS, TOKENS), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[:, : TOKENS // 2] = -100
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "id": [str(i) for i in range(ROWS)],
    }


class Floor(NGDiff):
    """The same two forward and backward passes and optimizer step, with nothing between them."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Take both gradients through the model's own loss."""
        optimizer: Any = self.optimizers()
        for name in ("forget", "retain"):
            inputs = {key: value for key, value in batch[name].items() if key != "id"}
            self.manual_backward(self.model(**inputs, use_cache=False).loss)
        optimizer.step()
        optimizer.zero_grad()


class Clock:
    """Steps of a fit, each timed."""

    def __init__(self, module: type[NGDiff], callbacks: list[Any], steps: int) -> None:
        self.times: list[float] = []
        self.losses: dict[str, float] = {}
        self.model = module(network(), optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-5))
        own = self

        class Tick(Callback):
            """Marks the beginning of each batch."""

            def on_train_batch_start(self, *arguments: Any, **named: Any) -> None:
                """Mark the time."""
                own.times.append(clock())

            def on_train_batch_end(self, trainer: Trainer, *arguments: Any, **named: Any) -> None:
                """Keep the losses of the first step, where the module logs them."""
                own.losses = own.losses or {
                    name: float(trainer.callback_metrics[f"train/{name}_loss"])
                    for name in ("forget", "retain")
                    if f"train/{name}_loss" in trainer.callback_metrics
                }

        self.trainer = Trainer(
            max_steps=steps,
            callbacks=[Tick(), *callbacks],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def run(self, data: list[Any]) -> list[float]:
        """Return the seconds of each step but the first three."""
        self.trainer.fit(self.model, DataLoader(data, batch_size=None))  # type: ignore[arg-type]
        return [after - before for before, after in pairwise(self.times)][3:]


def steps(table: Table, rounds: int, length: int) -> None:
    """Time steps in turns, so that a drift of the machine meets all alike."""
    data = [{"forget": task(2 * i), "retain": task(2 * i + 1)} for i in range(length)]
    model = network().train()
    wanted = {
        name: float(model(**{key: value for key, value in batch.items() if key != "id"}).loss)
        for name, batch in data[0].items()
    }
    means: dict[str, list[float]] = {"NGDiff": [], "AdaptiveLR": []}
    differences: dict[str, float] = {}

    def timed(name: str, module: type[NGDiff], callbacks: Callable[[], list[Any]]) -> float:
        ticks = Clock(module, callbacks(), length)
        times = ticks.run(data)
        if module is not Floor:
            differences[name] = max(abs(loss / wanted[task] - 1) for task, loss in ticks.losses.items())
            # a probe comes every tenth step, so only means over whole periods can be compared
            means[name].append(statistics.fmean(times[: len(times) // 10 * 10]))
        return statistics.median(times)

    floor, plain, _ = in_turns(
        rounds,
        partial(timed, "floor", Floor, list),
        partial(timed, "NGDiff", NGDiff, list),
        partial(timed, "AdaptiveLR", NGDiff, lambda: [AdaptiveLR(period=10)]),
    )
    rows = {
        "NGDiff": ("NGDiff step", plain, {"two bare passes": floor}),
        "AdaptiveLR": ("NGDiff + AdaptiveLR(period=10)", means["AdaptiveLR"], {"NGDiff": means["NGDiff"]}),
    }
    for name, row in rows.items():
        difference = differences[name]
        void = "losses differ" if difference > 1e-4 else ""
        table.add(
            *row, f"first losses within {difference:.0e}", void=void, most=1.05 if name == "NGDiff" else 1.06, unit="ms"
        )


def memory() -> None:
    """Account for the tensors that live at the end of the second backward pass, beside activations."""
    model = network()
    module = NGDiff(model, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-5))
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    seen: dict[str, int] = {}

    class Accounted(NGDiff):
        """Notes the memory of the two gradients."""

        def buffered(self, gradient: Any) -> Any:
            kept = super().buffered(gradient)
            seen["forget gradient"] = sum(t.numel() * t.element_size() for t in kept if t is not None)
            return kept

        def weights(self, pair: Any) -> tuple[float, float]:
            """Note the retain gradient."""
            seen["retain gradient"] = sum(
                p.grad.numel() * p.grad.element_size() for p in self.parameters() if p.grad is not None
            )
            return super().weights(pair)

    module = Accounted(model, optimizer=module.optimizer)
    trainer = Trainer(
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([{"forget": task(0), "retain": task(1)}] * 2, batch_size=None))  # type: ignore[arg-type]
    state = sum(
        v.numel() * v.element_size()
        for s in trainer.optimizers[0].state.values()
        for v in s.values()
        if isinstance(v, torch.Tensor)
    )
    parts = {"weights": size, **seen, "optimizer state": state}
    print(
        "memory of a step: "
        + ", ".join(f"{name} {value / 2**20:.1f} MiB" for name, value in parts.items())
        + ", and activations"
    )
    print(f"two gradients / weights: {(seen['forget gradient'] + seen['retain gradient']) / size:.3f} (2 is the least)")
    if torch.cuda.is_available():
        print(f"peak of the device: {torch.cuda.max_memory_allocated() / 2**20:.1f} MiB")


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("all", "steps", "methods")
    parser.add_argument("--part", choices=parts, default="all", help="what to time")
    numbers = {
        "rounds": (5, "repetitions of the steps and of their methods, of which the median counts"),
        "steps": (24, "optimizer steps of a round"),
        "method-steps": (6, "optimizer steps of a round of the methods"),
        "method-rows": (4, "rows of each task in a step of the methods"),
        "method-tokens": (64, "tokens of such a row"),
        "hidden-size": (192, "width of the network of the methods"),
        "threads": (1, "threads of torch on the CPU"),
    }
    for name, (usual, what) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=usual, help=f"{what} (default: {usual})")
    parser.add_argument("--only", nargs="*", choices=sorted(PASSES), default=[], help="methods (default: all)")
    options = parser.parse_args()
    if options.steps < 14:
        parser.error(f"--steps must be at least 14 (three to warm up, then whole periods of 10), got {options.steps}")
    if options.method_steps < 4:
        parser.error(f"--method-steps must be at least 4, of which two warm up, got {options.method_steps}")
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    tables = []
    if options.part in ("all", "steps"):
        memory()
        size = f"{network().num_parameters() / 1e6:.1f} M parameters, {ROWS} x {TOKENS} tokens of a task"
        tables.append(Table(f"Steps of NGDiff, {size}", options.rounds, "transformers", "lightning"))
        steps(tables[0], options.rounds, options.steps)
    if options.part in ("all", "methods"):
        sizes = options.method_rows, options.method_tokens, options.hidden_size
        tables += methods(options.only, *sizes, options.method_steps, options.rounds)
    end(*tables)


if __name__ == "__main__":
    main()
