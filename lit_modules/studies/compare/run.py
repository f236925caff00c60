"""Run of a comparison, and what it spends: ``python -m lit_modules.studies.compare.run FOLDER ...``."""

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lit_modules.studies.launchers import RESULTS
from lit_modules.studies.runs import RUN, RunCLI, finite, read_json, run_each, start, train, write_json
from lit_modules.studies.stress.attacks import harness_accuracies
from lit_modules.studies.stress.callback import UNLEARNED, StressTest
from lit_modules.utils.files import write_whole

IGNORED = -100
"""Label of a token that is not scored."""
SPENT = (
    "steps",
    "steps_without_update",
    "forget_rows",
    "forget_tokens",
    "retain_tokens",
    "retain_tokens_trained",
    "forward_passes",
    "forward_passes_without_gradient",
    "backward_passes",
)


class CountSpending(Callback):
    """Count the optimizer steps of a training, the rows and tokens of each set, and the passes through the network.

    A step is a group of batches that the module takes one step with; one whose direction vanishes leaves the weights
    as they are and counts too, so a method cannot go on for ever. Rows and tokens are those of the batches that come;
    tokens of the retain set are counted again where they go through the network with gradient, as a method that looks
    at the forget set alone spends none.

    Asks of the module ``accumulate``, the batches of a step, and of a batch ``{"forget": task, "retain": task}``.

    Args:
        max_steps: Steps after which the training ends.
    """

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps
        self.counts: Counter[str] = Counter()
        self.rows_per_step: list[int] = []
        self._group: list[tuple[Tensor, str, int]] = []  # ids, set and target tokens of the batches of this step
        self._batches = 0
        self._rows = 0
        self._handle: Any = None

    def record(self, trainer: Trainer) -> dict[str, Any]:
        """Return the counts, ready for JSON."""
        names = ("forget_rows", "forget_tokens", "retain_rows", "retain_tokens", "retain_tokens_trained")
        passes = ("forward_passes", "forward_passes_without_gradient", "backward_passes")
        return {
            "steps": len(self.rows_per_step),
            "steps_without_update": len(self.rows_per_step) - trainer.global_step,
            "rows_per_step": dict(sorted(Counter(map(str, self.rows_per_step)).items())),
            **{name: self.counts[name] for name in (*names, *passes)},
        }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch every embedding, that of a frozen reference too: each pass goes through one, once."""
        self._handle = nn.modules.module.register_module_forward_hook(self._count_pass)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch no longer."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Watch no longer."""
        self.on_train_end(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count what comes."""
        if not {"forget", "retain"} <= set(batch):
            raise ValueError(f"A comparison counts the tasks forget and retain, got {', '.join(sorted(batch))}.")
        for name in ("forget", "retain"):
            labels = batch[name]["labels"]
            tokens = int(labels[:, 1:].ne(IGNORED).sum())
            self.counts[f"{name}_rows"] += len(labels)
            self.counts[f"{name}_tokens"] += tokens
            self._group.append((batch[name]["input_ids"], name, tokens))
        self._rows += len(batch["forget"]["labels"])
        self._batches += 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Close a step."""
        module: Any = pl_module
        if self._batches < module.accumulate and not trainer.is_last_batch:
            return
        self.rows_per_step.append(self._rows)
        self._group, self._batches, self._rows = [], 0, 0
        if len(self.rows_per_step) >= self.max_steps:
            trainer.should_stop = True

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count a backward pass."""
        self.counts["backward_passes"] += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, for a run that goes on."""
        return {
            "counts": dict(self.counts),
            "rows_per_step": list(self.rows_per_step),
            "open": [self._batches, self._rows],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the counts of the part before."""
        self.counts = Counter(state_dict["counts"])
        self.rows_per_step = list(state_dict["rows_per_step"])
        self._batches, self._rows = state_dict["open"]

    def _count_pass(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(module, nn.Embedding) or not inputs:
            return
        if not torch.is_grad_enabled():
            self.counts["forward_passes_without_gradient"] += 1
            return
        self.counts["forward_passes"] += 1
        pointer = inputs[0].data_ptr()
        for ids, name, tokens in self._group:
            if name == "retain" and ids.data_ptr() == pointer:
                self.counts["retain_tokens_trained"] += tokens


class CountingCLI(RunCLI):
    """Command line of a run whose spending is counted."""

    spending: ClassVar[CountSpending | None] = None

    def before_fit(self) -> None:
        """Add the callback that counts."""
        super().before_fit()
        if self.spending is not None:
            trainer: Any = self.trainer  # which declares no callbacks
            trainer.callbacks.append(self.spending)


def run(folder: Path) -> dict[str, Any]:
    """Train, test what was trained, or test alone, as the record in a folder says."""
    record = read_json(folder / RUN)
    config = write_whole(folder / "config.yaml", yaml.safe_dump(record["config"], sort_keys=False))
    arguments = ["-c", str(config)]
    spending = CountSpending(record["config"]["trainer"]["max_steps"]) if record["count"] else None
    CountingCLI.spending = spending
    began = trained = time.monotonic()
    metrics: dict[str, Any] = {}
    counts: dict[str, Any] | None = None
    if record["train"]:
        cli, _ = train(CountingCLI, folder, arguments)
        metrics = finite(cli.trainer.callback_metrics)
        counts = spending.record(cli.trainer) if spending is not None else None
        trained = time.monotonic()
        if record["test"]:
            cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
            metrics |= finite(cli.trainer.callback_metrics)
    else:
        cli = start(CountingCLI, folder, ["test", *arguments])
        metrics = finite(cli.trainer.callback_metrics)
    if "stress" in record:
        metrics |= _attacked(cli, record["stress"])
    if record.get("harness"):
        metrics |= _ask_harness(cli, folder, tasks=record["harness"], limit=record["harness_limit"])
    seconds = {"train": round(trained - began, 2), "test": round(time.monotonic() - trained, 2)}
    results = {"values": record["values"], "metrics": metrics, "counts": counts, "seconds": seconds}
    write_json(folder / RESULTS, results)
    return results


def _attacked(cli: RunCLI, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Attack what a run has trained or tested; return the numbers after each attack."""
    records = StressTest(**arguments).run(cli.trainer, cli.model)
    del records[UNLEARNED]  # which the run has tested
    numbers = {
        f"stress/{attack}/{name}": value
        for attack, record in records.items()
        for name, value in record.items()
        if isinstance(value, int | float)
    }
    return finite(numbers)


def _ask_harness(cli: RunCLI, folder: Path, tasks: Sequence[str], limit: int | None) -> dict[str, float]:
    """Save what a run has trained or tested, with its tokenizer, and ask lm-eval."""
    model = folder / "pretrained"
    cli.model.save_pretrained(str(model), merge=True)
    cli.datamodule.tokenizer.save_pretrained(str(model))
    return harness_accuracies(str(model), tasks, folder / "harness", limit=limit)


def check_spending(
    counts: Mapping[str, Mapping[str, Any]], seeds: Mapping[str, int], max_steps: int, rows: int
) -> None:
    """Check that all runs took the same steps, of the same number of forget rows and with the same forget tokens.

    The retain set is no part of it: some methods do not look at it. Tokens are compared among the runs of a seed, whose
    order of the rows is the same.

    Args:
        counts: What each run spent, by its name.
        seeds: Seed of each run.
        max_steps: Steps of the configuration.
        rows: Largest number of forget rows of a step.

    Raises:
        ValueError: If one differs; names both runs and the numbers.
    """
    first: dict[int, str] = {}
    for name, spent in counts.items():
        if spent["steps"] != max_steps:
            raise ValueError(
                f"{name} took {spent['steps']} optimizer steps, and the comparison asks for {max_steps} of each run; "
                "a callback or a limit of its trainer has stopped it early."
            )
        largest = max(map(int, spent["rows_per_step"]))
        if largest > rows:
            raise ValueError(f"{name} took steps of {largest} forget rows, and the effective batch is {rows}.")
        other = first.setdefault(seeds[name], name)
        for key, words in (
            ("rows_per_step", "forget rows per step (rows: steps)"),
            ("forget_rows", "forget rows in all"),
            ("forget_tokens", "target tokens of the forget set"),
        ):
            if spent[key] != counts[other][key]:
                raise ValueError(
                    f"Runs must spend the same, and the {words} differ: {other} has {counts[other][key]}, {name} "
                    f"{spent[key]}."
                )
    alike = {seed: counts[name]["forget_rows"] for seed, name in first.items()}
    if len(set(alike.values())) > 1:
        raise ValueError(f"Runs of all seeds must see as many forget rows, got {alike} (seed: rows).")


def main(args: Sequence[str]) -> int:
    """Run the runs in folders; see :func:`~lit_modules.studies.runs.run_each`."""
    return run_each(run, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
