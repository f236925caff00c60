"""Run of a test of metrics: train a model, and measure it; ``python -m lit_modules.studies.metrics.run FOLDER ...``."""

import copy
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from lit_modules.datamodules import common
from lit_modules.metrics.membership import (
    attack_auc,
    gradient_norm_attack,
    loss_attack,
    min_k_attack,
    min_k_plus_plus_attack,
    reference_attack,
    zlib_attack,
)
from lit_modules.studies.compare.records import RETAIN_LOG
from lit_modules.studies.compare.settings import filled
from lit_modules.studies.launchers import RESULTS
from lit_modules.studies.metrics.pools import attacked_rows, other_answers, pool_rows
from lit_modules.studies.metrics.settings import REFERENCE, RETAIN, START
from lit_modules.studies.runs import RUN, finite, read_json, run_each, write_json
from lit_modules.studies.stress.attacks import relearn, simulate_quantization_
from lit_modules.unlearning.core.losses import token_nll, token_scores
from lit_modules.unlearning.core.pretrained import load_causal_lm
from lit_modules.unlearning.fine_tuning import CausalLMFineTuning
from lit_modules.utils.arguments import import_class
from lit_modules.utils.model_modes import evaluation_mode

MODEL, LOG_FILE = "model", "log.json"
PLAIN, RELEARNED, QUANTIZED = "plain", "relearned", "quantized"
ROWS_AT_ONCE = 16


def run(folder: Path) -> dict[str, Any]:
    """Train and measure the model that the record in a folder asks for."""
    record = read_json(folder / RUN)
    study = Study(record["settings"], record["paths"], folder)
    began = time.monotonic()
    role, name, seed = record["role"], record["name"], record["seed"]
    conditions: dict[str, dict[str, float | None]] = {}
    if role == START:
        study.train_pool(study.new_model(), RETAIN, seed, start=True)
    elif role == "unlearned":
        network = study.unlearn(name, seed)
        conditions = {PLAIN: study.measure(network), **study.attack(network)}
    else:
        network = study.train_pool(study.load(record["paths"][START]), name, seed)
        conditions[PLAIN] = study.measure(network, reference=role == REFERENCE)
        if name == RETAIN and role != REFERENCE:
            conditions |= study.attack(network)
    results = {
        "role": role,
        "name": name,
        "seed": seed,
        "conditions": conditions,
        "seconds": round(time.monotonic() - began, 2),
    }
    write_json(folder / RESULTS, results)
    return results


class Study:
    """Models, data and measurements of a test of metrics.

    Args:
        settings: Its configuration, without placeholders but for the log of the retain rows' model.
        paths: Folders of models, of the tokenizer, and the log.
        folder: Folder of the run.
    """

    def __init__(self, settings: Mapping[str, Any], paths: Mapping[str, str], folder: Path) -> None:
        self.settings, self.paths, self.folder = settings, paths, folder

    def data(self, **arguments: Any) -> Any:
        """Build the datamodule."""
        data = self.settings["data"]
        init_args = {"num_workers": 0, **(data.get("init_args") or {}), "tokenizer": self.paths["tokenizer"]}
        return import_class(data["class_path"])(**(init_args | arguments))

    def new_model(self) -> Any:
        """Build or load the model of the start."""
        start = self.settings["start"]
        if isinstance(start["model"], str):
            return load_causal_lm(start["model"])
        seed_everything(start.get("seed", 0), verbose=False)
        return import_class(start["model"]["class_path"])(**(start["model"].get("init_args") or {}))

    def load(self, path: str) -> Any:
        """Load a model of an earlier run."""
        return load_causal_lm(path)

    def train_pool(self, network: Any, kind: str, seed: int, start: bool = False) -> Any:
        """Train a network on the retain rows and on what a kind says of the forget rows; save and return it."""
        pools = self.settings["start"] if start else self.settings["pools"]
        evaluated = self.data()
        evaluated.setup("test")
        data = self.data(subset="all", batch_size=pools["batch_size"], seed=seed)
        data.setup("fit")
        rows = pool_rows(kind, data.encoded["forget"], other_answers(evaluated), seed)
        data.encoded = {"forget": rows, "retain": data.encoded["retain"]}
        rate = 1e-3 if start else pools.get("learning_rate", 1e-3)
        optimizer = pools.get("optimizer") if start else None
        init_args = dict((optimizer or {}).get("init_args") or {"lr": rate, "weight_decay": 0.0})
        built = partial(import_class(optimizer["class_path"]) if optimizer else AdamW, **init_args)
        scheduler = partial(CosineAnnealingLR, T_max=pools["steps"])
        seed_everything(seed, verbose=False)
        module = CausalLMFineTuning(network, optimizer=built, scheduler=scheduler)
        self._trainer(pools["steps"], gradient_clip_val=1.0).fit(module, datamodule=data)
        return self._saved(network)

    def unlearn(self, method: str, seed: int) -> Any:
        """Unlearn the model that knows the facts, of the same seed; save and return it."""
        unlearning = self.settings["unlearning"]
        entry = next(entry for entry in unlearning["methods"] if entry["name"] == method)
        data = self.data(batch_size=unlearning["batch_size"], seed=seed)
        seed_everything(seed, verbose=False)
        network = self.load(self.paths["facts"])
        optimizer = partial(AdamW, lr=entry["learning_rate"], weight_decay=0.0)
        init_args = filled(entry.get("init_args") or {}, self.paths)
        module = import_class(entry["class_path"])(network, optimizer=optimizer, **init_args)
        self._trainer(unlearning["steps"]).fit(module, datamodule=data)
        return self._saved(module.model)

    def measure(self, network: Any, reference: bool = False) -> dict[str, float | None]:
        """Return the benchmark's numbers and the AUC of six membership attacks.

        Of the reference of these attacks the numbers alone; a metric that reads a log of it writes that instead.
        """
        evaluation = self.settings["evaluation"]
        init_args = dict(evaluation["metric"].get("init_args") or {})
        if reference and RETAIN_LOG in init_args.values():
            init_args = {name: value for name, value in init_args.items() if value != RETAIN_LOG}
            init_args["log_file"] = str(self.folder / LOG_FILE)
        metric = import_class(evaluation["metric"]["class_path"])(**filled(init_args, self.paths))
        module = CausalLMFineTuning(network, metric=metric, max_new_tokens=evaluation.get("max_new_tokens", 256))
        data = self.data()
        trainer = self._trainer(1)
        trainer.test(module, datamodule=data, verbose=False)
        numbers = finite(trainer.callback_metrics)
        return numbers if reference else numbers | attack_aucs(network, self.load(self.paths[REFERENCE]), data)

    def attack(self, network: Any) -> dict[str, dict[str, float | None]]:
        """Measure a network after relearning on the forget set, and after quantization."""
        attacks = self.settings["attacks"]
        data = self.data(subset="forget", batch_size=self.settings["unlearning"]["batch_size"], seed=0)
        data.setup("fit")
        measured: list[dict[str, float | None]] = []

        def evaluate(relearned: Any) -> dict[str, float]:
            measured.append(self.measure(relearned))
            return {}

        steps, rate = attacks["relearning_steps"], attacks["relearning_rate"]
        relearn(network, data.train_dataloader(), evaluate, steps=[steps], learning_rate=rate)
        rounded = copy.deepcopy(network)
        simulate_quantization_(rounded, attacks.get("bits", 4))
        return {RELEARNED: measured[0], QUANTIZED: self.measure(rounded)}

    def _trainer(self, steps: int, **arguments: Any) -> Trainer:
        settings: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        settings |= {"enable_model_summary": False, "limit_val_batches": 0, **(self.settings.get("trainer") or {})}
        return Trainer(max_steps=steps, max_epochs=-1, default_root_dir=self.folder, **settings, **arguments)

    def _saved(self, network: Any) -> Any:
        network.save_pretrained(self.folder / MODEL)
        return network.requires_grad_(True)


def attack_aucs(network: Any, reference: nn.Module, data: Any) -> dict[str, float | None]:
    """Return the AUC of six membership attacks on a network, ``attack/<name>``: 1 if it knows every forget row as such.

    Args:
        network: Network.
        reference: Model that never read the forget rows.
        data: Datamodule that is set up for a test.
    """
    rows = attacked_rows(data)
    member = torch.tensor([known for _, known in rows])
    encoded = [row for row, _ in rows]
    texts = data.tokenizer.batch_decode([row.target for row in encoded], skip_special_tokens=True)
    pad = common.pad_id(data.tokenizer)
    own, others = (_scores(model, encoded, pad) for model in (network, reference))
    scores = {
        "loss": loss_attack(own["log_probs"]),
        "zlib": zlib_attack(own["log_probs"], texts),
        "min_k": min_k_attack(own["log_probs"]),
        "min_k_plus_plus": min_k_plus_plus_attack(own["log_probs"], own["means"], own["deviations"]),
        "reference": reference_attack(own["log_probs"], others["log_probs"]),
        "gradient_norm": _gradient_norms(network, encoded, pad),
    }
    return finite({f"attack/{name}": attack_auc(values, member).auc for name, values in scores.items()})


def _scores(model: nn.Module, rows: Sequence[common.Encoded], pad: int) -> dict[str, list[Tensor]]:
    """Return the scores of each row's tokens."""
    found: dict[str, list[Tensor]] = {"log_probs": [], "means": [], "deviations": []}
    with torch.no_grad(), evaluation_mode(model):
        for start in range(0, len(rows), ROWS_AT_ONCE):
            scores = token_scores(model, common.pad_right(rows[start : start + ROWS_AT_ONCE], pad))
            for name, values in found.items():
                values += scores[name]
    return found


def _gradient_norms(network: Any, rows: Sequence[common.Encoded], pad: int) -> Tensor:
    scores = []
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    with torch.enable_grad(), evaluation_mode(network):
        for row in rows:
            nll, _ = token_nll(network, common.pad_right([row], pad))
            scores.append(gradient_norm_attack([-nll], parameters))
    return torch.cat(scores)


def main(args: Sequence[str]) -> int:
    """Run the runs in folders; see :func:`~lit_modules.studies.runs.run_each`."""
    return run_each(run, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
