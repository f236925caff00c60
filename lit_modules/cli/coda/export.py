"""``lit-modules coda {export,armada-lite,report}``: training data of a run, edited images, and its report."""

import base64
import io
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_modules.cli.coda.data import pair_ids, pair_tasks
from lit_modules.cli.coda.options import CodaOptions, KindOptions
from lit_modules.cli.coda.run import STOPPED, print_counts
from lit_modules.coda.augmentation.armada_lite import ArmadaLite, EditSettings
from lit_modules.coda.augmentation.export import export_images
from lit_modules.coda.augmentation.report import write_report
from lit_modules.coda.backends.protocols import ImageEditor
from lit_modules.coda.core.store import Store
from lit_modules.utils.arguments import argument_names
from lit_modules.utils.errors import UsageError
from lit_modules.utils.files import whole_file
from lit_modules.utils.interrupts import stoppable
from lit_modules.utils.json_lines import read_json_lines


@dataclass(kw_only=True)
class ExportOptions(KindOptions):
    """Options of the export.

    Args:
        output: folder to write; it is made
        allow_short: take concepts with fewer images than wanted
        chat_file: also write questions with real and synthetic images and their answers, as JSON lines of chats for the
            fine-tuning of model vendors
    """

    output: str
    allow_short: bool = False
    chat_file: str | None = None


@dataclass(kw_only=True)
class ArmadaLiteOptions(CodaOptions):
    """Options of the edits.

    Args:
        editor: model that changes an image as an instruction says
        edits: settings of the edits
        output: folder to write; it is made
        allow_short: take concepts with fewer images than wanted
    """

    editor: ImageEditor | None = None
    edits: EditSettings = field(default_factory=EditSettings)
    output: str
    allow_short: bool = False


@dataclass(kw_only=True)
class ReportOptions(CodaOptions):
    """Options of the report.

    Args:
        output: HTML file (default: report.html in the store)
        results: JSON file with accuracies after the update: rows with method, real, synthetic (images of each class)
            and accuracy, and if known lower, upper, std, invalid, seeds, feature, dataset and model
        max_images: most pictures on the page
    """

    output: str | None = None
    results: str | None = None
    max_images: int = 3000


def export(options: ExportOptions) -> int:
    """Write the accepted images of one kind as training data."""
    kind, output = options.chosen_kind(), Path(options.output)
    store = Store(options.store, writable=False)
    data = options.prepare_data()
    tasks = pair_tasks(data, Path(options.store) / "support")
    number = export_images(
        store, output, tasks, kind=kind, allow_short=options.allow_short, pair_ids=pair_ids(data, tasks)
    )
    print(f"{number} images are in {output}; train on them with")
    rows = [row for _, row in read_json_lines(output / "train" / "metadata.jsonl")]
    each = min(Counter((row["class_name"], row["pair_id"]) for row in rows).values())
    pairs = {"pairs": str(output / "pairs.json")} if "pairs" in argument_names(type(data)) else {}
    arguments = {"method": "synthetic", "synthetic_root": str(output), **pairs, "n_synthetic": each}
    words = " ".join(f"--data.{name} {value}" for name, value in arguments.items())
    print(f"  lit-modules fit --data {type(data).__name__} {words} ...")
    if options.chat_file is not None:
        arguments |= {"synthetic_kind": None, "image_size": None, "mix": "none"}
        known = {name: value for name, value in data.hparams.items() if name in argument_names(type(data))}
        training = type(data)(**known | arguments)
        training.prepare_data()
        print(f"{_write_chats(training, options.chat_file)} chats are in {options.chat_file}")
    return 0


def _write_chats(data: Any, path: str) -> int:
    """Write the questions that a datamodule trains on, in the form of OpenAI's fine-tuning with images."""
    train = data.split("train")
    with whole_file(path) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        for index in range(len(train)):
            row = train[index]
            image = io.BytesIO()
            row["image"][0].save(image, "PNG")
            url = f"data:image/png;base64,{base64.b64encode(image.getvalue()).decode()}"
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": row["prompt"][0]}]
            answer = {"role": "assistant", "content": row["answer"][0]}
            file.write(json.dumps({"messages": [{"role": "user", "content": content}, answer]}) + "\n")
    return len(train)


def edit_images(options: ArmadaLiteOptions) -> int:
    """Make the edited images of all concepts, or what is missing of them, and write them as training data."""
    options.need("data", "chat", "editor")
    assert options.chat is not None
    assert options.editor is not None
    if options.shard is not None:
        raise UsageError("shard divides pairs, and a concept may be in several; leave it out.")
    options.apply_budget()
    data, folder, settings = options.prepare_data(), f"{options.store}-armada-lite", options.edits
    tasks = pair_tasks(data, Path(folder) / "support")
    print(data.describe())
    try:
        with stoppable(), Store(folder) as store:
            baseline = ArmadaLite(store, settings, options.chat, editor=options.editor)
            result = baseline.run(tasks)
            print_counts(result.counts, options.prices)
            failed = [row for row in result.concepts if row.failure is not None]
            for row in failed:
                print(f"failed: {row.concept!r} has {row.made} of {settings.num_images} images: {row.failure!r}")
            if result.stopped is not None:
                print(f"stopped: {result.stopped} {STOPPED}")
            if result.stopped is not None or (failed and not options.allow_short):
                return 1
            number = baseline.export(options.output, tasks, options.allow_short)
    except KeyboardInterrupt:
        print(f"Interrupted; the same command resumes in {folder}.")
        return 130
    print(f"{number} images of armada_lite, which is not ARMADA, are in {options.output}; train on them with")
    print(
        f"  lit-modules fit --data {type(data).__name__} --data.method armada_lite --data.synthetic_root "
        f"{options.output} --data.n_synthetic {settings.num_images} ..."
    )
    return 1 if failed else 0


def report(options: ReportOptions) -> int:
    """Write the report on a store, whether its run is done or not; no model is asked."""
    store = Store(options.store, writable=False)
    output = options.output or Path(options.store) / "report.html"
    file = write_report(store, output, options.results, prices=options.prices, max_images=options.max_images)
    print(f"{file} ({file.stat().st_size / 1e6:.1f} MB) holds everything; open it in a browser.")
    return 0
