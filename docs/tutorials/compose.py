# %% [markdown]
# # Compose affordances with a text-to-image model
#
# Synthia teaches a model to draw one object that offers several affordances, along a curriculum from close pairs to
# distant ones, away from what already exists. Here the model is the small one of the demonstration, which knows drawn
# everyday things; about two minutes on a CPU, offline.

# %%
import logging
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
from lightning.pytorch import Trainer, seed_everything

from lit_modules import Synthia
from lit_modules.callbacks import EMA, Curriculum
from lit_modules.datamodules import DrawnObjects
from lit_modules.demos.synthia.world import write_base, write_pairs
from lit_modules.synthia import Denoise, Ontology, PixelDiffusion
from lit_modules.utils.figures import figure_style

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")
folder = Path("runs/tutorial/synthia")

# %% [markdown]
# ## Ontology and curriculum
#
# An ontology says which things have which parts, and what the parts are for. The distance between two affordances
# follows from it, and the curriculum from the distances. `Ontology.from_file("household")` is shipped; write your own
# as a YAML file.

# %%
pairs = write_pairs(folder / "pairs")
ontology = Ontology.from_file(pairs / "ontology.json")
print(ontology)
print(*sorted(path.name for path in pairs.iterdir()))

# %% [markdown]
# ## Before

# %%
base = write_base(folder / "base", None)
wanted = ["sit", "store"]
before = Synthia(PixelDiffusion(str(base))).generate(wanted, num_images=4, seed=0)

# %% [markdown]
# ## Tune
#
# `Denoise` lowers the error on pictures of new designs that offer both affordances, and raises it on pictures of
# existing things that offer one. A model of the Hub can replace `PixelDiffusion`: `SDXL("...")`,
# `StableDiffusion3("...")`, `Flux("...")`, with a LoRA by `peft_config`.

# %%
seed_everything(0, verbose=False)
module = Synthia(PixelDiffusion(str(base)), objective=Denoise(negative_weight=0.1, margin=0.02))
data = DrawnObjects(curriculum=str(pairs), task="pairs", mode="staged", batch_size=24, positives=8)
trainer = Trainer(
    accelerator="cpu",
    max_epochs=15,
    gradient_clip_val=1.0,
    callbacks=[Curriculum(), EMA(decay=0.98)],
    use_distributed_sampler=False,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    limit_val_batches=0,
)
trainer.fit(module, data)
after = module.generate(wanted, num_images=4, seed=0)

# %%
with figure_style():
    figure, axes = plt.subplots(2, 4, figsize=(7, 3.6), layout="constrained")
    for line, name, images in zip(axes, ("before", "after"), (before, after), strict=True):
        line[0].set_ylabel(name)
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image.permute(1, 2, 0), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    plt.show()

# %% [markdown]
# Fifteen epochs give a first impression; `lit-modules demo synthia` runs ninety in three ways and counts what the
# pictures show, and the page of claims says what holds. `module.save_pretrained("network")` writes what diffusers
# loads.
