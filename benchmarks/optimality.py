"""Optimality of minimum-norm attacks: how close each comes to the best of all, within one budget of passes.

Run by ``python benchmarks/attacks.py --optimality FOLDER``. For every norm and model, each attack of ours and of the
installed toolboxes gets ``--passes`` passes, forward and backward counted alike, and gives a smallest distance for each
image that the model classifies rightly. The least distance of each image over all attacks makes the lower envelope.
The table has, for each attack and model, the optimality of AttackBench (arXiv 2404.19460): the area above its curve of
robust accuracy against distance over the area above that of the envelope, up to the distance where the envelope is at
zero; 1 is the envelope itself. Median distance, the share fooled and the passes taken stand beside it. Gradients of
several classes are taken one after another, so that they can be counted. The figure draws the curves.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_modules import attacks as ours
from lit_modules.attacks.engine.norms import lp_norm
from lit_modules.utils.figures import figure_style, new_figure, save_figure
from lit_modules.utils.files import whole_file

Contender = Callable[[nn.Module, Tensor, Tensor], Tensor]
ORDER = {"l0": 0.0, "l1": 1.0, "l2": 2.0, "linf": float("inf")}
_OURS = ", ours"  # the end of the names of our attacks
_OVER = 1.1  # passes over the budget that are marked


class _Counting(torch.autograd.Function):
    """The logits themselves; the backward pass adds its points to a count, one row of gradients at a time."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, counted: Counted) -> Tensor:
        ctx.counted = counted
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        bool(gradients[0].any())  # refuses several rows at once, which could not be counted: they then come in turn
        ctx.counted.passes += len(gradients[0])
        return gradients[0], None


class Counted(nn.Module):
    """A model that counts the points of its forward and backward passes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.passes = 0
        self.training = False  # that of the model stays as it is; an exported program has none

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.model(x)
        self.passes += len(x)
        return _Counting.apply(logits, self) if logits.requires_grad else logits  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Row:
    """Result of an attack.

    Attributes:
        name: Attack and its toolbox.
        distance: Distance of each image, infinite where it failed, ``(images,)``.
        passes: Passes for each image.
    """

    name: str
    distance: Tensor
    passes: float


def of_ours(norm: str, passes: int) -> dict[str, Contender]:
    """Return our attacks for a norm, with as many steps as the budget allows."""
    steps, few = passes // 2, max(1, passes // 11)
    most: dict[str, list[ours.Attack]] = {
        "l0": [ours.FMN(norm="l0", steps=steps), ours.SigmaZero(steps=steps), ours.PDPGD(norm="l0", steps=steps)],
        "l1": [ours.FMN(norm="l1", steps=steps), ours.ALMA(norm="l1", steps=steps), ours.PDPGD(norm="l1", steps=steps)],
        "l2": [
            *(ours.FMN(norm="l2", steps=steps), ours.ALMA(norm="l2", steps=steps), ours.DDN(steps=steps)),
            *(ours.PDGD(steps=steps), ours.PDPGD(norm="l2", steps=steps), ours.TrustRegion(norm="l2", steps=steps)),
        ],
        "linf": [
            *(ours.FMN(norm="linf", steps=steps), ours.PDPGD(norm="linf", steps=steps)),
            ours.TrustRegion(norm="linf", steps=steps),
        ],
    }
    several = most[norm]
    if norm != "l0":
        several += [ours.FAB(norm=norm, steps=few), ours.FABT(norm=norm, steps=max(1, passes // 18))]  # type: ignore[arg-type]
    if norm in ("l2", "linf"):
        several.append(ours.DeepFool(norm=norm, steps=few))  # type: ignore[arg-type]
    if norm == "l2":
        several.append(ours.CarliniWagner(steps=max(1, steps // 3), search_steps=3, step_size=0.2, initial_const=1.0))
    if norm == "l1":
        rounds = {"steps": max(1, steps // 5), "search_steps": 5, "step_size": 0.05, "initial_const": 0.1}
        several.append(ours.ElasticNet(beta=0.1, decision="l1", **rounds))  # type: ignore[arg-type]
    if norm == "l0":
        several.append(ours.VFGA(gamma=min(1.0, max(1, passes // 22) / 784)))

    def run(attack: ours.Attack) -> Contender:
        return lambda model, x, y: attack(model, x, y)

    found = {f"{type(attack).__name__}{_OURS}": run(attack) for attack in several}
    found[f'FMN(start="sample"){_OURS}'] = run(ours.FMN(norm=norm, start="sample", steps=steps))  # type: ignore[arg-type]
    return found


def of_adv_lib(norm: str, passes: int) -> dict[str, Contender]:
    """Return the attacks of adv-lib."""
    try:
        import adv_lib.attacks as peer
    except ImportError:
        return {}
    order, steps = ORDER[norm], passes // 2
    found: dict[str, tuple[Any, dict[str, Any]]] = {
        "FMN": (peer.fmn, {"norm": order, "steps": steps}),
        "PDPGD": (peer.pdpgd, {"norm": order, "num_steps": steps}),
    }
    if norm == "l0":
        found["sigma-zero"] = peer.sigma_zero, {"num_steps": steps}
        found["VFGA"] = peer.vfga, {"targeted": False, "max_iter": max(1, passes // 22)}
    elif norm != "linf":
        distance = {"l1": 0.5, "l2": 0.1}[norm]
        found["ALMA"] = peer.alma, {"distance": norm, "num_steps": steps, "init_lr_distance": distance}
    if norm == "l2":
        found["DDN"] = peer.ddn, {"steps": steps, "levels": None}
        found["PDGD"] = peer.pdgd, {"num_steps": steps}
    if norm in ("l2", "linf"):
        found["trust region"] = peer.tr, {"iter": steps, "adaptive": True, "p": order}
        found["DeepFool"] = peer.df, {"steps": max(1, passes // 11), "norm": order}
    if norm != "l0":
        found["FAB"] = peer.fab, {"norm": order, "n_iter": max(1, passes // 11)}

    def run(attack: Any, arguments: dict[str, Any]) -> Contender:
        return lambda model, x, y: attack(model, x, y, **arguments)

    return {f"{name}, adv-lib": run(*entry) for name, entry in found.items()}


def of_foolbox(norm: str, passes: int) -> dict[str, Contender]:
    """Return the attacks of foolbox.

    Carlini-Wagner and the elastic net answer with a black image where they fail, which as such fools the model; it
    counts as the failure that it is.
    """
    import foolbox

    peer, steps = foolbox.attacks, passes // 2
    found = {
        "l0": {"FMN": peer.L0FMNAttack(steps=steps)},
        "l1": {
            "FMN": peer.L1FMNAttack(steps=steps),
            "elastic net": peer.EADAttack(
                decision_rule="L1",
                regularization=0.1,
                steps=max(1, steps // 5),
                binary_search_steps=5,
                initial_stepsize=0.05,
                initial_const=0.1,
            ),
        },
        "l2": {
            "FMN": peer.L2FMNAttack(steps=steps),
            "DDN": peer.DDNAttack(steps=steps),
            "DeepFool": peer.L2DeepFoolAttack(steps=max(1, passes // 11)),
            "Carlini-Wagner": peer.L2CarliniWagnerAttack(
                steps=max(1, steps // 3), binary_search_steps=3, stepsize=0.2, initial_const=1.0
            ),
        },
        "linf": {
            "FMN": peer.LInfFMNAttack(steps=steps),
            "DeepFool": peer.LinfDeepFoolAttack(steps=max(1, passes // 11)),
        },
    }[norm]

    def run(attack: Any) -> Contender:
        def contender(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
            adversarial: Tensor = attack(wrapped, x, foolbox.criteria.Misclassification(y), epsilons=None)[1]
            failed = (adversarial == 0).flatten(1).all(1)
            return torch.where(failed.view(-1, *[1] * (x.ndim - 1)), x, adversarial)

        return contender

    return {f"{name}, foolbox": run(attack) for name, attack in found.items()}


def measure(name: str, contender: Contender, model: nn.Module, x: Tensor, y: Tensor, norm: str) -> Row:
    """Run an attack once, and check by the model what it gives."""
    counted = Counted(model)
    torch.manual_seed(0)
    adversarial = contender(counted, x.clone(), y).detach()
    with torch.no_grad():
        fooled = model(adversarial).argmax(1) != y
    inside = ((adversarial >= 0) & (adversarial <= 1)).flatten(1).all(1)
    distance = lp_norm((adversarial - x).double(), norm)
    return Row(name, torch.where(fooled & inside, distance, float("inf")), counted.passes / len(x))


def optimality(distance: Tensor, envelope: Tensor) -> float:
    """Return the area above an attack's curve over that above the envelope, up to where the envelope is at zero.

    The area under a curve up to a distance is the mean of the images' distances cut there.
    """
    end = envelope[envelope.isfinite()].max()
    above = end - envelope.clamp_max(float(end)).mean()
    return float((end - distance.clamp_max(float(end)).mean()) / above)


def table(results: dict[str, list[Row]], norm: str, passes: int) -> list[str]:
    """Return the attacks of one norm, the best over the models first, as rows of a table; ours are bold.

    A model has three columns: optimality; the median distance, ``-`` if it is infinite, with the share fooled where
    that is not all; and the passes, marked where they exceed the budget by more than a tenth.
    """
    cells: dict[str, list[str]] = {}
    scores: dict[str, float] = {}
    for rows in results.values():
        envelope = torch.stack([row.distance for row in rows]).amin(0)
        for row in rows:
            score = optimality(row.distance, envelope)
            median, fooled = float(row.distance.median()), 100 * float(row.distance.isfinite().double().mean())
            scores[row.name] = scores.get(row.name, 0.0) + score
            cells.setdefault(row.name, []).extend(
                [
                    f"{score:.3f}",
                    ("-" if median == float("inf") else f"{median:.4g}")
                    + (f" ({fooled:.0f} %)" if fooled < 100 else ""),
                    f"{row.passes:.0f}" + (" (over)" if row.passes > _OVER * passes else ""),
                ]
            )
    best = sorted(cells, key=lambda name: -scores[name])
    names = [f"**`{name.removesuffix(_OURS)}`**" if name.endswith(_OURS) else name for name in best]
    return [f"| {norm} | {name} | {' | '.join(cells[key])} |" for key, name in zip(best, names, strict=True)]


@figure_style()
def draw(path: Path, results: dict[tuple[str, str], list[Row]]) -> None:
    """Draw robust accuracy against distance for every norm and model, the envelope in black."""
    models, norms = (list(dict.fromkeys(key[place] for key in results)) for place in (0, 1))
    figure = new_figure(4.6 * len(norms), 4.2 * len(models))
    axes = figure.subplots(len(models), len(norms), squeeze=False)
    for (model, norm), rows in results.items():
        axis = axes[models.index(model), norms.index(norm)]
        envelope = torch.stack([row.distance for row in rows]).amin(0)
        end = float(envelope[envelope.isfinite()].max()) * 1.3
        grid = torch.linspace(0, end, 400, dtype=torch.float64)
        best = sorted(rows, key=lambda row: -optimality(row.distance, envelope))[:7]
        for row in best:
            axis.plot(grid, [100 * float((row.distance > d).double().mean()) for d in grid], label=row.name, lw=1.2)
        axis.plot(grid, [100 * float((envelope > d).double().mean()) for d in grid], "k--", lw=1, label="envelope")
        axis.set(title=f"{model}, {norm}", xlabel="distance", ylabel="robust accuracy (%)", xlim=(0, end))
        axis.legend(fontsize=7)
    save_figure(figure, path)


def run(models: dict[str, nn.Module], x: Tensor, y: Tensor, passes: int, norms: list[str], folder: Path) -> None:
    """Print the tables and write them, with the figure, into the folder.

    Args:
        models: Classifiers by name.
        x: Images, in [0, 1].
        y: Labels.
        passes: Budget, forward and backward passes together.
        norms: Norms to compare in.
        folder: Folder of ``optimality.md`` and ``optimality.png``.
    """
    warnings.filterwarnings("ignore")
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[tuple[str, str], list[Row]] = {}
    head = ["optimality", "median", "passes"]
    text = ["| norm | attack | " + " | ".join(f"{name}: {head[0]} | {head[1]} | {head[2]}" for name in models) + " |"]
    text.append("| --- | --- |" + " --- |" * 3 * len(models))
    print("\n".join(text), flush=True)
    right = {name: model(x).argmax(1) == y for name, model in models.items()}
    for norm in norms:
        contenders = of_ours(norm, passes) | of_adv_lib(norm, passes) | of_foolbox(norm, passes)
        for name, model in models.items():
            image, label = x[right[name]], y[right[name]]
            rows = [measure(key, contender, model, image, label, norm) for key, contender in contenders.items()]
            results[name, norm] = rows
        lines = table({name: results[name, norm] for name in models}, norm, passes)
        print("\n".join(lines), flush=True)
        text += lines
        with whole_file(folder / "optimality.md") as part:
            part.write_text("\n".join(text) + "\n")
        draw(folder / "optimality.png", results)
