"""Train and test on one or two processes: `run_ddp.py FOLDER DEVICES`; the curriculum lies in FOLDER."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from peft import LoraConfig
from torchmetrics import Metric

from callbacks import EMA, Curriculum
from datamodules import DrawnObjects
from lit_modules.synthia import DenoiseDPO, LinearContrast, PixelDiffusion
from lit_modules.synthia.synthia import Synthia


class Brightness(Metric):
    """Sum of all images, and their number."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, images: torch.Tensor, batch: Any) -> None:
        self.total += images.double().sum()
        self.count += len(images)

    def compute(self) -> dict[str, torch.Tensor]:
        return {"total": self.total, "count": self.count}


def main() -> None:
    folder, devices = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    saved: dict[str, Any] = {}
    prior = {"prior_weight": 0.5, "prior_prompts": ["a photo of a jug", "a photo of a bus"], "prior_images": 2}
    shared = {"cache": str(folder / f"cache-{devices}")}  # the processes draw half of the class pictures each
    for name, more in (
        ("preference", {"objective": DenoiseDPO(scale=10.0), "peft_config": LoraConfig(r=2), **prior}),
        ("linear", {"objective": LinearContrast(), "num_steps": 2, "truncation": 1, **prior, **shared}),
    ):
        torch.manual_seed(0)  # peft draws the adapter's weights
        module = Synthia(
            PixelDiffusion(image_size=16, widths=(8, 16), num_steps=2),
            metric=Brightness(),
            images_per_prompt=1,
            optimizer=partial(torch.optim.SGD, lr=0.05),
            **more,  # type: ignore[arg-type]
        )
        data = DrawnObjects(
            str(folder), task="pairs", image_size=16, batch_size=2 // devices, eval_batch_size=2 // devices, negatives=2
        )
        trainer = Trainer(
            accelerator="cpu",
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            max_epochs=3,
            callbacks=[Curriculum(), EMA(decay=0.5)],
            use_distributed_sampler=False,
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=folder / f"{devices}",
        )
        trainer.fit(module, data)
        logged = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
        trainer.test(module, data, verbose=False)
        saved[name] = {"weights": module.network.state_dict(), "logged": logged, "results": module.results()}
    torch.save(saved, folder / f"{devices}-{trainer.global_rank}.pt")


if __name__ == "__main__":
    main()
