"""Grids of a text-to-image model's designs while it trains."""

import math
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lit_modules.utils.files import whole_file
from lit_modules.utils.run_folders import is_dev_run, run_folder

from ._files import picture


class SampleGrid(Callback):
    """Draw fixed affordances after each validation, a grid of images for each.

    Asks of the module ``generate(affordances, num_images=, seed=) -> images``, floats in [0, 1], ``(num_images, 3,
    height, width)``; values beyond are cut off, and those that are not finite are black. Every process generates its
    share of the grids, equally often, so that sharded models can; the first logs. The random state of training stays as
    it was.

    The grids are written to ``samples/step_<global step>/<number>_<affordances>.png`` in the folder of the run, sent as
    ``val/sample_grid`` to loggers with ``log_image``, as W&B's has it, and as
    ``val/sample_grid/<number>_<affordances>`` to loggers whose experiment has ``add_image``, as TensorBoard's has. The
    validation before training draws nothing, and ``fast_dev_run`` writes no file.

    Args:
        affordances: What to draw, a tuple of names for each grid; ``None`` takes the first different ones that the
            batches of the first validation hold under ``affordances``, a sequence of names for each row.
        num_images: Images in a grid.
        seed: Seed of the images, the same at each validation.
        every_n_validations: Validations of a run from one drawing to the next.
        max_grids: Grids to draw if ``affordances`` is ``None``.

    Raises:
        ValueError: If there is nothing to draw, or a number is below 1.

    Example:
        >>> SampleGrid((("sit", "store"), ("pour", "fly")), num_images=2).affordances
        (('sit', 'store'), ('pour', 'fly'))
    """

    def __init__(
        self,
        affordances: tuple[tuple[str, ...], ...] | None = None,
        num_images: int = 4,
        seed: int = 0,
        every_n_validations: int = 1,
        max_grids: int = 4,
    ) -> None:
        for row in affordances or ():
            if isinstance(row, str) or not row or not all(isinstance(name, str) and name.strip() for name in row):
                raise ValueError(f"affordances must hold a tuple of names for each grid, got {row!r}.")
        numbers = {"num_images": num_images, "every_n_validations": every_n_validations, "max_grids": max_grids}
        for name, value in numbers.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        self.affordances = tuple(tuple(row) for row in affordances) if affordances else None
        self.num_images = num_images
        self.seed = seed
        self.every_n_validations = every_n_validations
        self.max_grids = max_grids
        self._met: list[tuple[str, ...]] = []  # in the batches, while affordances are not known
        self._validations = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the module generates."""
        if not callable(getattr(pl_module, "generate", None)):
            raise TypeError(
                f"SampleGrid asks for {type(pl_module).__name__}.generate(affordances, num_images=, seed=), which is "
                "missing."
            )

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note what the first batches hold, if nothing else is to be drawn."""
        if self.affordances is not None or trainer.sanity_checking or len(self._met) >= self.max_grids:
            return
        if not isinstance(batch, Mapping) or "affordances" not in batch:
            keys = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
            raise TypeError(
                f"SampleGrid asks for batch['affordances'] in validation, and found {keys}; give it the affordances to "
                "draw, or add them to the batch."
            )
        known = {frozenset(row) for row in self._met}
        for row in batch["affordances"]:
            if frozenset(row) not in known and len(self._met) < self.max_grids:
                known.add(frozenset(row))
                self._met.append(tuple(row))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, write and log the grids."""
        if trainer.sanity_checking:
            return
        if self.affordances is None:
            # every process has met other rows
            self.affordances = tuple(tuple(row) for row in trainer.strategy.broadcast(self._met))
            self._met = []
        if trainer.state.fn == "fit":
            self._validations += 1
            if self._validations % self.every_n_validations:
                return
        grids = self._grids(trainer, pl_module)
        folder = run_folder(trainer) / "samples" / f"step_{trainer.global_step:06d}"
        if not trainer.is_global_zero:
            return
        if not is_dev_run(trainer):
            self._write(folder, grids)
        self._log(trainer, grids)

    def state_dict(self) -> dict[str, Any]:
        """Return what is drawn and how many validations there were."""
        return {"validations": self._validations, "affordances": [list(row) for row in self.affordances or ()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting, and draw what was drawn unless other affordances were given."""
        self._validations = state_dict["validations"]
        if self.affordances is None and state_dict["affordances"]:
            self.affordances = tuple(tuple(row) for row in state_dict["affordances"])

    def _grids(self, trainer: Trainer, pl_module: LightningModule) -> list[Tensor]:
        """Return the grids as bytes ``(3, height, width)``, in order."""
        rows = self.affordances or ()
        rank, processes = trainer.global_rank, trainer.world_size
        module: Any = pl_module
        own = []
        with isolate_rng():
            for begin in range(0, len(rows), processes):
                # the last round may have too few rows: those left over draw what is thrown away
                row = rows[min(begin + rank, len(rows) - 1)]
                images = module.generate(row, num_images=self.num_images, seed=self.seed)
                own.append(self._grid(images, pl_module).to(pl_module.device))
        if not own:
            return []
        if processes == 1:
            return [grid.cpu() for grid in own]
        gathered = [trainer.strategy.all_gather(grid) for grid in own]
        return [grid.cpu() for rounds in gathered for grid in rounds][: len(rows)]

    def _grid(self, images: Any, pl_module: LightningModule) -> Tensor:
        fits = isinstance(images, Tensor) and images.ndim == 4 and images.shape[:2] == (self.num_images, 3)
        if not fits or not images.is_floating_point():
            got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(
                f"SampleGrid asks {type(pl_module).__name__}.generate for floats in [0, 1] of shape "
                f"({self.num_images}, 3, height, width), got {got}."
            )
        from torchvision.utils import make_grid

        whole = images.detach().float().nan_to_num(0, 0, 0).clamp(0, 1)
        columns = math.ceil(math.sqrt(self.num_images))
        grid: Tensor = make_grid(whole, nrow=columns, padding=2, pad_value=1.0)
        return (grid * 255).round().to(torch.uint8)

    def _write(self, folder: Path, grids: list[Tensor]) -> None:
        try:
            for name, grid in zip(self._names(), grids, strict=True):
                with whole_file(folder / f"{name}.png") as part:
                    picture(grid).save(part, format="PNG")
        except OSError as error:  # such as a full disk, which training need not end for
            rank_zero_warn(f"SampleGrid cannot write pictures to {folder}: {error}")

    def _log(self, trainer: Trainer, grids: list[Tensor]) -> None:
        captions = [", ".join(row) for row in self.affordances or ()]
        if not grids:
            return
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                images = [picture(grid) for grid in grids]
                logger.log_image("val/sample_grid", images, step=trainer.global_step, caption=captions)
            elif hasattr(getattr(logger, "experiment", None), "add_image"):
                board: Any = logger
                for name, grid in zip(self._names(), grids, strict=True):
                    board.experiment.add_image(f"val/sample_grid/{name}", grid, trainer.global_step)

    def _names(self) -> list[str]:
        """Return a name for each grid that any file system takes."""
        return [f"{number:02d}{_plain(row)}" for number, row in enumerate(self.affordances or ())]


def _plain(row: tuple[str, ...]) -> str:
    """Return names as ``_sit_store``, of letters and digits of ASCII alone; nothing if they have none."""
    text = unicodedata.normalize("NFKD", "_".join(row)).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "_", text).strip("_")[:60].strip("_")
    return f"_{words}" if words else ""
