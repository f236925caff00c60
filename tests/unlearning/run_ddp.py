"""Train a method for some steps on one or two processes and save the weights: `run_ddp.py FOLDER DEVICES METHOD`."""

import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything

import lit_modules
from callbacks import AdaptiveLR
from datamodules import SyntheticLUME
from lit_modules.metrics import LUMEScore
from lit_modules.networks import small_llama


def main() -> None:
    folder, devices, method = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    data = SyntheticLUME(
        root=str(folder / "data"), num_documents=2, vocab_size=300, batch_size=4 // devices, eval_batch_size=5
    )
    module = getattr(lit_modules, method)(
        small_llama(300, hidden_size=16, num_layers=1, num_heads=2),
        accumulate=2,
        metric=LUMEScore(),
        max_new_tokens=4,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    )
    probe = AdaptiveLR(period=2)
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=2,
        callbacks=[probe],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=data)
    losses = {name: float(trainer.callback_metrics[f"val/{name}_loss"]) for name in ("forget", "retain")}
    trainer.test(module, datamodule=data, verbose=False)
    saved = {
        "weights": module.model.state_dict(),
        "losses": losses,
        "record": module.results(),
        "accepted": probe.accepted,
        "steps": probe.steps,
    }
    torch.save(saved, folder / f"{method}-{devices}-{trainer.global_rank}.pt")


if __name__ == "__main__":
    main()
