"""Stress tests at the end of a training."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_modules.studies.runs import write_json
from lit_modules.studies.stress.attacks import prune_, relearn, simulate_quantization_
from lit_modules.studies.stress.rows import of_subset
from lit_modules.unlearning.fine_tuning import CausalLMFineTuning
from lit_modules.utils import adapters

UNLEARNED = "unlearned"
"""Name of the model as it is, among the results."""


class StressTest(Callback):
    """Test an unlearned model at the end of its training, as it is and after attacks, and write the results.

    What ``lit-modules stress`` does with a saved model, without prompts in other forms: quantization, pruning and
    relearning on the forget set. The trained model stays as it is. Asks of the module for ``model`` and ``metric``, as
    the unlearning methods have, and of the datamodule for the argument ``subset``; one process.

    Args:
        relearning_steps: Steps of the relearning attack; 0 leaves it out.
        relearning_rate: Its learning rate.
        bits: Bits of a quantized weight.
        pruning: Shares of each layer's smallest weights to set to 0.
        filename: File in the trainer's root folder.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        relearning_steps: int = 5,
        relearning_rate: float = 1e-5,
        bits: tuple[Literal[4, 8], ...] = (8, 4),
        pruning: tuple[float, ...] = (),
        filename: str = "stress.json",
    ) -> None:
        if relearning_steps < 0:
            raise ValueError(f"relearning_steps must be 0 or more, got {relearning_steps}.")
        if not relearning_rate > 0:
            raise ValueError(f"relearning_rate must be positive, got {relearning_rate}.")
        if any(number not in (4, 8) for number in bits):
            raise ValueError(f"bits must be of 4 and 8, got {bits}.")
        if any(not 0 < share < 1 for share in pruning):
            raise ValueError(f"pruning must be shares between 0 and 1, got {pruning}.")
        self.relearning_steps, self.relearning_rate = relearning_steps, relearning_rate
        self.bits, self.pruning, self.filename = tuple(bits), tuple(pruning), filename

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that there is a metric and one process, before anything is trained."""
        if stage != "fit":
            return
        if getattr(pl_module, "metric", None) is None:  # any module
            raise ValueError("StressTest needs the module's metric, such as metric=lit_modules.metrics.TOFUScore().")
        if trainer.world_size > 1:
            raise ValueError(f"StressTest runs in one process, got {trainer.world_size}; use lit-modules stress.")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the tests, and write the results."""
        path = Path(trainer.default_root_dir) / self.filename
        write_json(path, self.run(trainer, pl_module))
        rank_zero_info(f"The results of the stress tests are in {path}.")

    def run(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, dict[str, Any]]:
        """Return the results of the model as it is, and after each attack, by the attack's name."""
        module: Any = pl_module
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        adapted = adapters.own_config(module.model) is not None

        def whole() -> Any:
            network = adapters.merged(module.model) if adapted else copy.deepcopy(module.model)
            return network.requires_grad_(True)

        def changed(change: Callable[[Any], object]) -> dict[str, Any]:
            network = whole()
            change(network)
            return self._results(trainer, module, network)

        records = {UNLEARNED: changed(lambda network: None)}
        for bits in self.bits:
            records[f"{bits} bits"] = changed(partial(simulate_quantization_, bits=bits))
        for share in self.pruning:
            records[f"pruned by {share:g}"] = changed(partial(prune_, share=share))
        if self.relearning_steps:
            name = f"relearned {self.relearning_steps} step{'s' * (self.relearning_steps > 1)}"

            def evaluate(network: Any) -> dict[str, float]:
                records[name] = self._results(trainer, module, network)
                return {}

            batches = of_subset(data, "forget").train_dataloader()
            steps = [self.relearning_steps]
            device = str(module.device)
            relearn(whole(), batches, evaluate, steps=steps, learning_rate=self.relearning_rate, device=device)
        return records

    def _results(self, trainer: Trainer, module: Any, network: Any) -> dict[str, Any]:
        """Return the results of a network on the trainer's data."""
        metric = copy.deepcopy(module.metric)
        metric.reset()
        judged = CausalLMFineTuning(network, metric=metric, max_new_tokens=module.max_new_tokens)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        settings: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        tester = Trainer(
            accelerator="auto" if module.device.type != "cpu" else "cpu",
            devices=1,
            precision=trainer.precision,
            limit_test_batches=trainer.limit_test_batches,
            default_root_dir=trainer.default_root_dir,
            enable_model_summary=False,
            **settings,
        )
        try:
            tester.test(judged, datamodule=data, verbose=False)
        finally:
            data.trainer = trainer
        return judged.results()
