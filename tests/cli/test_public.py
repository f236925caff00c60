"""Short names of classes, where several libraries have a class of one name."""

import json
import subprocess
import sys
from pathlib import Path

FAKE = """
from torch.optim import Optimizer

class AdamW(Optimizer):
    def __init__(self, params, lr: float = 1.0, bits: int = 8) -> None:
        super().__init__(params, {"lr": lr})

class Lonely(AdamW):
    '''Has a name that nobody else has.'''
"""
CODE = """
import contextlib, io, json, sys
import fakebits, yaml
from lit_modules.cli import main
from lit_modules.utils.errors import UsageError

with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(["fit", "-c", "pgd/digits.yaml", "--print_config"])
early = [name for name in sys.modules if name.startswith(("lit_modules.unlearning", "lit_modules.coda", "diffusers"))]
mistakes = []
for line in json.loads(sys.argv[2]):
    try:
        main(line.split())
    except UsageError as error:
        mistakes.append(str(error).splitlines()[0])
paths = []
for given in json.loads(sys.argv[1]):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main(["fit", "--model=NGDiff", "--model.model=x", "--data=LUME", *given, "--print_config"])
    paths.append(yaml.safe_load(printed.getvalue())["model"]["init_args"]["optimizer"]["class_path"])
print(json.dumps([early, mistakes, paths]))
"""
WANTED = [
    (["--model.optimizer=AdamW"], "torch.optim.AdamW"),
    (["-c", "{model: {init_args: {optimizer: {class_path: AdamW}}}}"], "torch.optim.AdamW"),
    (["--model.optimizer=fakebits.AdamW", "--model.optimizer.bits=4"], "fakebits.AdamW"),
    (["--model.optimizer=Lonely"], "fakebits.Lonely"),
]
MISTAKES = {
    "fit -c pgd/digits.yaml --trainer.callbacks+=callbacks.AdaptivLR": (
        "There is no class 'callbacks.AdaptivLR' for trainer.callbacks; "
        "did you mean 'lit_modules.callbacks.AdaptiveLR'?"
    ),
}
"""Lines with the first sentence that answers them, although nothing was imported that has the right name."""


def test_short_names_are_looked_up_late_and_that_of_an_optimizer_is_torchs(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "fakebits.py").write_text(FAKE, encoding="utf-8")
    command = [sys.executable, "-c", CODE, json.dumps([given for given, _ in WANTED]), json.dumps([*MISTAKES])]
    environment = {"PYTHONPATH": f"{tmp_path}:{repository}", "PATH": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[], [*MISTAKES.values()], [path for _, path in WANTED]]
