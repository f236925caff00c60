"""``lit-modules demo ngdiff``: a small model memorises invented documents, and unlearns half of them."""

import json
from pathlib import Path

from lit_modules.demos.stages import Demo
from lit_modules.utils.files import write_whole

MEMORISE, UNLEARN = "ngdiff/lume_synthetic_memorise.yaml", "ngdiff/lume_synthetic.yaml"


def unlearning(folder: Path, seed: int) -> None:
    """Memorise invented documents, unlearn half of them with NGDiff, and show the benchmark before and after.

    Args:
        folder: Folder of the run.
        seed: Seed of data, weights and order.
    """
    from lit_modules.unlearning.core.report import plot_report, read_metrics, table

    demo = Demo(folder)
    console, target, run = demo.console, folder / "target", folder / "ngdiff"
    checkpoint = run / "unlearned.ckpt"
    data = [f"--data.root={folder / 'data'}", f"--data.data_seed={seed}", f"--seed_everything={seed}"]
    common = ["-c", UNLEARN, f"--model.model={target}", *data]
    if not (target / "tokenizer.json").exists():
        console.rule("1 of 4: memorise the forget and the retain set")
        saving = ["--trainer.callbacks=lit_modules.callbacks.SavePretrained"]
        saving += [f"--trainer.callbacks.init_args.folder={target}"]
        demo.run("fit", "-c", MEMORISE, *data, *saving, logs=folder / "memorise")
    if not (folder / "before" / "results.json").exists():
        console.rule("2 of 4: evaluate the model that remembers")
        demo.run("test", *common, logs=folder / "before")
    if not checkpoint.exists():
        console.rule("3 of 4: unlearn the forget set with NGDiff and the adaptive learning rate")
        demo.run("fit", *common, logs=run).trainer.save_checkpoint(checkpoint)
    if not (folder / "after" / "results.json").exists():
        console.rule("4 of 4: evaluate the unlearned model")
        demo.run("test", *common, f"--ckpt_path={checkpoint}", logs=folder / "after")
    results = {name: json.loads((folder / name / "results.json").read_text()) for name in ("before", "after")}
    write_whole(folder / "results.json", json.dumps(results, indent=2) + "\n")
    picture, title = folder / "report.png", "NGDiff with AdaptiveLR on SyntheticLUME"
    plot_report(read_metrics(run), results["before"], results["after"], picture, title)
    console.print(table(results["before"], results["after"]))
    demo.finish(f"Picture: {picture}; numbers: {folder / 'results.json'}")
