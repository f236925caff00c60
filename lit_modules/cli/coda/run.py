"""``lit-modules coda {features,score,generate,verify,augment}``: run the stages, or say what they would take."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lit_modules.cli.coda.data import pair_tasks
from lit_modules.cli.coda.options import Plan, coda_parser, read_plan
from lit_modules.coda.augmentation.estimate import Estimate, Prices
from lit_modules.coda.augmentation.estimate import Stage as Priced
from lit_modules.coda.augmentation.inputs import PairTask
from lit_modules.coda.augmentation.pipeline import CoDAPipeline, PipelineResult, Until, store_counts
from lit_modules.coda.backends.protocols import Counts
from lit_modules.coda.core.store import Store
from lit_modules.utils.interrupts import stoppable

UNTIL: dict[str, Until] = {
    "features": "features",
    "score": "scores",
    "generate": "images",
    "verify": "verification",
    "augment": "verification",
}
"""Last stage of each action."""
_PRICED: dict[Until, tuple[Priced, ...]] = {
    "features": ("features",),
    "scores": ("features", "trials"),
    "images": ("features", "trials", "images"),
    "verification": ("features", "trials", "images", "verification"),
}


def main(action: str, args: list[str]) -> int:
    """Run the stages up to that of the action, or what is missing of them.

    Args:
        action: One of :data:`UNTIL`.
        args: Options; see ``lit-modules coda augment --help``.

    Returns:
        0; 1 if the run stopped before its end or a concept failed; 130 if it was interrupted.

    Raises:
        UsageError: If an option is wrong.
        ValueError: If something is wrong with the data.
        StoreInUse: If another process writes to the store.
    """
    parser = coda_parser(action)
    parser.add_argument("--dry-run", action="store_true", help="print counts and cost; no model is asked")
    plan = read_plan(parser, action, args)
    plan.need("data", "chat", "generator", "embedder")
    if plan.config["dry_run"]:
        return _dry_run(plan)
    shard = plan.shard
    plan.apply_budget()
    data = plan.data()
    tasks = pair_tasks(data, Path(plan.store) / "support")
    print(data.describe())
    try:
        with stoppable(), Store(plan.store, shard) as store, progress_bar(action) as told:
            pipeline = _pipeline(plan, store)
            result = pipeline.run(tasks, UNTIL[action], told)
    except KeyboardInterrupt:
        print(f"Interrupted; the same line goes on in {plan.store}.")
        return 130
    print_results(result, UNTIL[action])
    print_counts(result.counts, plan.objects["prices"])
    total = Counts()
    for counts in store_counts(Store(plan.store, writable=False)).values():
        total.add(counts)
    print(f"All runs on {plan.store} together: {total.calls} calls and {total.images} images.")
    return say_failures(result)


def progress_bar(title: str) -> "_Bar":
    """Return a bar for the units of a run, which also shows its calls and images.

    Args:
        title: What is done.
    """
    return _Bar(title)


class _Bar:
    def __init__(self, title: str) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[took]}"),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns)
        self._task = self._progress.add_task(title, total=None, took="")

    def __enter__(self) -> Callable[[int, int, Mapping[str, Counts]], None]:
        self._progress.start()
        return self._tell

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _tell(self, done: int, total: int, counts: Mapping[str, Counts]) -> None:
        calls, images = (sum(getattr(one, name) for one in counts.values()) for name in ("calls", "images"))
        self._progress.update(self._task, completed=done, total=total, took=f"{calls} calls, {images} images")


def _pipeline(plan: Plan, store: Store) -> CoDAPipeline:
    given = plan.objects
    return CoDAPipeline(
        store, plan.settings, given["chat"], given["generator"], given["embedder"], verifier=given["verifier"]
    )


@contextmanager
def _reading(plan: Plan) -> Iterator[tuple[Store, Path]]:
    """Give the store, or an empty one if there is none yet, and a place for parts of files; nothing is written."""
    there = Path(plan.store).is_dir()
    with TemporaryDirectory() as folder:
        with nullcontext() if there else Store(Path(folder) / "store") as _:
            pass
        yield Store(plan.store if there else Path(folder) / "store", plan.shard, writable=False), Path(folder)


def _dry_run(plan: Plan) -> int:
    data = plan.data()
    until = UNTIL[plan.action]
    with _reading(plan) as (store, folder):
        tasks: Sequence[PairTask] = pair_tasks(data, folder)
        found = _pipeline(plan, store).dry_run(tasks, plan.objects["prices"])
    stages = {name: found.stages[name] for name in _PRICED[until]}
    if until == "images":  # the first images alone, whatever a verifier would think of them
        stages["images"] = replace(stages["images"], most_images=stages["images"].least_images)
    print(data.describe())
    print_estimate(replace(found, stages=stages), plan.store)
    return 0


def print_estimate(found: Estimate, store: str) -> None:
    """Print the calls, images and cost that a run would take, at least and at most.

    Args:
        found: What it would take.
        store: Folder of the run.
    """
    table = Table(title=f"dry run in {store}: {found.units} units to do, {found.done} done", title_justify="left")
    for name in ("stage", "calls", "images", "tokens of answers"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for name, bound in found.stages.items():
        calls, images = (bound.least_calls, bound.most_calls), (bound.least_images, bound.most_images)
        table.add_row(name, _range(calls), _range(images), f"up to {bound.most_tokens}" if bound.most_tokens else "-")
    table.add_section()
    table.add_row("all", _range(found.calls), _range(found.images), "")
    Console().print(table, markup=False)
    least, most = found.cost
    print(f"Cost: {least:.2f} to {most:.2f} by the prices given." if most else "No prices were given, so no cost.")
    print("No model was asked.")


def _range(bounds: tuple[int, int]) -> str:
    least, most = bounds
    return "-" if not most else str(most) if least == most else f"{least} to {most}"


def print_results(result: PipelineResult, until: Until) -> None:
    """Print what came of each direction of each pair.

    Args:
        result: What a run did.
        until: Its last stage.
    """
    names = {"features": ["features"], "scores": ["features", "kept"], "images": ["features", "kept", "made"]}
    numbers = names.get(until, ["features", "kept", "made", "accepted"])
    table = Table(title="results", title_justify="left")
    for name in ("concept", "told from", "kind"):
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right")
    for unit in result.units:
        shown = [_plain(text) for text in (unit.concept, unit.other, unit.kind)]
        table.add_row(*shown, *(str(getattr(unit, name)) for name in numbers))
    Console().print(table, markup=False)
    for unit in result.units:
        for warning in unit.warnings:
            print(f"note: {_plain(f'{unit.concept} against {unit.other}, {unit.kind}: {warning}')}")


def print_counts(counts: Mapping[str, Counts], prices: Prices) -> None:
    """Print what a run took by stage.

    Args:
        counts: Counts by stage.
        prices: Prices, for the cost.
    """
    if not any(one.calls or one.images for one in counts.values()):
        print("Everything was there: no model was asked and nothing drawn.")
        return
    fields = ("calls", "input_tokens", "output_tokens", "images")
    table = Table(title="this run took", title_justify="left")
    for name in ("stage", *fields, "seconds"):
        table.add_column(name.replace("_", " "), justify="left" if name == "stage" else "right")
    total = Counts()
    for stage, one in counts.items():
        total.add(one)
        table.add_row(stage, *(str(getattr(one, name)) for name in fields), f"{one.seconds:.1f}")
    if len(counts) > 1:
        table.add_section()
        table.add_row("all", *(str(getattr(total, name)) for name in fields), f"{total.seconds:.1f}")
    Console().print(table, markup=False)
    if cost := prices.paid(total):
        print(f"Cost: {cost:.2f} by the prices given.")


def say_failures(result: PipelineResult) -> int:
    """Print why a run stopped, or which concepts failed.

    Args:
        result: What a run did.

    Returns:
        1 if there is anything to say, else 0.
    """
    for unit in result.failures:
        print(f"failed: {_plain(f'{unit.concept} against {unit.other}, {unit.kind}: {unit.failure}')}")
    if result.stopped is not None:
        print(f"stopped: {_plain(result.stopped)} What is done is kept; the same line goes on.")
    return 1 if result.failures or result.stopped is not None else 0


def _plain(text: str) -> str:
    """Return a text that others made without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
