"""``lit-modules coda export``: write the accepted images as training data."""

import base64
import inspect
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from lit_modules.cli.coda.data import pair_tasks
from lit_modules.cli.coda.options import Plan, coda_parser, read_plan
from lit_modules.coda.augmentation.export import export_images
from lit_modules.coda.augmentation.features import FeatureKind
from lit_modules.coda.augmentation.inputs import PairTask
from lit_modules.coda.core.store import Store
from lit_modules.utils.errors import UsageError
from lit_modules.utils.files import whole_file
from lit_modules.utils.suggestions import did_you_mean


def main(action: str, args: list[str]) -> int:
    """Write the images of one kind.

    Args:
        action: ``export``.
        args: Options; see ``lit-modules coda export --help``.

    Returns:
        0.

    Raises:
        UsageError: If an option is wrong.
        ValueError: If a concept has no images, or too few.
        FileNotFoundError: If there is no store.
    """
    parser = coda_parser(action)
    parser.add_argument("--output", type=str, required=True, help="folder to write; it is made")
    parser.add_argument("--kind", type=str | None, help="kind of features whose images to take")
    parser.add_argument("--allow-short", action="store_true", help="take concepts with fewer images than wanted")
    parser.add_argument(
        "--chat-file",
        type=str | None,
        help="also write questions with real and synthetic images and their answers, as JSON lines of chats for the "
        "fine-tuning of model vendors",
    )
    plan = read_plan(parser, action, args)
    kind, output = chosen_kind(plan), Path(plan.config["output"])
    store = Store(plan.store, writable=False)
    data = plan.data()
    tasks = pair_tasks(data, Path(plan.store) / "support")
    number = export_images(store, output, tasks, kind, plan.config["allow_short"], _pair_ids(data, tasks))
    print(f"{number} images are in {output}; train on them with")
    name, each = type(data).__name__, _least(output)
    pairs = f" --data.pairs {output / 'pairs.json'}" if _takes_pairs(data) else ""
    print(
        f"  lit-modules fit --data {name} --data.method synthetic --data.synthetic_root {output}{pairs} "
        f"--data.n_synthetic {each} ..."
    )
    if plan.config["chat_file"] is not None:
        lines = _write_chats(plan, data, output, Path(plan.config["chat_file"]), each)
        print(f"{lines} chats are in {plan.config['chat_file']}")
    return 0


def chosen_kind(plan: Plan) -> FeatureKind:
    """Return the kind of features whose images are taken.

    Raises:
        UsageError: If it is unknown, or the settings have several and none was named.
    """
    given, kinds = plan.config["kind"], plan.settings.kinds
    if given is None and len(kinds) == 1:
        return kinds[0]
    if given is None:
        raise UsageError(f"The settings have the kinds {', '.join(kinds)}; add --kind with one of them.")
    if given not in get_args(FeatureKind):
        raise UsageError(f"There is no kind {given!r}{did_you_mean(given, get_args(FeatureKind))}")
    return cast(FeatureKind, given)


def _pair_ids(data: Any, tasks: Sequence[PairTask]) -> dict[str, str]:
    """Return what the data calls each pair; of both directions of a pair, the first."""
    found: dict[str, str] = {}
    for pair, task in zip(data.pairs, tasks, strict=True):
        found.setdefault(task.pair.pair_id, pair.pair_id)
    return found


def _takes_pairs(data: Any) -> bool:
    return "pairs" in inspect.signature(type(data)).parameters


def _least(output: Path) -> int:
    """Return how many images every concept has in each of its pairs."""
    lines = (output / "train" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return min(Counter((row["class_name"], row["pair_id"]) for row in rows).values())


def _write_chats(plan: Plan, data: Any, output: Path, path: Path, number: int) -> int:
    """Write the questions that the datamodule trains on, in the form of OpenAI's fine-tuning with images."""
    changes: dict[str, Any] = {
        "method": "synthetic",
        "synthetic_root": str(output),
        "synthetic_kind": None,
        "n_synthetic": number,
        "image_size": None,
        "mix": "none",
    }
    if _takes_pairs(data):
        changes["pairs"] = str(output / "pairs.json")
    train = plan.data(**changes).split("train")
    with whole_file(path) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        for place in range(len(train)):
            row = train[place]
            picture = io.BytesIO()
            row["image"][0].save(picture, "PNG")
            url = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": row["prompt"][0]}]
            answer = {"role": "assistant", "content": row["answer"][0]}
            file.write(json.dumps({"messages": [{"role": "user", "content": content}, answer]}) + "\n")
    return len(train)
