"""Human evaluation of features: a blind sample of images for annotators, and the scores of their answers."""

import base64
import csv
import html
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal, get_args

from lit_modules.coda.augmentation.export import accepted_images
from lit_modules.coda.augmentation.features import FeatureKind
from lit_modules.coda.core.concepts import PairTask, safe_name, shard_tasks
from lit_modules.coda.core.store import Store
from lit_modules.utils.files import write_whole
from lit_modules.utils.images import encoded, read_picture

Group = Literal["real target", "real misidentified", "synthetic"]
_ANSWERS = {"yes": 1, "y": 1, "1": 1, "no": 0, "n": 0, "0": 0}
_SIDE, _THUMBNAIL = 512, 160


@dataclass(frozen=True)
class GroupScore:
    """Annotators' score of one group: images with a feature, yes in percent, and Fleiss' kappa or NaN."""

    items: int
    percent: float
    kappa: float


def export_annotation(
    store: Store,
    folder: str | Path,
    tasks: Sequence[PairTask],
    kind: FeatureKind,
    num_items: int = 50,
    annotators: int = 3,
    seed: int = 0,
) -> int:
    """Write images, each with a feature, for annotators to say whether the image shows it; return their number.

    Real images of the concept that a feature belongs to, real ones of the other concept, and accepted synthetic ones
    are mixed, at most ``num_items`` each, under numbers that do not tell which is which. Written into a new folder are
    ``images``, ``sheet.html`` to look at, ``annotator-1.csv`` and so on with a blank ``answer`` for yes or no, and
    ``key.csv``, which annotators must not see.

    Raises:
        ValueError: If a number is out of its range, the folder holds something, or there are no accepted images.
    """
    if num_items < 1 or annotators < 1:
        raise ValueError(f"num_items and annotators must be at least 1, got {num_items} and {annotators}.")
    root = Path(folder)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"{root} holds something already, perhaps answers; give another folder.")
    pools = _items(store, tasks, kind)
    if not pools["synthetic"]:
        raise ValueError(f"The store {store.folder} has no accepted images of {kind}; run `lit-modules coda augment`.")
    random = Random(f"{seed}/annotation")
    chosen = [
        (group, *item) for group, pool in pools.items() for item in random.sample(pool, min(num_items, len(pool)))
    ]
    random.shuffle(chosen)
    blank, key, rows = [], [], []
    for number, (group, data, name, concept, feature) in enumerate(chosen, 1):
        image = read_picture(data, name)
        image.thumbnail((_SIDE, _SIDE))
        path = f"images/{number:04d}.png"
        write_whole(root / path, encoded(image))
        blank.append([str(number), path, _cell(feature), ""])
        key.append([str(number), group, _cell(concept), _cell(feature)])
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        coded = base64.b64encode(encoded(image)).decode()
        cells = f'<td><img src="data:image/png;base64,{coded}" alt=""></td><td>{html.escape(feature)}</td>'
        rows.append(f"<tr><td>{number}</td>{cells}</tr>\n")
    for annotator in range(1, annotators + 1):
        _write_csv(root / f"annotator-{annotator}.csv", ["item", "image", "feature", "answer"], blank)
    _write_csv(root / "key.csv", ["item", "group", "concept", "feature"], key)
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Features and pictures</title>'
    question = "<p>Does the picture show the feature? Write yes or no as the answer in your CSV file.</p>"
    write_whole(root / "sheet.html", f"{head}<body>{question}<table>\n{''.join(rows)}</table></body></html>\n")
    return len(chosen)


def score_annotation(files: Sequence[str | Path], key: str | Path) -> dict[Group, GroupScore]:
    """Return the share of yes and the annotators' agreement for each group, from a file of each annotator and the key.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If an answer is missing or is neither yes nor no, or the files are of another sample.
    """
    if not files:
        raise ValueError("There must be a file of at least one annotator, got none.")
    groups: dict[str, Group] = {}
    for row in _read_csv(Path(key), "group"):
        if row["group"] not in get_args(Group):
            raise ValueError(f"{key}: the group must be {', '.join(get_args(Group))}, got {row['group']!r}.")
        groups[row["item"]] = row["group"]  # type: ignore[assignment]
    answers = [_answers(Path(file), groups) for file in files]
    scores: dict[Group, GroupScore] = {}
    for group in get_args(Group):
        items = [item for item, own in groups.items() if own == group]
        if not items:
            continue
        yes = [sum(of_annotator[item] for of_annotator in answers) for item in items]
        counts = [[len(files) - number, number] for number in yes]
        kappa = fleiss_kappa(counts) if len(files) > 1 else float("nan")
        scores[group] = GroupScore(len(items), 100 * sum(yes) / (len(items) * len(files)), kappa)
    return scores


def fleiss_kappa(counts: Sequence[Sequence[int]]) -> float:
    """Return Fleiss' kappa, the agreement of raters beyond chance.

    Of how many raters chose each category, ``(items, categories)``, with the mean agreement ``P`` of the pairs of
    raters on an item, and ``E`` the sum of the squared shares of the categories, it is ``(P - E) / (1 - E)``; NaN if a
    single category was ever chosen, as 1 - E is 0 then.

    Raises:
        ValueError: If there is no item, fewer than two raters, or items differ in raters or categories.

    Example:
        >>> fleiss_kappa([[2, 0], [0, 2]]), fleiss_kappa([[1, 1], [1, 1]])
        (1.0, -1.0)

    References:
        Fleiss, "Measuring nominal scale agreement among many raters", Psychological Bulletin 76 (1971).
    """
    if not counts or len({len(row) for row in counts}) > 1 or min(min(row, default=-1) for row in counts) < 0:
        raise ValueError("counts must be at least one row, each with a number of raters for every category.")
    raters = sum(counts[0])
    different = [index for index, row in enumerate(counts) if sum(row) != raters]
    if raters < 2 or different:
        where = f"; item {different[0]} has {sum(counts[different[0]])}" if different else ""
        raise ValueError(f"Each item needs as many raters, at least 2: the first has {raters}{where}.")
    pairs = raters * (raters - 1)
    agreement = sum(sum(number * (number - 1) for number in row) / pairs for row in counts) / len(counts)
    shares = [sum(column) / (raters * len(counts)) for column in zip(*counts, strict=True)]
    chance = sum(share**2 for share in shares)
    return float("nan") if max(shares) == 1 else (agreement - chance) / (1 - chance)


def _items(
    store: Store, tasks: Sequence[PairTask], kind: FeatureKind
) -> dict[Group, list[tuple[bytes, str, str, str]]]:
    """Return all items of each group: bytes and name of an image, concept, feature."""
    pools: dict[Group, list[tuple[bytes, str, str, str]]] = {group: [] for group in get_args(Group)}
    for task in shard_tasks(tasks):
        for concept, _, own, others in task.directions():
            path = [task.pair.pair_id, safe_name(concept.name), kind]
            record = store.read_json([*path, "images.json"])
            if record is None:
                continue
            made = [(data, f"{index}.png") for index, data in accepted_images(store, path, record) if data is not None]
            real = [[(Path(name).read_bytes(), name) for name in names] for names in (own, others)]
            for feature in record["attributes"]:
                for group, images in zip(get_args(Group), (*real, made), strict=True):
                    pools[group] += [(data, name, concept.name, feature) for data, name in images]
    return pools


def _answers(path: Path, groups: dict[str, Group]) -> dict[str, int]:
    answers: dict[str, int] = {}
    for row in _read_csv(path, "answer"):
        answer = row["answer"].strip().lower()
        if not answer:
            raise ValueError(f"{path}: item {row['item']} has no answer; write yes or no.")
        if answer not in _ANSWERS:
            raise ValueError(f"{path}: the answer to item {row['item']} must be yes or no, got {row['answer']!r}.")
        answers[row["item"]] = _ANSWERS[answer]
    missing = [item for item in groups if item not in answers]
    if missing or len(answers) != len(groups):
        problem = f"item {missing[0]} is missing" if missing else "it has items that the key does not have"
        raise ValueError(f"{path} is not of this sample: {problem}.")
    return answers


def _read_csv(path: Path, column: str) -> list[dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; `lit-modules coda annotate export` writes it.")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [
            {name or "": text or "" for name, text in row.items() if isinstance(text, str | None)}
            for row in csv.DictReader(file)
        ]
    if not rows or not {"item", column} <= set(rows[0]):
        raise ValueError(f"{path} must be a CSV file with the columns item and {column}, separated by commas.")
    twice = [item for item, number in Counter(row["item"] for row in rows).items() if number > 1]
    if twice:
        raise ValueError(f"{path}: item {twice[0]} comes twice.")
    return rows


def _write_csv(path: Path, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows([names, *rows])
    write_whole(path, file.getvalue())


def _cell(text: str) -> str:
    """Quote a text that a spreadsheet would take for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
