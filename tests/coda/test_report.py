import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lit_modules.coda.augmentation.confusable_pairs import ConfusionTable, save_pairs
from lit_modules.coda.augmentation.pipeline import Until
from lit_modules.coda.augmentation.report import read_results, result_tables, write_report
from lit_modules.coda.backends.protocols import Prices
from lit_modules.coda.core.concepts import PairTask
from lit_modules.coda.core.store import Store
from tests.coda.fakes import FakeChat, FakeGenerator, discs, run_pipeline

EVIL = "<script>alert(\"x\")</script>' onerror='x ../../etc"
ROWS: list[dict[str, Any]] = [
    {"method": "real", "real": 5, "synthetic": 0, "accuracy": 0.612, "seeds": 3, "std": 0.012},
    {"method": "crop", "real": 5, "synthetic": 1, "accuracy": 0.604, "invalid": 0.0, "lower": 0.5, "upper": 0.7},
    {"method": "CoDA", "feature": "V", "real": 5, "synthetic": 1, "accuracy": 0.73, "seeds": [0, 1], "std": None},
    {"method": "CoDA", "feature": "V", "real": 0, "synthetic": 20, "accuracy": 0.5, "position_bias": 0.5},
    {"method": "CoDA", "real": 20, "synthetic": 0, "accuracy": 0.25, "lower": float("nan"), "upper": float("nan")},
]


class Page(HTMLParser):
    """Tags, words and table cells of a page; an unbalanced one is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.tables: list[list[list[str]]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words += data
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data

    def table(self, first: str) -> list[list[str]]:
        """Return the rows of the table whose first heading this is."""
        return next(rows[1:] for rows in self.tables if rows[0][0] == first)

    def images(self) -> int:
        return sum(tag == "img" for tag, _ in self.tags)


def page(folder: Path, **options: Any) -> Page:
    file = write_report(Store(folder, writable=False), folder.parent / "pages" / "report.html", **options)
    assert [path.name for path in file.parent.iterdir()] == ["report.html"]
    return Page(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run_pipeline(folder / "store", [discs(folder), discs(folder, ("Red Two", "Blue Two"), "two")])
    return folder / "store"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "store")
    return tmp_path / "store"


def test_the_page_holds_everything_of_each_pair_and_no_script(copy: Path) -> None:
    before = Store(copy, writable=False).content_hashes()
    found = page(copy, prices=Prices(call=0.5, image=2.0))
    assert Store(copy, writable=False).content_hashes() == before
    assert "All stages are done." in found.words
    assert found.table("target") == [[f"Red {name}", f"Blue {name}", "0.400", "8", "done"] for name in ("Disc", "Two")]
    counts = {row[0]: row[1:] for row in found.table("stage")}
    assert (counts["features"][0], counts["trials"][4]) == ("8", "16")
    assert counts["all"][-1] == "80.00"  # 32 calls for half a unit of money, 32 images for 2
    features = [rows[1:] for rows in found.tables if rows[0][0] == "feature"]
    assert len(features) == 2 * 2 * 2
    assert features[0][0][0] == "red body"
    assert features[0][0][1].startswith("1.000 (")
    assert features[0][0][3:] == ["yes", "1 is over 0.6; among the best 5"]
    assert features[0][1][2:] == ["-", "no", "0.5 is not over 0.6"]
    for part in ("RED BODY: duplicate", "red body: shown", "seed ", "A realistic 4K photograph of Red Disc with red"):
        assert part in found.words
    values = dict(found.table("setting"))
    assert (values["chat"], values["num_images"]) == ("fake chat 1", "2")
    assert found.images() == 2 * (6 + 4 * 4)  # 6 real, and for each of 4 units 2 trial and 2 final images
    assert "cannot be shown" not in found.words
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "link", "iframe", "object", "form", "base"})
    assert all(str(values["src"]).startswith("data:image/") for tag, values in found.tags if tag == "img")
    policies = [str(values["content"]) for tag, values in found.tags if tag == "meta" and "http-equiv" in values]
    assert policies[0].startswith("default-src 'none'")
    assert "No prices" in page(copy).words


def test_what_models_and_files_say_is_escaped(tmp_path: Path) -> None:
    chat = FakeChat(script=[json.dumps(["<img src=x onerror=alert(1)> red", "</script><b>red \" '"])] * 2)
    task = discs(tmp_path, (EVIL, f"Blue {EVIL}"))
    named = Path(task.target_images[0]).rename(tmp_path / "discs" / "<b>'\".png")
    tasks = [PairTask(task.pair, (str(named),), task.confusable_images)]
    run_pipeline(tmp_path / "store", tasks, chat=chat, kinds=("textual_contrastive",), verification="none")
    results = [{**dict.fromkeys(("method", "feature", "dataset", "model"), EVIL), **ROWS[0], "method": EVIL}]
    found = page(tmp_path / "store", title=EVIL, results=results)
    assert {tag for tag, _ in found.tags}.isdisjoint({"b", "script"})
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert found.words.count(EVIL) > 12
    assert "<img src=x onerror=alert(1)> red" in found.words
    assert "<b>'\".png, reference" in found.words


def test_images_that_are_missing_damaged_or_others_are_named(copy: Path) -> None:
    folder = next(copy.glob("*/red-disc-*"))
    final, other = (folder / f"{source}_contrastive" / "images" for source in ("visual", "textual"))
    (final / "0.png").unlink()
    (final / "1.png").write_bytes((final / "1.png").read_bytes()[:60])
    (other / "0.png").write_bytes((other / "1.png").read_bytes())
    real = sorted((folder / "support").iterdir())
    real[0].write_bytes(real[1].read_bytes())  # an image under the hash of another one
    record = json.loads((other / ".." / "images.json").read_text())
    (other / "1.png").write_bytes(b"<svg onload=alert(1)>")
    (other / "1.json").unlink()
    record["files"]["1.png"] = hashlib.sha256(b"<svg onload=alert(1)>").hexdigest()
    (other / ".." / "images.json").write_text(json.dumps(record))
    found = page(copy)
    for path, problem in (
        (final / "0.png", "is missing"),
        (final / "1.png", "cannot be shown: the file cannot be decoded"),
        (other / "0.png", "is not the picture that its record tells of"),
        (other / "1.png", "cannot be shown: the file is no picture"),
        (real[0], "is not the picture that its record tells of"),
    ):
        assert f"{path.relative_to(copy).as_posix()} {problem}" in found.words
    assert "no record of its prompt" in found.words
    assert found.images() == 44 - 5


@pytest.mark.parametrize(
    ("until", "missing"),
    [
        ("features", "scores (4 of 4), images (4 of 4), verification (4 of 4)"),
        ("scores", "images (4 of 4), verification (4 of 4)"),
        ("images", "verification (4 of 4)"),
    ],
)
def test_stages_that_were_not_run_are_named(tmp_path: Path, until: Until, missing: str) -> None:
    run_pipeline(tmp_path / "store", [discs(tmp_path)], until)
    found = page(tmp_path / "store")
    assert f"Not done: {missing}." in found.words
    assert found.table("target")[0][-1] == "not done: " + re.sub(r" \(4 of 4\)", "", missing)
    assert ("not verified images: 2" in found.words) == (until == "images")
    assert found.table("feature")[0][3] == ("-" if until == "features" else "yes")


def test_a_store_without_a_run_failures_and_records_that_cannot_be_read(tmp_path: Path) -> None:
    store = tmp_path / "store"
    Store(store).close()
    assert "Nothing was run on this store yet" in page(store).words
    (store / "manifest.json").write_text('{"settings": {"kinds": ["x"], "min_features": 1}}')
    with pytest.raises(ValueError, match=r"manifest.json is not what a run writes \(KeyError\('pairs'\)\); run `lit"):
        page(store)
    run_pipeline(store, [discs(tmp_path)], generator=FakeGenerator(fail_on="Red Disc"))
    found = page(store)
    assert found.table("target")[0][-1] == "2 of 4 failed"
    assert found.words.count("ConnectionError: the generator is away") == 2
    paths = [next(store.glob(f"*/blue-disc-*/{source}_contrastive")) for source in ("visual", "textual")]
    (paths[0] / "scores.json").write_text('{"attributes": [{"text": 3}]}')
    record = json.loads((paths[1] / "images.json").read_text())
    record["files"]["../../../../evil.png"] = "0"
    (paths[1] / "images.json").write_text(json.dumps(record))
    found = page(store)
    assert found.table("target")[0][-1] == "4 of 4 failed"  # and hide no others
    assert f"The records in {paths[0].relative_to(store).as_posix()} cannot be read: KeyError('D')" in found.words
    assert "cannot be read: ValueError(\"'../../../../evil.json' cannot be the name of a file" in found.words


def test_verdicts_of_earlier_images_or_features_are_not_shown_as_true(copy: Path) -> None:
    tasks = [discs(copy.parent)]
    run_pipeline(copy, tasks, "images", seed=1)
    found = page(copy)
    assert found.words.count("the verdicts are of earlier images; the next run gives them anew") == 4
    assert "\naccepted images" not in found.words
    run_pipeline(copy, tasks, "features", chat=FakeChat(script=['["red crown"]'] * 4), max_words=2)
    found = page(copy)
    assert found.words.count("the scores are of earlier features; the next run gives them anew") == 4
    assert "Not done: scores (4 of 4)" in found.words


def test_many_pairs_stay_within_bounds(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    row = manifest["pairs"][0]
    manifest["pairs"] = [{**row, "pair_id": f"pair-{number}", "error_rate": number / 100} for number in range(20)]
    for number in range(20):
        shutil.copytree(copy / row["pair_id"], copy / f"pair-{number}")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    found = page(copy, max_images=300)
    assert found.images() == 200  # one of each of ten groups of a pair, as two would be 400
    assert "accepted images: 2, 1 of 2 shown" in found.words
    rates = [float(row[2]) for row in found.table("target")]
    assert rates == sorted(rates, reverse=True)
    with pytest.raises(ValueError, match="max_images must be at least 1, got 0"):
        page(copy, max_images=0)


def test_answers_before_and_accuracies_after(copy: Path, tmp_path: Path) -> None:
    table = ConfusionTable(("Red Disc", "Blue Disc"), "fake chat 1")
    for answer in ("red disc", "blue disc", "blue disc", "none"):
        table.add("Red Disc", answer, ("Red Disc", "Blue Disc"))
    save_pairs(copy / "pairs.json", [], [table])
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"results": ROWS}))
    found = page(copy, results=file)
    before = "Before, fake chat 1 was shown Red Disc 4 times: 25.0 % right, 50.0 % Blue Disc, 25.0 % no option."
    assert found.words.count(before) == 1
    assert [rows for rows in found.tables if rows[0][0] == "method"] == [
        [
            ["method", "features", "5:0", "5:1", "20:0", "0:20"],
            ["real", "-", "61.2 ± 1.2, 3 seeds", "", "", ""],
            ["crop", "-", "", "60.4 (50.0 to 70.0), 0.0 invalid", "", ""],
            ["CoDA", "V", "", "73.0, 2 seeds", "", "50.0"],
            ["CoDA", "-", "", "", "25.0", ""],
        ]
    ]
    (copy / "pairs.json").write_text("[]")
    tested = page(copy, results=[{**ROWS[0], "model": "fake chat"}, {**ROWS[1], "model": "fak"}])
    assert tested.words.count("The verifier, fake chat 1, is the model that was tested, fake chat.") == 1
    assert "is the model that was tested, fak." not in tested.words
    assert "The answers before are not shown, as pairs.json cannot be read" in tested.words


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"acuracy": 0.5}, "row 1 has the key 'acuracy'; did you mean 'accuracy'"),
        ({"accuracy": None}, "row 1 has no accuracy"),
        ({"accuracy": 61.2}, r"accuracy must be a share in \[0, 1\] and no percentage, got 61.2"),
        ({"accuracy": float("nan")}, "accuracy must be a share"),
        ({"accuracy": "0.5"}, "accuracy must be a number, got '0.5'"),
        ({"real": -1}, "real must be a whole number from 0, got -1"),
        ({"seeds": []}, "seeds must be a whole number from 1, got 0"),
        ({"method": ""}, "method must be a text, got ''"),
        ({"lower": 0.5}, "lower and upper must be the two ends"),
        ({"lower": 0.5, "upper": 0.4}, "lower and upper must be the two ends"),
    ],
)
def test_wrong_results_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_results([{**ROWS[0], **change}])


def test_files_of_results_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no file .*results"):
        read_results(tmp_path / "none.json")
    file = tmp_path / "results.json"
    for text, message in (("{", "is no JSON"), ('{"rows": []}', "must be a list of rows"), ("[1]", "row 1 must have")):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_results(file)
    with pytest.raises(ValueError, match="two rows of real  at 5:0"):
        result_tables(read_results([ROWS[0], ROWS[0]]))


def test_large_images_become_small_copies(copy: Path) -> None:
    path = next(copy.glob("*/red-disc-*/support/*.png"))
    from lit_modules.coda.core.images import png_bytes

    path.write_bytes(png_bytes(Image.new("RGB", (700, 1500), "teal"), path.stem))
    page(copy)
    assert (copy.parent / "pages" / "report.html").stat().st_size < 200_000
