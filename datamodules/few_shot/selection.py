"""Which samples an update takes and which questions it is asked: supports, further pictures, rehearsal and queries."""

from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Any

from .concepts import Concept
from .images import Picture
from .samples import READ_METHODS, ROLES, Pair, Sample, queries, supports, synthetic_pictures

Update = tuple[Sample, list[Sample]]
"""A sample to update on, and those of which one may stand in for it."""


class Selection:
    """Chooses the pictures of few-shot data, and tells what is missing.

    Args:
        given: Arguments of :class:`~datamodules.few_shot.few_shot.FewShotPairs`.
        pairs: Pairs by part: ``pairs`` to update on, ``replay`` to rehearse and ``retention`` to ask about.
        splits: Splits that have pictures.
    """

    def __init__(self, given: Mapping[str, Any], pairs: Mapping[str, Sequence[Pair]], splits: Iterable[str]) -> None:
        self.given, self.pairs, self.splits = given, pairs, tuple(splits)

    def support(self, concept: Concept) -> list[Picture]:
        """Return the training pictures of a concept, in the order in which they become supports."""
        pool, held = self._pool(concept), self.given["n_validation"] or 0
        return pool[: max(0, len(pool) - held)]

    def split_of(self, name: str) -> str:
        """Return the split that the queries of validation or test come from."""
        if name == "validation" and self.given["n_validation"]:
            return "train"
        wanted = self.given["query_from"]
        if wanted != "auto":
            return str(wanted)
        order = ("test", "validation") if name == "test" else ("validation", "test")
        return next((split for split in order if split in self.splits), order[0])

    def updates(self, problems: list[str]) -> list[Update]:
        """Return the samples to update on: each real one with the further ones of its concept, or alone.

        Args:
            problems: What is missing is added to it.
        """
        given = self.given
        needed = max(given["n_real"], given["n_source"] or 0)
        synthetic: dict[tuple[str, str], list[Picture]] = {}
        if given["method"] in READ_METHODS:
            kind = given["synthetic_kind"] if given["method"] == "synthetic" else given["method"]
            synthetic = synthetic_pictures(given["synthetic_root"], self.pairs["pairs"], kind, problems)
        samples: list[Update] = []
        short: dict[str, int] = {}
        for pair in self.pairs["pairs"]:
            for role in ROLES:
                concept = pair.concept(role)
                pool = self.support(concept)
                if len(pool) < needed:
                    short[concept.key] = len(pool)
                    continue
                real = [Sample(picture, pair, role) for picture in pool[: given["n_real"]]]
                sources = pool[: given["n_source"] or given["n_real"]]
                made = self._further(pair, role, sources, synthetic.get((pair.pair_id, role), []), problems)
                if given["sampling"] == "probability":
                    samples += [(sample, made) for sample in real]
                else:
                    samples += [(sample, []) for sample in (*real, *made)]
        beside = f" beside the {given['n_validation']} of n_validation" if given["n_validation"] else ""
        for key, number in short.items():
            problems.append(
                f"{key} has {number} training pictures{beside}, and {needed} are needed; lower n_real or add some."
            )
        return samples + self._replay(len(samples), problems)

    def queries(self, name: str, problems: list[str]) -> list[Sample]:
        """Return the pictures that validation or test asks about.

        Args:
            name: ``validation`` or ``test``.
            problems: What is missing is added to it.
        """
        split = self.split_of(name)
        asked: list[Sample] = []
        empty: set[str] = set()
        for part in ("pairs", "retention"):
            for pair in self.pairs[part]:
                for role in ROLES:
                    concept = pair.concept(role)
                    chosen = self._asked(concept, name, split)
                    if not chosen:
                        empty.add(concept.key)
                    asked += [Sample(picture, pair, role, part=part) for picture in chosen]
        for key in sorted(empty):
            problems.append(f"{key} has no pictures to ask about in {split}; add some, or set query_from to 'train'.")
        return asked

    def examples(self, problems: list[str]) -> list[Sample]:
        """Return the supports that questions come with, those of known pairs too.

        Args:
            problems: What is missing is added to it.
        """
        number = self.given["n_context"]
        samples: list[Sample] = []
        for part in ("pairs", "retention") if number else ():
            for pair in self.pairs[part]:
                for role in ROLES:
                    pool = self.support(pair.concept(role))
                    if len(pool) < number:
                        problems.append(
                            f"{pair.concept(role).key} has {len(pool)} training pictures, and n_context is {number}; "
                            "lower it or add some."
                        )
                    samples += [Sample(picture, pair, role, part=part) for picture in pool[:number]]
        return samples

    def options(self, pair: Pair, concepts: Mapping[str, Concept]) -> list[str]:
        """Return the keys of the options of a query: the pair, and others of the target's super-category.

        Args:
            pair: Pair that is asked about.
            concepts: Concepts of all pairs by key.

        Raises:
            ValueError: If there are too few others.
        """
        keys = [pair.target.key, pair.confusable.key]
        more = self.given["n_way"] - 2
        if more:
            wider = pair.target.supercategory
            others = [key for key, other in concepts.items() if key not in keys and other.supercategory == wider]
            if len(others) < more:
                raise ValueError(
                    f"n_way must be at most {len(others) + 2} for {pair.target.name}, as that many concepts of its "
                    f"super-category are in the pairs; got {more + 2}."
                )
            Random(f"{self.given['query_seed']}/{pair.pair_id}/options").shuffle(others)
            keys += others[:more]
        return keys

    def _pool(self, concept: Concept) -> list[Picture]:
        given = self.given
        asked = given["query_from"] == "train"
        kept = queries(concept, "train", given["n_query"], given["query_seed"]) if asked else []
        return supports(concept, given["seed"], kept)

    def _asked(self, concept: Concept, name: str, split: str) -> list[Picture]:
        held = self.given["n_validation"]
        if name == "validation" and held:
            pool = self._pool(concept)  # the last of them, whatever the number of supports
            return sorted(pool[max(0, len(pool) - held) :], key=lambda picture: picture.name)
        return queries(concept, split, self.given["n_query"], self.given["query_seed"])

    def _further(
        self, pair: Pair, role: str, sources: Sequence[Picture], synthetic: Sequence[Picture], problems: list[str]
    ) -> list[Sample]:
        given = self.given
        method, number = given["method"], given["n_synthetic"]
        if method in READ_METHODS:
            if len(synthetic) < number:
                problems.append(
                    f"{pair.concept(role).name} has {len(synthetic)} {method} pictures in pair {pair.pair_id}, and "
                    f"n_synthetic is {number}; make more or lower it."
                )
            origin = given["synthetic_kind"] or method
            return [Sample(picture, pair, role, origin) for picture in synthetic[:number]]
        return [
            Sample(source, pair, role, method, key=f"{given['seed']}/{source.name}/{method}/{place // len(sources)}")
            for place, source in ((place, sources[place % len(sources)]) for place in range(number))
        ]

    def _replay(self, number: int, problems: list[str]) -> list[Update]:
        given = self.given
        pool = [
            Sample(picture, pair, role, part="replay")
            for pair in self.pairs["replay"]
            for role in ROLES
            for picture in self.support(pair.concept(role))
        ]
        wanted = round(number * given["replay_ratio"])
        if wanted > len(pool):
            problems.append(f"replay_pairs have {len(pool)} training pictures, and {wanted} are needed.")
        Random(f"{given['seed']}/replay").shuffle(pool)
        return [(sample, []) for sample in pool[:wanted]]
