# %% [markdown]
# # Teach a model a concept from five pictures
#
# CoDA asks what distinguishes a new concept from the known one that it is confused with, draws pictures that show it,
# and updates the model on real and synthetic pictures together. Here a small classifier learns drawn creatures,
# offline, in about a minute; the generator is a stand-in that draws what a prompt names.

# %%
import logging
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
from lightning.pytorch import Trainer, seed_everything
from PIL import Image
from transformers.utils import logging as transformers_logging

from lit_modules import ClassifierUpdate
from lit_modules.demos.coda.models import IMAGE_SIZE, write_models
from lit_modules.demos.coda.world import World, augment, draw_world, drawn_folder
from lit_modules.utils.figures import figure_style

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
warnings.filterwarnings("ignore")
folder = Path("runs/tutorial/coda")

# %% [markdown]
# ## Five real pictures of each
#
# In your own folder they lie at `train/CLASS/`, and `FewShotPairs(root=...)` reads them. All pictures of a new
# creature show the same habitat: a model may learn the habitat instead of the creature.

# %%
world = World()
draw_world(world, folder / "data", seed=0)
write_models(folder / "models")
data = world.data(folder / "data", 0)
pair = data.pairs[0]
print(f"{len(data.pairs)} pairs, such as {pair.target.name}, which is mistaken for {pair.confusable.name}")

# %% [markdown]
# ## Features, pictures, verification

# %%
result = augment(world, "CoDA", folder, models=folder / "models", seed=0)
print(f"{sum(unit.features for unit in result.units)} features, {sum(unit.accepted for unit in result.units)} pictures")
paths = sorted((folder / "data" / "train" / pair.target.name).iterdir())[:5]
synthetic = sorted(drawn_folder(folder, "CoDA").glob(f"train/{pair.target.name.lower()}-*/*"))[:5]
with figure_style():
    figure, axes = plt.subplots(2, 5, figsize=(7, 3.2), layout="constrained")
    for line, name, files in zip(axes, ("real", "synthetic"), (paths, synthetic), strict=True):
        line[0].set_ylabel(name)
        for axis, path in zip(line, files, strict=False):
            axis.imshow(Image.open(path))
        for axis in line:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    plt.show()

# %% [markdown]
# ## Update, and test on other pictures

# %%
for name, source in {
    "real": {},
    "real and synthetic": {
        "method": "synthetic",
        "synthetic_root": str(drawn_folder(folder, "CoDA")),
        "n_synthetic": 5,
    },
}.items():
    seed_everything(0, verbose=False)
    data = world.data(
        folder / "data", 0, image_size=IMAGE_SIZE, batch_size=20, eval_batch_size=240, n_orders=1, **source
    )
    data.setup("fit")
    module = ClassifierUpdate(
        str(folder / "models" / "resnet"),
        num_classes=len(data.classes),
        learning_rate=5e-4,
        head_learning_rate=5e-3,
        mean=[0.5] * 3,
        std=[0.5] * 3,
    )
    options = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    Trainer(accelerator="cpu", max_steps=60, max_epochs=-1, limit_val_batches=0, **options).fit(module, data)
    right = total = 0
    for batch in data.test_dataloader():
        answers = module.eval().predict_step(batch)["name"]
        right += sum(answer == path.split("/")[-2] for answer, path in zip(answers, batch["path"], strict=True))
        total += len(answers)
    print(f"{name:19} accuracy {right / total:.3f}")

# %% [markdown]
# With a real image-text model and real generators the commands are `lit-modules coda pairs`, `coda augment`,
# `coda export` and `fit -c coda/novel_species_7b.yaml`.
