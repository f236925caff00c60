"""The report of CoDA in a real browser; needs Chromium with its driver, and the extra ``browser``."""

import dataclasses
import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lit_modules.coda.augmentation.inputs import PairTask
from lit_modules.coda.augmentation.pipeline import CoDAPipeline
from lit_modules.coda.augmentation.report.page import write_report
from lit_modules.coda.core.store import Store
from tests.coda.fakes import FakeChat, FakeEmbedder, FakeGenerator, discs, tiny

pytestmark = pytest.mark.browser
EVIL = "<script>alert(1)</script>\"' ../../x"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    programs = [shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")]
    if None in programs:
        pytest.skip("There is no chromium with chromedriver here; on Debian: apt-get install chromium chromium-driver.")
    if find_spec("selenium") is None:
        pytest.skip("selenium is not installed; it comes with lit-modules[browser].")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium asks for it of root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(programs[1])))
    yield driver
    driver.quit()


def write(folder: Path, rates: tuple[float, ...], **more: Any) -> Path:
    """Write the report on pairs with these error rates, the last of which has names with markup."""
    tasks = []
    for number, rate in enumerate(rates):
        names = (f"Red {number}", f"Blue {number}") if number < len(rates) - 1 else (f"Red {EVIL}", f"Blue {EVIL}")
        task = discs(folder, names, f"discs{number}")
        tasks.append(
            PairTask(dataclasses.replace(task.pair, error_rate=rate), task.target_images, task.confusable_images)
        )
    with Store(folder / "store") as store:
        settings = tiny(kinds=("visual_contrastive",))
        CoDAPipeline(store, settings, FakeChat(), FakeGenerator(), FakeEmbedder()).run(tasks)
        return write_report(store, folder / "report.html", **more)


def cells(browser: Any, table: str, column: int) -> list[str]:
    found: list[str] = browser.execute_script(
        "const rows = [...document.querySelector(arguments[0]).tBodies[0].rows];"
        "return rows.map(row => row.cells[arguments[1]].innerText)",
        table,
        column,
    )
    return found


def errors(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser")]


def click(browser: Any, selector: str, number: int = 0) -> Any:
    found = browser.find_elements("css selector", selector)[number]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
    found.click()
    return found


def test_the_log_would_tell_of_errors(browser: Any, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.html"
    wrong.write_text("<script>nothing()</script><img src='absent.png'>")
    browser.get(wrong.as_uri())
    told = "\n".join(errors(browser))
    assert "nothing is not defined" in told
    assert "absent.png" in told


def test_few_pairs_are_open_and_their_tables_sort(browser: Any, tmp_path: Path) -> None:
    results = [{"method": "real", "real": 5, "synthetic": 0, "accuracy": 0.6}]
    browser.get(write(tmp_path, (0.4, 0.05, 0.3), results=results).as_uri())
    sizes = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert len(sizes) == 3 * (6 + 2 * 4)
    assert min(sizes) > 0
    names = [f"Red {EVIL}", "Red 0", "Red 1"]
    assert cells(browser, "#pairs", 0) == [names[1], names[0], names[2]]
    assert cells(browser, "#pairs", 2) == ["0.400", "0.300", "0.050"]
    head = click(browser, "#pairs th", 2)
    assert cells(browser, "#pairs", 2) == ["0.050", "0.300", "0.400"]
    assert head.get_attribute("aria-sort") == "ascending"
    click(browser, "#pairs th button", 2)
    assert cells(browser, "#pairs", 2) == ["0.400", "0.300", "0.050"]
    assert head.get_attribute("aria-sort") == "descending"
    click(browser, "#pairs th", 0)
    assert cells(browser, "#pairs", 0) == sorted(names, key=lambda name: name.replace("<", " "))
    assert head.get_attribute("aria-sort") is None
    features = "details.unit table.sortable"
    assert cells(browser, features, 0) == ["red body", "long tail", "a red disc"]
    click(browser, f"{features} th", 1)
    assert cells(browser, features, 0)[0] == "long tail"
    for _ in range(2):  # it has no generability, and comes last both up and down
        click(browser, f"{features} th", 2)
        assert cells(browser, features, 2)[2] == "-"
        assert cells(browser, features, 0)[2] == "long tail"
    assert errors(browser) == []


def test_details_open(browser: Any, tmp_path: Path) -> None:
    browser.get(write(tmp_path, (0.4, 0.35, 0.3, 0.25, 0.2, 0.1)).as_uri())
    table = browser.find_element("css selector", "#pair-2 details.unit table")
    assert not table.is_displayed()
    click(browser, "#pairs a", 1)
    assert browser.find_element("css selector", "#pair-2").get_attribute("open")
    assert not browser.find_element("css selector", "#pair-1").get_attribute("open")
    click(browser, "#pair-2 details.unit > summary")
    assert table.is_displayed()
    assert "1.000" in table.text
    answer = browser.find_element("css selector", "#pair-2 details.answers pre")
    assert not answer.is_displayed()
    click(browser, "#pair-2 details.answers > summary")
    assert answer.is_displayed()
    picture = click(browser, "#pair-2 details.picture > summary")
    assert "A realistic 4K photograph of Red 1 with red body" in picture.find_element("xpath", "..").text
    click(browser, "#pair-1 > summary")
    assert browser.find_element("css selector", "#pair-1 h4").is_displayed()
    browser.get(f"{browser.current_url.partition('#')[0]}?again#pair-4")
    assert browser.find_element("css selector", "#pair-4").get_attribute("open")
    assert errors(browser) == []


def test_other_scripts_do_not_run(browser: Any, tmp_path: Path) -> None:
    file = write(tmp_path, (0.4,))
    injected = "<script>document.title = 'injected'</script><img src='data:,' onerror='document.title = 1'></body>"
    file.write_text(file.read_text(encoding="utf-8").replace("</body>", injected), encoding="utf-8")
    browser.get(file.as_uri())
    assert browser.title == "CoDA"
    assert "Content Security Policy" in "\n".join(errors(browser))
