"""Fixtures of the tests of studies."""

from pathlib import Path

import pytest


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a stand-in for lm-eval, which has no questions offline: it writes results as lm-eval does."""
    folder = tmp_path / "stand_in"
    (folder / "lm_eval").mkdir(parents=True)
    (folder / "lm_eval" / "__init__.py").touch()
    (folder / "lm_eval" / "__main__.py").write_text(
        "import json, pathlib, sys\n"
        "given = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        "assert pathlib.Path(given['--model_args'].removeprefix('pretrained='), 'tokenizer.json').is_file()\n"
        "accuracies = {task: {'acc,none': len(task) / 100} for task in given['--tasks'].split(',')}\n"
        "folder = pathlib.Path(given['--output_path'], 'model')\n"
        "folder.mkdir(parents=True, exist_ok=True)\n"
        "number = len(list(folder.iterdir()))\n"
        "(folder / f'results_{number}.json').write_text(json.dumps({'results': accuracies}))\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    return folder
