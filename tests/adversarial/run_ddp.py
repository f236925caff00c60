"""Train each method for some steps and test it on one or two processes: `run_ddp.py FOLDER DEVICES`."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, DistributedSampler

from callbacks import AdversarialWeightPerturbation
from lit_modules import FastTraining, FreeTraining, PGDTraining
from lit_modules.attacks.pgd import L2PGD, LinfPGD
from tests.adversarial.conftest import Images, Workbench


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def main() -> None:
    folder, devices = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    attacks = {"linf": LinfPGD(eps=0.12, steps=4), "l2": L2PGD(eps=1.0, steps=4, step_size=0.4)}
    awp = AdversarialWeightPerturbation(0.05)
    runs: list[tuple[Any, list[Callback]]] = [
        (PGDTraining(Workbench.network(), Workbench.attack(), test_attacks=attacks, optimizer=sgd), [awp]),
        (FreeTraining(Workbench.network(), eps=0.1, replays=2, test_attacks=attacks, optimizer=sgd), []),
        (FastTraining(Workbench.network(), test_attacks=attacks, optimizer=sgd, guard_interval=1), []),
    ]
    saved: dict[str, Any] = {}
    for module, callbacks in runs:
        name = type(module).__name__
        trainer = Workbench(folder / f"{devices}").trainer(
            callbacks, devices=devices, strategy="ddp" if devices > 1 else "auto"
        )
        size = 8 // devices
        # the batches of all processes together are those of one process; Lightning's own sampler would shuffle
        sampler: Any = DistributedSampler(Images(24), devices, int(os.environ.get("LOCAL_RANK", 0)), shuffle=False)
        # an odd number of samples to evaluate, so that a sampler repeats one
        trainer.fit(module, DataLoader(Images(24), size, sampler=sampler), DataLoader(Images(23, 1), size))
        trainer.save_checkpoint(folder / f"{name}-{devices}.ckpt")
        trainer.test(module, DataLoader(Images(23, 1), size), verbose=False)
        saved[name] = {
            "weights": module.classifier.state_dict(),
            "record": module.results(),
            "logged": {key: float(value) for key, value in trainer.callback_metrics.items()},
            "pictures": [example.index for example in module._evaluation.examples],
        }
    torch.save(saved, folder / f"{devices}-{trainer.global_rank}.pt")


if __name__ == "__main__":
    main()
