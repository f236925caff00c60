"""``lit-modules coda {features,score,generate,verify,augment}``: run the stages, or print what they would take."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lit_modules.cli.coda.data import pair_tasks
from lit_modules.cli.coda.options import CodaOptions
from lit_modules.coda.augmentation.pipeline import CoDAPipeline, Estimate, PipelineResult, Until, store_counts
from lit_modules.coda.backends.protocols import Counts, Prices
from lit_modules.coda.core.store import Store
from lit_modules.studies.tables import print_table
from lit_modules.utils.interrupts import stoppable

UNTIL: dict[str, Until] = {
    "features": "features",
    "score": "scores",
    "generate": "images",
    "verify": "verification",
    "augment": "verification",
}
"""Last stage of each action."""
_PRICED = {"features": 1, "scores": 2, "images": 3, "verification": 4}  # stages of the estimate up to each
STOPPED = "What is done is kept; the same command resumes."


@dataclass(kw_only=True)
class RunOptions(CodaOptions):
    """Options of a run.

    Args:
        dry_run: print counts and cost; no model is asked
    """

    dry_run: bool = False

    def pipeline(self, store: Store) -> CoDAPipeline:
        """Return the pipeline on a store."""
        self.need("data", "chat", "generator", "embedder")
        assert self.chat is not None
        assert self.generator is not None
        assert self.embedder is not None
        return CoDAPipeline(
            store, self.settings, self.chat, generator=self.generator, embedder=self.embedder, verifier=self.verifier
        )


def run_stages(options: RunOptions) -> int:
    """Run the stages up to that of the action, or what is missing of them."""
    options.need("data", "chat", "generator", "embedder")
    until = UNTIL[options.action]
    if options.dry_run:
        return _dry_run(options, until)
    shard = options.parse_shard()
    options.apply_budget()
    data = options.prepare_data()
    tasks = pair_tasks(data, Path(options.store) / "support")
    print(data.describe())
    try:
        with stoppable(), Store(options.store, shard) as store, progress_bar(options.action) as notify:
            result = options.pipeline(store).run(tasks, until, notify)
    except KeyboardInterrupt:
        print(f"Interrupted; the same command resumes in {options.store}.")
        return 130
    print_results(result, until)
    print_counts(result.counts, options.prices)
    total = _total(store_counts(Store(options.store, writable=False)))
    print(f"All runs on {options.store} together: {total.calls} calls and {total.images} images.")
    for unit in result.failures:
        print(f"failed: {_plain(f'{unit.concept} against {unit.other}, {unit.kind}: {unit.failure}')}")
    if result.stopped is not None:
        print(f"stopped: {_plain(result.stopped)} {STOPPED}")
    return 1 if result.failures or result.stopped is not None else 0


def _dry_run(options: RunOptions, until: Until) -> int:
    """Print the estimate, of an empty store if there is none yet; nothing is written."""
    data = options.prepare_data()
    with TemporaryDirectory() as folder:
        store = options.store
        if not Path(store).is_dir():
            store = f"{folder}/store"
            Store(store).close()
        tasks = pair_tasks(data, folder)
        reader = Store(store, options.parse_shard(), writable=False)
        estimate = options.pipeline(reader).dry_run(tasks, options.prices)
    stages = dict(list(estimate.stages.items())[: _PRICED[until]])
    if until == "images":  # the first images alone, whatever a verifier would think of them
        stages["images"] = replace(stages["images"], most_images=stages["images"].least_images)
    print(data.describe())
    print_estimate(replace(estimate, stages=stages), options.store)
    return 0


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int, Mapping[str, Counts]], None]]:
    """Show a bar of the units of a run, with its calls and images."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[counts]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(title, total=None, counts="")

        def notify(done: int, total: int, counts: Mapping[str, Counts]) -> None:
            taken = _total(counts)
            progress.update(task, completed=done, total=total, counts=f"{taken.calls} calls, {taken.images} images")

        yield notify


def print_estimate(estimate: Estimate, store: str) -> None:
    """Print the calls, images and cost of a run, at least and at most."""
    rows = [
        [
            stage,
            _range(bound.least_calls, bound.most_calls),
            _range(bound.least_images, bound.most_images),
            f"up to {bound.most_tokens}" if bound.most_tokens else "-",
        ]
        for stage, bound in estimate.stages.items()
    ]
    title = f"dry run in {store}: {estimate.units} units to do, {estimate.done} done"
    all_ = ["all", _range(*estimate.calls), _range(*estimate.images), ""]
    print_table([["stage", "calls", "images", "tokens of answers"], *rows, [], all_], title)
    least, most = estimate.cost
    print(f"Cost: {least:.2f} to {most:.2f} by the prices given." if most else "No prices were given, so no cost.")
    print("No model was asked.")


def print_results(result: PipelineResult, until: Until) -> None:
    """Print the results of each direction of each pair."""
    numbers = ["features", "kept", "made", "accepted"][: _PRICED[until]]
    rows = [
        [
            *(_plain(text) for text in (unit.concept, unit.other, unit.kind)),
            *(str(getattr(unit, name)) for name in numbers),
        ]
        for unit in result.units
    ]
    print_table([["concept", "told from", "kind", *numbers], *rows], "results", texts=3)
    for unit in result.units:
        for warning in unit.warnings:
            print(f"note: {_plain(f'{unit.concept} against {unit.other}, {unit.kind}: {warning}')}")


def print_counts(counts: Mapping[str, Counts], prices: Prices) -> None:
    """Print the use of models in a run by stage."""
    total = _total(counts)
    if not (total.calls or total.images):
        print("Everything was there: no model was asked and nothing drawn.")
        return
    names = ("calls", "input_tokens", "output_tokens", "images")
    rows = [
        [stage, *(str(getattr(row, name)) for name in names), f"{row.seconds:.1f}"]
        for stage, row in {**counts, "all": total}.items()
    ]
    rows = [*rows[:-1], [], rows[-1]] if len(counts) > 1 else rows[:-1]
    print_table([["stage", *(name.replace("_", " ") for name in names), "seconds"], *rows], "this run took")
    if cost := prices.cost(total):
        print(f"Cost: {cost:.2f} by the prices given.")


def _total(counts: Mapping[str, Counts]) -> Counts:
    total = Counts()
    for row in counts.values():
        total.add(row)
    return total


def _range(least: int, most: int) -> str:
    return "-" if not most else str(most) if least == most else f"{least} to {most}"


def _plain(text: str) -> str:
    """Return a text of others without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
