"""A step of `CoDA` in the Trainer against its floor.

The floor is the forward pass, the backward pass and the optimizer step of the same adapted model on the same batch,
encoded before, in turns. The row is void where the losses of both at the start differ by more than a thousandth.
"""

import statistics
from itertools import pairwise
from typing import Any

import torch
from coda_models import picture
from timing import Table, clock, in_turns, seconds

from lit_modules.coda import CoDA


def batch(rows: int) -> dict[str, Any]:
    """Return questions about pictures with their answers."""
    names = ("Puff Adder", "Eyelash Viper")
    return {
        "image": [picture(row, ("red", "blue")[row % 2]) for row in range(rows)],
        "prompt": [f"Does the picture show {names[row % 2]} or {names[1 - row % 2]}?" for row in range(rows)],
        "answer": [names[row % 2] for row in range(rows)],
    }


def step_times(module: CoDA, data: dict[str, Any], steps: int) -> list[float]:
    """Return the seconds of each step of a fit."""
    from lightning.pytorch import Callback, Trainer
    from torch.utils.data import DataLoader

    times: list[float] = []

    class Tick(Callback):
        """Marks the beginning of each batch."""

        def on_train_batch_start(self, *arguments: Any, **named: Any) -> None:
            """Mark the time."""
            times.append(clock())

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=1, callbacks=[Tick()], devices=1, enable_model_summary=False, **quiet)  # type: ignore[arg-type]
    trainer.fit(module, DataLoader([data] * (steps + 1), batch_size=None))  # type: ignore[arg-type]
    return [later - earlier for earlier, later in pairwise(times)]


def update(table: Table, folder: str, rows: int, steps: int, rounds: int) -> None:
    """Time the step of the module against that of the bare model."""
    data = batch(rows)
    module = CoDA(folder, dtype="float32", gradient_checkpointing=False)
    module.configure_model()

    def ours() -> float:
        return statistics.median(step_times(module, data, steps + 3)[3:])

    def floor() -> float:
        encoded = module.encode(data["image"], data["prompt"], data["answer"])
        optimizer = torch.optim.AdamW(module.trainable_parameters(), lr=1e-4, weight_decay=0.0)
        times = []
        for _ in range(steps + 3):
            began = clock()
            module.model(**encoded, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(clock() - began)
        return statistics.median(times[3:])

    def encoding() -> float:
        return statistics.median(
            seconds(lambda: module.encode(data["image"], data["prompt"], data["answer"]))[0] for _ in range(steps)
        )

    if torch.cuda.is_available():
        module.model.to("cuda")
    module.eval()
    encoded = module.encode(data["image"], data["prompt"], data["answer"])
    with torch.no_grad():
        losses = float(module.loss(data)), float(module.model(**encoded, use_cache=False).loss)
    module.train()
    step, bare, read = in_turns(rounds, ours, floor, encoding)
    results = f"losses {losses[0]:.4f}, {losses[1]:.4f}"
    void = "losses differ" if abs(losses[0] - losses[1]) > 1e-3 * losses[1] else ""
    what = f"update of {rows} x {encoded['input_ids'].shape[1]} tokens"
    table.add(what, step, {"floor": bare}, results, void=void, most=1.05, unit="ms")
    table.add("  of which encoding of pictures and texts", read, {"floor": bare}, most=None, unit="ms")
