"""``lit-modules coda pairs``: ask a model many-way questions and write the pairs that it confuses."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from lit_modules.cli.coda.data import concept_of
from lit_modules.cli.coda.options import CodaOptions, Confusions
from lit_modules.cli.coda.run import STOPPED, print_counts, progress_bar
from lit_modules.coda.augmentation.confusable_pairs import (
    ConfusionTable,
    confusion_questions,
    draw_subset,
    merge_pairs,
    save_pairs,
)
from lit_modules.coda.backends.protocols import BackendError, BudgetExhausted, Counts
from lit_modules.coda.core.concepts import Concept
from lit_modules.coda.core.store import RecordedChat, Store
from lit_modules.datamodules import few_shot
from lit_modules.studies.tables import print_table
from lit_modules.utils.errors import UsageError
from lit_modules.utils.interrupts import stoppable

_BATCH = 64  # questions asked at once, with their images in memory
Subset = tuple[tuple[str, ...], tuple[str, ...]]
"""Options of the questions, and those of them whose images are shown."""


@dataclass(kw_only=True)
class PairsOptions(CodaOptions):
    """Options of the search for pairs.

    Args:
        output: pair file (default: pairs.json in the store)
        dry_run: print counts and cost; no model is asked
    """

    output: str | None = None
    dry_run: bool = False


def find_pairs(options: PairsOptions) -> int:
    """Find confusable pairs, or ask what is missing."""
    options.need("data", "chat")
    if options.shard is not None:
        raise UsageError("shard divides pairs, and these are not known yet; leave it out.")
    search, data = options.confusions, options.prepare_data()
    folders, images = _read_folder(data, search)
    concepts = {name: concept_of(concept, data.kind) for name, concept in folders.items()}
    subsets = choose_subsets(list(concepts.values()), search)
    number = sum(len(images[name]) for _, shown in subsets for name in shown)
    if options.dry_run:
        cost = options.prices.estimate(number, number * search.max_new_tokens, 0)
        print(f"Subsets: {len(subsets)}. Questions: at most {number}; those answered in the store are not asked again.")
        print(f"Cost: up to {cost:.2f}. No model was asked.")
        return 0
    options.apply_budget()
    output = Path(options.output or Path(options.store) / "pairs.json")
    counts: dict[str, Counts] = {}
    try:
        with stoppable(), Store(options.store) as store:
            tables, failures = _ask(options, store, subsets, concepts=concepts, images=images, counts=counts)
    except KeyboardInterrupt:
        print(f"Interrupted; the same command resumes in {options.store}.")
        return 130
    except BudgetExhausted as error:
        print(f"stopped: {error} {STOPPED}")
        return 1
    if failures:
        print(f"failed: {failures[0]} ({len(failures)} answers are missing; the same line asks again.)")
        return 1
    pairs = merge_pairs(*(table.pairs(concepts, search.threshold, search.top_n) for table in tables))
    directories = {name: str(min(map(str, concept.dirs), default=concept.key)) for name, concept in folders.items()}
    directories = {name: folder for name, folder in directories.items() if few_shot.pairs.is_inside(folder)}
    save_pairs(output, pairs, tables, threshold=search.threshold, directories=directories)
    rows = [
        [pair.target.name, pair.confusable.name, f"{pair.error_rate or 0:.2f}"]
        for pair in sorted(pairs, key=lambda pair: -(pair.error_rate or 0))
    ]
    print_table([["target", "taken for", "rate"], *rows], f"confused by {tables[0].model}", texts=2)
    answers = [(table.asked(name), table.invalid_rate(name)) for table in tables for name in table.names]
    total = sum(times for times, _ in answers)
    if total:
        invalid = sum(times * rate for times, rate in answers if times)
        print(f"{total} images were asked about; {invalid / total:.1%} of the answers named no option.")
    print_counts(counts, options.prices)
    print(f"{len(pairs)} pairs are in {output}; take them with --data.pairs {output}")
    return 0


def choose_subsets(concepts: Sequence[Concept], search: Confusions) -> list[Subset]:
    """Return the options of each many-way question, and whose images it is asked about."""
    groups: dict[str, list[str]] = defaultdict(list)
    novel = [concept for concept in concepts if not concept.known]
    for concept in concepts:
        if concept.known or search.targets == "all":
            groups[concept.supercategory].append(concept.name)
    if search.targets == "novel" and not novel:
        raise ValueError(
            "No concept is novel: say so by known: false in concepts.jsonl, or set confusions.targets to all."
        )
    subsets: list[Subset] = []
    if search.targets != "all" and novel:
        for concept in sorted(novel, key=lambda concept: concept.name):
            known = groups[concept.supercategory]
            names = draw_subset(known, search.num_options or len(known) + 1, search.seed, always=concept.name)
            subsets.append((names, (concept.name,)))
        return subsets
    for group, known in sorted(groups.items()):
        if len(known) == 1:
            print(f"{known[0]} is alone in its super-category {group!r}, so nothing is asked about it.")
            continue
        for number in range(search.num_subsets):
            names = draw_subset(known, search.num_options or len(known), search.seed + number)
            subsets.append((names, names))
    return list(dict.fromkeys(subsets))


def _read_folder(data: Any, search: Confusions) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return the concepts of a datamodule's folder, whatever its pairs, and the images to ask about, by name."""
    hints = data.hparams
    folder = few_shot.layouts.read_folder(
        data.root, hints["layout"], hints["folders"], annotations=hints["annotations"]
    )
    if folder.problems:
        raise ValueError("\n- ".join([f"{data.root} cannot be read:", *folder.problems]))
    concepts: dict[str, Any] = {}
    images = {}
    for concept in folder.concepts.values():
        if concept.name in concepts:
            raise ValueError(f"Two classes are called {concept.name!r}; give one another name in concepts.jsonl.")
        concepts[concept.name] = concept
        pool = [image for split in search.splits for image in concept.pictures.get(split, [])]
        Random(f"{search.seed}/{concept.key}/confusions").shuffle(pool)
        images[concept.name] = pool[: search.num_images]
    return concepts, images


def _ask(
    options: PairsOptions,
    store: Store,
    subsets: Sequence[Subset],
    concepts: Mapping[str, Concept],
    images: Mapping[str, Sequence[Any]],
    counts: dict[str, Counts],
) -> tuple[list[ConfusionTable], list[str]]:
    """Ask all questions; return the tables and the failures."""
    search, failures = options.confusions, []
    done, number = 0, sum(len(images[name]) for _, shown in subsets for name in shown)
    assert options.chat is not None
    with progress_bar(options.action) as notify:

        def report(taken: Counts) -> None:
            counts.setdefault("pairs", Counts()).add(taken)
            store.log({"stage": "pairs", **asdict(taken)})
            notify(done, number, counts)

        chat = RecordedChat(options.chat, store, report)
        tables = []
        for names, shown in subsets:
            aliases = {name: concepts[name].aliases for name in names}
            table = ConfusionTable(names, chat.model.identity, aliases)
            for name in shown:
                for start in range(0, len(images[name]), _BATCH):
                    batch = [image.load() for image in images[name][start : start + _BATCH]]
                    questions = confusion_questions(
                        name, batch, names, seed=search.seed, max_new_tokens=search.max_new_tokens
                    )
                    replies = chat.ask_many([question.request for question in questions])
                    for question, reply in zip(questions, replies, strict=True):
                        if isinstance(reply, BackendError):
                            failures.append(f"{name}: {reply}")
                        else:
                            table.add(name, reply.text, question.options)
                    done += len(batch)
                    notify(done, number, counts)
            tables.append(table)
    return tables, failures
