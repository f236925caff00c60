import base64
import dataclasses
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lit_modules.coda.augmentation.confusable_pairs import ConfusionTable, save_pairs
from lit_modules.coda.augmentation.estimate import Prices
from lit_modules.coda.augmentation.inputs import PairTask
from lit_modules.coda.augmentation.pipeline import CoDAPipeline, Until
from lit_modules.coda.augmentation.report.page import write_report
from lit_modules.coda.augmentation.report.pictures import MAX_BYTES, SIDE, thumbnail
from lit_modules.coda.augmentation.report.results import read_results, result_tables
from lit_modules.coda.core.pictures import png_bytes
from lit_modules.coda.core.store import Store
from tests.coda.fakes import FakeChat, FakeEmbedder, FakeGenerator, discs, tiny

EVIL = "<script>alert(\"x\")</script>' onerror='x ../../etc"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Tags, text and table cells of a page; an unbalanced one is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.tables: list[list[list[str]]] = []
        self.script = ""
        self._open: list[str] = []
        self._cell = False
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, (tag, self.getpos())
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["script"]:
            self.script += data
            return
        if self._open[-1:] != ["style"]:
            self.words += data
        if self._cell:
            self.tables[-1][-1][-1] += data

    def table(self, first: str) -> list[list[str]]:
        """Return the rows of the table whose first heading this is."""
        return next(rows[1:] for rows in self.tables if rows[0][0] == first)

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]


def run(folder: Path, tasks: list[PairTask], until: Until = "verification", **models: Any) -> Path:
    chat, generator = models.pop("chat", None) or FakeChat(), models.pop("generator", None) or FakeGenerator()
    with Store(folder / "store") as store:
        CoDAPipeline(store, tiny(**models), chat, generator, FakeEmbedder()).run(tasks, until)
    return folder / "store"


def page(folder: Path, **options: Any) -> Page:
    file = write_report(Store(folder, writable=False), folder.parent / "pages" / "report.html", **options)
    assert [path.name for path in file.parent.iterdir()] == ["report.html"]
    return Page(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    return run(folder, [discs(folder), discs(folder, ("Red Two", "Blue Two"), "two")])


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "store")
    return tmp_path / "store"


def test_the_page_holds_everything_of_each_pair(copy: Path) -> None:
    before = Store(copy, writable=False).content_hashes()
    found = page(copy, prices=Prices(call=0.5, image=2.0))
    assert Store(copy, writable=False).content_hashes() == before
    assert "All stages are done." in found.words
    assert [row[:3] for row in found.table("target")] == [
        ["Red Disc", "Blue Disc", "0.400"],
        ["Red Two", "Blue Two", "0.400"],
    ]
    assert found.table("target")[0][3:] == ["8", "4", "8", "8", "4", "done"]
    assert [row[0] for row in found.table("class")] == ["Blue Disc", "Blue Two", "Red Disc", "Red Two"]
    assert found.table("class")[2] == ["Red Disc", "disc", "yes", "1", "3", "4", "2", "2"]
    counts = {row[0]: row[1:] for row in found.table("stage")}
    assert counts["features"][0] == "8"
    assert counts["trials"][4] == "16"
    # 32 calls for half a unit of money, 32 images for 2
    assert counts["all"][-1] == "80.00"
    features = [rows[1:] for rows in found.tables if rows[0][0] == "feature"]
    assert len(features) == 2 * 2 * 2
    assert features[0][0][0] == "red body"
    assert features[0][0][1].startswith("1.000 ")
    assert features[0][0][3:] == ["yes", "1 is over 0.6; among the best 5"]
    assert features[0][1][2:] == ["-", "no", "0.5 is not over 0.6"]
    for part in ("fake chat 1", "fake generator 1", "fake clip 1", "RED BODY: duplicate", "red body: shown", "seed "):
        assert part in found.words
    assert "A realistic 4K photograph of Red Disc with red body" in found.words
    # 6 real, and for each of 4 units 2 trial and 2 final pictures
    assert len(found.images()) == 2 * (6 + 4 * 4)
    changed = {row[0]: row[1:] for row in found.table("setting")}
    assert changed["num_images"] == ["2", "50"]
    assert "cannot be shown" not in found.words
    assert "No prices" in page(copy).words


def test_nothing_is_loaded_and_only_the_page_s_own_script_runs(whole: Path) -> None:
    found = page(whole)
    assert {tag for tag, _ in found.tags}.isdisjoint({"link", "iframe", "object", "form", "base"})
    assert all(str(image["src"]).startswith("data:image/") for image in found.images())
    assert [tag for tag, _ in found.tags].count("script") == 1
    digest = base64.b64encode(hashlib.sha256(found.script.encode()).digest()).decode()
    policy = next(tags["content"] for tag, tags in found.tags if tag == "meta" and "http-equiv" in tags)
    assert f"script-src 'sha256-{digest}'" in str(policy)
    assert str(policy).startswith("default-src 'none'")
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]


def test_what_models_and_files_say_is_escaped(tmp_path: Path) -> None:
    chat = FakeChat(script=[json.dumps(["<img src=x onerror=alert(1)> red", "</script><b>red \" '"])] * 2)
    settings = {"kinds": ("textual_contrastive",), "verification": "none"}
    task = discs(tmp_path, (EVIL, f"Blue {EVIL}"))
    hurt = Path(task.target_images[0])
    named = hurt.rename(hurt.with_name("<b>'\".png"))
    store = run(tmp_path, [PairTask(task.pair, (str(named),), task.confusable_images)], chat=chat, **settings)
    results = [{"method": EVIL, "feature": EVIL, "dataset": EVIL, "model": EVIL, "real": 5, "synthetic": 0}]
    found = page(store, title=EVIL, results=[{**results[0], "accuracy": 0.5}])
    assert [tag for tag, _ in found.tags].count("script") == 1
    assert "alert" not in found.script
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert all(set(image) <= {"class", "src", "alt"} for image in found.images())
    assert {tag for tag, _ in found.tags}.isdisjoint({"b"})
    assert found.words.count(EVIL) > 12
    assert "<img src=x onerror=alert(1)> red" in found.words
    assert "<b>'\".png, reference" in found.words


def test_copies_are_bounded(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 1500, 3), dtype=np.uint8)
    with Store(tmp_path / "store") as store:
        for name, picture in {"wide.png": noise, "line.png": noise[:1], "small.png": noise[:30, :30]}.items():
            store.write_bytes(["pictures", name], png_bytes(Image.fromarray(picture), "key"))
        for name in ("wide.png", "line.png", "small.png"):
            copy = thumbnail(store, ["pictures", name])
            data = base64.b64decode(str(copy.url).partition(",")[2])
            assert len(data) <= MAX_BYTES
            with Image.open(io.BytesIO(data)) as shown:
                assert max(shown.size) <= SIDE
                assert copy.small == (name == "small.png")


def test_pictures_that_are_missing_damaged_or_others_are_named(copy: Path) -> None:
    folder = next(copy.glob("*/red-disc-*"))
    final = folder / "visual_contrastive" / "images"
    (final / "0.png").unlink()
    (final / "1.png").write_bytes((final / "1.png").read_bytes()[:60])
    other = folder / "textual_contrastive" / "images"
    (other / "0.png").write_bytes((other / "1.png").read_bytes())
    Image.new("RGB", (8, 8)).save(other / "1.png", "JPEG")
    real = sorted((folder / "support").iterdir())
    real[0].write_bytes(real[1].read_bytes())  # a picture under the hash of another one
    real[2].unlink()
    found = page(copy)
    assert "6 pictures cannot be shown" in found.words
    for path, problem in (
        (final / "0.png", "is missing"),
        (final / "1.png", "cannot be shown: the file cannot be decoded"),
        (other / "0.png", "is not the picture that its record tells of"),
        (other / "1.png", "is not the picture that its record tells of"),
        (real[0], "is not the picture that its record tells of"),
        (real[2], "is missing"),
    ):
        # in the list above and in its place
        assert found.words.count(f"{path.relative_to(copy).as_posix()} {problem}") == 2
    assert len(found.images()) == 44 - 6


def test_a_picture_may_not_claim_to_be_one_or_leave_the_store(copy: Path) -> None:
    place = next(copy.glob("*/red-disc-*/visual_contrastive"))
    record = json.loads((place / "images.json").read_text())
    text = b"<svg onload=alert(1)>"
    (place / "images" / "0.png").write_bytes(text)
    (place / "images" / "0.json").unlink()
    record["files"]["0.png"] = hashlib.sha256(text).hexdigest()
    (place / "images.json").write_text(json.dumps(record))
    found = page(copy)
    assert "images/0.png cannot be shown: the file is no picture" in found.words
    assert "no record of its prompt" in found.words
    Image.new("RGB", (8, 8)).save(copy.parent / "evil.png")
    record["files"]["../../../../evil.png"] = hashlib.sha256((copy.parent / "evil.png").read_bytes()).hexdigest()
    (place / "images.json").write_text(json.dumps(record))
    found = page(copy)
    assert "cannot be read: ValueError(\"'../../../../evil.json' cannot be the name of a file" in found.words
    assert len(found.images()) == 44 - 2


@pytest.mark.parametrize(
    ("until", "missing"),
    [
        ("features", "scores (4 of 4), images (4 of 4), verification (4 of 4)"),
        ("scores", "images (4 of 4), verification (4 of 4)"),
        ("images", "verification (4 of 4)"),
    ],
)
def test_stages_that_were_not_run_are_named(tmp_path: Path, until: Until, missing: str) -> None:
    found = page(run(tmp_path, [discs(tmp_path)], until))
    assert f"Not done: {missing}." in found.words
    assert found.table("target")[0][-1] == "not done: " + re.sub(r" \(4 of 4\)", "", missing)
    assert ("not verified images: 2" in found.words) == (until == "images")
    assert found.table("feature")[0][3] == ("-" if until == "features" else "yes")


def test_a_store_without_a_run(tmp_path: Path) -> None:
    with Store(tmp_path / "store"):
        pass
    found = page(tmp_path / "store")
    assert "Nothing was run on this store yet" in found.words
    assert not found.tables
    (tmp_path / "store" / "manifest.json").write_text('{"settings": {"kinds": ["x"], "min_features": 1}}')
    with pytest.raises(ValueError, match=r"manifest.json is not what a run writes \(KeyError\('pairs'\)\); run `lit"):
        page(tmp_path / "store")


def test_failures_are_told_and_records_that_cannot_be_read_hide_no_others(tmp_path: Path) -> None:
    store = run(tmp_path, [discs(tmp_path)], generator=FakeGenerator(fail_on="Red Disc"))
    found = page(store)
    assert found.table("target")[0][-1] == "2 of 4 failed"
    assert found.words.count("ConnectionError: the generator is away") == 2
    place = next(store.glob("*/blue-disc-*/visual_contrastive"))
    (place / "scores.json").write_text('{"attributes": [{"text": 3}]}')
    found = page(store)
    assert found.table("target")[0][-1] == "3 of 4 failed"
    assert f"The records in {place.relative_to(store).as_posix()} cannot be read: KeyError('D')" in found.words
    assert found.words.count("accepted images: 2") == 1


def test_verdicts_of_earlier_images_or_features_are_not_shown_as_true(copy: Path) -> None:
    tasks = [discs(copy.parent)]
    run(copy.parent, tasks, "images", seed=1)
    found = page(copy)
    assert found.words.count("the verdicts are of earlier images; the next run gives them anew") == 4
    assert "accepted images" not in found.words
    run(copy.parent, tasks, "features", chat=FakeChat(script=['["red crown"]'] * 4), max_words=2)
    found = page(copy)
    assert found.words.count("the scores are of earlier features; the next run gives them anew") == 4
    assert "Not done: scores (4 of 4)" in found.words


def test_a_hundred_pairs_stay_within_bounds(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    row = manifest["pairs"][0]
    manifest["pairs"] = [{**row, "pair_id": f"pair-{number}", "error_rate": number / 100} for number in range(100)]
    for number in range(100):
        shutil.copytree(copy / row["pair_id"], copy / f"pair-{number}")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    found = page(copy, max_images=1500)
    assert len(found.images()) == 1000  # one of each of ten groups of a pair, as two would be 2000
    assert "accepted images: 2, 1 of 2 shown" in found.words
    details = [attributes for tag, attributes in found.tags if tag == "details"]
    assert not [attributes for attributes in details if "open" in attributes]
    assert len({attributes["id"] for attributes in details if attributes.get("class") == "pair"}) == 100
    rates = [float(row[2]) for row in found.table("target")]
    assert rates == sorted(rates, reverse=True)
    assert (copy.parent / "pages" / "report.html").stat().st_size < 4_000_000
    with pytest.raises(ValueError, match="max_images must be at least 1, got 0"):
        page(copy, max_images=0)


def test_the_answers_before(copy: Path) -> None:
    table = ConfusionTable(("Red Disc", "Blue Disc"), "fake chat 1")
    for answer in ("red disc", "blue disc", "blue disc", "none"):
        table.add("Red Disc", answer, ("Red Disc", "Blue Disc"))
    save_pairs(copy / "pairs.json", [], [table])
    said = "Before, fake chat 1 was shown Red Disc 4 times: 25.0 % right, 50.0 % Blue Disc, 25.0 % no option."
    assert page(copy).words.count(said) == 1
    (copy / "pairs.json").write_text("[]")
    assert "The answers before are not shown, as pairs.json cannot be read" in page(copy).words


ROWS: list[dict[str, Any]] = [
    {"method": "real", "real": 5, "synthetic": 0, "accuracy": 0.612, "seeds": 3, "std": 0.012},
    {"method": "crop", "real": 5, "synthetic": 1, "accuracy": 0.604, "invalid": 0.0, "lower": 0.5, "upper": 0.7},
    {"method": "CoDA", "feature": "V", "real": 5, "synthetic": 1, "accuracy": 0.73, "seeds": [0, 1], "std": None},
    {"method": "CoDA", "feature": "V", "real": 0, "synthetic": 20, "accuracy": 0.5, "position_bias": 0.5},
    {"method": "CoDA", "feature": "V", "real": 20, "synthetic": 0, "accuracy": 0.25, "lower": float("nan")},
]
ROWS[-1]["upper"] = float("nan")


def test_accuracies_stand_as_in_the_paper(copy: Path, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"results": ROWS}))
    found = page(copy, results=file)
    rows = next(rows for rows in found.tables if rows[0][0] == "method")
    assert rows == [
        ["method", "features", "5:0", "5:1", "20:0", "0:20"],
        ["real", "-", "61.2 ± 1.23 seeds", "", "", ""],
        ["crop", "-", "", "60.450.0 to 70.00.0 invalid", "", ""],
        ["CoDA", "V", "", "73.02 seeds", "25.0", "50.0"],
    ]
    assert [tag for tag, _ in found.tags].count("strong") == 1  # one column has several
    assert result_tables(read_results(ROWS))[0].best == {(5, 1): 0.73}
    tested = page(copy, results=[{**ROWS[0], "model": "fake chat 1"}, {**ROWS[1], "model": "fake chat"}])
    assert tested.words.count("The verifier, fake chat 1, is the model that was tested, fake chat 1.") == 1
    assert "is the model that was tested, fake chat." in tested.words
    assert "is the model that was tested" not in page(copy, results=[{**ROWS[0], "model": "fak"}]).words


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"acuracy": 0.5}, "row 1 has the key 'acuracy'; did you mean 'accuracy'"),
        ({"seed": 3}, "row 1 has the key 'seed'; did you mean 'seeds'"),
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
    assert dataclasses.asdict(read_results(ROWS)[4])["lower"] is None
