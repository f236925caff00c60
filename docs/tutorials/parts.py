# %% [markdown]
# # One callback, one loss, one attack in your own code
#
# None of the parts needs the rest: each works in your own `Trainer` or loop.

# %%
import logging
import warnings

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader, TensorDataset

from lit_modules.adversarial.trades import trades_loss
from lit_modules.attacks import LinfPGD
from lit_modules.callbacks import AdaptiveLR
from lit_modules.networks import LeNet5
from lit_modules.unlearning.core.gradients import PairStatistics
from lit_modules.unlearning.ngdiff import normalised_weights

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")
seed_everything(0, verbose=False)
x, y = torch.rand(64, 1, 8, 8), torch.randint(10, (64,))

# %% [markdown]
# ## An attack in a plain loop

# %%
model = LeNet5("small", image_size=8)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
attack = LinfPGD(eps=0.05, steps=5, step_size=0.02)
for _ in range(5):
    adversarial = attack(model, x, y)
    loss = F.cross_entropy(model(adversarial), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3f}; largest change of a pixel {(adversarial - x).abs().max().item():.3f}")

# %% [markdown]
# ## A loss as a function

# %%
print(trades_loss(model(x), model(adversarial), y, beta=6.0))

# %% [markdown]
# ## A callback with your own module
#
# `AdaptiveLR` needs one more method of a module, `probe_loss`: the summed loss of a batch and the number of terms in
# the sum.

# %%


class Classifier(LightningModule):
    """Plain classifier, nothing of this project in it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = LeNet5("small", image_size=8)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return the cross-entropy."""
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def probe_loss(self, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the summed cross-entropy and the number of samples."""
        return F.cross_entropy(self.network(batch[0]), batch[1], reduction="sum"), torch.tensor(float(len(batch[1])))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Start from a rate that is far too small."""
        return torch.optim.SGD(self.parameters(), lr=1e-6, momentum=0.9)


module = Classifier()
trainer = Trainer(
    accelerator="cpu",
    max_epochs=10,
    callbacks=[AdaptiveLR(period=5)],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True))
print(f"rate {trainer.optimizers[0].param_groups[0]['lr']:.2g} after a start of 1e-6")

# %% [markdown]
# ## Two gradients combined as in NGDiff
#
# Each is divided by its norm, so neither dominates. To first order a step along the difference lowers the retain loss
# and raises the forget loss, whatever their sizes.

# %%
retain, forget = torch.randn(1000), 100 * torch.randn(1000)
pair = PairStatistics(float(retain.norm()), float(forget.norm()), inner=float(retain @ forget))
weights = normalised_weights(pair)
direction = weights[0] * retain - weights[1] * forget
print(f"norms {pair.retain_norm:.1f} and {pair.forget_norm:.1f}, cosine {pair.cosine:.3f}")
print(f"products with the direction {retain @ direction:.1f} and {forget @ direction:.1f}")
