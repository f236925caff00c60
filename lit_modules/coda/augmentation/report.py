"""Report of an augmentation run: one HTML page with pairs, features, images, cost and accuracies."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, get_args

from lit_modules.coda.augmentation.confusable_pairs import load_tables
from lit_modules.coda.augmentation.pipeline import Until, store_counts, unit_warnings
from lit_modules.coda.backends.protocols import Counts, Prices
from lit_modules.coda.core.concepts import safe_name
from lit_modules.coda.core.images import png_key
from lit_modules.coda.core.store import Store
from lit_modules.utils.files import write_whole
from lit_modules.utils.html import data_url, render_html
from lit_modules.utils.images import read_picture
from lit_modules.utils.suggestions import did_you_mean

STAGES: tuple[str, ...] = get_args(Until)
_SIDE = 128  # longest side of a thumbnail, in pixels
_SMALL = 64  # thumbnails of at most this side are exact
_IMAGE = re.compile(r"(\d{1,9})\.png")
_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, IndexError)
_RESULT_TYPES: dict[str, Any] = {
    **dict.fromkeys(("method", "feature", "dataset", "model"), str),
    **dict.fromkeys(("real", "synthetic", "seeds"), int),
    **dict.fromkeys(("accuracy", "lower", "upper", "std", "invalid"), int | float),
}
_REQUIRED = ("method", "real", "synthetic", "accuracy")
Unit = dict[str, Any]
Row = dict[str, Any]


def write_report(
    store: Store,
    destination: str | Path,
    results: Sequence[Mapping[str, Any]] | str | Path | None = None,
    prices: Prices | None = None,
    max_images: int = 3000,
    title: str = "CoDA",
) -> Path:
    """Write one HTML page on a run, with its images inside and no script.

    It shows settings, models and cost, the pairs with their real images, features with scores and why each was kept or
    not, synthetic images with verdicts, prompts and seeds, and accuracies if they are given. Stages that were not run
    are named. Names and models' answers are escaped; a missing or damaged image leaves its name.

    Args:
        store: Store of a run; reading is enough.
        destination: File; its folder is made.
        results: Accuracies after the update, or a JSON file of them. A row has ``method``, ``real``, ``synthetic``
            (images of each class) and ``accuracy``, and may have ``lower``, ``upper``, ``std``, ``invalid`` (all
            shares in [0, 1]), ``seeds``, ``feature``, ``dataset`` and ``model``.
        prices: Prices, for the cost; ``None`` for none.
        max_images: Most images on the page, shared evenly by all groups; of each at least one is shown.
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
    manifest = store.read_json(["manifest.json"])
    pairs = [] if manifest is None else _read_pairs(store, manifest)
    confusions, warnings = _read_confusions(store)
    for pair in pairs:
        pair["confusions"] = [row for row in confusions if row["names"] == set(pair["names"])]
    units = [unit for pair in pairs for unit in pair["units"]]
    groups = [group for part in (*pairs, *units) for group in part["groups"].values()]
    limit = images_per_group([len(group) for group in groups], max_images)
    for image in (image for group in groups for image in group[:limit]):
        image |= _thumbnail(store, image)
    counts = store_counts(store)
    total = Counts()
    for each in counts.values():
        total.add(each)
    values = {
        "title": title,
        "manifest": manifest,
        "missing": {stage: sum(stage in unit["missing"] for unit in units) for stage in STAGES},
        "num_units": len(units),
        "counts": {**counts, "all": total} if counts else {},
        "prices": prices,
        "tables": result_tables(rows),
        "pairs": pairs,
        "limit": limit,
        "warnings": [*_verifier_warnings(manifest, rows), *warnings],
    }
    filters = {"number": _number, "percent": _percent, "json": _plain}
    return write_whole(destination, render_html(__package__, "data/report.html.j2", values, filters=filters))


def images_per_group(sizes: Sequence[int], total: int) -> int:
    """Return the most images of each group that fit on a page, at least 1.

    Example:
        >>> images_per_group([50, 2, 50], 42), images_per_group([3, 3], 100), images_per_group([5] * 9, 4)
        (20, 3, 1)
    """
    limit = 1
    while limit < max(sizes, default=1) and sum(min(size, limit + 1) for size in sizes) <= total:
        limit += 1
    return limit


def read_results(results: Sequence[Mapping[str, Any]] | str | Path) -> list[Row]:
    """Return the rows of results.

    Args:
        results: See :func:`write_report`; a file may have the list under ``"results"``, and ``seeds`` may be a list.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no JSON of rows, a value is missing or out of its range, or a key is almost a known one.

    Example:
        >>> read_results([{"method": "CoDA", "real": 5, "synthetic": 1, "accuracy": 0.73, "seeds": [0, 1]}])[0]["seeds"]
        2
    """
    source, rows = "The results", results
    if isinstance(results, str | Path):
        source = str(results)
        try:
            rows = json.loads(Path(results).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"There is no file {results} with results.") from error
        except ValueError as error:
            raise ValueError(f"{results} is no JSON: {error}.") from error
        if isinstance(rows, dict) and "results" in rows:
            rows = rows["results"]
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise ValueError(f"{source} must be a list of rows, each with {', '.join(_RESULT_TYPES)}.")
    return [_checked_result(row, f"{source}, row {number}") for number, row in enumerate(rows, 1)]


def _checked_result(row: Any, source: str) -> Row:
    if not isinstance(row, Mapping):
        raise ValueError(f"{source} must have the keys {', '.join(_RESULT_TYPES)}, got {row!r}.")
    for key in row:
        suggestion = did_you_mean(str(key), _RESULT_TYPES, cutoff=0.7)
        if key not in _RESULT_TYPES and "did you mean" in suggestion:
            raise ValueError(f"{source} has the key {key!r}{suggestion}")
    checked = {key: value for key, value in row.items() if key in _RESULT_TYPES and value is not None}
    if isinstance(checked.get("seeds"), list | tuple):
        checked["seeds"] = len(checked["seeds"])
    for key in _REQUIRED:
        if key not in checked:
            raise ValueError(f"{source} has no {key}.")
    for key, value in list(checked.items()):
        kind = _RESULT_TYPES[key]
        if kind is str and (not isinstance(value, str) or (key == "method" and not value)):
            raise ValueError(f"{source}: {key} must be a text, got {value!r}.")
        if kind is int and (type(value) is not int or value < (key == "seeds")):
            raise ValueError(f"{source}: {key} must be a whole number from {int(key == 'seeds')}, got {value!r}.")
        if kind in (str, int):
            continue
        if isinstance(value, bool) or not isinstance(value, kind):
            raise ValueError(f"{source}: {key} must be a number, got {value!r}.")
        if math.isnan(value) and key != "accuracy":
            del checked[key]  # what metrics give for too few answers
        elif not 0 <= value <= 1:
            raise ValueError(f"{source}: {key} must be a share in [0, 1] and no percentage, got {value}.")
    if ("lower" in checked) != ("upper" in checked) or checked.get("lower", 0) > checked.get("upper", 1):
        raise ValueError(f"{source}: lower and upper must be the two ends of an interval.")
    return {**dict.fromkeys(_RESULT_TYPES), **checked}


def result_tables(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return a table for each data set and model: columns by their number of images, a line for each method.

    Raises:
        ValueError: If two rows are of the same cell.

    Example:
        >>> rows = [{"method": "CoDA", "real": 0, "synthetic": 5, "accuracy": 0.7}, {"method": "real", "real": 5,
        ...         "synthetic": 0, "accuracy": 0.6}]
        >>> result_tables(read_results(rows))[0]["columns"]
        [(5, 0), (0, 5)]
    """
    tables: dict[tuple[Any, Any], dict[tuple[Any, Any], dict[tuple[int, int], Row]]] = {}
    for row in rows:
        line = tables.setdefault((row["dataset"], row["model"]), {}).setdefault((row["method"], row["feature"]), {})
        cell = (row["real"], row["synthetic"])
        if cell in line:
            raise ValueError(
                f"The results have two rows of {row['method']} {row['feature'] or ''} at {cell[0]}:{cell[1]}; give "
                "one, or tell them apart by feature, dataset or model."
            )
        line[cell] = row
    return [
        {
            "caption": ". ".join(filter(None, key)),
            "columns": sorted({cell for line in lines.values() for cell in line}, key=lambda one: (sum(one), one[1])),
            "lines": lines,
        }
        for key, lines in tables.items()
    ]


def _read_pairs(store: Store, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the pairs of a run, the most confused ones first."""
    events = store.events()
    failures = {str(event.get("unit")): str(event.get("reason")) for event in events if event.get("stage") == "failure"}
    try:
        kinds, min_features = manifest["settings"]["kinds"], manifest["settings"]["min_features"]
        pairs = [
            _read_pair(store, row, kinds, min_features=min_features, failures=failures) for row in manifest["pairs"]
        ]
        for name in ("models", "versions"):
            dict(manifest[name])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{store.folder / 'manifest.json'} is not what a run writes ({error!r}); run `lit-modules coda augment` "
            "again, which resumes and rewrites it."
        ) from error
    return sorted(pairs, key=lambda pair: -1.0 if pair["error_rate"] is None else -pair["error_rate"] - 2)


def _read_pair(
    store: Store, row: Mapping[str, Any], kinds: Sequence[str], min_features: int, failures: Mapping[str, str]
) -> dict[str, Any]:
    """Return names, real images and units of a pair; a unit whose records cannot be read says so."""
    pair_id, rate = str(row["pair_id"]), row["error_rate"]
    names = [str(row[role]["name"]) for role in ("target", "confusable")]
    groups, units = {}, []
    for concept, other in (names, names[::-1]):
        folder = [pair_id, safe_name(concept)]
        try:
            groups[f"real images of {concept}"] = _real_images(store, folder)
        except _UNREADABLE:
            groups[f"real images of {concept}"] = []
        for kind in kinds:
            path = [*folder, kind]
            unit: Unit = {"features": [], "dropped": [], "raw": [], "groups": {}, "warnings": [], "missing": STAGES}
            unit |= {"concept": concept, "other": other, "kind": kind, "accepted": 0, "failure": None}
            try:
                _read_unit(store, path, unit, min_features=min_features)
            except _UNREADABLE as error:
                unit["failure"] = f"The records in {'/'.join(path)} cannot be read: {error!r}"
            if unit["missing"] and unit["failure"] is None:
                unit["failure"] = failures.get("/".join(path), failures.get(pair_id))
            units.append(unit)
    failed = sum(unit["failure"] is not None for unit in units)
    missing = [stage for stage in STAGES if any(stage in unit["missing"] for unit in units)]
    state = f"{failed} of {len(units)} failed" if failed else f"not done: {', '.join(missing)}" if missing else "done"
    rate = None if rate is None else float(rate)
    return {"names": names, "error_rate": rate, "groups": groups, "units": units, "state": state}


def _real_images(store: Store, folder: Sequence[str]) -> list[Row]:
    record = store.read_json([*folder, "references.json"]) or {"images": [], "support": []}
    references = {image["sha256"] for image in record["images"]}
    rows = sorted(record["support"], key=lambda image: image["sha256"] not in references)
    return [
        {
            "path": [*folder, "support", f"{image['sha256']}.png"],
            "key": str(image["sha256"]),
            "verdict": "",
            "score": None,
            "reason": None,
            "name": f"{image['name']}{', reference' if image['sha256'] in references else ''}",
        }
        for image in rows
    ]


def _read_unit(store: Store, path: Sequence[str], unit: Unit, min_features: int) -> None:
    """Add to a unit what its records hold; those that do not fit earlier ones are flagged."""
    features, scores, verified = (store.read_json([*path, f"{name}.json"]) for name in ("features", "scores", "images"))
    if features is None:
        return
    texts = [str(text) for text in features["features"]]
    empty = {"D": None, "D_interval": None, "G": None, "G_interval": None, "kept": None, "reason": ""}
    unit["features"] = [{"text": text, **empty} for text in texts]
    unit["dropped"] = [(str(text), str(reason)) for text, reason in features["dropped"]]
    unit["raw"] = [str(text) for text in features["raw"]]
    unit["missing"] = STAGES[1:]
    if features["failure"] is not None:
        unit |= {"failure": f"No features: {features['failure']}", "missing": ()}
        return
    trials: list[Row] = []
    if scores is not None:
        unit["features"] = [
            {**empty, **{name: row.get(name) if "interval" in name else row[name] for name in ("text", *empty)}}
            for row in scores["attributes"]
        ]
        unit["missing"] = STAGES[2:]
        folders = dict.fromkeys(row["trials"] for row in scores["attributes"] if "trials" in row)
        for number, folder in enumerate(folders, 1):
            images = _made_images(store, [*path, "trials", str(folder)], None, attributes=())
            trials += [{**image, "verdict": "trial", "score": None, "reason": f"group {number}"} for image in images]
    unit["warnings"] = unit_warnings(min_features, features, scores, images=verified)
    folder_of_images = [*path, "images"]
    if verified is not None and _regenerated(store, folder_of_images, verified["files"]):
        unit["warnings"].append("the verdicts are of earlier images; the next run gives them anew")
        verified = None
    attributes = [] if scores is None else [str(text) for text in scores["prompt_attributes"]]
    images = _made_images(
        store, folder_of_images, None if verified is None else verified["files"], attributes=attributes
    )
    if images:
        unit["missing"] = STAGES[3:]
    if verified is not None:
        rank = {int(index): number for number, index in enumerate(verified["accepted"])}
        images.sort(key=lambda image: rank.get(image["index"], len(rank)))
        for image in images:
            image["verdict"] = "accepted" if image["index"] in rank else "rejected"
        unit |= {"accepted": len(rank), "failure": verified["failure"], "missing": ()}
    by_verdict: dict[str, list[Row]] = {"accepted": [], "rejected": [], "not verified": []}
    for image in images:
        by_verdict.setdefault(image["verdict"], []).append(image)
    titles = {f"{verdict} images": own for verdict, own in by_verdict.items()}
    unit["groups"] = {title: own for title, own in {**titles, "trial images": trials}.items() if own}
    if scores is not None and [feature["text"] for feature in unit["features"]] != texts:
        unit["warnings"].append("the scores are of earlier features; the next run gives them anew")
        unit["missing"] = STAGES[1:]
    elif verified is not None and verified["attributes"] != attributes:
        unit["warnings"].append("the images are of earlier features; the next run makes them anew")
        unit["missing"] = STAGES[2:]


def _regenerated(store: Store, folder: Sequence[str], files: Mapping[str, str]) -> bool:
    """Return whether an image was generated anew after the verdicts, which name the files that they are of."""
    records = ((store.read_json([*folder, name.removesuffix(".png") + ".json"]), name) for name in files)
    return any(record is not None and record.get("sha256", files[name]) != files[name] for record, name in records)


def _made_images(
    store: Store, folder: Sequence[str], files: Mapping[str, str] | None, attributes: Sequence[str]
) -> list[Row]:
    """Return the images that a record names, or without one those in a folder, in the order of their numbers."""
    if files is None:
        inside = store.path([*folder, "0.png"]).parent
        files = {path.name: "" for path in inside.iterdir()} if inside.is_dir() else {}
    numbers = sorted(int(name.removesuffix(".png")) for name in files if _IMAGE.fullmatch(name))
    images = []
    for number in numbers:
        record = store.read_json([*folder, f"{number}.json"]) or {}
        bits = record.get("bits")
        images.append(
            {
                "path": [*folder, f"{number}.png"],
                "index": number,
                "key": None,
                "name": f"{number}.png",
                "digest": files[f"{number}.png"] or record.get("sha256"),
                "verdict": str(record.get("verdict", "not verified")),
                "score": None if record.get("score") is None else float(record["score"]),
                "marks": list(zip(attributes, bits, strict=False)) if isinstance(bits, list) else [],
                **{name: record.get(name) for name in ("reason", "prompt", "negative", "seed", "generator")},
            }
        )
    return images


def _thumbnail(store: Store, image: Row) -> Row:
    """Return a small copy of an image as a ``data:`` URL, or the problem: it is missing, damaged or another one."""
    try:
        data = store.read_file(image["path"])
        if data is None:
            return {"problem": "is missing"}
        picture = read_picture(data, "the file")
    except (ValueError, OSError) as error:
        return {"problem": f"cannot be shown: {error}"}
    other = image.get("digest") is not None and store.read_file(image["path"], image["digest"]) is None
    if other or (image["key"] is not None and png_key(data) != image["key"]):
        return {"problem": "is not the picture that its record tells of"}
    picture.thumbnail((_SIDE, _SIDE))
    kind = "png" if max(picture.size) <= _SMALL else "jpeg"
    buffer = BytesIO()
    picture.save(buffer, kind, optimize=True)
    return {"url": data_url(buffer.getvalue(), f"image/{kind}")}


def _read_confusions(store: Store) -> tuple[list[Row], list[str]]:
    """Return the answers about each two concepts before, if `coda pairs` wrote them into the store, and warnings."""
    path = store.folder / "pairs.json"
    if not path.is_file():
        return [], []
    try:
        tables = load_tables(path)
    except (ValueError, KeyError, TypeError) as error:
        return [], [f"The answers before are not shown, as {path.name} cannot be read: {error}"]
    rows = [
        {
            "model": table.model,
            "names": {shown, other},
            "shown": shown,
            "other": other,
            "asked": table.asked(shown),
            "shares": [table.rate(shown, shown), table.rate(shown, other), table.invalid_rate(shown)],
        }
        for table in tables
        for shown in table.names
        for other in table.names
        if other != shown and table.asked(shown)
    ]
    return rows, []


def _verifier_warnings(manifest: Mapping[str, Any] | None, rows: Sequence[Row]) -> Iterator[str]:
    verifier = "" if manifest is None else str(manifest["models"].get("verifier", ""))
    for model in sorted({row["model"] for row in rows if row["model"]}):
        if re.match(rf"{re.escape(model)}(?!\w)", verifier):
            yield f"The verifier, {verifier}, is the model that was tested, {model}."


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _plain(value: Any) -> str:
    """Return a setting as JSON, in one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
