"""``lit-modules stress``: relearning, quantization, pruning and other prompts of an unlearned model."""

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from lit_modules.cli.lightning_cli import ProjectCLI
from lit_modules.cli.options import read_options
from lit_modules.cli.public import know_public
from lit_modules.datamodules import common
from lit_modules.studies.metrics.pools import other_answers
from lit_modules.studies.runs import read_json, write_json
from lit_modules.studies.stress.attacks import harness_accuracies, relearn, write_pruned, write_quantized
from lit_modules.studies.stress.callback import UNLEARNED
from lit_modules.studies.stress.prompts import PREFILL, few_shot_tokens
from lit_modules.studies.stress.rows import of_subset
from lit_modules.studies.tables import markdown_table, print_table
from lit_modules.utils.arguments import argument_names
from lit_modules.utils.errors import UsageError
from lit_modules.utils.files import write_whole
from lit_modules.utils.run_directory import RunDirectory

DESCRIPTION = """\
Test an unlearned model as it is, with its prompts in other forms, after quantization to fewer bits, after pruning, and
after a relearning attack of some steps on its forget set or on other text; write results.json and print a table. The
same line, given again, runs what is missing. Every other argument is passed on to test, and must name the model's
folder.
"""
EXAMPLE = """\
examples:
  lit-modules stress --folder runs/stress -c ngdiff/lume.yaml --model.model runs/unlearned --data.root data/lume
  lit-modules stress --folder runs/stress --full -c ngdiff/tofu.yaml --model.model runs/unlearned --data.root data/tofu
  lit-modules stress --folder runs/stress --tasks mmlu hellaswag -c ngdiff/lume.yaml --model.model runs/unlearned
"""
PRUNING = (0.2, 0.4)
"""Shares that the full tests prune."""


@dataclass
class StressOptions:
    """Stress tests.

    Args:
        folder: Folder of the tests.
        relearning_steps: Steps of the relearning attack after which to test.
        relearning_rate: Learning rate of the relearning attack.
        relearning_on: Rows to relearn: forget, those of the forget set; retain, text that has nothing to do with it;
            paraphrased, paraphrased answers to its questions, which TOFU has.
        bits: Bits of a quantized weight, 8 or 4.
        pruning: Shares of each layer's smallest weights to set to 0.
        prompts: Other forms of the prompts: paraphrased, the questions as TOFU rewords them; few_shot, behind examples
            of the retain set; prefilled, with the answer begun.
        examples: Examples of few_shot.
        prefill: Beginning of the answer of prefilled.
        full: Whether to run all that the data have: each set to relearn, pruning by 0.2 and 0.4, each form of prompts.
        tasks: Tasks of lm-eval for the model as it is, such as mmlu.
        limit: Questions of each task; by default all.
    """

    folder: str = field(kw_only=True)
    relearning_steps: list[int] = field(default_factory=lambda: [1, 5, 20])
    relearning_rate: float = 1e-5
    relearning_on: list[Literal["forget", "retain", "paraphrased"]] = field(default_factory=lambda: ["forget"])
    bits: list[Literal[4, 8]] = field(default_factory=lambda: [8, 4])
    pruning: list[float] = field(default_factory=list)
    prompts: list[Literal["paraphrased", "few_shot", "prefilled"]] = field(default_factory=list)
    examples: int = 2
    prefill: str = PREFILL
    full: bool = False
    tasks: list[str] = field(default_factory=list)
    limit: int | None = None


def main(args: list[str]) -> int:
    """Run the stress tests."""
    options, passed = read_options(
        StressOptions, args, command="stress", description=DESCRIPTION, example=EXAMPLE, passes_on=True
    )
    if not passed:
        raise UsageError("Stress tests need the arguments of test, such as `-c ngdiff/lume.yaml --model.model FOLDER`.")
    if any(step < 1 for step in options.relearning_steps):
        raise UsageError(f"--relearning_steps must be at least 1, got {options.relearning_steps}.")
    if not 0 < options.relearning_rate < math.inf:
        raise UsageError(f"--relearning_rate must be positive and finite, got {options.relearning_rate}.")
    if any(not 0 < share < 1 for share in options.pruning):
        raise UsageError(f"--pruning must be shares between 0 and 1, got {options.pruning}.")
    if options.examples < 1:
        raise UsageError(f"--examples must be at least 1, got {options.examples}.")
    rows = _table(run_stress_tests(options, passed))
    write_whole(Path(options.folder) / "table.md", markdown_table(rows))
    print_table(rows, title="what is left")
    return 0


def run_stress_tests(options: StressOptions, arguments: list[str]) -> dict[str, dict[str, Any]]:
    """Test a model as it is and after each attack."""
    know_public()
    folder = Path(options.folder)
    settings = {"arguments": arguments, "relearning_rate": options.relearning_rate}
    records: dict[str, dict[str, Any]] = {}

    def path(name: str) -> Path:
        return folder / name.replace(" ", "_")

    def missing(name: str) -> bool:
        return not (path(name) / "results.json").is_file()

    def test(name: str, *more: str) -> None:
        results = path(name) / "results.json"
        if missing(name):
            cli = ProjectCLI.start(["test", *arguments, f"--trainer.default_root_dir={results.parent}", *more])
            write_json(results, cli.model.results())
            if name == UNLEARNED:
                write_json(folder / "model.json", str(cli.model.hparams["model"]))
        records[name] = read_json(results)

    def test_model(name: str) -> None:
        test(name, f"--model.model={path(name) / 'model'}")

    with RunDirectory(folder, noun="stress test") as directory:
        directory.check(settings)
        test(UNLEARNED)
        directory.claim(settings)  # now that the arguments are known to be right
        model = read_json(folder / "model.json")
        data = _Data(arguments, folder)
        _complete(options, data)
        for form in options.prompts:
            if form == "paraphrased":
                test("paraphrased questions", "--data.questions=paraphrased")
                continue
            name = f"{options.examples}-shot prompts" if form == "few_shot" else "prefilled prompts"
            tokens = data.prompt_tokens(form, examples=options.examples, prefill=options.prefill)
            file = path(name) / "tokens.json"
            if file.is_file() and read_json(file) != tokens:
                raise UsageError(f"{folder} holds {name} with other tokens; take another folder.")
            write_json(file, tokens)
            callback = "lit_modules.studies.stress.prompts.ChangedPrompts"
            test(name, f"--trainer.callbacks+={callback}", f"--trainer.callbacks.path={file}")
        for bits in options.bits:
            name = f"{bits} bits"
            if missing(name):
                write_quantized(model, str(path(name) / "model"), bits)
            test_model(name)
        for share in options.pruning:
            name = f"pruned by {share:g}"
            if missing(name):
                write_pruned(model, str(path(name) / "model"), share)
            test_model(name)
        for rows in options.relearning_on:
            where = "" if rows == "forget" else f" on {rows}"
            steps = sorted(set(options.relearning_steps))
            names = {step: f"relearned {step} step{'s' * (step > 1)}{where}" for step in steps}
            folders = {step: path(name) / "model" for step, name in names.items() if missing(name)}
            if folders:
                targets = iter(folders.values())
                saved = partial(_save, targets=targets, tokenizer=data.tokenizer)
                batches = data.relearning_batches(rows)
                relearn(model, batches, saved, steps=list(folders), learning_rate=options.relearning_rate)
            for name in names.values():
                test_model(name)
        write_json(folder / "results.json", records)
        if options.tasks:
            records[UNLEARNED] |= harness_accuracies(model, options.tasks, folder / "harness", limit=options.limit)
            write_json(folder / "results.json", records)
    return records


class _Data:
    """Datamodule of the arguments of a test, built once, and what attacks take from it.

    Args:
        arguments: Arguments of the test.
        folder: Folder of the tests.
    """

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self._line = ["test", *arguments, f"--trainer.default_root_dir={folder}", "--trainer.limit_test_batches=0"]

    @cached_property
    def tested(self) -> Any:
        """Datamodule, set up for a test."""
        return ProjectCLI.start(self._line).datamodule

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the data."""
        return self.tested.tokenizer

    @property
    def rewords(self) -> bool:
        """True if the data have their questions in other words."""
        return "questions" in argument_names(type(self.tested))

    @cached_property
    def paraphrased(self) -> list[Any]:
        """Rows of the forget questions with paraphrased answers."""
        return [row for row, role in other_answers(self.tested) if role == "paraphrased"]

    def relearning_batches(self, rows: str) -> Any:
        """Return the batches of a relearning attack."""
        if rows != "paraphrased":
            return of_subset(self.tested, rows).train_dataloader()
        if not self.paraphrased:
            name = type(self.tested).__name__
            raise UsageError(f"--relearning_on paraphrased: {name} has no paraphrased answers to its forget questions.")
        pad, size = common.pad_id(self.tokenizer), self.tested.batch_size
        shuffled = random.Random(0).sample(self.paraphrased, k=len(self.paraphrased))
        return [common.pad_right(shuffled[start : start + size], pad) for start in range(0, len(shuffled), size)]

    def prompt_tokens(self, form: str, examples: int, prefill: str) -> dict[str, list[int]]:
        """Return the tokens before and behind the prompts of a form."""
        if form == "few_shot":
            rows = of_subset(self.tested, "retain").encoded["retain"]
            return {"before": few_shot_tokens(rows, examples, self.tokenizer), "after": []}
        return {"before": [], "after": list(self.tokenizer(f" {prefill}", add_special_tokens=False)["input_ids"])}


def _complete(options: StressOptions, data: _Data) -> None:
    """Add to options of full tests what the data have."""
    if "paraphrased" in options.prompts and not data.rewords:
        name = type(data.tested).__name__
        raise UsageError(f"--prompts paraphrased: {name} has no questions in other words.")
    if not options.full:
        return
    reworded: list[Any] = ["paraphrased"] if data.rewords else []
    options.prompts = [*reworded, "few_shot", "prefilled"]
    options.pruning = options.pruning or list(PRUNING)
    options.relearning_on = ["forget", "retain", "paraphrased"] if data.paraphrased else ["forget", "retain"]


def _save(network: Any, targets: Iterator[Path], tokenizer: Any) -> dict[str, float]:
    """Save a relearned model with its tokenizer in the next folder."""
    target = next(targets)
    network.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return {}


def _table(records: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return the numbers of all tests as text, a column each, the header first."""
    names = [name for name, value in records[UNLEARNED].items() if isinstance(value, (int, float))]
    rows = [["", *records]]
    for name in names:
        values = [record.get(name) for record in records.values()]
        rows.append([name, *("-" if value is None else f"{value:.3f}" for value in values)])
    return rows
