"""``lit-modules demo ngdiff``: a small model memorises invented documents, and unlearns half of them."""

import json
import time
from pathlib import Path
from typing import Any

from lit_modules.demos.stages import log_to, say_and_run


def unlearning(folder: Path, seed: int) -> None:
    """Memorise invented documents, unlearn half of them with NGDiff, and show the benchmark before and after.

    Each stage is a command that a user can type, which is printed. A stage whose result lies in the folder is not run
    again.

    Args:
        folder: Folder of the run.
        seed: Seed of data, weights and order.
    """
    from rich.console import Console

    from lit_modules.unlearning.core.report import plot_report, read_metrics, table

    console = Console()
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    target, run = folder / "target", folder / "ngdiff"
    checkpoint = run / "unlearned.ckpt"
    memorise = "ngdiff/lume_synthetic_memorise.yaml"
    data = [f"--data.root={folder / 'data'}", f"--data.data_seed={seed}", f"--seed_everything={seed}"]
    saving = f"--trainer.callbacks.init_args.folder={target}"

    before_file, after_file = folder / "before" / "results.json", folder / "after" / "results.json"
    if not (target / "tokenizer.json").exists():
        console.rule("1 of 4: memorise the forget and the retain set")
        say_and_run(
            console,
            [
                "fit",
                "-c",
                memorise,
                *data,
                "--trainer.callbacks=lit_modules.callbacks.SavePretrained",
                saving,
                *log_to(folder / "memorise"),
            ],
        )
    if not before_file.exists():
        console.rule("2 of 4: evaluate the model that remembers")
        say_and_run(
            console,
            ["test", "-c", "ngdiff/lume_synthetic.yaml", f"--model.model={target}", *data, *log_to(folder / "before")],
        )
    if not checkpoint.exists():
        console.rule("3 of 4: unlearn the forget set with NGDiff and the adaptive learning rate")
        cli: Any = say_and_run(
            console, ["fit", "-c", "ngdiff/lume_synthetic.yaml", f"--model.model={target}", *data, *log_to(run)]
        )
        cli.trainer.save_checkpoint(checkpoint)
    if not after_file.exists():
        console.rule("4 of 4: evaluate the unlearned model")
        resumed = f"--ckpt_path={checkpoint}"
        say_and_run(
            console,
            [
                "test",
                "-c",
                "ngdiff/lume_synthetic.yaml",
                f"--model.model={target}",
                *data,
                resumed,
                *log_to(folder / "after"),
            ],
        )
    before, after = (json.loads(path.read_text()) for path in (before_file, after_file))
    (folder / "results.json").write_text(json.dumps({"before": before, "after": after}, indent=2) + "\n")
    plot_report(read_metrics(run), before, after, folder / "report.png", "NGDiff with AdaptiveLR on SyntheticLUME")
    console.print(table(before, after))
    console.print(
        f"{time.monotonic() - began:.0f} s. Picture: {folder / 'report.png'}; numbers: {folder / 'results.json'}"
    )
    print(folder)
