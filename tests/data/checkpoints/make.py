"""Write the checkpoints, and numbers of their modules: ``python -m tests.data.checkpoints.make FOLDER``.

The files beside this one were written at version 0.1.0, before the packages were restructured, with Python 3.11, torch
2.14.1, lightning 2.6.6, transformers 5.24.0, peft 0.21.2 and diffusers 0.42.1; that of a later method with it. They
stay: where one no longer loads, the code is at fault.
"""

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint

from tests.test_old_checkpoints import CASES, STEPS, write_models


class Save(Checkpoint):
    """Save after two batches, behind all other callbacks."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == STEPS and trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def main(folder: Path) -> None:
    lines = []
    for name, case in CASES.items():
        path = folder / f"{name}.ckpt"
        whole = case.numbers(case.fit(STEPS + 1, [Save(path)]))
        saved = case.numbers(case.module.load_from_checkpoint(path, **case.objects()))
        resumed = case.numbers(case.fit(STEPS + 1, [], path))
        assert whole == resumed, f"{name} does not go on as if it had not been stopped"
        moved = max(abs(one - other) for one, other in zip(saved, resumed, strict=True))
        assert moved > 1e-3, f"{name} hardly moves"
        lines.append(f"{json.dumps(name)}: {json.dumps({'saved': saved, 'resumed': resumed})}")
    (folder / "outputs.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    target = Path(sys.argv[1]).resolve()
    with TemporaryDirectory() as work:
        os.chdir(work)
        write_models()
        main(target)
