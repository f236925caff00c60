"""The distance of two affordances: how far apart the existing objects are that offer them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_modules.utils.ontology import Ontology
from lit_modules.utils.suggestions import did_you_mean

Matrix = NDArray[np.float64]
Encoder = Callable[[list[str]], Any]
"""Turns phrases into an array ``(phrases, features)``, such as ``SentenceTransformer(...).encode``."""
TOLERANCE = 1e-12
"""Distances that differ by less are equal: sums in another order round otherwise."""


class AffordancePair(NamedTuple):
    """Two affordances, in alphabetical order, and their distance ``D_A``."""

    first: str
    second: str
    distance: float


@dataclass(frozen=True)
class AffordanceTable:
    """The distances of all concept-level affordances of an ontology.

    Args:
        affordances: Names in alphabetical order.
        matrix: ``D_A`` as ``(affordances, affordances)`` in float64, symmetric; NaN where no two different concepts
            own the two affordances.
    """

    affordances: tuple[str, ...]
    matrix: Matrix

    def between(self, first: str, second: str) -> float:
        """Return the distance of two affordances, NaN if it cannot be measured.

        Raises:
            ValueError: If a name is unknown; says the nearest one.
        """
        for name in (first, second):
            if name not in self.affordances:
                raise ValueError(f"There is no affordance {name!r}{did_you_mean(name, self.affordances)}")
        return float(self.matrix[self.affordances.index(first), self.affordances.index(second)])

    def pairs(self) -> list[AffordancePair]:
        """Return each unordered pair of different affordances once, in alphabetical order.

        Pairs that cannot be measured and pairs at a distance of 0 are left out.
        """
        rows, columns = np.triu_indices(len(self.affordances), 1)
        values = self.matrix[rows, columns]
        usable = np.abs(values) > TOLERANCE  # false for NaN; a cosine may make a distance negative
        names = self.affordances
        pairs = zip(rows[usable].tolist(), columns[usable].tolist(), values[usable].tolist(), strict=True)
        return [AffordancePair(names[row], names[column], value) for row, column, value in pairs]


class AffordanceDistance:
    r"""Measure how far apart affordances are.

    Two concepts differ by their affordances ``A`` as a whole and by those of all their parts ``B``; ``J`` is the
    Jaccard index, 1 for two empty sets:

    .. math:: D_{struct} = w (1 - J(A_1, A_2)) + (1 - w) (1 - J(B_1, B_2))

    With an encoder, a term ``T`` compares the names: :math:`D_C = \alpha D_{struct} + \beta T`; without one,
    :math:`D_C = D_{struct}`. Two affordances are as far apart as, on average, a concept that owns the one is from
    another concept that owns the other:

    .. math:: D_A(a_1, a_2) = mean\{D_C(c_1, c_2) : a_1 \in A(c_1), a_2 \in A(c_2), c_1 \neq c_2\}

    All pairs are computed at once with matrix products. Without the term for names, distances lie in [0, 1].

    Args:
        weight: Share ``w`` of the whole against the parts, in [0, 1].
        alpha: Share of the structural distance, at least 0; used with an encoder only.
        beta: Share of the term for names, at least 0; used with an encoder only.
        semantic_term: ``"distance"`` adds ``1 - cosine``, so that close names are close; ``"similarity"`` adds the
            cosine, as the authors' code does.
        encoder: What turns names into vectors: a function, or the name or folder of a model for
            :class:`~lit_modules.synthia.ontology.text_encoder.TextEncoder`, such as ``"bert-base-uncased"``; ``None``
            leaves the term out. Underscores in names become spaces.
        compat: Round structural and final distances to 4 digits, as the authors' code does.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> table = AffordanceDistance()(Ontology.from_file("household"))
        >>> round(table.between("sit", "rest"), 4), round(table.between("fly", "sit"), 4)
        (0.7827, 1.0)
        >>> len(table.pairs())
        1422

    References:
        Ha et al., "SYNTHIA: Novel Concept Design with Affordance Composition", arXiv 2502.17793. Weights and formulas
        are those of the authors' code; the sign of the term for names in the paper was not checked.
    """

    def __init__(
        self,
        weight: float = 0.6,
        alpha: float = 0.7,
        beta: float = 0.3,
        semantic_term: Literal["distance", "similarity"] = "distance",
        encoder: Encoder | str | None = None,
        compat: bool = False,
    ) -> None:
        if not 0 <= weight <= 1:
            raise ValueError(f"weight must lie in [0, 1], got {weight}.")
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be at least 0 and finite, got {value}.")
        if alpha + beta == 0:
            raise ValueError("alpha and beta must not both be 0: every distance would be 0.")
        if semantic_term not in ("distance", "similarity"):
            raise ValueError(f"semantic_term must be 'distance' or 'similarity', got {semantic_term!r}.")
        self.weight = weight
        self.alpha = alpha
        self.beta = beta
        self.semantic_term = semantic_term
        self.encoder = encoder
        self.compat = compat

    def __call__(self, ontology: Ontology) -> AffordanceTable:
        """Return the distances of the concept-level affordances."""
        names = ontology.affordances("concept")
        owners = incidence([concept.affordances for concept in ontology.concepts], names)
        matrix = mean_over_owners(owners.T, self.concepts(ontology))
        return AffordanceTable(names, matrix.round(4) if self.compat else matrix)

    def concepts(self, ontology: Ontology) -> Matrix:
        """Return the distances ``D_C`` of the concepts, ``(concepts, concepts)`` in the order of the ontology.

        Raises:
            ValueError: If the encoder returns something else than a finite vector for each concept.
        """
        matrix = self.structure(ontology)
        if self.encoder is None:
            return matrix
        if isinstance(self.encoder, str):
            from lit_modules.synthia.ontology.text_encoder import TextEncoder

            self.encoder = TextEncoder(self.encoder)
        cosine = self._cosine(self.encoder, [concept.name.replace("_", " ") for concept in ontology.concepts])
        term = 1 - cosine if self.semantic_term == "distance" else cosine
        return self.alpha * matrix + self.beta * term

    def structure(self, ontology: Ontology) -> Matrix:
        """Return the structural distances ``D_struct`` of the concepts, ``(concepts, concepts)``."""
        whole = incidence([concept.affordances for concept in ontology.concepts], ontology.affordances("concept"))
        parts = incidence([concept.part_affordances for concept in ontology.concepts], ontology.affordances("part"))
        matrix = self.weight * jaccard_distance(whole) + (1 - self.weight) * jaccard_distance(parts)
        return matrix.round(4) if self.compat else matrix

    @staticmethod
    def _cosine(encoder: Encoder, phrases: list[str]) -> Matrix:
        vectors = np.asarray(encoder(phrases), dtype=np.float64)
        norms = np.linalg.norm(vectors, axis=-1, keepdims=True) if vectors.ndim == 2 else np.zeros(1)
        if vectors.ndim != 2 or len(vectors) != len(phrases) or not np.isfinite(vectors).all() or not norms.all():
            raise ValueError(
                f"The encoder must return a finite vector other than 0 for each of {len(phrases)} phrases, as an array "
                f"({len(phrases)}, features); got the shape {vectors.shape}."
            )
        unit = vectors / norms
        cosine: Matrix = np.clip(unit @ unit.T, -1, 1)
        np.fill_diagonal(cosine, 1.0)
        return cosine


def incidence(sets: Sequence[frozenset[str]], names: Sequence[str]) -> Matrix:
    """Return a matrix ``(sets, names)`` that is 1 where a set holds a name and 0 elsewhere."""
    columns = {name: column for column, name in enumerate(names)}
    matrix = np.zeros((len(sets), len(names)))
    rows = [row for row, members in enumerate(sets) for _ in members]
    matrix[rows, [columns[name] for members in sets for name in members]] = 1.0
    return matrix


def jaccard_distance(members: Matrix) -> Matrix:
    """Return ``1 - |X and Y| / |X or Y|`` of all pairs of sets, ``(sets, sets)``; two empty sets are equal.

    ``members`` is ``(sets, names)``, 1 where a set holds a name. Equal sets are exactly at 0, disjoint ones at 1.

    Example:
        >>> jaccard_distance(np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])).tolist()
        [[0.0, 0.5, 1.0], [0.5, 0.0, 1.0], [1.0, 1.0, 0.0]]
    """
    common = members @ members.T
    sizes = members.sum(1)
    either = sizes[:, None] + sizes - common
    # the difference is whole, so that equal sets are at 0 and disjoint ones at 1 without rounding
    distance: Matrix = (either - common) / np.maximum(either, 1)
    return distance


def mean_over_owners(owners: Matrix, concepts: Matrix) -> Matrix:
    """Return the mean distance of two different owners, for all pairs of affordances; NaN where there are none.

    With ``W`` the owners ``(affordances, concepts)``, 1 where a concept owns an affordance, ``D`` the symmetric
    distances of concepts and ``n`` the row sums of ``W``, it is ``(W D W' - W diag(D) W') / (n n' - W W')``: the second
    terms take out the concepts that own both.

    Example:
        >>> mean_over_owners(np.eye(2), np.array([[0.0, 0.3], [0.3, 0.0]])).tolist()
        [[nan, 0.3], [0.3, nan]]
    """
    off = concepts.copy()
    np.fill_diagonal(off, 0.0)
    total = owners @ off @ owners.T
    counts = owners.sum(1)
    number = np.outer(counts, counts) - owners @ owners.T
    mean: Matrix = np.full_like(total, np.nan)
    np.divide((total + total.T) / 2, number, out=mean, where=number > 0)
    return mean
