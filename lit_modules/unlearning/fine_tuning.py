"""Supervised fine-tuning of a causal language model."""

from torch import Tensor

from lit_modules.unlearning.core.causal_lm import Batch, CausalLM
from lit_modules.unlearning.core.losses import summed_nll, target_tokens
from lit_modules.utils.training_state import check_finite


class CausalLMFineTuning(CausalLM):
    """Lower the next-token loss of a causal language model.

    Makes the two companions of an unlearning study: the target model, which has memorised the forget and the retain
    set, and the retain-only model, which never saw the forget set. ``save_pretrained`` writes a folder that the
    unlearning recipes take as ``model``.

    A batch maps ``input_ids``, ``attention_mask`` and ``labels`` to integers of shape ``(batch, tokens)``; a label of
    -100 is not scored. The loss is the mean over the batch's target tokens, in nats, logged as ``train/loss``.
    Optimization is automatic: clipping and accumulation are the trainer's. The arguments are those of
    :class:`~lit_modules.unlearning.core.causal_lm.CausalLM`.

    Raises:
        ValueError: If ``max_new_tokens`` is not positive, or, in training, a batch has no target token.
        FloatingPointError: If the loss of a batch is not finite; the message names the rows.
    """

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean NLL of the batch's target tokens."""
        if "labels" not in batch:
            raise ValueError(
                f"CausalLMFineTuning trains on batches with 'labels', got {sorted(batch)}; with datamodules.LUME give "
                "subset='all', 'retain' or 'forget'."
            )
        self.check_rows(batch)
        total, tokens = self.probe_loss(batch)
        loss = total / tokens
        check_finite(self, {"training": loss.item()}, {"training": batch.get("id", [])})
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["labels"]))
        return loss

    def probe_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the summed NLL of a batch in nats and its number of target tokens, for ``callbacks.AdaptiveLR``."""
        return summed_nll(self.network, batch), target_tokens(batch)
