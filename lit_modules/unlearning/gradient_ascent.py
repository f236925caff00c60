"""Gradient ascent on the forget loss."""

from torch import Tensor

from lit_modules.unlearning.core.causal_lm import Batch
from lit_modules.unlearning.core.gradient_pair import Unlearning
from lit_modules.unlearning.core.losses import summed_nll, target_tokens


class GradientAscent(Unlearning):
    """Unlearn by raising the forget loss, ``d = -g_F``, with no regard to the retain set.

    The baseline that collapses: retain knowledge goes with the rest. The retain part of a batch is not touched, so a
    step costs half of one of :class:`~lit_modules.NGDiff`. Each step logs ``train/forget_loss``, ``train/forget_norm``,
    ``train/forget_descent`` and ``train/lr``. With ``callbacks.AdaptiveLR`` the probed loss is the one that is
    minimised, the negative forget NLL. The arguments are those of
    :class:`~lit_modules.unlearning.core.gradient_pair.Unlearning`.

    References:
        Jang et al., "Knowledge unlearning for mitigating privacy risks in language models", arXiv 2210.01504; the
        baseline of arXiv 2410.22086.
    """

    shardable = True

    def unlearning_step(self, group: list[Batch]) -> dict[str, float]:
        """Write the negative forget gradient into ``.grad``."""
        numbers = self.forget_step(group, scale=-1.0)
        return {**numbers, "train/forget_descent": -(numbers["train/forget_norm"] ** 2)}

    def probe_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the minimised loss for ``callbacks.AdaptiveLR``: the negative forget NLL, summed, and its tokens."""
        return -summed_nll(self.network, batch["forget"]), target_tokens(batch["forget"])
