"""What each run of a comparison is told: the start, the model of the retain set alone, and the methods."""

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from lit_modules.studies.compare.grid import OURS, Method, Run, filled
from lit_modules.utils.errors import UsageError
from lit_modules.utils.suggestions import did_you_mean

FINE_TUNING = "lit_modules.CausalLMFineTuning"
RETAIN_LOG = "{retain_log}"
"""Stands for the log of the model of the retain set alone, in the arguments of a metric."""
REFERENCES = {"start": "start", "retain only": "retain"}
"""Runs that only test, and the model that each tests."""
Record = dict[str, Any]


@dataclass(frozen=True)
class Models:
    """The models that a comparison begins with.

    Args:
        folder: Folder in which they lie.
        tokenizer: Folder of the tokenizer, or its name.
        names: Names of their folders, by ``"start"`` and ``"retain"``: each ends with a hash of all that made it.
    """

    folder: Path
    tokenizer: str
    names: Mapping[str, str]

    def places(self) -> dict[str, str]:
        """Return what the places in the records stand for."""
        found = {key: str(self.folder / name / "model") for key, name in self.names.items()}
        return {
            "start": found["start"],
            "retain": found["retain"],
            "retain_log": str(self.folder / self.names["retain"] / "log.json"),
            "models": str(self.folder),
            "tokenizer": self.tokenizer,
        }


def find_class(path: str, where: str) -> type:
    """Return a class by its path, or by its name if it is public in ``lit_modules`` or its datamodules.

    Raises:
        UsageError: If there is none.
    """
    module_name, _, name = path.rpartition(".")
    packages = [module_name] if module_name else ["lit_modules", "lit_modules.datamodules"]
    known: list[str] = []
    for package in packages:
        try:
            module = import_module(package)
        except ImportError:
            continue
        found = getattr(module, name, None)
        if isinstance(found, type):
            return found
        known += [public for public in getattr(module, "__all__", [])]
    raise UsageError(f"{where}: there is no class {path!r}{did_you_mean(name, known)}")


def takes(path: str, where: str) -> set[str]:
    """Return the names of the arguments of a class or function that :func:`find_class` finds."""
    return set(inspect.signature(find_class(path, where)).parameters)


def file_digests(root: Path) -> dict[str, str]:
    """Return the SHA-256 of every JSON file in a folder.

    Raises:
        FileNotFoundError: If there is no such folder, or it holds none.
    """
    files = sorted(path for path in root.glob("*.json*") if path.is_file()) if root.is_dir() else []
    if not files:
        raise FileNotFoundError(
            f"There are no texts in the folder {root}; give --data.root, or the folder above it as LIT_MODULES_DATA."
        )
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_texts(root: Path, files: Sequence[str], fields: Sequence[str]) -> Iterable[str]:
    """Yield the texts of fields of JSON lines.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a line is no JSON object with the fields.
    """
    for name in files:
        path = root / name
        if not path.is_file():
            raise FileNotFoundError(f"The tokenizer learns from {name}, which is missing in {root}.")
        for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), start=1):
            try:
                row = json.loads(line)
                yield " ".join(str(row[field]) for field in fields)
            except (ValueError, LookupError, TypeError) as error:
                raise ValueError(
                    f"{path}:{number}: a line must be a JSON object with the fields {', '.join(fields)}."
                ) from error


def make_tokenizer(settings: Mapping[str, Any], root: Path, files: Mapping[str, str], folder: Path) -> tuple[str, int]:
    """Train the tokenizer, unless it is there already.

    Returns:
        Its folder, and its number of tokens.
    """
    asked = settings["tokenizer"]
    for key in ("vocab_size", "files", "fields"):
        if key not in asked:
            raise UsageError(f"tokenizer needs {key!r}; it has {', '.join(asked) or 'nothing'}.")
    place = folder / f"tokenizer-{digest([asked, {name: files.get(name) for name in asked['files']}])}"
    from transformers import AutoTokenizer

    from lit_modules.datamodules import common

    if (place / "tokenizer_config.json").exists():
        return str(place), len(AutoTokenizer.from_pretrained(place))
    texts = list(read_texts(root, asked["files"], asked["fields"]))
    tokenizer = common.bpe.train_bpe(texts, asked["vocab_size"])
    part = place.with_name(f".{place.name}.part")
    tokenizer.save_pretrained(part)
    part.replace(place)
    return str(place), len(tokenizer)


def training_record(settings: Mapping[str, Any], subset: str, vocab_size: int | None) -> Record:
    """Return the record of the training of the start (``subset="all"``) or of the retain set alone (``"retain"``)."""
    start = settings["start"]
    model = start["model"]
    if isinstance(model, dict) and vocab_size is not None:
        model = {**model, "init_args": {"vocab_size": vocab_size, **(model.get("init_args") or {})}}
    metric = settings["evaluation"]["metric"]
    logged = subset == "retain" and RETAIN_LOG in json.dumps(metric)
    arguments: dict[str, Any] = {
        "model": model,
        "optimizer": start.get("optimizer", {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}),
        "scheduler": {
            "class_path": "torch.optim.lr_scheduler.CosineAnnealingLR",
            "init_args": {"T_max": start["steps"]},
        },
        "max_new_tokens": settings["evaluation"].get("max_new_tokens", 256),
    }
    if logged:
        kept = {key: value for key, value in (metric.get("init_args") or {}).items() if value != RETAIN_LOG}
        arguments["metric"] = {**metric, "init_args": {**kept, "log_file": "{folder}/log.json"}}
    data = _data(settings, "{tokenizer}", start["batch_size"], start.get("seed", 0))
    data["init_args"]["subset"] = subset
    saving = {"class_path": "lit_modules.callbacks.SavePretrained", "init_args": {"folder": "{folder}/model"}}
    trainer = _trainer(settings, start["steps"], [saving])
    if start.get("clip_norm") is not None:
        trainer["gradient_clip_val"] = start["clip_norm"]
    config = _config(start.get("seed", 0), FINE_TUNING, arguments, data, trainer)
    return {"values": {"model": subset}, "config": config, "train": True, "test": logged, "count": False}


def reference_record(settings: Mapping[str, Any], model: str) -> Record:
    """Return the record of a test of a model that no method has changed."""
    arguments = {"model": f"{{{model}}}", **_evaluation(settings)}
    data = _data(settings, "{tokenizer}", settings["batch_size"], 0)
    config = _config(0, FINE_TUNING, arguments, data, _trainer(settings, settings["max_steps"], []))
    return {"values": {"model": model}, "config": config, "train": False, "test": True, "count": False}


def method_record(settings: Mapping[str, Any], run: Run) -> Record:
    """Return the record of a run of a method."""
    method = run.method
    optimizer = settings["optimizer"]
    arguments = {
        **method.init_args,
        "model": "{start}",
        **_evaluation(settings),
        "accumulate": settings["effective_batch"] // settings["batch_size"],
        "optimizer": {**optimizer, "init_args": {"lr": run.learning_rate, **(optimizer.get("init_args") or {})}},
    }
    if "cache_dir" in takes(method.class_path, method.name):
        arguments.setdefault("cache_dir", "{models}/reference_log_probs")
    data = _data(settings, "{tokenizer}", settings["batch_size"], run.seed)
    trainer = _trainer(settings, settings["max_steps"], method.callbacks)
    config = _config(run.seed, method.class_path, arguments, data, trainer)
    values = {"method": method.name, "learning_rate": run.learning_rate, "seed": run.seed}
    return {"values": values, "config": config, "train": True, "test": True, "count": True}


def check_classes(settings: Mapping[str, Any], methods: Sequence[Method]) -> None:
    """Check that the methods and the data take what the comparison gives them.

    Raises:
        UsageError: If one does not.
    """
    for where, path, needed in (
        *((f"The method {method.name!r}", method.class_path, OURS) for method in methods),
        ("data", settings["data"]["class_path"], ("tokenizer", "root", "subset", "batch_size", "seed")),
    ):
        missing = [name for name in needed if name not in takes(path, where)]
        if missing:
            raise UsageError(f"{where}: {path} takes no {missing[0]!r}, which the comparison gives to all.")


def check_records(records: Mapping[str, Record], places: Mapping[str, str]) -> None:
    """Read a record of each kind as ``fit`` would, which builds nothing.

    Raises:
        UsageError: If an argument does not exist or does not take its value; names the method.
    """
    from lit_modules.studies.sweep.check import ArgumentReader

    reader: ArgumentReader | None = None
    for name, record in records.items():
        text = ["-c", json.dumps(filled(record["config"], {**places, "folder": "FOLDER"}))]
        try:
            reader = reader or ArgumentReader(text)
            reader.read(text)
        except UsageError as error:
            reason = str(error).removeprefix('Parser key "config": ')  # where the text was given
            raise UsageError(f"The method {name!r}: {reason}") from None


def with_group(record: Record, group: str, name: str) -> Record:
    """Return a record whose loggers of Weights & Biases, if there are any, have a group and a name."""
    config = record["config"]
    given = config["trainer"].get("logger")
    loggers = [
        {**entry, "init_args": {"group": group, "name": name, **(entry.get("init_args") or {})}}
        if isinstance(entry, dict) and str(entry.get("class_path")).rpartition(".")[2] == "WandbLogger"
        else entry
        for entry in (given if isinstance(given, list) else [given])
    ]
    logger = loggers if isinstance(given, list) else loggers[0]
    trainer = {**config["trainer"], **({} if given is None else {"logger": logger})}
    return {**record, "config": {**config, "trainer": trainer}}


def digest(content: Any) -> str:
    """Return 12 hexadecimal digits that tell contents apart."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _evaluation(settings: Mapping[str, Any]) -> dict[str, Any]:
    evaluation = settings["evaluation"]
    return {"metric": evaluation["metric"], "max_new_tokens": evaluation.get("max_new_tokens", 256)}


def _data(settings: Mapping[str, Any], tokenizer: str, batch_size: int, seed: int) -> dict[str, Any]:
    data = settings["data"]
    given = data.get("init_args") or {}
    ours = {"tokenizer": tokenizer, "batch_size": batch_size, "seed": seed}
    return {"class_path": data["class_path"], "init_args": {"num_workers": 0, **given, **ours}}


def _trainer(settings: Mapping[str, Any], steps: int, callbacks: Sequence[Any]) -> dict[str, Any]:
    given = dict(settings.get("trainer") or {})
    every = [*(given.pop("callbacks", None) or []), *callbacks]
    named = [{"class_path": entry} if isinstance(entry, str) else entry for entry in every]
    return {**given, "max_epochs": -1, "max_steps": steps, **({"callbacks": named} if named else {})}


def _config(
    seed: int, class_path: str, arguments: dict[str, Any], data: dict[str, Any], trainer: dict[str, Any]
) -> dict[str, Any]:
    model = {"class_path": class_path, "init_args": arguments}
    return {"seed_everything": seed, "model": model, "data": data, "trainer": trainer}
