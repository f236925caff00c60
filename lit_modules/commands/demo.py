"""``lit-modules demo``: a method from end to end, offline, in minutes."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

METHODS = ("ngdiff", "pgd")


def main(args: list[str]) -> int:
    """Run the demonstration of a method.

    Args:
        args: Name of the method, and options; see ``lit-modules demo --help``.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(
        prog="lit-modules demo",
        description="Run a method from end to end on the CPU, without network, with evaluation before and after.",
    )
    parser.add_argument("method", choices=METHODS, help="method to show")
    parser.add_argument(
        "--folder", help="folder of the run; an unfinished run in it goes on (default: a new one in runs/)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of data, weights and order (default: 0)")
    options = parser.parse_args(args)
    folder = Path(options.folder or f"runs/demo-{options.method}-{time.strftime('%Y%m%d-%H%M%S')}")
    if options.method == "pgd":
        from lit_modules.commands.demo_pgd import adversarial

        adversarial(folder, options.seed)
    else:
        unlearning(folder, options.seed)
    return 0


def unlearning(folder: Path, seed: int) -> None:
    """Memorise invented documents, unlearn half of them with NGDiff, and show the benchmark before and after.

    Each stage is a command that a user can type, which is printed. A stage whose result lies in the folder is not run
    again.

    Args:
        folder: Folder of the run.
        seed: Seed of data, weights and order.
    """
    from rich.console import Console

    from lit_modules.unlearning.report import plot_report, read_metrics, table

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
                "--trainer.callbacks=callbacks.SavePretrained",
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


def log_to(folder: Path) -> list[str]:
    """Send the logs of a stage to one folder."""
    settings = {"save_dir": str(folder.parent), "name": folder.name, "version": ""}
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": settings}
    return [f"--trainer.logger={json.dumps(logger)}", f"--trainer.default_root_dir={folder.parent}"]


def say_and_run(console: Any, args: list[str]) -> Any:
    """Print a command line and run it."""
    from lit_modules.cli import main as run

    console.print(
        "lit-modules " + " ".join(f"'{arg}'" if " " in arg else arg for arg in args), style="dim", markup=False
    )
    return run(args)
