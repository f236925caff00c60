# %% [markdown]
# # Compare methods fairly
#
# One start, equal steps, the same rates and seeds for every method: `lit-modules compare` runs such a plan, in fresh
# processes or on Ray, and makes a table and figures. `lit-modules sweep` does the same over any argument of one
# recipe. Both resume where they were stopped.

# %%
import csv
import json
from pathlib import Path

import matplotlib.pyplot as plt

from lit_modules.cli import main as lit_modules
from lit_modules.utils.figures import figure_style

folder = Path("runs/tutorial/sweep")

# %% [markdown]
# ## A sweep over the strength of an image change, two seeds
#
# In a shell the same command begins with `lit-modules sweep`. `--workers 2` runs two points at a time, `--launcher
# ray` sends them to a cluster.

# %%
short = ["--trainer.max_epochs=3", "--trainer.limit_test_batches=1", "--data.eval_batch_size=50"]
quick = {"class_path": "lit_modules.attacks.LinfPGD", "init_args": {"eps": 0.15, "steps": 20, "step_size": 0.02}}
attacks = f"--model.test_attacks={json.dumps({'pgd': quick})}"
variant = '--data.variant={"class_path": "lit_modules.datamodules.variants.Saturate", "init_args": {"p": 2.0}}'
grid = ["--over", "data.variant.p=2,inf", "--seeds", "2", "--folder", str(folder)]
lit_modules(["sweep", "-c", "pgd/digits.yaml", *short, attacks, variant, *grid])

# %%
with (folder / "table.csv").open() as file:
    rows = list(csv.DictReader(file))
print(*rows[0], sep=", ")
with figure_style():
    picture = plt.imread(folder / "figure.png")
    figure = plt.figure(figsize=(picture.shape[1] / 110, picture.shape[0] / 110), dpi=110)
    figure.add_axes((0, 0, 1, 1)).imshow(picture)
    plt.axis("off")
    plt.show()

# %% [markdown]
# ## Many methods
#
# ```bash
# lit-modules compare -c compare/tofu_tiny.yaml --workers 2
# lit-modules stress -c compare/tofu_tiny.yaml
# ```
#
# Each run keeps its configuration, numbers and log. Judge by means and deviations over seeds, never by a single run.
