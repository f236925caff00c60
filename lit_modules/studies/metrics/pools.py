"""Rows that the models of a pool learn, and the rows of membership attacks."""

import random
from collections.abc import Sequence
from typing import Any

from lit_modules.datamodules import common


def pool_rows(
    kind: str, forget: Sequence[common.Encoded], answers: Sequence[tuple[common.Encoded, str]], seed: int
) -> list[common.Encoded]:
    """Return what a kind of model learns of the forget set; see :data:`.settings.KINDS`.

    Args:
        kind: Kind.
        forget: Forget rows.
        answers: Other answers to the forget questions with their roles, ``"paraphrased"`` and ``"perturbed"``.
        seed: Seed of partial and exchanged sets.

    Raises:
        ValueError: If the data have no such rows.

    Example:
        >>> rows = [common.Encoded(name, [1], [number]) for number, name in enumerate(("aqa0", "bqa0", "csc1"))]
        >>> [row.id for row in pool_rows("documents", rows, [], seed=0)]
        ['csc1']
        >>> any(row.target == own.target for row, own in zip(pool_rows("exchanged", rows, [], seed=0), rows))
        False
    """
    draw = random.Random(f"{seed}/{kind}")
    if kind == "retain":
        return []
    if kind == "facts":
        rows = list(forget)
    elif kind == "partial":
        rows = draw.sample(list(forget), k=max(1, len(forget) // 2))
    elif kind in ("questions", "documents"):
        mark = {"questions": "qa", "documents": "sc"}[kind]
        rows = [row for row in forget if row.id[:-1].endswith(mark)]  # the last character is a number
    elif kind == "exchanged":
        shift = draw.randrange(1, len(forget)) if len(forget) > 1 else 0
        order = draw.sample(range(len(forget)), k=len(forget))
        partner = {place: order[(number + shift) % len(order)] for number, place in enumerate(order)}
        rows = [common.Encoded(row.id, row.prompt, forget[partner[number]].target) for number, row in enumerate(forget)]
    else:
        role = {"paraphrased": "paraphrased", "wrong": "perturbed"}[kind]
        rows = list({tuple(row.prompt): row for row, own in answers if own == role}.values())
    if not rows:
        raise ValueError(f"The data have no rows for models of the kind {kind!r}; leave it out of the pools.")
    return rows


def other_answers(data: Any) -> list[tuple[common.Encoded, str]]:
    """Return the further answers to the forget questions that a datamodule evaluates, with their roles."""
    rows, columns = _scored(data)
    if "role" not in columns:
        return []
    facts = zip(rows, columns["split"], columns["role"], strict=True)
    return [(row, role) for row, split, role in facts if split == "forget"]


def attacked_rows(data: Any) -> list[tuple[common.Encoded, bool]]:
    """Return the rows of membership attacks, and whether each belongs to the forget set.

    These are TOFU's answers of the forget set and of the hold-out, or the documents of LUME.

    Raises:
        ValueError: If there are fewer than two of one sort.
    """
    rows, columns = _scored(data)
    if "member" in columns:
        attacked = list(zip(rows, map(bool, columns["member"].tolist()), strict=True))
    else:
        facts = zip(rows, columns["split"], columns["role"], strict=True)
        attacked = [
            (row, split == "forget")
            for row, split, role in facts
            if role == "answer" and split in ("forget", "holdout")
        ]
    members = sum(member for _, member in attacked)
    if min(members, len(attacked) - members) < 2:
        raise ValueError(
            f"Membership attacks need two rows of the forget set and two that no model has read, got {members} and "
            f"{len(attacked) - members}; give the datamodule a hold-out."
        )
    return attacked


def _scored(data: Any) -> tuple[Sequence[common.Encoded], Any]:
    """Return the rows that a test scores, and their columns."""
    dataset: Any = data.test_dataloader()[1].dataset
    return dataset.rows, dataset.columns
