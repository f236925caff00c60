# %% [markdown]
# # Make a language model forget your documents, and prove it
#
# A small Llama memorises invented documents about private persons. NGDiff then makes it forget some of them and keep
# the others, and LUME's scores say whether it did. Everything runs on a CPU, offline, in about a minute; with your
# own model and files only the two folders change.

# %%
import logging
import warnings

import torch
from lightning.pytorch import Trainer, seed_everything
from transformers.utils import logging as transformers_logging

from lit_modules import CausalLMFineTuning, NGDiff
from lit_modules.callbacks import AdaptiveLR
from lit_modules.datamodules import SyntheticLUME
from lit_modules.metrics import LUMEScore
from lit_modules.networks import small_llama

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
transformers_logging.set_verbosity_error()
warnings.filterwarnings("ignore")
seed_everything(0, verbose=False)
quiet = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "limit_val_batches": 0,
}

# %% [markdown]
# ## A model that remembers
#
# `SyntheticLUME` writes `forget.jsonl` and `retain.jsonl` in the layout of LUME, and a tokenizer for them.
# `LUME(root=...)` reads such files with your own documents. Here the model first memorises the rows of both sets;
# yours has already seen them.

# %%
settings = {"root": "runs/tutorial/data", "num_documents": 2, "eval_batch_size": 64, "num_workers": 0}
everything = SyntheticLUME(**settings, subset="all", batch_size=16)
llama = small_llama(vocab_size=1024, hidden_size=128, num_layers=2, num_heads=4)
reader = CausalLMFineTuning(llama, optimizer=lambda weights: torch.optim.AdamW(weights, lr=4e-3, weight_decay=0.0))
Trainer(max_steps=200, max_epochs=-1, gradient_clip_val=1.0, **quiet).fit(reader, everything)

# %% [markdown]
# ## Before
#
# A regurgitation score of 1 on the forget set means that the model completes the documents word for word.

# %%
data = SyntheticLUME(**settings, batch_size=4)
module = NGDiff(llama, metric=LUMEScore(), max_new_tokens=96)
trainer = Trainer(max_steps=40, max_epochs=-1, callbacks=[AdaptiveLR(period=2)], **quiet)
before = trainer.test(module, data, verbose=False)[0]

# %% [markdown]
# ## Unlearn
#
# Each step follows the retain gradient over its norm, less the forget gradient over its norm. `AdaptiveLR` finds the
# learning rate, so the one that the optimizer starts from hardly matters.

# %%
trainer.fit(module, data)
after = trainer.test(module, data, verbose=False)[0]
for name in ("forget/regurgitation", "forget/knowledge", "retain/regurgitation", "retain/knowledge", "task_aggregate"):
    print(f"{name:22} {before[f'test/{name}']:.2f} -> {after[f'test/{name}']:.2f}")

# %% [markdown]
# The goal is 0 on the forget set and 1 on the retain set. `module.save_pretrained("unlearned")` writes a folder that
# transformers loads. The same from the command line, with the files of LUME and a model of the Hub:
#
# ```bash
# lit-modules fit -c ngdiff/lume.yaml --model.model FOLDER --data.root FOLDER_OF_THE_TWO_FILES
# ```
#
# Does a little training bring the documents back? `lit-modules stress` relearns, quantizes and asks again.
