"""``lit-modules coda armada-lite``: edit the support images by instructions that a chat model proposes; a baseline."""

from pathlib import Path

from lit_modules.cli.coda.data import pair_tasks
from lit_modules.cli.coda.options import coda_parser, read_plan
from lit_modules.cli.coda.run import print_counts
from lit_modules.coda.augmentation.armada_lite import ArmadaLite, ImageEditor
from lit_modules.coda.augmentation.edit_requests import EditSettings
from lit_modules.coda.core.store import Store
from lit_modules.utils.errors import UsageError
from lit_modules.utils.interrupts import stoppable


def main(action: str, args: list[str]) -> int:
    """Make the edited images of all concepts, or what is missing of them, and write them as training data.

    Args:
        action: ``armada-lite``.
        args: Options; see ``lit-modules coda armada-lite --help``.

    Returns:
        0; 1 if the run stopped before its end or a concept failed; 130 if it was interrupted.

    Raises:
        UsageError: If an option is wrong.
        ValueError: If something is wrong with the data.
        StoreInUse: If another process writes to the store.
    """
    parser = coda_parser(action)
    parser.add_argument("--editor", type=ImageEditor, help="model that changes an image as an instruction says")
    parser.add_argument("--edits", type=EditSettings, default=EditSettings(), help="settings of the edits")
    parser.add_argument("--output", type=str, required=True, help="folder to write; it is made")
    parser.add_argument("--allow-short", action="store_true", help="take concepts with fewer images than wanted")
    plan = read_plan(parser, action, args)
    plan.need("data", "chat", "editor")
    if plan.shard is not None:
        raise UsageError("shard divides pairs, and a concept may be in several; leave it out.")
    plan.apply_budget()
    data, folder, output = plan.data(), f"{plan.store}-armada-lite", Path(plan.config["output"])
    settings: EditSettings = plan.objects["edits"]
    tasks = pair_tasks(data, Path(folder) / "support")
    print(data.describe())
    try:
        with stoppable(), Store(folder) as store:
            run = ArmadaLite(store, settings, plan.objects["chat"], plan.objects["editor"])
            result = run.run(tasks)
            print_counts(result.counts, plan.objects["prices"])
            failed = [one for one in result.concepts if one.failure is not None]
            for one in failed:
                print(f"failed: {one.concept!r} has {one.made} of {settings.num_images} images: {one.failure!r}")
            if result.stopped is not None:
                print(f"stopped: {result.stopped} What is done is kept; the same line goes on.")
            if result.stopped is not None or (failed and not plan.config["allow_short"]):
                return 1
            number = run.export(output, tasks, plan.config["allow_short"])
    except KeyboardInterrupt:
        print(f"Interrupted; the same line goes on in {folder}.")
        return 130
    print(f"{number} images of armada_lite, which is not ARMADA, are in {output}; train on them with")
    print(
        f"  lit-modules fit --data {type(data).__name__} --data.method armada_lite --data.synthetic_root {output} "
        f"--data.n_synthetic {settings.num_images} ..."
    )
    return 1 if failed else 0
