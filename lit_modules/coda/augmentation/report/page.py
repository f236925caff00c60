"""The report on a run: one page with the pairs, their features and pictures, what it took, and what came of it."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_modules.coda.augmentation.confusable_pairs import load_tables
from lit_modules.coda.augmentation.estimate import Prices
from lit_modules.coda.augmentation.pipeline import store_counts
from lit_modules.coda.augmentation.presets import preset
from lit_modules.coda.augmentation.report.pictures import Thumbnail, share_places, thumbnail
from lit_modules.coda.augmentation.report.records import (
    STAGES,
    MadeImage,
    PairRecord,
    UnitRecord,
    read_failures,
    read_pair,
)
from lit_modules.coda.augmentation.report.results import ResultRow, read_results, result_tables
from lit_modules.coda.backends.protocols import Counts
from lit_modules.coda.core.concepts import safe_name
from lit_modules.coda.core.store import Store
from lit_modules.utils.files import write_whole
from lit_modules.utils.pages import read_part, render_page, script_source

_PACKAGE, _TEMPLATE, _SCRIPT = "lit_modules.coda.augmentation.report", "data/report.html.j2", "data/report_script.js.j2"
Confusions = dict[frozenset[str], list[dict[str, Any]]]
"""Answers about each two concepts."""
_FEW_PAIRS = 5  # pairs that are shown open


def write_report(
    store: Store,
    destination: str | Path,
    results: Sequence[Mapping[str, Any]] | str | Path | None = None,
    prices: Prices | None = None,
    max_images: int = 3000,
    title: str = "CoDA",
) -> Path:
    """Write one HTML page on a run that holds everything, pictures too, and needs no network.

    It tells settings, models and cost, the pairs with their real pictures, features with scores and why each was kept
    or not, synthetic pictures with verdicts, prompts and seeds, the totals of each class, and accuracies if they are
    given. Stages that were not run are named. Names and what models said are escaped; pictures are small copies, and
    one that is missing or damaged leaves its name. A policy lets no script run but the page's own, which sorts tables.

    Args:
        store: Store of a run; reading is enough.
        destination: File; its folder is made.
        results: Accuracies after the update, or a JSON file of them. A row has ``method``, ``real``, ``synthetic``
            (images of each class) and ``accuracy``, and may have ``lower``, ``upper``, ``std``, ``invalid`` (all
            shares in [0, 1]), ``seeds``, ``feature``, ``dataset`` and ``model``.
        prices: Prices, for the cost; ``None`` tells of no cost.
        max_images: Most pictures on the page, shared evenly by all groups; of each at least one is shown.
        title: Title of the page.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If there is no such file of results.
        ValueError: If results or the store's manifest cannot be read, or ``max_images`` is not positive.
    """
    if max_images < 1:
        raise ValueError(f"max_images must be at least 1, got {max_images}.")
    rows = [] if results is None else read_results(results)
    manifest, pairs = _read(store)
    confusions, problem = _confusions(store)
    shown = _Shown(store, pairs, max_images, confusions)
    script = read_part(_PACKAGE, _SCRIPT)
    values = {
        "title": title,
        "script": script,
        "policy": script_source(script),
        "manifest": manifest,
        "preset": None if manifest is None else _preset(manifest["settings"]),
        "stages": _stages(pairs),
        "counts": _counts(store, prices),
        "prices": prices,
        "tables": result_tables(rows),
        "classes": _classes(pairs),
        "kinds": [] if manifest is None else list(manifest["settings"]["kinds"]),
        "pairs": [shown.pair(pair) for pair in pairs],
        "open": len(pairs) <= _FEW_PAIRS,
        "warnings": [*_warnings(manifest, rows), *problem],
        "damaged": shown.damaged,
    }
    filters: dict[str, Callable[..., str]] = {"number": _number, "percent": _percent, "words": _words, "plain": _plain}
    return write_whole(destination, render_page(_PACKAGE, _TEMPLATE, values, filters))


def _read(store: Store) -> tuple[dict[str, Any] | None, list[PairRecord]]:
    """Return the manifest, if a run wrote one, and the pairs, those that are confused most first."""
    manifest = store.read_json(["manifest.json"])
    if manifest is None:
        return None, []
    failures = read_failures(store)
    try:
        kinds, least = manifest["settings"]["kinds"], manifest["settings"]["min_features"]
        pairs = [read_pair(store, row, kinds, least, failures) for row in manifest["pairs"]]
        for name in ("settings", "models", "versions"):
            dict(manifest[name])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{store.folder / 'manifest.json'} is not what a run writes ({error!r}); run `lit-modules coda augment` "
            "again, which goes on where it was and writes it anew."
        ) from error
    return manifest, sorted(pairs, key=lambda pair: -1.0 if pair.error_rate is None else -pair.error_rate - 2)


class _Shown:
    """What a page shows of pairs, with as many pictures of each group as fit."""

    def __init__(self, store: Store, pairs: Sequence[PairRecord], max_images: int, confusions: Confusions) -> None:
        self.store = store
        self.damaged: list[str] = []
        units = [unit for pair in pairs for unit in pair.units]
        sizes = [len(rows) for pair in pairs for rows in pair.support.values()]
        sizes += [len(rows) for unit in units for rows in _groups(unit).values()]
        self.each = share_places(sizes, max_images)
        self.confusions = confusions

    def pair(self, pair: PairRecord) -> dict[str, Any]:
        """Return the values of a pair."""
        units = [{"record": unit, "groups": self._unit(unit)} for unit in pair.units]
        failed = sum(unit.failure is not None for unit in pair.units)
        open_ = sorted({stage for unit in pair.units for stage in unit.missing}, key=STAGES.index)
        state = f"{failed} of {len(units)} failed" if failed else f"not done: {', '.join(open_)}" if open_ else "done"
        return {
            "record": pair,
            "state": state,
            "units": units,
            "support": {name: self._support(pair, name) for name in pair.names},
            "confusions": self.confusions.get(frozenset(pair.names), []),
            "totals": {
                "features": sum(len(unit.features) for unit in pair.units),
                "kept": sum(unit.kept for unit in pair.units),
                "made": sum(len(unit.images) for unit in pair.units),
                "accepted": sum(unit.accepted for unit in pair.units),
                "warnings": sum(len(unit.warnings) for unit in pair.units),
            },
        }

    def _support(self, pair: PairRecord, name: str) -> dict[str, Any]:
        rows = sorted(pair.support[name], key=lambda row: not row[2])
        folder = [pair.pair_id, safe_name(name), "support"]
        figures = [
            {"thumbnail": self._copy([*folder, f"{digest}.png"], None, digest), "name": file, "reference": used}
            for file, digest, used in rows[: self.each]
        ]
        return {"figures": figures, "total": len(rows)}

    def _unit(self, unit: UnitRecord) -> dict[str, Any]:
        return {
            title: {
                "figures": [
                    {"thumbnail": self._copy(image.parts, image.digest), "image": image} for image in rows[: self.each]
                ],
                "total": len(rows),
            }
            for title, rows in _groups(unit).items()
        }

    def _copy(self, parts: Sequence[str], digest: str | None, key: str | None = None) -> Thumbnail:
        found = thumbnail(self.store, parts, digest, key)
        if found.problem is not None:
            self.damaged.append(f"{found.name} {found.problem}")
        return found


def _groups(unit: UnitRecord) -> dict[str, list[MadeImage]]:
    """Return the images of a unit by what became of them."""
    groups: dict[str, list[MadeImage]] = {"accepted": [], "rejected": [], "not verified": []}
    for image in unit.images:
        groups.setdefault(image.verdict, []).append(image)
    groups["trial"] = unit.trials
    return {title: rows for title, rows in groups.items() if rows}


def _confusions(store: Store) -> tuple[Confusions, list[str]]:
    """Return what the model answered about each two concepts before, if `coda pairs` wrote it into the store."""
    path = store.folder / "pairs.json"
    if not path.is_file():
        return {}, []
    try:
        tables = load_tables(path)
    except (ValueError, KeyError, TypeError) as error:
        return {}, [f"The answers before are not shown, as {path.name} cannot be read: {error}"]
    found: Confusions = {}
    for table in tables:
        asked = [name for name in table.names if table.asked(name)]
        for name in asked:
            for other in table.names:
                if other == name:
                    continue
                shares = [table.rate(name, name), table.rate(name, other), table.invalid_rate(name)]
                row = {
                    "model": table.model,
                    "shown": name,
                    "other": other,
                    "asked": table.asked(name),
                    "shares": shares,
                }
                found.setdefault(frozenset((name, other)), []).append(row)
    return found, []


def _preset(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preset that settings are nearest to, and what differs from it."""
    found = {}
    for name in ("default", "official"):
        values = json.loads(json.dumps(preset(name).record()))
        names = dict.fromkeys([*settings, *values])
        found[name] = {
            one: (settings.get(one, "not there"), values.get(one, "not there"))
            for one in names
            if settings.get(one, "not there") != values.get(one, "not there")
        }
    nearest = min(found, key=lambda name: len(found[name]))
    return {"name": nearest, "changes": found[nearest]}


def _stages(pairs: Sequence[PairRecord]) -> list[dict[str, Any]]:
    units = [unit for pair in pairs for unit in pair.units]
    missing = {stage: sum(stage in unit.missing for unit in units) for stage in STAGES}
    return [{"name": stage, "missing": number, "total": len(units)} for stage, number in missing.items()]


def _counts(store: Store, prices: Prices | None) -> list[dict[str, Any]]:
    counts, total = store_counts(store), Counts()
    for one in counts.values():
        total.add(one)
    stages = {**counts, "all": total} if counts else {}
    return [
        {"stage": stage, "counts": one, "cost": None if prices is None else prices.paid(one)}
        for stage, one in stages.items()
    ]


def _classes(pairs: Sequence[PairRecord]) -> list[dict[str, Any]]:
    """Return the totals of each class over all its pairs."""
    found: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        for record in (pair.target, pair.confusable):
            name = str(record["name"])
            facts = {"wider": record.get("supercategory") or "-", "known": record.get("known", True)}
            row = found.setdefault(name, {**facts, "pairs": 0, "real": set(), "made": 0, "accepted": {}})
            row["pairs"] += 1
            row["real"] |= {digest for _, digest, _ in pair.support[name]}
            for unit in pair.units:
                if unit.concept == name:
                    row["made"] += len(unit.images)
                    row["accepted"][unit.kind] = row["accepted"].get(unit.kind, 0) + unit.accepted
    return [{"name": name, **found[name], "real": len(found[name]["real"])} for name in sorted(found)]


def _warnings(manifest: Mapping[str, Any] | None, rows: Sequence[ResultRow]) -> list[str]:
    verifier = "" if manifest is None else str(manifest["models"].get("verifier", ""))
    judged = sorted({row.model for row in rows if row.model and re.match(rf"{re.escape(row.model)}(?!\w)", verifier)})
    return [f"The verifier, {verifier}, is the model that was tested, {model}." for model in judged]


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _words(kind: str) -> str:
    """Return a kind of features in words."""
    return kind.replace("_", " ").replace("both", "textual and visual")


def _plain(value: Any) -> str:
    """Return a setting as JSON, in one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
