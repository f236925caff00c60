"""Which pictures of a pair a model is updated on and asked about: supports, queries, baselines and their check."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from PIL import Image

from lit_modules.utils.images import FORMATS

from .concepts import Concept, ConceptFolder
from .images import Look, Picture, inspect, same_pictures
from .layouts import read_folder
from .pairs import ConfusablePair, plain_name, read_lines

Method = Literal["real", "crop", "flip", "flip_horizontal", "synthetic", "armada_lite"]
METHODS: tuple[Method, ...] = ("real", "crop", "flip", "flip_horizontal", "synthetic", "armada_lite")
READ_METHODS = ("synthetic", "armada_lite")
"""Methods whose pictures are read from a folder."""
ROLES: tuple[Literal["target", "confusable"], ...] = ("target", "confusable")
Features = dict[tuple[str, str], tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Pair:
    """A pair whose concepts were found.

    Args:
        pair_id: Name of the pair.
        target: Concept to learn.
        confusable: Concept that it is taken for.
    """

    pair_id: str
    target: Concept
    confusable: Concept

    def concept(self, role: str) -> Concept:
        """Return the concept of a role."""
        return self.target if role == "target" else self.confusable


@dataclass(frozen=True, eq=False)
class Sample:
    """A picture with a question.

    Args:
        picture: Picture.
        pair: Pair that the question is about.
        role: Which of the two the picture shows.
        origin: ``real``, ``crop``, ``flip``, ``flip_horizontal``, ``armada_lite``, or the kind of synthetic pictures.
        part: ``pairs``, ``replay`` or ``retention``.
        key: What a crop or a flip is drawn from.
    """

    picture: Picture
    pair: Pair
    role: str
    origin: str = "real"
    part: str = "pairs"
    key: str = ""

    def load(self, max_pixels: int) -> Image.Image:
        """Return the picture in RGB, cropped or flipped where the sample is."""
        image = self.picture.load(max_pixels)
        return image if not self.key else changed(image, self.origin, self.key)


def changed(image: Image.Image, method: str, key: str) -> Image.Image:
    """Crop or flip a picture, as the baselines do.

    ``crop`` keeps a window whose width and height are each uniform in 30 to 100 % of the side, at a uniform place, and
    does not resize it. ``flip`` swaps left and right, or top and bottom, half each; ``flip_horizontal`` only the
    former.

    Args:
        image: Picture.
        method: ``crop``, ``flip`` or ``flip_horizontal``.
        key: What the change is drawn from; a key gives the same change always.
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
    found: list[Pair] = []
    names: dict[str, str] = {}
    for pair in pairs:
        concepts = []
        for name, within in ((pair.target, pair.target_dir), (pair.confusable, pair.confusable_dir)):
            concept, reason = folder.find(name, within)
            if concept is None:
                problems.append(f"pair {pair.pair_id}: {reason}")
                continue
            concepts.append(concept)
            shown = " ".join(name.replace("_", " ").split())
            folders = {plain_name(place) for place in concept.folders() if "/" in place}
            if concept.has_display_name or plain_name(name) in folders:
                continue  # the data says the name to show, or the pair gives a folder and not a name
            if plain_name(names.setdefault(concept.key, shown)) != plain_name(shown):
                problems.append(f"pair {pair.pair_id}: {concept.key} is called {names[concept.key]!r} and {shown!r}.")
        if len(concepts) == 2 and concepts[0] is concepts[1]:
            problems.append(f"pair {pair.pair_id}: both names are of the class {concepts[0].key}.")
        elif len(concepts) == 2:
            found.append(Pair(pair.pair_id, *concepts))
    for key, name in names.items():
        folder.concepts[key].name = name
    taken: dict[str, str] = {}
    for both in found:
        for role in ROLES:
            named = both.concept(role)
            rival = taken.setdefault(plain_name(named.name), named.key)
            if rival != named.key:
                problems.append(f"{rival} and {named.key} are both called {named.name!r}.")
    return found


def supports(concept: Concept, seed: int, kept_back: Sequence[Picture] = ()) -> list[Picture]:
    """Return the training pictures of a concept in the order in which they become supports.

    The first is the support of one shot, the first five those of five: supports of one seed are nested. The order
    depends on the seed, the concept and the names of its files.

    Args:
        concept: Concept.
        seed: Seed.
        kept_back: Pictures that are queries.
    """
    queries = {picture.name for picture in kept_back}
    pool = [
        picture
        for picture in concept.pictures.get("train", [])
        if picture.fields.get("split_role") != "query" and picture.name not in queries
    ]
    Random(f"{seed}/{concept.key}/support").shuffle(pool)
    return pool


def queries(concept: Concept, split: str, number: int | None, seed: int) -> list[Picture]:
    """Return pictures of a concept to ask about.

    Args:
        concept: Concept.
        split: ``validation``, ``test`` or ``train``.
        number: Most pictures; ``None`` takes all.
        seed: Seed of the choice.
    """
    pool = [p for p in concept.pictures.get(split, []) if p.fields.get("split_role") != "support"]
    marked = [picture for picture in pool if picture.fields.get("split_role") == "query"]
    pool = marked if split == "train" and marked else pool
    Random(f"{seed}/{concept.key}/{split}/query").shuffle(pool)
    return sorted(pool[:number], key=lambda picture: picture.name)


def synthetic_pictures(
    root: str | Path, pairs: Sequence[Pair], kind: str | None, problems: list[str]
) -> dict[tuple[str, str], list[Picture]]:
    """Read the synthetic pictures of pairs from a store or a folder.

    A store holds ``PAIR_ID/ROLE/KIND/images/*.png``, each beside a ``.json`` whose ``accepted`` or ``verdict`` says
    whether it passed; the role is ``target`` or ``confusable``. Any other folder is read as training data is; its
    ``metadata.jsonl`` may give ``pair_id``, ``role`` and ``kind``, and without them a class has its pictures in all
    pairs.

    Args:
        root: Store or folder.
        pairs: Pairs to read for.
        kind: Kind of pictures, such as ``visual_contrastive``; ``None`` takes the only one.
        problems: What is wrong is added to it.

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
    found: dict[tuple[str, str], list[Picture]] = {}
    if (root / "manifest.json").is_file() or any((root / pair.pair_id).is_dir() for pair in pairs):
        if not any((root / pair.pair_id / role).is_dir() for pair in pairs for role in ROLES):
            problems.append(
                f"{root} is the store of a run; `lit-modules coda export --output FOLDER` writes its accepted pictures "
                "as training data, and that folder is for synthetic_root."
            )
            return {}
        for pair in pairs:
            for role in ROLES:
                place = root / pair.pair_id / role
                found[pair.pair_id, role] = _stored(root, place, kind, problems)
        return found
    folder = read_folder(root)
    problems += [f"{root}: {problem}" for problem in folder.problems]
    for pair in pairs:
        for role in ROLES:
            concept, reason = folder.find(pair.concept(role).name)
            if concept is None:
                concept, _ = folder.find(pair.concept(role).key.rpartition("/")[2])
            if concept is None:
                problems.append(f"{root}: {reason}")
                continue
            chosen = [
                picture
                for picture in concept.pictures.get("train", [])
                if picture.fields.get("pair_id") in (None, pair.pair_id)
                and picture.fields.get("role") in (None, role)
                and (kind is None or picture.fields.get("kind") in (None, kind))
            ]
            kinds = {picture.fields["kind"] for picture in chosen if picture.fields.get("kind")}
            if len(kinds) > 1:
                problems.append(f"{root} holds the kinds {', '.join(sorted(map(str, kinds)))}; give synthetic_kind.")
            found[pair.pair_id, role] = chosen
    return found


def _stored(root: Path, place: Path, kind: str | None, problems: list[str]) -> list[Picture]:
    kinds = sorted(entry.name for entry in place.iterdir() if entry.is_dir()) if place.is_dir() else []
    if kind is None and len(kinds) > 1:
        problems.append(f"{place} holds the kinds {', '.join(kinds)}; give synthetic_kind.")
        return []
    chosen = kind or (kinds[0] if kinds else "")
    pictures = []
    for path in sorted((place / chosen / "images").glob("*")) if chosen in kinds else []:
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


def read_features(source: str | Path | Sequence[dict[str, Any]]) -> Features:
    """Read the attributes that tell concepts apart.

    Args:
        source: JSON list or JSON lines, or the list itself: objects with ``target``, ``confusable`` and ``features``,
            the attributes of the former that the latter lacks.

    Returns:
        Attributes by the two names as they are compared, see :func:`~datamodules.few_shot.pairs.plain_name`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If an entry is malformed.
    """
    rows: Any = source
    if isinstance(source, (str, Path)):
        if not Path(source).is_file():
            raise FileNotFoundError(f"There is no file of features {source}; `lit-modules coda export` writes it.")
        try:
            rows = json.loads(Path(source).read_text(encoding="utf-8"))
        except ValueError:
            rows = read_lines(Path(source))[0]
    features: Features = {}
    for number, row in enumerate(rows if isinstance(rows, list) else [rows]):
        try:
            names, listed = (row["target"], row["confusable"]), row["features"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"features entry {number} must have target, confusable and features.") from error
        if not isinstance(listed, list) or not all(isinstance(text, str) for text in (*names, *listed)):
            raise ValueError(f"features entry {number} must list texts, got {listed!r}.")
        features[plain_name(names[0]), plain_name(names[1])] = tuple(listed)
    return features


def check_pictures(
    supports: Iterable[tuple[Concept, Picture]],
    queries: Iterable[tuple[Concept, Picture]],
    max_pixels: int,
    near: bool = True,
) -> list[str]:
    """Open all pictures and return what is wrong with them, a sentence each.

    Wrong is a picture that is missing, damaged, of another type than its name says or too large, one that is in
    support and query, one that is in the support twice, and one that two concepts have.

    Args:
        supports: Pictures to update on.
        queries: Pictures to ask about.
        max_pixels: Most pixels of a picture.
        near: Whether the same picture in another size or compression counts as the same.
    """
    problems: list[str] = []
    groups: list[list[tuple[Concept, Picture, Look]]] = []
    looks: dict[str, Look] = {}
    for pictures in (supports, queries):
        unique = {(concept.key, picture.name): (concept, picture) for concept, picture in pictures}
        group = []
        for concept, picture in unique.values():
            try:
                place = f"{picture.path}#{picture.name}"
                if place not in looks:
                    looks[place] = inspect(picture, max_pixels)
                group.append((concept, picture, looks[place]))
            except ValueError as error:
                problems.append(str(error))
        groups.append(group)
    bits = 8 if near else -1
    first, second = groups
    for ours, theirs, same in ((first, second, False), (first, first, True), (second, second, True)):
        places = same_pictures([look for *_, look in ours], [look for *_, look in theirs], bits)
        for one, other in places:
            if same and one >= other:
                continue
            (concept, picture, look), (rival, copy, another) = ours[one], theirs[other]
            how = "the same file" if look.sha256 == another.sha256 else "nearly the same picture"
            if not same:
                problems.append(
                    f"{picture.name}, which the model is updated on, and {copy.name}, which it is asked about, are "
                    f"{how}; remove one."
                )
            elif concept is not rival:
                problems.append(
                    f"{picture.name} of {concept.name} and {copy.name} of {rival.name} are {how}; remove the wrong one."
                )
            elif ours is first:
                problems.append(f"{picture.name} and {copy.name} of one support are {how}; remove one.")
    return problems
