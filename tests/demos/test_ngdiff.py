import json
from pathlib import Path
from typing import Any

import pytest

from lit_modules.demos import ngdiff
from lit_modules.demos.record import verdict
from lit_modules.demos.stages import Demo


@pytest.mark.slow
def test_the_demonstration_gives_the_numbers_of_its_claims_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ngdiff, "MEMORISE_STEPS", 4)
    monkeypatch.setattr(ngdiff, "STEPS", 2)
    monkeypatch.setattr(ngdiff, "DOCUMENTS", 1)
    monkeypatch.setattr(ngdiff, "MODEL", {"hidden_size": 16, "num_layers": 1})
    numbers = ngdiff.unlearning(tmp_path, seed=0)
    for claim in ngdiff.CLAIMS:
        assert "nan" not in verdict("this run", claim, {0: numbers})
    assert (tmp_path / "report.png").stat().st_size < 300_000
    results = json.loads((tmp_path / "results.json").read_text())
    runs = len(ngdiff.RATES) * len(ngdiff.METHODS) * len(ngdiff.VARIANTS)
    assert len(results["aggregates"]) == runs
    forget, retain = results["questions"]
    assert (forget["split"], retain["split"]) == ("forget", "retain")
    assert len(forget["answers"]) == len(retain["answers"]) == 1 + runs

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("a run that was done is done again")

    monkeypatch.setattr(Demo, "run", again)
    assert ngdiff.unlearning(tmp_path, seed=0) == numbers
