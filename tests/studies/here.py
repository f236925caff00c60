"""Launcher for tests."""

from collections.abc import Generator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path

from lit_modules.studies.launchers import Outcome, Task


class HereLauncher:
    """Run the runs in this process, which has Lightning loaded; keep their names."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def run(self, tasks: Sequence[Task]) -> Generator[Outcome, None, None]:
        for task in tasks:
            _, module, *folders = task.arguments
            self.names += [Path(folder).name for folder in folders]
            with task.log.open("a") as log, redirect_stdout(log), redirect_stderr(log):
                code = import_module(module).main(folders)
            yield Outcome(task.name, code)
