"""Model card beside saved weights: ``README.md`` with the front matter that the Hugging Face Hub reads."""

import inspect
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.repocard import metadata_load
from huggingface_hub.utils._validators import validate_repo_id
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn

from lit_modules.utils.adapters import own_config
from lit_modules.utils.files import write_whole

TAG = "lit-modules"
"""Tag of a card that is written here, which a later save may replace."""
LIBRARIES = ("lit_modules", "torch", "lightning", "transformers", "peft", "diffusers", "torchvision", "torchao")
"""Libraries whose versions a card names, if the process has imported them."""
_OBJECTS = ("optimizer", "scheduler")  # callables, whose results the trainer holds
_SEED = "PL_GLOBAL_SEED"  # in which seed_everything of Lightning leaves it


@dataclass(frozen=True)
class Origin:
    """Facts on saved weights that their family knows.

    Attributes:
        library: Library that loads them, ``transformers``, ``peft`` or ``diffusers``.
        usage: Python lines that load them from ``FOLDER``; empty if there are none.
        base: Name or folder of the model that was trained, if there is one.
        revision: Revision of ``base`` on the Hub.
        task: Task in the Hub's words, such as ``text-generation``.
        tags: Further tags.
    """

    library: str
    usage: str
    base: str | None = None
    revision: str | None = None
    task: str | None = None
    tags: tuple[str, ...] = ()


def of_transformers(model: Any, merge: bool = False, revision: str | None = None, task: str | None = None) -> Origin:
    """Return the origin of a model of transformers, with an adapter of peft or without, as it is saved.

    Args:
        model: The model.
        merge: Whether its adapter is merged into the weights that are saved.
        revision: Revision of a model without an adapter; the configuration of an adapter names that of its base.
        task: Task in the Hub's words.
    """
    config: Any = own_config(model)
    whole = model if config is None else model.get_base_model()
    base = (config.base_model_name_or_path if config else None) or whole.config.name_or_path or None
    revision = config.revision if config else revision
    kind = type(whole).__name__
    if config is None or merge:
        tags = ("merged-adapter",) if config is not None else ()
        usage = f'from transformers import {kind}\n\nmodel = {kind}.from_pretrained("FOLDER")'
        return Origin("transformers", usage, base, revision, task, tags)
    named = f'"{base or "BASE"}"' + (f', revision="{revision}"' if revision else "")
    usage = f"from peft import PeftModel\nfrom transformers import {kind}\n\nbase = {kind}.from_pretrained({named})\n"
    usage += 'model = PeftModel.from_pretrained(base, "FOLDER")'
    return Origin("peft", usage, base, revision, task, (str(config.peft_type.value).lower(), "adapter"))


@contextmanager
def model_card(module: LightningModule, folder: str | Path, origin: Origin) -> Iterator[None]:
    """Write the card of a module whose weights the block saves to a folder.

    The card says what was trained by which method with which arguments, on which data under which licence, what was
    reached, and how to repeat it. Data, numbers and optimizer are those of the module's trainer, if it has one: the
    licence is the attribute ``licence`` of the datamodule, a text, and a dataset on the Hub its attribute ``hub``. The
    licence of the base is that of its own card, in its folder or on the Hub; where that cannot be read, the card names
    none. A base that lies in a folder of this machine is no name of the Hub, so the front matter leaves it out.

    Only the first process writes. A ``README.md`` that lay there before and is none of ours stays as it is, and a
    warning says so.
    """
    path = Path(folder) / "README.md"
    own = not path.exists() or TAG in _front_matter(path).get("tags", [])
    yield
    if module.global_rank != 0:
        return
    if not own:
        rank_zero_warn(f"{path} is no model card of this project, and was left as it is.")
        return
    write_whole(path, card(module, origin).content)


def card(module: LightningModule, origin: Origin) -> ModelCard:
    """Return the card of a module; see :func:`model_card`."""
    method = type(module).__name__
    trainer = module._trainer  # ``module.trainer`` raises where there is none
    data = getattr(trainer, "datamodule", None)
    hub = getattr(data, "hub", None)
    name = None if origin.base is None else Path(origin.base).name
    licence: dict[str, Any] = base_licence(origin)
    facts = ModelCardData(
        base_model=origin.base if origin.base is not None and is_hub_name(origin.base) else None,
        datasets=[hub] if hub else None,
        library_name=origin.library,
        pipeline_tag=origin.task,
        tags=[TAG, method.lower(), *origin.tags],
        **licence,
    )
    title = f"{name} trained by {method}" if name else f"Model trained by {method}"
    sections = {
        "": _introduction(module, origin),
        "Use": f"```python\n{origin.usage}\n```" if origin.usage else None,
        "Method": _method(module),
        "Data": None if trainer is None else _data(data),
        "Results": None if trainer is None else _results(trainer.callback_metrics),
        "Reproduce": _reproduction(trainer),
    }
    text = "\n\n".join(
        f"## {heading}\n\n{content}" if heading else content for heading, content in sections.items() if content
    )
    return ModelCard(f"---\n{facts.to_yaml()}\n---\n\n# {title}\n\n{text}\n")


def is_hub_name(name: str) -> bool:
    """Return whether a model's name is one of the Hub, and no folder."""
    if Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except ValueError:
        return False
    return True


def base_licence(origin: Origin) -> dict[str, str]:
    """Return ``license``, and perhaps ``license_name`` and ``license_link``, of the base's own card; else nothing."""
    if origin.base is None:
        return {}
    named = is_hub_name(origin.base)
    path = Path(origin.base) / "README.md"
    if named:
        try:
            path = Path(hf_hub_download(origin.base, "README.md", revision=origin.revision))
        except (OSError, ValueError):  # without a connection, or without a card
            return {}
    known = _front_matter(path)
    facts = {name: str(known[name]) for name in ("license", "license_name", "license_link") if known.get(name)}
    link = facts.get("license_link", "")
    if link and "://" not in link:  # a file beside the base's card
        facts.pop("license_link")
        if named:
            facts["license_link"] = f"https://huggingface.co/{origin.base}/blob/{origin.revision or 'main'}/{link}"
    return facts if "license" in facts else {}


def command_line() -> str | None:
    """Return the command that this process runs; ``None`` in a notebook or an interactive session."""
    script, *args = sys.argv or [""]
    if "ipykernel" in sys.modules or not script or script == "-c":
        return None
    path = Path(script)
    if path.name == "lit-modules" or (path.name == "__main__.py" and path.parent.name == "lit_modules"):
        return shlex.join(["lit-modules", *args])
    if path.name == "__main__.py":
        return shlex.join(["python", "-m", path.parent.name, *args])
    return shlex.join(["python", script, *args]) if path.suffix == ".py" else shlex.join([path.name, *args])


def _introduction(module: LightningModule, origin: Origin) -> str:
    method = type(module)
    lines = [f"`{method.__name__}` of lit-modules: {_summary(method)}"]
    if origin.base is not None:
        revision = f", revision `{origin.revision}`" if origin.revision else ""
        lines += [f"Base: `{origin.base if is_hub_name(origin.base) else Path(origin.base).name}`{revision}."]
    return "\n\n".join([*lines, *_references(method)])


def _method(module: LightningModule) -> str:
    kind = type(module)
    arguments = {name: value for name, value in module.hparams.items() if not name.startswith("_")}
    held = {**vars(module), **dict(module.named_children())}  # no property, which may do work
    for name in _argument_names(kind):
        if name not in (*arguments, *_OBJECTS, "model") and held.get(name) is not None:
            arguments[name] = _described(held[name])
    text = f"`{kind.__module__}.{kind.__qualname__}` with"
    return f"{text}\n\n```yaml\n{_yaml(arguments)}```" if arguments else f"{text}out arguments."


def _data(data: Any) -> str:
    if data is None:
        return "Loaders that were given in Python; their data and its licence are not known here."
    licence = getattr(data, "licence", None)  # a datamodule of the user's need not have it
    arguments = {name: value for name, value in data.hparams.items() if not name.startswith("_")}
    lines = [f"`{type(data).__name__}`: {_summary(type(data))}"]
    lines += [f"Licence: {licence}." if licence else "Licence: not stated; it is that of the files that were given."]
    lines += [f"```yaml\n{_yaml(arguments)}```"] if arguments else []
    return "\n\n".join(lines)


def _results(metrics: Mapping[str, Any]) -> str | None:
    numbers = {name: float(value) for name, value in metrics.items() if not name.endswith("_step")}
    if not numbers:
        return None
    rows = [f"| {name} | {value:.6g} |" for name, value in sorted(numbers.items())]
    return "\n".join(["Last numbers that the run logged:", "", "| metric | value |", "| --- | --- |", *rows])


def _reproduction(trainer: Any) -> str:
    facts: dict[str, Any] = {}
    if os.environ.get(_SEED):
        facts["seed"] = int(os.environ[_SEED])
    if trainer is not None:
        facts |= {"optimizer_steps": trainer.global_step, "epochs": trainer.current_epoch}
        facts |= {"precision": str(trainer.precision), "devices": trainer.world_size}
        facts["optimizers"] = [_optimizer(optimizer) for optimizer in trainer.optimizers]
    versions = {name: sys.modules[name].__version__ for name in LIBRARIES if name in sys.modules}
    facts["versions"] = {"python": platform.python_version(), **versions}
    command = command_line()
    shown = f"```bash\n{command}\n```\n\n" if command else ""
    return f"{shown}```yaml\n{_yaml(facts)}```"


def _optimizer(optimizer: Any) -> dict[str, Any]:
    """Return the class of an optimizer and its arguments that are numbers; switches that are off are left out."""
    arguments = inspect.signature(type(optimizer).__init__).parameters
    held = {name: value for name, value in optimizer.defaults.items() if name in arguments}
    plain = {
        name: value for name, value in held.items() if isinstance(value, int | float | tuple) and value is not False
    }
    return {"class": type(optimizer).__name__, **plain}


def _summary(kind: type) -> str:
    return (inspect.getdoc(kind) or kind.__name__).partition("\n\n")[0].replace("\n", " ")


def _references(kind: type) -> list[str]:
    """Return the references of a class's docstring as a list in Markdown; empty without any."""
    _, _, section = (inspect.getdoc(kind) or "").partition("\nReferences:\n")
    entries: list[str] = []
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break
        if line.strip():
            entries.append(line.strip())
    return ["References: " + " ".join(entries)] if entries else []


def _argument_names(kind: type) -> list[str]:
    """Return the names of the arguments that a class and its bases declare."""
    names: dict[str, None] = {}
    for base in kind.__mro__:
        declared: Any = vars(base).get("__init__")
        if declared is not None and base.__module__.partition(".")[0] == kind.__module__.partition(".")[0]:
            parameters = list(inspect.signature(declared).parameters.values())
            fixed = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
            names |= dict.fromkeys(each.name for each in parameters[1:] if each.kind not in fixed)
    return list(names)


def _described(value: Any) -> Any:
    """Return an argument as plain values: an object as its class and those of its settings that are plain."""
    if isinstance(value, str | int | float | list | tuple | dict):
        return value
    if hasattr(value, "peft_type"):
        settings = value.to_dict()
    else:
        own = {name: getattr(value, name, None) for name in _argument_names(type(value))}
        settings = {name: held for name, held in own.items() if isinstance(held, str | int | float)}
    plain = {name: held for name, held in settings.items() if held not in (None, False, {}, [])}
    return {"class": type(value).__name__, **plain}


def _yaml(values: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(values, default=_plain))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)


def _front_matter(path: Path) -> dict[str, Any]:
    """Return the front matter of a Markdown file; nothing if there is no such file, or none in it."""
    if not path.is_file():
        return {}
    try:
        return metadata_load(path) or {}
    except (ValueError, yaml.YAMLError):
        return {}
