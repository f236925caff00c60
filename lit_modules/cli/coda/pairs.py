"""``lit-modules coda pairs``: ask a model many-way questions and write the pairs that it confuses."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.table import Table

from lit_modules.cli.coda.data import concept_of
from lit_modules.cli.coda.options import Confusions, Plan, coda_parser, read_plan
from lit_modules.cli.coda.run import print_counts, progress_bar
from lit_modules.coda.augmentation.calls import RecordedChat
from lit_modules.coda.augmentation.confusable_pairs import (
    ConfusionTable,
    confusion_questions,
    draw_subset,
    merge_pairs,
    save_pairs,
)
from lit_modules.coda.backends.protocols import BackendError, BudgetExhausted, Counts
from lit_modules.coda.core.concepts import Concept, ConfusablePair
from lit_modules.coda.core.store import Store
from lit_modules.datamodules import few_shot
from lit_modules.utils.errors import UsageError
from lit_modules.utils.interrupts import stoppable

_TOGETHER = 64  # questions asked at once, with their images in memory
Subset = tuple[tuple[str, ...], tuple[str, ...]]
"""Options of the questions, and those of them whose images are shown."""


def main(action: str, args: list[str]) -> int:
    """Find confused pairs, or ask what is missing.

    Args:
        action: ``pairs``.
        args: Options; see ``lit-modules coda pairs --help``.

    Returns:
        0; 1 if the run stopped or an answer failed; 130 if it was interrupted.

    Raises:
        UsageError: If an option is wrong.
        ValueError: If something is wrong with the data.
        StoreInUse: If another process writes to the store.
    """
    parser = coda_parser(action)
    parser.add_argument("--output", type=str | None, help="pair file (default: pairs.json in the store)")
    parser.add_argument("--dry-run", action="store_true", help="print counts and cost; no model is asked")
    plan = read_plan(parser, action, args)
    plan.need("data", "chat")
    if plan.shard is not None:
        raise UsageError("shard divides pairs, and these are not known yet; leave it out.")
    given: Confusions = plan.objects["confusions"]
    data = plan.data()
    concepts, pictures = _concepts(data, given)
    subsets = choose_subsets([concept_of(found, data.kind) for found in concepts.values()], given)
    by_name = {found.name: concept_of(found, data.kind) for found in concepts.values()}
    number = sum(min(len(pictures[name]), given.num_images) for _, shown in subsets for name in shown)
    if plan.config["dry_run"]:
        prices = plan.objects["prices"]
        print(
            f"{len(subsets)} subsets, at most {number} questions; answers that the store has are not asked for again."
        )
        print(f"Cost: up to {prices.cost(number, number * given.max_new_tokens, 0):.2f}. No model was asked.")
        return 0
    plan.apply_budget()
    output = Path(plan.config["output"] or Path(plan.store) / "pairs.json")
    counts: dict[str, Counts] = {}
    try:
        with stoppable(), Store(plan.store) as store:
            tables, failed = _ask(plan, store, subsets, by_name, pictures, counts, number)
    except KeyboardInterrupt:
        print(f"Interrupted; the same line goes on in {plan.store}.")
        return 130
    except BudgetExhausted as error:
        print(f"stopped: {error} What is done is kept; the same line goes on.")
        return 1
    if failed:
        print(f"failed: {failed[0]} ({len(failed)} answers are missing; the same line asks again.)")
        return 1
    pairs = merge_pairs(*(table.pairs(by_name, given.threshold, given.top_n) for table in tables))
    folders = {found.name: _folder(found) for found in concepts.values() if _folder(found) is not None}
    save_pairs(output, pairs, tables, given.threshold, {name: str(folder) for name, folder in folders.items()})
    _print(pairs, tables)
    print_counts(counts, plan.objects["prices"])
    print(f"{len(pairs)} pairs are in {output}; take them with --data.pairs {output}")
    return 0


def choose_subsets(concepts: Sequence[Concept], given: Confusions) -> list[Subset]:
    """Return the options of each many-way question, and whose images it is asked about.

    Args:
        concepts: All concepts.
        given: How pairs are found.

    Raises:
        ValueError: If a super-category has too few concepts, or there is no novel one and these are asked about.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    novel = [concept for concept in concepts if not concept.known]
    for concept in concepts:
        if concept.known or given.targets == "all":
            groups[concept.supercategory].append(concept.name)
    if given.targets == "novel" and not novel:
        raise ValueError(
            "No concept is novel: say so by known: false in concepts.jsonl, or set confusions.targets to all."
        )
    if given.targets != "all" and novel:
        options = [
            draw_subset(known, given.num_options or len(known) + 1, given.seed, one.name)
            for one in sorted(novel, key=lambda one: one.name)
            for known in [groups[one.supercategory]]
        ]
        return [(names, (names[-1],)) for names in options]
    found = []
    for group, names in sorted(groups.items()):
        if len(names) == 1:
            print(f"{names[0]} is alone in its super-category {group!r}, so nothing is asked about it.")
            continue
        for number in range(given.num_subsets):
            drawn = draw_subset(names, given.num_options or len(names), given.seed + number)
            found.append((drawn, drawn))
    return list(dict.fromkeys(found))


def _concepts(data: Any, given: Confusions) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return the concepts of a datamodule's folder, whatever its pairs, and the pictures to ask about."""
    hints = data.hparams
    folder = few_shot.layouts.read_folder(data.root, hints["layout"], hints["folders"], hints["annotations"])
    if folder.problems:
        raise ValueError("\n- ".join([f"{data.root} cannot be read:", *folder.problems]))
    pictures = {}
    for concept in folder.concepts.values():
        if concept.name in pictures:
            raise ValueError(f"Two classes are called {concept.name!r}; give one another name in concepts.jsonl.")
        pool = [picture for split in given.splits for picture in concept.pictures.get(split, [])]
        Random(f"{given.seed}/{concept.key}/confusions").shuffle(pool)
        pictures[concept.name] = pool[: given.num_images]
    return folder.concepts, pictures


def _folder(concept: Any) -> str | None:
    """Return the folder of a concept, where its name alone may not find it."""
    folders = sorted(concept.dirs)
    found = str(folders[0] if folders else concept.key)
    return found if few_shot.pairs.is_inside(found) else None


def _ask(
    plan: Plan,
    store: Store,
    subsets: Sequence[Subset],
    concepts: dict[str, Concept],
    pictures: dict[str, list[Any]],
    counts: dict[str, Counts],
    number: int,
) -> tuple[list[ConfusionTable], list[str]]:
    """Ask all questions; return the tables and what went wrong."""
    given: Confusions = plan.objects["confusions"]
    failed: list[str] = []
    done = 0
    with progress_bar(plan.action) as told:

        def report(took: Counts) -> None:
            counts.setdefault("pairs", Counts()).add(took)
            store.log({"stage": "pairs", **{name: getattr(took, name) for name in took.__dataclass_fields__}})
            told(done, number, counts)

        chat = RecordedChat(plan.objects["chat"], store, report)
        tables = []
        for options, shown in subsets:
            aliases = {name: concepts[name].aliases for name in options}
            table = ConfusionTable(options, chat.model.identity, aliases)
            for name in shown:
                for batch in _batches(pictures[name]):
                    images = [picture.load() for picture in batch]
                    questions = confusion_questions(name, images, options, given.seed, given.max_new_tokens)
                    replies = chat.ask_many([question.request for question in questions])
                    for question, reply in zip(questions, replies, strict=True):
                        if isinstance(reply, BackendError):
                            failed.append(f"{name}: {reply}")
                        else:
                            table.add(name, reply.text, question.options)
                    done += len(batch)
                    told(done, number, counts)
            tables.append(table)
    return tables, failed


def _batches(pictures: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(pictures), _TOGETHER):
        yield pictures[start : start + _TOGETHER]


def _print(pairs: Sequence[ConfusablePair], tables: Sequence[ConfusionTable]) -> None:
    table = Table(title=f"confused by {tables[0].model}", title_justify="left")
    for name in ("target", "taken for", "rate"):
        table.add_column(name, justify="right" if name == "rate" else "left")
    for pair in sorted(pairs, key=lambda pair: -(pair.error_rate or 0)):
        table.add_row(pair.target.name, pair.confusable.name, f"{pair.error_rate or 0:.2f}")
    Console().print(table, markup=False)
    asked = [(one, name) for one in tables for name in one.names if one.asked(name)]
    total = sum(one.asked(name) for one, name in asked)
    invalid = sum(one.invalid_rate(name) * one.asked(name) for one, name in asked)
    if total:
        print(f"{total} images were asked about; {invalid / total:.1%} of the answers named no option.")
