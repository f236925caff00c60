"""Cost of unlearning steps, as ratios against a floor in the same run.

    python benchmarks/unlearning.py                   # all parts
    python benchmarks/unlearning.py --part methods

Prints one line per figure: the NGDiff step against the same two forward and backward passes without combination;
AdaptiveLR against NGDiff without it; the memory of a step, tensor by tensor. Then a table: step time and peak memory of
every method against its floor and against the same loss in open-unlearning's form, see `unlearning_methods.py`. Runs on
the GPU if there is one. Generation is timed by `generation.py`.
"""

import argparse
import logging
import os
import platform
import statistics
import time
import warnings
from datetime import date
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else torch's profiler reports each start and end

import torch
import transformers
from lightning.pytorch import Callback, Trainer, seed_everything
from timing import show
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
        self.model = module(network(), optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-5))
        clock = self

        class Tick(Callback):
            """Marks the beginning of each batch."""

            def on_train_batch_start(self, *arguments: Any, **named: Any) -> None:
                """Mark the time."""
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                clock.times.append(time.perf_counter())

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
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)][3:]


def steps(rounds: int, length: int) -> None:
    """Time steps in turns, so that a drift of the machine meets all alike."""
    data = [{"forget": task(2 * i), "retain": task(2 * i + 1)} for i in range(length)]
    ratios: dict[str, list[float]] = {"NGDiff / floor": [], "NGDiff + AdaptiveLR(period=10) / NGDiff": []}
    for _ in range(rounds):
        floor, plain, adaptive = (
            Clock(module, callbacks, length).run(data)
            for module, callbacks in ((Floor, []), (NGDiff, []), (NGDiff, [AdaptiveLR(period=10)]))
        )
        ratios["NGDiff / floor"].append(statistics.median(plain) / statistics.median(floor))
        # a probe comes every tenth step, so only means over whole periods can be compared
        ratios["NGDiff + AdaptiveLR(period=10) / NGDiff"].append(
            statistics.fmean(adaptive[: len(adaptive) // 10 * 10]) / statistics.fmean(plain[: len(plain) // 10 * 10])
        )
    for name, values in ratios.items():
        print(f"{name}: median {statistics.median(values):.3f} (of {', '.join(f'{v:.3f}' for v in values)})")


def memory() -> None:
    """Account for the tensors that live at the end of the second backward pass, beside activations."""
    model = network()
    module = NGDiff(model, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-5))
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    seen: dict[str, int] = {}

    class Accounted(NGDiff):
        """Notes the memory of the two gradients."""

        def _buffered(self, gradient: Any) -> Any:
            kept = super()._buffered(gradient)
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
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{date.today()}, {device}, {torch.get_num_threads()} threads, {versions}", flush=True)
    if options.part in ("all", "steps"):
        print(f"{network().num_parameters() / 1e6:.1f} M parameters, {ROWS} x {TOKENS} tokens per task")
        memory()
        steps(options.rounds, options.steps)
    if options.part in ("all", "methods"):
        sizes = options.method_rows, options.method_tokens, options.hidden_size
        for row in methods(options.only, *sizes, options.method_steps, options.rounds):
            show([row])


if __name__ == "__main__":
    main()
