"""Choice of the pictures that a model is updated on and asked about: supports, further pictures, rehearsal, queries."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from PIL import Image

from lit_modules.utils.images import FORMATS

from .images import ImageFingerprint, Picture, fingerprint, same_pictures
from .layouts import Concept, ConceptFolder, read_folder
from .pairs import ConfusablePair, plain_name

Method = Literal["real", "crop", "flip", "flip_horizontal", "synthetic", "armada_lite"]
READ_METHODS = ("synthetic", "armada_lite")
"""Methods whose pictures are read from a folder."""
Role = Literal["target", "confusable"]


@dataclass(frozen=True, eq=False)
class Pair:
    """Pair of concepts that have pictures: the one to learn, and the one that it is taken for."""

    pair_id: str
    target: Concept
    confusable: Concept

    @property
    def sides(self) -> tuple[tuple[Role, Concept], tuple[Role, Concept]]:
        """Roles with their concepts."""
        return ("target", self.target), ("confusable", self.confusable)


@dataclass(frozen=True, eq=False)
class Sample:
    """Picture with a question about a pair, of which it shows the side ``role``.

    ``origin`` is ``real``, ``crop``, ``flip``, ``flip_horizontal``, ``armada_lite``, or the kind of synthetic pictures;
    ``part`` is ``pairs``, ``replay`` or ``retention``; ``key`` seeds a crop or a flip, and is empty for a picture as it
    is.
    """

    picture: Picture
    pair: Pair
    role: Role
    origin: str = "real"
    part: str = "pairs"
    key: str = ""

    @property
    def concept(self) -> Concept:
        """Concept that the picture shows."""
        return self.pair.target if self.role == "target" else self.pair.confusable

    def load(self, max_pixels: int) -> Image.Image:
        """Return the picture in RGB, cropped or flipped where the sample is."""
        image = self.picture.load(max_pixels)
        return crop_or_flip(image, self.origin, self.key) if self.key else image


Update = tuple[Sample, list[Sample]]
"""Sample to update on, and those of which one may stand in for it."""


def crop_or_flip(image: Image.Image, method: str, key: str) -> Image.Image:
    """Crop or flip a picture, as the baselines do; a key gives the same change always.

    ``crop`` keeps a window whose width and height are each uniform in 30 to 100 % of the side, at a uniform place, and
    does not resize it. ``flip`` swaps left and right, or top and bottom, half each; ``flip_horizontal`` only the
    former.
    """
    random = Random(key)
    if method == "crop":
        width, height = (max(1, round(side * random.uniform(0.3, 1.0))) for side in image.size)
        left, top = random.randint(0, image.width - width), random.randint(0, image.height - height)
        return image.crop((left, top, left + width, top + height))
    upside_down = method == "flip" and random.random() < 0.5
    return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM if upside_down else Image.Transpose.FLIP_LEFT_RIGHT)


def resolve(pairs: Sequence[ConfusablePair], folder: ConceptFolder, problems: list[str]) -> list[Pair]:
    """Find the concepts of pairs, and take their names from the pairs where the data gives none to show."""
    resolved: list[Pair] = []
    names: dict[str, str] = {}
    for pair in pairs:
        concepts = []
        for name, within in ((pair.target, pair.target_dir), (pair.confusable, pair.confusable_dir)):
            concept = folder.find(name, within)
            if isinstance(concept, str):
                problems.append(f"pair {pair.pair_id}: {concept}")
                continue
            concepts.append(concept)
            shown = " ".join(name.replace("_", " ").split())
            folders = {plain_name(path) for path in concept.folders() if "/" in path}
            if concept.has_display_name or plain_name(name) in folders:
                continue  # the data says the name to show, or the pair gives a folder and not a name
            if plain_name(names.setdefault(concept.key, shown)) != plain_name(shown):
                problems.append(f"pair {pair.pair_id}: {concept.key} is called {names[concept.key]!r} and {shown!r}.")
        if len(concepts) == 2 and concepts[0] is concepts[1]:
            problems.append(f"pair {pair.pair_id}: both names are of the class {concepts[0].key}.")
        elif len(concepts) == 2:
            resolved.append(Pair(pair.pair_id, *concepts))
    for key, name in names.items():
        folder.concepts[key].name = name
    keys: dict[str, str] = {}
    for concept in (concept for pair in resolved for _, concept in pair.sides):
        rival = keys.setdefault(plain_name(concept.name), concept.key)
        if rival != concept.key:
            problems.append(f"{rival} and {concept.key} are both called {concept.name!r}.")
    return resolved


def supports(concept: Concept, seed: int, held_out: Sequence[Picture] = ()) -> list[Picture]:
    """Return the training pictures of a concept in the order in which they become supports, without held-out ones.

    The first is the support of one shot, the first five those of five: supports of one seed are nested. The order
    depends on the seed, the concept and the names of its files.
    """
    names = {picture.name for picture in held_out}
    pool = [
        picture
        for picture in concept.pictures.get("train", [])
        if picture.fields.get("split_role") != "query" and picture.name not in names
    ]
    Random(f"{seed}/{concept.key}/support").shuffle(pool)
    return pool


def queries(concept: Concept, split: str, number: int | None, seed: int) -> list[Picture]:
    """Return at most ``number`` pictures of a split (``None`` takes all) to ask about, drawn with the seed."""
    pool = [picture for picture in concept.pictures.get(split, []) if picture.fields.get("split_role") != "support"]
    marked = [picture for picture in pool if picture.fields.get("split_role") == "query"]
    pool = marked if split == "train" and marked else pool
    Random(f"{seed}/{concept.key}/{split}/query").shuffle(pool)
    return sorted(pool[:number], key=lambda picture: picture.name)


def synthetic_pictures(
    root: str | Path, pairs: Sequence[Pair], kind: str | None, problems: list[str]
) -> dict[tuple[str, str], list[Picture]]:
    """Read the synthetic pictures of pairs from a store or a folder; what is wrong is added to ``problems``.

    A store holds ``PAIR_ID/ROLE/KIND/images/*.png``, each beside a ``.json`` whose ``accepted`` or ``verdict`` says
    whether it passed; the role is ``target`` or ``confusable``. Any other folder is read as training data is; its
    ``metadata.jsonl`` may give ``pair_id``, ``role`` and ``kind``, and without them a class has its pictures in all
    pairs. ``kind`` ``None`` takes the only kind that there is.

    Returns:
        Pictures of each pair and role, in their order.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"There is no folder of synthetic pictures {root}; make it with `lit-modules coda augment`."
        )
    sides = [(pair, role, concept) for pair in pairs for role, concept in pair.sides]
    if (root / "manifest.json").is_file() or any((root / pair.pair_id).is_dir() for pair in pairs):
        if any((root / pair.pair_id / role).is_dir() for pair, role, _ in sides):
            return {
                (pair.pair_id, role): _stored(root, f"{pair.pair_id}/{role}", kind, problems) for pair, role, _ in sides
            }
        problems.append(
            f"{root} is the store of a run; `lit-modules coda export --output FOLDER` writes its accepted pictures as "
            "training data, and that folder is for synthetic_root."
        )
        return {}
    folder = read_folder(root)
    problems += [f"{root}: {problem}" for problem in folder.problems]
    pictures: dict[tuple[str, str], list[Picture]] = {}
    for pair, role, concept in sides:
        by_name, by_folder = (folder.find(name) for name in (concept.name, concept.key.rpartition("/")[2]))
        match = by_folder if isinstance(by_name, str) else by_name
        if isinstance(match, str):
            problems.append(f"{root}: {by_name}")
            continue
        wanted = {"pair_id": pair.pair_id, "role": role, "kind": kind}
        chosen = [
            picture
            for picture in match.pictures.get("train", [])
            if all(value is None or picture.fields.get(name) in (None, value) for name, value in wanted.items())
        ]
        kinds = {picture.fields["kind"] for picture in chosen if picture.fields.get("kind")}
        if len(kinds) > 1:
            problems.append(f"{root} holds the kinds {', '.join(sorted(map(str, kinds)))}; give synthetic_kind.")
        pictures[pair.pair_id, role] = chosen
    return pictures


def _stored(root: Path, side: str, kind: str | None, problems: list[str]) -> list[Picture]:
    folder = root / side
    kinds = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    if kind is None and len(kinds) > 1:
        problems.append(f"{folder} holds the kinds {', '.join(kinds)}; give synthetic_kind.")
        return []
    chosen = kind or (kinds[0] if kinds else "")
    pictures = []
    for path in sorted((folder / chosen / "images").glob("*")) if chosen in kinds else []:
        if path.suffix.lower() not in FORMATS:
            continue
        name = path.relative_to(root).as_posix()
        try:
            record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            verdict = record["accepted"] if "accepted" in record else record["verdict"]
        except (OSError, ValueError, KeyError, TypeError):
            verdict = None
        if verdict not in (True, False, "accepted", "rejected"):
            problems.append(f"{name} has no record {path.stem}.json that says whether it was accepted.")
        elif verdict in (True, "accepted"):
            pictures.append(Picture(path, name, record))
    return pictures


class Selection:
    """Choice of the pictures of few-shot data; what is missing for it is added to ``problems``.

    Args:
        args: Arguments of :class:`~datamodules.few_shot.few_shot.FewShotPairs`.
        pairs: Pairs by part: ``pairs`` to update on, ``replay`` to rehearse and ``retention`` to ask about.
        splits: Splits that have pictures.
    """

    def __init__(self, args: Mapping[str, Any], pairs: Mapping[str, Sequence[Pair]], splits: Iterable[str]) -> None:
        self.args, self.pairs, self.splits = args, pairs, tuple(splits)

    def support(self, concept: Concept) -> list[Picture]:
        """Return the training pictures of a concept, in the order in which they become supports."""
        pool, held_out = self._pool(concept), self.args["n_validation"] or 0
        return pool[: max(0, len(pool) - held_out)]

    def split_of(self, name: str) -> str:
        """Return the split that the queries of validation or test come from."""
        if name == "validation" and self.args["n_validation"]:
            return "train"
        if self.args["query_from"] != "auto":
            return str(self.args["query_from"])
        order = ("test", "validation") if name == "test" else ("validation", "test")
        return next((split for split in order if split in self.splits), order[0])

    def updates(self, problems: list[str]) -> list[Update]:
        """Return the samples to update on: each real one with the further ones of its concept, or alone."""
        args, pairs = self.args, self.pairs["pairs"]
        needed = max(args["n_real"], args["n_source"] or 0)
        synthetic: dict[tuple[str, str], list[Picture]] = {}
        if args["method"] in READ_METHODS:
            kind = args["synthetic_kind"] if args["method"] == "synthetic" else args["method"]
            synthetic = synthetic_pictures(args["synthetic_root"], pairs, kind, problems)
        updates: list[Update] = []
        short: dict[str, int] = {}
        for pair in pairs:
            for role, concept in pair.sides:
                pool = self.support(concept)
                if len(pool) < needed:
                    short[concept.key] = len(pool)
                    continue
                real = [Sample(picture, pair, role) for picture in pool[: args["n_real"]]]
                if args["method"] in READ_METHODS:
                    further = self._synthetic(pair, role, synthetic.get((pair.pair_id, role), []), problems)
                else:
                    further = self._changed(pair, role, pool[: args["n_source"] or args["n_real"]])
                if args["sampling"] == "probability":
                    updates += [(sample, further) for sample in real]
                else:
                    updates += [(sample, []) for sample in (*real, *further)]
        beside = f" beside the {args['n_validation']} of n_validation" if args["n_validation"] else ""
        problems += [
            f"{key} has {number} training pictures{beside}, and {needed} are needed; lower n_real or add some."
            for key, number in short.items()
        ]
        return updates + self._replay(len(updates), problems)

    def queries(self, name: str, problems: list[str]) -> list[Sample]:
        """Return the pictures that ``validation`` or ``test`` asks about."""
        split, held_out = self.split_of(name), self.args["n_validation"] if name == "validation" else None
        samples: list[Sample] = []
        empty: set[str] = set()
        for part, pair, role, concept in self._sides("pairs", "retention"):
            if held_out:
                pool = self._pool(concept)  # the last of them, whatever the number of supports
                pictures = sorted(pool[max(0, len(pool) - held_out) :], key=lambda picture: picture.name)
            else:
                pictures = queries(concept, split, self.args["n_query"], self.args["query_seed"])
            if not pictures:
                empty.add(concept.key)
            samples += [Sample(picture, pair, role, part=part) for picture in pictures]
        for key in sorted(empty):
            problems.append(f"{key} has no pictures to ask about in {split}; add some, or set query_from to 'train'.")
        return samples

    def examples(self, problems: list[str]) -> list[Sample]:
        """Return the supports that questions come with, those of known pairs too."""
        number = self.args["n_context"]
        samples: list[Sample] = []
        for part, pair, role, concept in self._sides("pairs", "retention") if number else ():
            pool = self.support(concept)
            if len(pool) < number:
                problems.append(
                    f"{concept.key} has {len(pool)} training pictures, and n_context is {number}; lower it or add some."
                )
            samples += [Sample(picture, pair, role, part=part) for picture in pool[:number]]
        return samples

    def options(self, pair: Pair, concepts: Mapping[str, Concept]) -> list[str]:
        """Return the keys of the options of a query: the pair, and others of the target's super-category.

        Raises:
            ValueError: If there are too few others.
        """
        keys, more = [pair.target.key, pair.confusable.key], self.args["n_way"] - 2
        if not more:
            return keys
        wider = pair.target.supercategory
        others = [key for key, other in concepts.items() if key not in keys and other.supercategory == wider]
        if len(others) < more:
            raise ValueError(
                f"n_way must be at most {len(others) + 2} for {pair.target.name}, as that many concepts of its "
                f"super-category are in the pairs; got {more + 2}."
            )
        Random(f"{self.args['query_seed']}/{pair.pair_id}/options").shuffle(others)
        return keys + others[:more]

    def _sides(self, *parts: str) -> Iterator[tuple[str, Pair, Role, Concept]]:
        return ((part, pair, *side) for part in parts for pair in self.pairs[part] for side in pair.sides)

    def _pool(self, concept: Concept) -> list[Picture]:
        args, held_out = self.args, []
        if args["query_from"] == "train":
            held_out = queries(concept, "train", args["n_query"], args["query_seed"])
        return supports(concept, args["seed"], held_out)

    def _synthetic(self, pair: Pair, role: Role, pictures: Sequence[Picture], problems: list[str]) -> list[Sample]:
        method, number = self.args["method"], self.args["n_synthetic"]
        if len(pictures) < number:
            problems.append(
                f"{dict(pair.sides)[role].name} has {len(pictures)} {method} pictures in pair {pair.pair_id}, and "
                f"n_synthetic is {number}; make more or lower it."
            )
        origin = self.args["synthetic_kind"] or method
        return [Sample(picture, pair, role, origin) for picture in pictures[:number]]

    def _changed(self, pair: Pair, role: Role, sources: Sequence[Picture]) -> list[Sample]:
        method, samples = self.args["method"], []
        for index in range(self.args["n_synthetic"]):
            turn, place = divmod(index, len(sources))
            key = f"{self.args['seed']}/{sources[place].name}/{method}/{turn}"
            samples.append(Sample(sources[place], pair, role, method, key=key))
        return samples

    def _replay(self, number: int, problems: list[str]) -> list[Update]:
        pool = [
            Sample(picture, pair, role, part=part)
            for part, pair, role, concept in self._sides("replay")
            for picture in self.support(concept)
        ]
        wanted = round(number * self.args["replay_ratio"])
        if wanted > len(pool):
            problems.append(f"replay_pairs have {len(pool)} training pictures, and {wanted} are needed.")
        Random(f"{self.args['seed']}/replay").shuffle(pool)
        return [(sample, []) for sample in pool[:wanted]]


def check_pictures(
    trained: Iterable[Sample], asked: Iterable[Sample], max_pixels: int, *, near: bool = True
) -> list[str]:
    """Open all pictures and return what is wrong with them, a sentence each.

    Wrong is a picture that is missing, damaged, of another type than its name says or too large, one that is in
    support and query, one that is in the support twice, and one that two concepts have. With ``near`` the same picture
    in another size or compression counts as the same.
    """
    problems: list[str] = []
    groups: list[list[tuple[Concept, Picture, ImageFingerprint]]] = []
    fingerprints: dict[str, ImageFingerprint] = {}
    for samples in (trained, asked):
        unique = {(sample.concept.key, sample.picture.name): sample for sample in samples}
        group = []
        for sample in unique.values():
            picture = sample.picture
            try:
                file = f"{picture.path}#{picture.name}"
                if file not in fingerprints:
                    fingerprints[file] = fingerprint(picture, max_pixels)
                group.append((sample.concept, picture, fingerprints[file]))
            except ValueError as error:
                problems.append(str(error))
        groups.append(group)
    support, query = groups
    for first, second in ((support, query), (support, support), (query, query)):
        ours, theirs = ([each for *_, each in group] for group in (first, second))
        for one, other in same_pictures(ours, theirs, max_bits=8 if near else -1):
            if first is second and one >= other:
                continue
            (concept, picture, own), (rival, copy, another) = first[one], second[other]
            how = "the same file" if own.sha256 == another.sha256 else "nearly the same picture"
            if first is not second:
                problems.append(
                    f"{picture.name}, which the model is updated on, and {copy.name}, which it is asked about, are "
                    f"{how}; remove one."
                )
            elif concept is not rival:
                problems.append(
                    f"{picture.name} of {concept.name} and {copy.name} of {rival.name} are {how}; remove the wrong one."
                )
            elif first is support:
                problems.append(f"{picture.name} and {copy.name} of one support are {how}; remove one.")
    return problems
