import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lit_modules.synthia.core.report import PairPictures, Picture, TableRow, plot_grid, table_rows, write_report

EVIL = '<script>alert("x")</script>'


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def pairs(name: str = "sofa") -> list[PairPictures]:
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    large = np.zeros((130, 130, 3), dtype=np.uint8)
    grids = {
        "frozen": [Picture(image, scores={"recall": 0.5})] * 2,
        "curriculum": [Picture(image, scores={"recall": 1.0})],
        "silver reference": [Picture(large)],
        "nearest existing concept": [Picture(image, caption=name, scores={"cosine": math.nan})],
        "random order": [],
    }
    return [PairPictures(("sit", "keep_warm"), "easy", grids, 0.25), PairPictures((name,), "", grids)]


def test_the_report_holds_everything(tmp_path: Path) -> None:
    table = [TableRow("frozen", "all", {"recall": 0.5}), TableRow("curriculum", "easy", {"single": math.nan})]
    file = write_report(tmp_path / "made" / "report.html", "Synthia", table, pairs(), summary="Three methods.")
    found = Tags(file.read_text(encoding="utf-8"))
    images = [attributes for tag, attributes in found.tags if tag == "img"]
    assert len(images) == 10
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in images)
    assert images[0]["alt"] == "frozen, asked for sit and keep warm"
    assert images[4]["alt"] == "nearest existing concept: sofa, asked for sit and keep warm"
    assert [image.get("class") for image in images[:5]] == ["small", "small", "small", None, "small"]
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "link", "iframe"})
    words = re.sub(r"\s+", " ", found.text)
    for part in ("Three methods.", "Figure 1. sit + keep warm", "Figure 2. sofa", "easy, transformed distance 0.250"):
        assert part in words
    for part in ("no bin", "recall 0.500", "sofa; cosine -", "none", "Table 1."):
        assert part in words
    cells = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", file.read_text(encoding="utf-8"))
    assert cells == ["method", "bin", "recall", "single", "frozen", "all", "0.500", "-", "curriculum", "easy", "-", "-"]
    assert [path.name for path in file.parent.iterdir()] == ["report.html"]


def test_what_models_and_files_say_is_escaped(tmp_path: Path) -> None:
    image = torch.zeros(3, 4, 4)
    grids = {EVIL: [Picture(image, caption=f'{EVIL}" onerror="x', scores={EVIL: 1.0})]}
    table = [TableRow(EVIL, EVIL, {EVIL: 1.0})]
    file = write_report(tmp_path / "r.html", EVIL, table, [PairPictures((EVIL, '"'), EVIL, grids)], summary=EVIL)
    found = Tags(file.read_text(encoding="utf-8"))
    assert "script" not in {tag for tag, _ in found.tags}
    assert [set(attributes) for tag, attributes in found.tags if tag == "img"] == [{"class", "src", "alt"}]
    assert found.text.count(EVIL) >= 8


def test_lines_of_a_table() -> None:
    numbers = {"recall": 0.5, "recall/easy": 0.75, "recall/hard": math.nan, "all": 0.0}
    rows = table_rows("frozen", numbers, ["recall"], ["easy", "hard"])
    assert [(row.method, row.bin) for row in rows] == [("frozen", "all"), ("frozen", "easy"), ("frozen", "hard")]
    assert rows[1].numbers == {"recall": 0.75}
    with pytest.raises(ValueError, match="There is no number 'all/easy' of frozen; there are recall, recall/easy"):
        table_rows("frozen", numbers, ["all"], ["easy"])


def test_the_picture_shows_pairs_by_methods(tmp_path: Path) -> None:
    shown = pairs("$\\broken{$ <b>")
    labels = ["frozen", "nearest existing concept"]
    file = plot_grid(tmp_path / "made" / "grid.png", shown, labels, per_cell=1, title="$ and $")
    with Image.open(file) as image:
        assert (image.format, image.width > image.height) == ("PNG", True)
    assert sorted(path.name for path in file.parent.iterdir()) == ["grid.pdf", "grid.png", "grid.svg"]
    with pytest.raises(ValueError, match=r"The pair sit \+ keep_warm has no images 'tuned'"):
        plot_grid(tmp_path / "grid.png", shown, labels=["frozen", "tuned"])
