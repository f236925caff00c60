"""Task vectors: the opposite of what fine-tuning on the forget rows does."""

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from lit_modules.unlearning.core.arguments import UnlearningArguments, check_positive
from lit_modules.unlearning.core.causal_lm import Batch
from lit_modules.unlearning.core.gradient_pair import Unlearning
from lit_modules.unlearning.core.losses import summed_nll, target_tokens
from lit_modules.unlearning.core.pretrained import model_hash
from lit_modules.utils.arguments import Unpack


class TaskVector(Unlearning):
    """Unlearn by fine-tuning on the forget rows and going the opposite way: task arithmetic.

    Training lowers the NLL of the forget rows alone. When it ends the weights become
    ``theta - a (theta_tuned - theta)`` with ``theta`` those before training, kept on the CPU. With adapters of LoRA,
    which begin at 0, ``theta_tuned - theta`` is the adapter itself, so it is multiplied by ``-a`` and nothing is kept.

    What is validated or saved during training is the fine-tuned model; what is tested and saved after it, the unlearned
    one. The learning rate is one of fine-tuning. Each step logs ``train/forget_loss``, which falls,
    ``train/forget_norm`` and ``train/lr``; the retain rows of a batch are not touched. Further arguments are those of
    :class:`~lit_modules.unlearning.core.gradient_pair.Unlearning`.

    Args:
        strength: Factor of the negated vector, ``a``; 5 is that of MUSE.

    Raises:
        ValueError: If a number is out of its range, the adapters are not LoRA that begins at 0, or a run is resumed
            that has ended.

    References:
        Ilharco et al., "Editing models with task arithmetic", arXiv 2212.04089; as a baseline of unlearning Shi et al.,
        "MUSE", arXiv 2407.06460.
    """

    def __init__(
        self, model: str | PreTrainedModel, *, strength: float = 5.0, **shared: Unpack[UnlearningArguments]
    ) -> None:
        super().__init__(model, **shared)
        check_positive(strength=strength)
        self.strength = strength
        self._start: list[Tensor] = []
        self._reference_hash: str | None = None
        self._negated = False

    def configure_model(self) -> None:
        """Load the weights once; keep those that training changes."""
        super().configure_model()
        if not self._fitting or self._reference_hash is not None:
            return
        self._reference_hash = model_hash(self.model)
        if not isinstance(self.model, PeftModel):
            self._start = [parameter.detach().to("cpu", copy=True) for parameter in self.trainable_parameters()]
            return
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        ends = [p for name, p in trained.items() if "lora_B" in name]
        if not ends or any("lora_A" not in n and "lora_B" not in n for n in trained) or any(p.any() for p in ends):
            raise ValueError(
                "TaskVector takes LoRA adapters that begin at 0 (init_lora_weights=True, no bias, no modules_to_save; "
                "a saved one is to be merged first, save_pretrained(folder, merge=True)), got "
                f"{type(self.model.peft_config['default']).__name__} that trains {next(iter(trained), 'nothing')!r}."
            )

    def on_fit_start(self) -> None:
        """Refuse a second training of the same object, whose first weights are gone."""
        if self._negated:
            raise ValueError("This TaskVector has ended its training; make a new one to train again.")

    def unlearning_step(self, group: list[Batch]) -> dict[str, float]:
        """Write the gradient of the forget rows' NLL into ``.grad``."""
        return self.forget_step(group)

    def probe_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss that training lowers, for ``callbacks.AdaptiveLR``: the summed forget NLL, and its tokens."""
        return summed_nll(self.network, batch["forget"]), target_tokens(batch["forget"])

    @torch.no_grad()
    def on_train_end(self) -> None:
        """Go from the first weights the opposite way."""
        if self._start:
            for parameter, start in zip(self.trainable_parameters(), self._start, strict=True):
                before = start.to(parameter)
                parameter.copy_(before - self.strength * (parameter - before))
        else:
            for name, parameter in self.model.named_parameters():
                if "lora_B" in name and parameter.requires_grad:
                    parameter.mul_(-self.strength)
        self._negated = True

    def on_fit_end(self) -> None:
        """Refuse a run that was resumed after its last step, where nothing calls the end of training."""
        super().on_fit_end()
        if not self._negated:
            raise ValueError(
                "There was nothing left to train, so TaskVector has not negated the weights, and what callbacks have "
                "saved is the fine-tuned model; resume with more epochs, or from an earlier checkpoint."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say whether the weights are those of fine-tuning or their opposite."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lit_modules_task_vector"] = {"negated": self._negated, "model": self._reference_hash}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to train on from weights that are the opposite already, or with another start, and to test others."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get("lit_modules_task_vector", {})
        if self._trainer is not None and self._trainer.state.fn in ("test", "predict") and not saved.get("negated"):
            raise ValueError(
                "The checkpoint was written during training, and TaskVector negates what was learned at the end; give "
                "the folder that callbacks.SavePretrained wrote as the model, without a checkpoint."
            )
        if self._reference_hash is None:
            return
        if saved.get("negated"):
            raise ValueError(
                "The checkpoint was written after training, when TaskVector has negated the weights, so it cannot be "
                "resumed; resume from one that was written during training."
            )
        if saved.get("model") not in (None, self._reference_hash):
            raise ValueError(
                f"The checkpoint was written by a run that began with the model {saved['model'][:12]}, and this run "
                f"begins with {self._reference_hash[:12]}; give the model that the first run began with."
            )
