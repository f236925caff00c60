"""The page of supported models says what the tests that it is made of have found."""

import runpy
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

RESULTS = """<testsuites><testsuite>
<testcase classname="tests.coda.test_families" name="test_family[LLaVA-1.5-fit]" time="1"/>
<testcase classname="tests.coda.test_families" name="test_family[LLaVA-1.5-save and reload]">
  <failure message="x"/></testcase>
<testcase classname="tests.coda.test_families" name="test_family[Llama 4-fit]">
  <skipped type="pytest.xfail" message="the library fails"/></testcase>
<testcase classname="tests.coda.test_families" name="test_quantised_family[LLaVA-1.5-8 bits, torchao]"/>
<testcase classname="tests.coda.test_families" name="test_refused_family[GIT]">
  <properties><property name="refused" value="no template"/></properties></testcase>
<testcase classname="tests.coda.test_updating" name="test_family[Other-fit]"/>
<testcase classname="tests.unlearning.test_architectures" name="test_architecture[gpt2-fit]">
  <error message="x"/></testcase>
<testcase classname="tests.synthia.backbones.test_pipeline"
  name="test_the_pipeline_draws_the_same_with_a_saved_adapter[flux2_klein]"/>
</testsuite></testsuites>"""


def test_a_cell_is_the_outcome_of_a_test_and_reasons_stand_below(repository: Path) -> None:
    script: dict[str, Any] = runpy.run_path(str(repository / "docs" / "supported.py"))
    lines = script["page"](ElementTree.fromstring(RESULTS).iter("testcase"), date(2026, 1, 2))
    page = "\n".join(lines)
    assert "on 2026-01-02: torch " in page
    rows = [line for line in lines if line.startswith("|") and "---" not in line]
    assert rows == [
        "| family | fit |",
        "| gpt2 | **failed** |",
        "| family | fit | save and reload | 8 bits, torchao |",
        "| LLaVA-1.5 | yes | **failed** | yes |",
        "| Llama 4 | skipped [1] |  |  |",
        "| GIT | refused [2] | refused [2] | refused [2] |",
        "| family | LoRA in diffusers |",
        "| flux2_klein | yes |",
    ]
    assert "[1] the library fails  \n[2] no template" in page
    later = ElementTree.fromstring(RESULTS).findall(".//testcase[@classname='tests.unlearning.test_architectures']")
    newer = "\n".join(script["page"](later, date(2026, 3, 4), script["sections"](page)))
    assert newer == page.replace("Made on 2026-01-02", "Made on 2026-03-04", 1)  # of the first table alone


def test_the_tests_that_the_page_is_made_of_are_there(repository: Path) -> None:
    script: dict[str, Any] = runpy.run_path(str(repository / "docs" / "supported.py"))
    for table in script["TABLES"]:
        text = "".join((repository / file).read_text(encoding="utf-8") for file in table.files)
        for name in (*table.by_role, *table.by_test):
            assert f"def {name}(" in text, name
