"""Adversarial samples of a whole dataset: found batch by batch, kept on disk, and read as a dataset."""

import inspect
import logging
from collections.abc import Iterable, Mapping, Sized
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lit_modules.adversarial.core.evaluation import AttackRun, Outcome, Sample, classify, name_samples
from lit_modules.attacks.engine.base import Attack
from lit_modules.attacks.engine.checks import check_classes, check_count
from lit_modules.utils.checkpoints import load_plain
from lit_modules.utils.classifiers import input_device
from lit_modules.utils.files import whole_file
from lit_modules.utils.progress import alone, track

_FILE = "adversarial_set.pt"
_COLUMNS = ("index", "label", "prediction", "adversarial_prediction", "success", "distance", "num_queries")
_logger = logging.getLogger(__name__)


class AdversarialSet(Dataset[dict[str, Tensor]]):
    """Adversarial samples that :func:`attack_dataset` has written, in the order of its data.

    An item is a dict: ``image``, the adversarial sample, then ``label``, ``index`` and the other columns below, so a
    loader of it gives the batches that the adversarial training modules take. Samples are read from disk as they are
    asked for.

    Args:
        folder: Folder that :func:`attack_dataset` was given.

    Attributes:
        index: Place of each sample in its split, int64 ``(samples,)``.
        label: Its class.
        prediction: The classifier's answer to the clean sample.
        adversarial_prediction: Its answer to the adversarial one.
        success: Whether it is fooled (targeted: answers the target), bool.
        distance: Norm of the perturbation in ``norm``, float64.
        num_queries: Forward passes spent, int64.
        norm: Norm of ``distance``.
        attack: The attack, as text.

    Raises:
        FileNotFoundError: If the folder holds no finished set.
    """

    index: Tensor
    label: Tensor
    prediction: Tensor
    adversarial_prediction: Tensor
    success: Tensor
    distance: Tensor
    num_queries: Tensor

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder) / _FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} holds no finished adversarial set; attack_dataset(..., folder) makes one."
            )
        content = load_plain(path)
        self._fill(content, [Path(folder) / name for name in content["files"]])

    @classmethod
    def _of(cls, content: Mapping[str, Any], sources: list[Path] | list[Tensor]) -> "AdversarialSet":
        made = cls.__new__(cls)
        made._fill(content, sources)
        return made

    def _fill(self, content: Mapping[str, Any], sources: list[Path] | list[Tensor]) -> None:
        for name in _COLUMNS:
            setattr(self, name, content[name])
        self.norm: str = content["norm"]
        self.attack: str = content["attack"]
        self._source: list[int] = content["source"].tolist()
        self._row: list[int] = content["row"].tolist()
        self._sources = sources
        self._open: dict[int, Tensor] = {}

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.index)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        """Return the adversarial sample at a place in the order of the data, with its columns."""
        number = self._source[position]
        source = self._sources[number]
        if isinstance(source, Tensor):
            samples = source
        else:
            if number not in self._open:
                self._open[number] = load_plain(source)["adversarial"]
            samples = self._open[number]
        return {
            "image": samples[self._row[position]].clone(),
            **{name: getattr(self, name)[position] for name in _COLUMNS},
        }

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open files, so that a worker of a loader opens its own."""
        return {**self.__dict__, "_open": {}}


def attack_dataset(
    classifier: nn.Module,
    attack: Attack,
    data: Dataset[Any] | Iterable[Any],
    folder: str | Path | None = None,
    *,
    batch_size: int = 128,
    num_workers: int = 0,
    limit_batches: int | None = None,
    progress: bool = False,
) -> AdversarialSet:
    """Attack every sample of a loader or dataset and return the adversarial set.

    Batch after batch is attacked and written, so the set need not fit in memory, and a run that was killed goes on
    after the last batch that was written when the same call is made again, also with another batch size. What counts
    as the same is what a test takes for finished: see :class:`lit_modules.adversarial.core.evaluation.AttackRun`.
    Everything is computed in evaluation mode, in float32 and on the device of the classifier's parameters, and each
    perturbation is held against radius and bounds in float64. A sample that is misclassified already comes back as it
    is.

    In AdverTorch this is ``attack_whole_dataset``; ``multiple_mini_batch_attack`` is this with ``limit_batches``, and
    its norms are ``distance``.

    Args:
        classifier: Gives logits.
        attack: Attack. One that is targeted finds the targets in ``target`` of the batches.
        data: Loader or other iterable of batches, or a dataset of samples: dicts with ``image`` and ``label``, and
            ``index`` if it is not the place in the order of the data; or pairs of images and labels.
        folder: Folder for the set, of which :class:`AdversarialSet` reads it again; ``None`` keeps it in memory.
        batch_size: Samples of a batch, if ``data`` is a dataset.
        num_workers: Worker processes that load, if ``data`` is a dataset.
        limit_batches: Stop after so many batches; ``None`` takes all.
        progress: Show a bar of the batches on a terminal or in a notebook.

    Returns:
        The set, in the order of ``data``.

    Raises:
        ValueError: If batches, attack or an argument do not fit, or the folder holds the set of another attack or
            classifier.
        RuntimeError: If the attack breaks its radius or bounds.

    Example:
        >>> from lit_modules.attacks import LinfPGD
        >>> from torch.utils.data import TensorDataset
        >>> classifier = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        >>> data = TensorDataset(torch.rand(10, 1, 4, 4), torch.arange(10) % 3)
        >>> adversarial = attack_dataset(classifier, LinfPGD(eps=0.1, steps=2), data, batch_size=4)
        >>> len(adversarial), adversarial[0]["image"].shape, bool((adversarial.distance <= 0.1001).all())
        (10, torch.Size([1, 4, 4]), True)
        >>> robust_accuracy = (adversarial.adversarial_prediction == adversarial.label).double().mean()
    """
    if limit_batches is not None:
        check_count(limit_batches=limit_batches)
    if isinstance(attack.eps, Tensor) and attack.eps.numel() > 1:
        raise ValueError(f"The attack must have one radius for all samples, got {attack.eps.numel()}.")
    if "y" not in inspect.signature(attack.run).parameters:
        raise TypeError(f"attack_dataset gives its attack labels; {type(attack).__name__} takes something else.")
    root = None if folder is None else Path(folder)
    run = AttackRun("samples", attack, classifier, root, keep_adversarial=True)
    if root is not None and (root / _FILE).is_file():
        known = load_plain(root / _FILE)
        if run.folder is None or not run.repeatable or known["run"] != run.folder.name:
            raise ValueError(
                f"{root} holds the adversarial set of another attack or classifier, or of one that cannot be told from "
                f"this ({known['attack']}); give another folder, or delete this one."
            )
    batches: Any = DataLoader(data, batch_size, num_workers=num_workers) if isinstance(data, Dataset) else data
    device = input_device((*classifier.parameters(), *classifier.buffers())) or torch.device("cpu")
    rows: list[tuple[int, int, int, Outcome]] = []
    with alone(progress):
        for batch in track(islice(batches, limit_batches), "batches attacked", _count(batches, limit_batches)):
            rows += _attack_batch(run, batch, len(rows), device)
            fooled = sum(outcome.finished.success for *_, outcome in rows)
            _logger.info("%d samples attacked, %d fooled", len(rows), fooled)
    if not rows:
        raise ValueError("The data hold no samples to attack.")
    return _collect(run, root, rows)


def _count(batches: Any, limit: int | None) -> int | None:
    """Return how many batches there will be, or ``None`` of an iterable without a length."""
    known = len(batches) if isinstance(batches, Sized) else None
    return known if limit is None else limit if known is None else min(limit, known)


def _attack_batch(run: AttackRun, batch: Any, start: int, device: torch.device) -> list[tuple[int, int, int, Outcome]]:
    """Return place, label, answer and outcome of each sample of a batch."""
    columns = batch if isinstance(batch, Mapping) else dict(zip(("image", "label"), batch, strict=False))
    need = ["image", "label", *(["target"] if run.attack.targeted else [])]
    if not set(need) <= columns.keys():
        raise ValueError(f"attack_dataset takes batches with {', '.join(need)}, got {', '.join(map(str, columns))}.")
    images, labels, goal = (columns[name].to(device) for name in ("image", "label", need[-1]))
    if labels.shape != images.shape[:1] or goal.shape != labels.shape:
        raise ValueError(
            f"A batch must have one label for each image, got {tuple(labels.shape)} for {tuple(images.shape)}; a "
            "dataset whose items are batches goes in a loader of its own."
        )
    indices = [int(index) for index in columns.get("index", range(start, start + len(images)))]
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
        # tensors made in inference mode could not take part in the attack's gradients
        images, goal = images.to(torch.promote_types(images.dtype, torch.float32), copy=True), goal.clone()
        answers = classify(run.classifier, images, [run])
        check_classes(goal, answers.shape[1])
        samples = [
            Sample(name, index) for name, index in zip(name_samples(images, goal, indices), indices, strict=True)
        ]
        outcomes = run.finish(samples, images, goal, answers)
    return list(zip(indices, labels.tolist(), answers.argmax(1).tolist(), outcomes, strict=True))


def _collect(run: AttackRun, root: Path | None, rows: list[tuple[int, int, int, Outcome]]) -> AdversarialSet:
    """Return the set, and write what says where its samples lie."""
    indices, labels, answers, outcomes = zip(*rows, strict=True)
    content: dict[str, Any] = {
        "index": torch.tensor(indices),
        "label": torch.tensor(labels),
        "prediction": torch.tensor(answers),
        "adversarial_prediction": torch.tensor([outcome.after for outcome in outcomes]),
        "success": torch.tensor([outcome.finished.success for outcome in outcomes]),
        "distance": torch.tensor([outcome.finished.distance for outcome in outcomes], dtype=torch.float64),
        "num_queries": torch.tensor([outcome.finished.num_queries for outcome in outcomes]),
        "norm": run.attack.norm or "l2",
        "attack": repr(run.attack),
    }
    if root is None or run.folder is None:
        samples = [outcome.adversarial for outcome in outcomes if outcome.adversarial is not None]
        content |= {"source": torch.zeros(len(samples), dtype=torch.int64), "row": torch.arange(len(samples))}
        return AdversarialSet._of(content, [torch.stack(samples)])
    files = sorted({outcome.file for outcome in outcomes if outcome.file is not None})
    number = {file: index for index, file in enumerate(files)}
    content |= {
        "source": torch.tensor([number[outcome.file] for outcome in outcomes if outcome.file is not None]),
        "row": torch.tensor([outcome.row for outcome in outcomes]),
        "files": [file.relative_to(root).as_posix() for file in files],
        "run": run.folder.name,
    }
    with whole_file(root / _FILE) as part:
        torch.save(content, part)
    return AdversarialSet._of(content, files)
