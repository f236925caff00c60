"""Step time and peak memory of every method against its floor and against the same loss in open-unlearning's form.

The floor of a method is a bare loop with the forward and backward passes that its loss cannot do without, by the
model's own loss and without the Trainer, and the optimizer's step; a method that compares distributions or hidden
states with those before holds a second network. The other form is `unlearning_peers.PeerTrainer`. All three take the
same batches from the same weights, in turns; the table says by how much the moves of the weights differ between ours
and the other form, over their length, and a row is void where that is more than :data:`DIFFERENCE`. Peak memory is the
largest sum of the tensors that live at one time, with weights, gradients and the optimizer's state, as torch's profiler
counts them on the CPU and its allocator on a GPU; it does not depend on other work of the machine.
"""

import copy
import gc
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from timing import Table, clock, in_turns
from torch.nn.utils import parameters_to_vector
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast
from unlearning_peers import PEERS, RMU_LAYER, PeerTrainer

import lit_modules
from lit_modules.networks import small_llama
from lit_modules.unlearning.core.losses import IGNORED

LEARNING_RATE = 1e-4
VOCABULARY = 2048
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PASSES = {
    "GradientAscent": ("forget",),
    "TaskVector": ("forget",),
    "CEU": ("forget",),
    "UNDIAL": ("forget", "old forget"),
    "IDK": ("idk", "retain"),
    "DPO": ("forget", "idk", "retain"),
    "AltPO": ("forget", "alternate", "retain"),
    "KLMinimisation": ("forget", "retain", "old retain"),
    "RMU": ("lower forget", "lower retain", "old lower retain"),
    **dict.fromkeys(
        ("NGDiff", "GradientDifference", "LossNorm", "NPO", "SimNPO", "WGA", "SatImp", "PDU"), ("forget", "retain")
    ),
}
"""Floor of a step: passes over a task, of the network as it was, or of its lower blocks."""
DIFFERENCE = 1e-3
OTHER = "open-unlearning's form"
Batches = list[dict[str, dict[str, Any]]]


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """Build the optimizer that all forms have."""
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)


def ours(method: str, network: Any, data: Batches, tick: Callable[[], None]) -> None:
    """Train by the module of a method."""

    class Tick(Callback):
        """Marks the beginning of each batch."""

        def on_train_batch_start(self, *arguments: Any, **named: Any) -> None:
            """Mark the time."""
            tick()

    arguments: dict[str, Any] = {"layer": RMU_LAYER} if method == "RMU" else {}
    if method == "TaskVector":
        arguments["strength"] = 1.0
    module = getattr(lit_modules, method)(network, tokenizer=some_tokenizer(), optimizer=adamw, **arguments)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=len(data),
            callbacks=[Tick()],
            default_root_dir=folder,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(data, batch_size=None))  # type: ignore[arg-type]


def theirs(method: str, network: Any, data: Batches, tick: Callable[[], None]) -> None:
    """Train by the loss of a method in the other form."""
    with tempfile.TemporaryDirectory() as folder:
        PeerTrainer(method, network, folder, data, LEARNING_RATE, tick).train()


def floor(method: str, network: Any, data: Batches, tick: Callable[[], None]) -> None:
    """Train by what cannot be left out."""
    passes = PASSES[method]
    network.to(DEVICE).train()
    if method == "RMU":
        network.model.layers = network.model.layers[: RMU_LAYER + 1]
    old: Any = copy.deepcopy(network).requires_grad_(False).eval() if "old" in " ".join(passes) else None
    optimizer = adamw(network.model.parameters() if method == "RMU" else network.parameters())

    def loss(model: Any, task: dict[str, Any], lower: bool) -> torch.Tensor:
        if lower:
            read = model.model(task["input_ids"], task["attention_mask"], use_cache=False)
            states: torch.Tensor = read.last_hidden_state
            return states.square().mean()
        found: torch.Tensor = model(**task, use_cache=False).loss
        return found

    for batch in data:
        tick()
        for name in passes:
            given = {key: value.to(DEVICE) for key, value in batch[name.split()[-1]].items() if key != "id"}
            if name.startswith("old"):
                with torch.no_grad():
                    loss(old, given, "lower" in name)
            else:
                loss(network, given, "lower" in name).backward()
        optimizer.step()
        optimizer.zero_grad()


def peak(work: Callable[[], Any]) -> float:
    """Return the most memory that tensors took at one time, in MiB."""
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events)) / 2**20


def some_tokenizer() -> Any:
    """Return a tokenizer that is asked for and not used, as the batches bring their refusals."""
    from tokenizers import Tokenizer, models

    words: Any = PreTrainedTokenizerFast
    return words(tokenizer_object=Tokenizer(models.WordLevel({"<e>": 0}, unk_token="<e>")), eos_token="<e>")


def learn(network: Any, data: Batches, epochs: int = 15) -> None:
    """Have a network memorise a part of the rows: losses that compare with before are flat at random weights."""
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.0)
    for batch in data * epochs:
        for name in ("forget", "retain"):
            (network(**batch[name], use_cache=False).loss / 2).backward()
        optimizer.step()
        optimizer.zero_grad()


def compare(table: Table, method: str, template: Any, data: Batches, rounds: int) -> dict[Any, float]:
    """Time the forms of a method, and return the peak memory of each in MiB."""
    forms = [ours, floor] + ([theirs] if method in PEERS else [])
    moves: dict[Any, torch.Tensor] = {}

    def timed(form: Any, kept: int = 2) -> float:
        ticks: list[float] = []
        network = copy.deepcopy(template)
        form(method, network, data, lambda: ticks.append(clock()))
        if form is not floor:
            ends, starts = (parameters_to_vector(model.parameters()).detach().cpu() for model in (network, template))
            moves[form] = ends - starts
        return statistics.median(later - earlier for earlier, later in list(pairwise(ticks))[kept:])

    own, least, *other = in_turns(rounds, *(partial(timed, form) for form in forms))
    table.add(method, own, {"floor": least}, most=1.05, unit="ms")
    if other:
        sign = -1 if method == "TaskVector" else 1  # which goes the opposite way in the end
        difference = float((sign * moves[ours] - moves[theirs]).norm() / moves[theirs].norm())
        void = "" if difference <= DIFFERENCE else "weights differ"
        table.add(f"  {method}", own, {OTHER: other[0]}, f"moves differ by {difference:.0e}", void=void, unit="ms")
    return {form: peak(partial(form, method, copy.deepcopy(template), data[:2], lambda: None)) for form in forms}


def methods(names: Sequence[str], rows: int, tokens: int, hidden_size: int, steps: int, rounds: int) -> list[Table]:
    """Print a table of the time and one of the memory of each method, and return them."""
    torch.manual_seed(0)
    template = small_llama(VOCABULARY, hidden_size, num_layers=4, num_heads=4)
    generator = torch.Generator().manual_seed(0)

    def task() -> dict[str, Any]:
        ids = torch.randint(2, VOCABULARY, (rows, tokens), generator=generator)
        labels = ids.clone()
        labels[:, : tokens // 2] = IGNORED
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    data: Batches = [{name: task() for name in ("forget", "retain", "idk", "alternate")} for _ in range(steps)]
    learn(template, data)
    size = sum(parameter.numel() for parameter in template.parameters())
    size_of = f"{size / 1e6:.1f} M parameters, {rows} x {tokens} tokens of a task"
    times = Table(f"Step of each method, {size_of}", rounds, "transformers", "lightning")
    peaks = {method: compare(times, method, template, data, rounds) for method in names or PASSES}
    memory = Table(f"Peak memory of each method, {size_of}", 1, "transformers", time="memory of tensors")
    for method, found in peaks.items():
        memory.add(method, [found[ours]], {"floor": [found[floor]]}, most=1.05, unit="MiB")
        if theirs in found:
            memory.add(f"  {method}", [found[ours]], {OTHER: [found[theirs]]}, unit="MiB")
    return [times, memory]
