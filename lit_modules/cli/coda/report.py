"""``lit-modules coda report``: write a page on a run."""

from pathlib import Path

from lit_modules.cli.coda.options import coda_parser, read_plan
from lit_modules.coda.augmentation.report.page import write_report
from lit_modules.coda.core.store import Store


def main(action: str, args: list[str]) -> int:
    """Write the report on a store, whether its run is done or not; no model is asked.

    Args:
        action: ``report``.
        args: Options; see ``lit-modules coda report --help``.

    Returns:
        0.

    Raises:
        UsageError: If an option is wrong.
        FileNotFoundError: If there is no store, or no file of results.
        ValueError: If the results or the store's manifest cannot be read.
    """
    parser = coda_parser(action)
    parser.add_argument("--output", type=str | None, help="HTML file (default: report.html in the store)")
    parser.add_argument(
        "--results",
        type=str | None,
        help="JSON file with accuracies after the update: rows with method, real, synthetic (images of each class) and "
        "accuracy, and if known lower, upper, std, invalid, seeds, feature, dataset and model",
    )
    parser.add_argument("--max-images", type=int, default=3000, help="most pictures on the page")
    plan = read_plan(parser, action, args)
    given = plan.config
    store = Store(plan.store, writable=False)
    output = Path(plan.store) / "report.html" if given["output"] is None else given["output"]
    file = write_report(store, output, given["results"], plan.objects["prices"], given["max_images"])
    print(f"{file} ({file.stat().st_size / 1e6:.1f} MB) holds everything; open it in a browser.")
    return 0
