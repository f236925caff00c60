"""Record of each run of a comparison: what it trains and tests, for the start, the references and the methods."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from lit_modules.studies.arguments import ArgumentReader
from lit_modules.studies.compare.settings import SHARED, Method, Run, filled
from lit_modules.utils.arguments import argument_names
from lit_modules.utils.errors import UsageError
from lit_modules.utils.folders import whole_folder
from lit_modules.utils.hashing import hash_file, stable_hash
from lit_modules.utils.json_lines import read_json_lines
from lit_modules.utils.suggestions import did_you_mean

FINE_TUNING = "lit_modules.CausalLMFineTuning"
RETAIN_LOG = "{retain_log}"
"""Placeholder for the log of the model of the retain set alone, in the arguments of a metric."""
REFERENCES = {"start": "start", "retain only": "retain"}
"""Runs that only test, and the model that each tests."""
Record = dict[str, Any]


@dataclass(frozen=True)
class Models:
    """Models that a comparison begins with.

    Args:
        folder: Folder in which they lie.
        tokenizer: Folder of the tokenizer, or its name.
        trainings: Record of the training of ``"start"`` and ``"retain"``.
        names: Names of their folders, each of which ends with a hash of all that made it.
    """

    folder: Path
    tokenizer: str
    trainings: Mapping[str, Record]
    names: Mapping[str, str]

    def placeholders(self) -> dict[str, str]:
        """Return the values of the placeholders in the records."""
        return {
            "start": str(self.folder / self.names["start"] / "model"),
            "retain": str(self.folder / self.names["retain"] / "model"),
            "retain_log": str(self.folder / self.names["retain"] / "log.json"),
            "models": str(self.folder),
            "tokenizer": self.tokenizer,
        }


def prepare_models(settings: Mapping[str, Any], root: Path, hashes: Mapping[str, str], folder: Path) -> Models:
    """Train the tokenizer unless it exists, and return the models to train."""
    vocab_size = None
    if "tokenizer" in settings:
        tokenizer, vocab_size = train_tokenizer(settings["tokenizer"], root, hashes=hashes, folder=folder)
    elif isinstance(settings["start"]["model"], str):
        tokenizer = settings["start"]["model"]
    else:
        raise UsageError("A start that is built from a class needs a tokenizer: vocab_size, files and fields.")
    subsets = {"start": "all", "retain": "retain"}
    trainings = {key: _training_record(settings, subset, vocab_size) for key, subset in subsets.items()}
    made_by = [dict(hashes), Path(tokenizer).name]
    names = {key: f"{key}-{digest([record, made_by])}" for key, record in trainings.items()}
    return Models(folder, tokenizer, trainings=trainings, names=names)


def run_records(settings: Mapping[str, Any], runs: Mapping[str, Run], group: str) -> dict[str, Record]:
    """Return the record of each run, the two references first; runs of Weights & Biases have the group."""
    records = {name: _reference_record(settings, model) for name, model in REFERENCES.items()}
    records |= {name: _method_record(settings, run) for name, run in runs.items()}
    evaluation = settings["evaluation"]
    asked = {key: evaluation.get(key) for key in ("harness", "harness_limit")} if evaluation.get("harness") else {}
    if evaluation.get("stress") is not None:
        asked["stress"] = evaluation["stress"]
    return {name: {**_with_group(record, group, name), **asked} for name, record in records.items()}


def check_classes(settings: Mapping[str, Any], methods: Sequence[Method]) -> None:
    """Check that the methods and the data take the arguments that the comparison gives them."""
    data = ("data", settings["data"]["class_path"], ("tokenizer", "root", "subset", "batch_size", "seed"))
    for where, path, needed in (*((_where(m.name), m.class_path, SHARED) for m in methods), data):
        missing = [name for name in needed if name not in _parameters(path, where)]
        if missing:
            raise UsageError(f"{where}: {path} takes no {missing[0]!r}, which the comparison gives to all.")


def check_records(records: Mapping[str, Record], placeholders: Mapping[str, str]) -> None:
    """Read a record of each method as ``fit`` would, which builds nothing."""
    reader: ArgumentReader | None = None
    for name, record in records.items():
        text = ["-c", json.dumps(filled(record["config"], {**placeholders, "folder": "FOLDER"}))]
        try:
            reader = reader or ArgumentReader(text)
            reader.read(text)
        except UsageError as error:
            reason = str(error).removeprefix('Parser key "config": ')  # the option that held the text
            raise UsageError(f"{_where(name)}: {reason}") from None


def file_hashes(root: Path) -> dict[str, str]:
    """Return the SHA-256 of every JSON file in a folder."""
    files = sorted(path for path in root.glob("*.json*") if path.is_file()) if root.is_dir() else []
    if not files:
        raise FileNotFoundError(
            f"There are no texts in the folder {root}; give --data.root, or the folder above it as LIT_MODULES_DATA."
        )
    return {path.name: hash_file(path) for path in files}


def digest(content: Any) -> str:
    """Return 12 hexadecimal digits that tell contents apart."""
    return stable_hash(json.dumps(content, sort_keys=True, default=str))[:12]


def _where(method: str) -> str:
    return f"The method {method!r}"


def _parameters(path: str, where: str) -> set[str]:
    """Return the arguments of a class by its path, or by its name if it is public here."""
    module_name, _, name = path.rpartition(".")
    known: list[str] = []
    for package in [module_name] if module_name else ["lit_modules", "lit_modules.datamodules"]:
        try:
            module = import_module(package)
        except ImportError:
            continue
        attribute = getattr(module, name, None)  # a module of the user's may have anything
        if isinstance(attribute, type):
            return set(argument_names(attribute))
        known += getattr(module, "__all__", [])
    raise UsageError(f"{where}: there is no class {path!r}{did_you_mean(name, known)}")


def train_tokenizer(
    settings: Mapping[str, Any], root: Path, hashes: Mapping[str, str], folder: Path
) -> tuple[str, int]:
    """Return the folder of the tokenizer, and its number of tokens."""
    from transformers import AutoTokenizer

    from lit_modules.datamodules import lume

    path = folder / f"tokenizer-{digest([settings, {name: hashes.get(name) for name in settings['files']}])}"
    if (path / "tokenizer_config.json").exists():
        return str(path), len(AutoTokenizer.from_pretrained(path))
    tokenizer = lume.train_bpe(list(_read_texts(root, settings["files"], settings["fields"])), settings["vocab_size"])
    with whole_folder(path) as part:
        tokenizer.save_pretrained(part)
    return str(path), len(tokenizer)


def _read_texts(root: Path, files: Sequence[str], fields: Sequence[str]) -> Iterator[str]:
    for name in files:
        if not (root / name).is_file():
            raise FileNotFoundError(f"The tokenizer learns from {name}, which is missing in {root}.")
        for where, row in read_json_lines(root / name):
            if not isinstance(row, dict) or any(field not in row for field in fields):
                raise ValueError(f"{where}: a line must be a JSON object with the fields {', '.join(fields)}.")
            yield " ".join(str(row[field]) for field in fields)


def _training_record(settings: Mapping[str, Any], subset: str, vocab_size: int | None) -> Record:
    """Return the record of the training of the start (``"all"``) or of the retain set alone (``"retain"``)."""
    start = settings["start"]
    model = start["model"]
    if isinstance(model, dict) and vocab_size is not None:
        model = {**model, "init_args": {"vocab_size": vocab_size, **(model.get("init_args") or {})}}
    metric = settings["evaluation"]["metric"]
    logged = subset == "retain" and RETAIN_LOG in json.dumps(metric)
    scheduler = {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": start["steps"]}}
    arguments: dict[str, Any] = {
        "model": model,
        "optimizer": start.get("optimizer", {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}),
        "scheduler": scheduler,
        "max_new_tokens": settings["evaluation"].get("max_new_tokens", 256),
    }
    if logged:
        others = {key: value for key, value in (metric.get("init_args") or {}).items() if value != RETAIN_LOG}
        arguments["metric"] = {**metric, "init_args": {**others, "log_file": "{folder}/log.json"}}
    data = _data(settings, start["batch_size"], start.get("seed", 0))
    data["init_args"]["subset"] = subset
    saving = {"class_path": "lit_modules.callbacks.SavePretrained", "init_args": {"folder": "{folder}/model"}}
    trainer = _trainer(settings, start["steps"], [saving])
    if start.get("clip_norm") is not None:
        trainer["gradient_clip_val"] = start["clip_norm"]
    config = _config(start.get("seed", 0), FINE_TUNING, arguments, data=data, trainer=trainer)
    return {"values": {"model": subset}, "config": config, "train": True, "test": logged, "count": False}


def _reference_record(settings: Mapping[str, Any], model: str) -> Record:
    """Return the record of a test of a model that no method has changed."""
    arguments = {"model": f"{{{model}}}", **_evaluation(settings)}
    data = _data(settings, settings["batch_size"], 0)
    trainer = _trainer(settings, settings["max_steps"], [])
    config = _config(0, FINE_TUNING, arguments, data=data, trainer=trainer)
    return {"values": {"model": model}, "config": config, "train": False, "test": True, "count": False}


def _method_record(settings: Mapping[str, Any], run: Run) -> Record:
    method, optimizer = run.method, settings["optimizer"]
    arguments = {
        **method.init_args,
        "model": "{start}",
        **_evaluation(settings),
        "accumulate": settings["effective_batch"] // settings["batch_size"],
        "optimizer": {**optimizer, "init_args": {"lr": run.learning_rate, **(optimizer.get("init_args") or {})}},
    }
    if "cache_dir" in _parameters(method.class_path, method.name):
        arguments.setdefault("cache_dir", "{models}/reference_log_probs")
    data = _data(settings, settings["batch_size"], run.seed)
    trainer = _trainer(settings, settings["max_steps"], method.callbacks)
    config = _config(run.seed, method.class_path, arguments, data=data, trainer=trainer)
    values = {"method": method.name, "learning_rate": run.learning_rate, "seed": run.seed}
    return {"values": values, "config": config, "train": True, "test": True, "count": True}


def _with_group(record: Record, group: str, name: str) -> Record:
    """Return a record whose loggers of Weights & Biases, if there are any, have a group and a name."""
    config = record["config"]
    if "logger" not in config["trainer"]:
        return record
    logger = config["trainer"]["logger"]
    loggers = [
        {**entry, "init_args": {"group": group, "name": name, **(entry.get("init_args") or {})}}
        if isinstance(entry, dict) and str(entry.get("class_path")).rpartition(".")[2] == "WandbLogger"
        else entry
        for entry in (logger if isinstance(logger, list) else [logger])
    ]
    trainer = {**config["trainer"], "logger": loggers if isinstance(logger, list) else loggers[0]}
    return {**record, "config": {**config, "trainer": trainer}}


def _evaluation(settings: Mapping[str, Any]) -> dict[str, Any]:
    evaluation = settings["evaluation"]
    return {"metric": evaluation["metric"], "max_new_tokens": evaluation.get("max_new_tokens", 256)}


def _data(settings: Mapping[str, Any], batch_size: int, seed: int) -> dict[str, Any]:
    data = settings["data"]
    shared = {"tokenizer": "{tokenizer}", "batch_size": batch_size, "seed": seed}
    return {
        "class_path": data["class_path"],
        "init_args": {"num_workers": 0, **(data.get("init_args") or {}), **shared},
    }


def _trainer(settings: Mapping[str, Any], steps: int, callbacks: Sequence[Any]) -> dict[str, Any]:
    trainer = dict(settings.get("trainer") or {})
    entries = [*(trainer.pop("callbacks", None) or []), *callbacks]
    named = [{"class_path": entry} if isinstance(entry, str) else entry for entry in entries]
    return {**trainer, "max_epochs": -1, "max_steps": steps, **({"callbacks": named} if named else {})}


def _config(
    seed: int, class_path: str, arguments: dict[str, Any], data: dict[str, Any], trainer: dict[str, Any]
) -> dict[str, Any]:
    model = {"class_path": class_path, "init_args": arguments}
    return {"seed_everything": seed, "model": model, "data": data, "trainer": trainer}
