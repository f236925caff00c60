# %% [markdown]
# # Measure how robust a classifier is, and harden it
#
# A small network learns scikit-learn's digits twice, by standard and by PGD adversarial training. AutoAttack measures
# the remaining accuracy. About two minutes on a CPU, offline.

# %%
import logging
import warnings

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Trainer, seed_everything

from lit_modules import PGDTraining, StandardTraining
from lit_modules.attacks import AutoAttack, CarliniWagner, LinfPGD
from lit_modules.datamodules import Digits
from lit_modules.networks import LeNet5
from lit_modules.utils.figures import figure_style

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")
quiet = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "limit_val_batches": 0,
}
eps = 0.15

# %% [markdown]
# ## Train

# %%
attack = LinfPGD(eps=eps, steps=7, step_size=0.04, keep="last")
models = {}
for name in ("standard", "PGD"):
    seed_everything(0, verbose=False)
    network = LeNet5("small", image_size=8)
    options = {"optimizer": lambda weights: torch.optim.Adam(weights, lr=2e-3)}
    module = PGDTraining(network, attack=attack, **options) if name == "PGD" else StandardTraining(network, **options)
    Trainer(max_epochs=15, **quiet).fit(module, Digits(batch_size=50))
    models[name] = network.eval()

# %% [markdown]
# ## Attack
#
# An attack is a function of a model, inputs in [0, 1] and labels. `run` returns success, distance and the number of
# forward passes of each sample; any callable that returns logits can be attacked, and Lightning is not needed.

# %%
data = Digits()
data.setup("test")
batch = next(iter(data.test_dataloader()))
x, y = batch["image"][:100], batch["label"][:100]
for name, model in models.items():
    with torch.no_grad():
        clean = (model(x).argmax(1) == y).float().mean()
    pgd = LinfPGD(eps=eps, steps=100, step_size=0.01).run(model, x, y)
    auto = AutoAttack(norm="linf", eps=eps).run(model, x, y)
    left = {
        attack: 1 - float(result.success.float().mean()) for attack, result in (("PGD-100", pgd), ("AutoAttack", auto))
    }
    print(f"{name:9} clean {clean:.2f},", ", ".join(f"{attack} {value:.2f}" for attack, value in left.items()))

# %% [markdown]
# ## Distance to the boundary
#
# A minimum-norm attack gives the distance from each sample to the nearest mistake that it finds.

# %%
for name, model in models.items():
    smallest = CarliniWagner(steps=100, search_steps=4).run(model, x, y)
    print(
        f"{name:9} median L2 distance {smallest.distance.median():.2f}, found for {smallest.success.float().mean():.2f}"
    )

# %%
rows = {"clean": x, **{name: AutoAttack(norm="linf", eps=eps)(model, x[:6], y[:6]) for name, model in models.items()}}
with figure_style():
    figure, axes = plt.subplots(3, 6, figsize=(8, 4), layout="constrained")
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name)
        for axis, image in zip(line, images, strict=False):
            axis.imshow(image[0], cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    plt.show()

# %% [markdown]
# The same from the command line, with a record, pictures and resuming: `lit-modules fit -c pgd/digits.yaml`, then
# `lit-modules test -c pgd/digits.yaml --ckpt_path best`. Your own classifier can replace `LeNet5`.
