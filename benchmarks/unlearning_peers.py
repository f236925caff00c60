"""The losses of the unlearning methods in the form that open-unlearning gives them.

A `transformers.Trainer` computes one loss from a batch of forget and retain rows, and holds a second network in memory
where the loss compares with the model before unlearning. Written from the papers' formulas; logits and losses are of
all positions, of which the scored ones count.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.utils.data import SequentialSampler

from lit_modules.unlearning.core.losses import IGNORED

RMU_LAYER = 2
REFERENCED = ("NPO", "DPO", "AltPO", "KLMinimisation", "UNDIAL", "RMU")
Task = Mapping[str, Tensor]


class Scored:
    """Logits of a network, with the labels and the mask of what they predict.

    Args:
        network: Causal language model.
        task: ``input_ids``, ``attention_mask`` and ``labels``, integers of shape ``(batch, tokens)``.
    """

    def __init__(self, network: nn.Module, task: Task) -> None:
        output: Any = network(input_ids=task["input_ids"], attention_mask=task["attention_mask"], use_cache=False)
        self.every: Tensor = output.logits.float()
        self.logits = self.every[:, :-1]
        self.labels = task["labels"][:, 1:]
        self.mask = self.labels.ne(IGNORED)

    @property
    def nll(self) -> Tensor:
        """Negative log-likelihood of each place, ``(batch, tokens - 1)``, 0 where none is scored."""
        return F.cross_entropy(self.logits.transpose(1, 2), self.labels, ignore_index=IGNORED, reduction="none")

    @property
    def row_nll(self) -> Tensor:
        """Sum over each row, ``(batch,)``."""
        return self.nll.sum(1)

    def mean(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the mean of values over the scored places."""
        chosen = self.mask if mask is None else mask
        return (values * chosen).sum() / chosen.sum()


def nll(network: nn.Module, task: Task) -> Tensor:
    """Return the mean NLL by the model's own loss."""
    output: Any = network(**task, use_cache=False)
    loss: Tensor = output.loss
    return loss


def hidden(network: Any, task: Task) -> Tensor:
    """Return the output of block :data:`RMU_LAYER` in a forward pass of the whole network."""
    kept: list[Any] = []
    handle = network.model.layers[RMU_LAYER].register_forward_hook(lambda module, given, output: kept.append(output))
    network(input_ids=task["input_ids"], attention_mask=task["attention_mask"], use_cache=False)
    handle.remove()
    found: Tensor = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
    return found


def npo(network: nn.Module, old: nn.Module, batch: Mapping[str, Task], beta: float = 0.1) -> Tensor:
    """Return the loss of NPO and the retain NLL."""
    with torch.no_grad():
        before = Scored(old, batch["forget"]).row_nll
    ratio = before - Scored(network, batch["forget"]).row_nll
    return -2 / beta * F.logsigmoid(-beta * ratio).mean() + nll(network, batch["retain"])


def dpo(network: nn.Module, old: nn.Module, batch: Mapping[str, Task], beta: float = 0.1, other: str = "idk") -> Tensor:
    """Return the loss of DPO with other answers, refusals or alternates, and the retain NLL."""
    with torch.no_grad():
        wanted, unwanted = (Scored(old, batch[name]).row_nll for name in (other, "forget"))
    wanted, unwanted = (
        before - Scored(network, batch[name]).row_nll for name, before in ((other, wanted), ("forget", unwanted))
    )
    return -2 / beta * F.logsigmoid(beta * (wanted - unwanted)).mean() + nll(network, batch["retain"])


def kl_minimisation(network: nn.Module, old: nn.Module, batch: Mapping[str, Task]) -> Tensor:
    """Return the negative forget NLL and the divergence on the retain rows."""
    with torch.no_grad():
        before = Scored(old, batch["retain"]).every.log_softmax(-1)
    after = Scored(network, batch["retain"]).every.log_softmax(-1)
    divergence = F.kl_div(after, before, reduction="none", log_target=True).sum(-1)
    return -nll(network, batch["forget"]) + divergence.mean()  # no place of these batches is padding


def undial(network: nn.Module, old: nn.Module, batch: Mapping[str, Task], beta: float = 10.0) -> Tensor:
    """Return the cross-entropy to the old distribution with the true token lowered."""
    with torch.no_grad():
        before = Scored(old, batch["forget"])
        true = F.one_hot(before.labels.clamp(min=0), before.logits.shape[-1])
        target = (before.logits - beta * true).softmax(-1)
    now = Scored(network, batch["forget"])
    return now.mean(F.cross_entropy(now.logits.transpose(1, 2), target.transpose(1, 2), reduction="none"))


def rmu(network: nn.Module, old: nn.Module, batch: Mapping[str, Task]) -> Tensor:
    """Return the distances of hidden states to a random direction and to those before."""
    with torch.no_grad():
        before = hidden(old, batch["retain"])
    now, kept = (hidden(network, batch[name]) for name in ("forget", "retain"))
    drawn = torch.rand(now.shape[-1], generator=torch.Generator().manual_seed(0))
    target = (2 * drawn / drawn.norm()).to(now)
    loss = now.new_zeros(())
    for states, goal, name in ((now, target, "forget"), (kept, before, "retain")):
        mask = batch[name]["labels"].ne(IGNORED)
        loss = loss + ((states - goal).square().mean(-1) * mask).sum() / mask.sum()
    return loss


def weighted_ascent(saturation: float, importance: float, weight: float) -> Callable[..., Tensor]:
    """Return the loss of WGA and SatImp."""

    def loss(network: nn.Module, old: nn.Module, batch: Mapping[str, Task]) -> Tensor:
        scored = Scored(network, batch["forget"])
        p = scored.nll.detach().neg().exp()
        forget = scored.mean(-(p**saturation) * (1 - p) ** importance * scored.nll)
        return weight * forget + nll(network, batch["retain"])

    return loss


def simnpo(network: nn.Module, old: nn.Module, batch: Mapping[str, Task], beta: float = 4.5) -> Tensor:
    """Return the loss of SimNPO and the retain NLL."""
    scored = Scored(network, batch["forget"])
    forget = -2 / beta * F.logsigmoid(beta * scored.row_nll / scored.mask.sum(1)).mean()
    return 0.125 * forget + nll(network, batch["retain"])


def ceu(network: nn.Module, old: nn.Module, batch: Mapping[str, Task]) -> Tensor:
    """Return the cross-entropy to the network's own distribution without the true token, behind the first of a row."""
    scored = Scored(network, batch["forget"])
    true = scored.labels.clamp(min=0)[..., None]
    target = scored.logits.detach().scatter(2, true, float("-inf")).softmax(-1)
    places = F.cross_entropy(scored.logits.transpose(1, 2), target.transpose(1, 2), reduction="none")
    return scored.mean(places, scored.mask & (scored.mask.cumsum(1) > 1))


def pdu(network: nn.Module, old: nn.Module, batch: Mapping[str, Task]) -> Tensor:
    """Return the margin of the logits and the retain NLL; the dual variable keeps its first value while it warms up."""
    scored = Scored(network, batch["forget"])
    margin = (scored.logits.max(-1).values - scored.logits.mean(-1)).square()
    return scored.mean(margin) + nll(network, batch["retain"])


PEERS: dict[str, Callable[[nn.Module, Any, Mapping[str, Task]], Tensor]] = {
    "GradientAscent": lambda network, old, batch: -nll(network, batch["forget"]),
    "GradientDifference": lambda network, old, batch: nll(network, batch["retain"]) - nll(network, batch["forget"]),
    "LossNorm": lambda network, old, batch: nll(network, batch["retain"]).log() - nll(network, batch["forget"]).log(),
    "TaskVector": lambda network, old, batch: nll(network, batch["forget"]),
    "IDK": lambda network, old, batch: nll(network, batch["idk"]) + nll(network, batch["retain"]),
    "NPO": npo,
    "DPO": dpo,
    "AltPO": partial(dpo, other="alternate"),
    "KLMinimisation": kl_minimisation,
    "UNDIAL": undial,
    "RMU": rmu,
    "WGA": weighted_ascent(1.0, 0.0, 1.0),
    "SatImp": weighted_ascent(5.0, 1.0, 0.1),
    "SimNPO": simnpo,
    "CEU": ceu,
    "PDU": pdu,
}
"""Losses by method; NGDiff combines two gradients, which no loss does."""


class PeerTrainer(transformers.Trainer):
    """Trains by one of :data:`PEERS`, rows in their order.

    Args:
        method: Name of the method.
        network: Model to train.
        folder: Folder that the trainer may write to.
        data: Batches of the tasks forget, retain, idk and alternate.
        learning_rate: Rate of AdamW, without decay.
        on_step: Called before each step.
    """

    def __init__(
        self,
        method: str,
        network: Any,
        folder: str,
        data: list[dict[str, dict[str, Any]]],
        learning_rate: float,
        on_step: Callable[[], None],
    ) -> None:
        class Tick(transformers.TrainerCallback):
            """Marks the beginning of each step."""

            def on_step_begin(self, *arguments: Any, **named: Any) -> None:
                """Mark the time."""
                on_step()

        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=1,
            max_steps=len(data),
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            optim="adamw_torch",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=not torch.cuda.is_available(),
        )
        rows: Any = [{task: {k: v for k, v in own.items() if k != "id"} for task, own in row.items()} for row in data]
        super().__init__(
            network, arguments, data_collator=lambda chosen: chosen[0], train_dataset=rows, callbacks=[Tick()]
        )
        self.remove_callback(transformers.PrinterCallback)
        self.loss = PEERS[method]
        self.old = copy.deepcopy(network).requires_grad_(False).eval() if method in REFERENCED else None
        if self.old is not None:
            self.old.to(self.args.device)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **named: Any) -> Any:
        """Return the loss of the method."""
        loss = self.loss(model, self.old, inputs)
        return (loss, None) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]
