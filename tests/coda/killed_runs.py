"""Kill a run at many points and go on with it: `killed_runs.py FOLDER`, which prints what came of it as JSON.

Each run is a fork, as importing takes longer than all that is run.
"""

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lit_modules.coda.augmentation.pipeline import CoDAPipeline
from lit_modules.coda.core.store import Store
from tests.coda.fakes import FakeChat, FakeEmbedder, FakeGenerator, discs, tiny

POINTS, SEED = 20, 20260


def forked(work: Callable[[], None]) -> int:
    """Run something in a process of its own and return the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def run(folder: Path, kill: tuple[str, int] | None = None) -> None:
    """Run the pipeline; be killed before or after the n-th file comes to its place."""
    done, replace = [0], os.replace

    def counted(source: Any, target: Any) -> None:
        done[0] += 1
        if kill == ("before", done[0]):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if kill == ("after", done[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    log = folder / "asked"
    task = discs(folder.parent / "support")
    os.replace = counted  # type: ignore[assignment]
    with Store(folder / "store") as store:
        result = CoDAPipeline(store, tiny(), FakeChat(log), FakeGenerator(log), FakeEmbedder()).run([task])
    assert not result.failures, result.failures


def outcome(folder: Path) -> dict[str, Any]:
    hashes = Store(folder / "store", writable=False).content_hashes()
    return {"hashes": hashes, "asked": (folder / "asked").read_text().splitlines()}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    whole = folder / "whole"
    whole.mkdir()
    forked(lambda: run(whole))
    found = {"whole": {"signal": 0, **outcome(whole)}}
    files = len(found["whole"]["hashes"])  # each comes to its place once at least
    draw = random.Random(SEED)
    for when, number in draw.sample(
        [(when, number) for when in ("after", "before") for number in range(1, files)], POINTS
    ):
        own = folder / f"{when}-{number}"
        own.mkdir()
        ended = forked(lambda own=own, kill=(when, number): run(own, kill))  # type: ignore[misc]
        forked(lambda own=own: run(own))  # type: ignore[misc]
        found[f"{when} {number}"] = {"signal": ended, **outcome(own)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
