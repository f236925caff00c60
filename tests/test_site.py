"""The hook that makes the pages of the site."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(DOCS))
    yield importlib.import_module("pages")
    sys.modules.pop("pages", None)


def test_every_package_of_the_reference_has_names(pages: ModuleType) -> None:
    for package in pages.REFERENCE.values():
        paths = list(pages.public_names(package))
        assert paths, package
        assert all(path.startswith(package.partition(".")[0] + ".") for path in paths)
    assert "datamodules.lume.lume.LUME" in pages.public_names("datamodules")


def test_tables_link_to_the_reference(pages: ModuleType) -> None:
    rows = pages.names_table("callbacks", "callbacks.md").splitlines()
    path = "callbacks.adaptive_lr.AdaptiveLR"
    line = next(row for row in rows if "AdaptiveLR" in row)
    assert line.startswith(f"| [`AdaptiveLR`](reference/callbacks.md#{path}) | Set the learning rate")
    assert len(rows) == 2 + len(list(pages.public_names("callbacks")))
    assert "`datamodules" not in pages.names_table("datamodules", "data.md")


def test_what_libraries_write_to_stderr_is_left_out(pages: ModuleType) -> None:
    block = '<div class="x" data-mime-type="application/vnd.jupyter.stderr" tabindex="0">\n<pre>noise\n</pre>\n</div>'
    assert pages.on_post_page(f"<p>before</p>{block}<p>after</p>") == "<p>before</p><p>after</p>"


def test_arguments_of_bases_are_shown(pages: ModuleType) -> None:
    table = pages.shared_arguments("lit_modules.unlearning.ngdiff.NGDiff")
    assert "| `peft_config` | Adapters to train" in table
    assert "| `accumulate` | Batches per optimizer step" in table
    assert "`eps`" not in table  # its own
    assert "| `bounds` |" in pages.shared_arguments("lit_modules.attacks.apgd.APGD")
    assert not pages.shared_arguments("lit_modules.attacks.engine.base.AttackResult")
    assert not pages.shared_arguments("callbacks.adaptive_lr.AdaptiveLR")
