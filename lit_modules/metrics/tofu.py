"""Score of the TOFU benchmark: forget quality, model utility, memorisation and membership."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics.utilities import rank_zero_warn

from lit_modules.metrics.membership import attack_auc, loss_attack, min_k_attack, min_k_plus_plus_attack, zlib_attack
from lit_modules.metrics.text_rows import (
    LoggedScore,
    check_generations,
    check_known,
    check_scores,
    rouge_scorer,
    row_names,
)
from lit_modules.metrics.tofu_scores import (
    MEANS,
    SPLITS,
    UTILITY,
    Log,
    build_log,
    exact_memorisation,
    extraction_strength,
    read_log,
    score_log,
    write_log,
)

__all__ = ["TOFUScore", "rouge_recalls"]

HOLDOUT = "holdout"
EVALUATED = (*SPLITS, HOLDOUT)
ROLES = ("answer", "paraphrased", "perturbed")
MEMORISED = ("exact_memorisation", "extraction_strength")
ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")


def rouge_recalls(target: str, generation: str) -> tuple[float, float]:
    """Return the recalls of ROUGE-1 and ROUGE-L of ``rouge-score`` with the stemmer on, between 0 and 1.

    Example:
        >>> rouge_recalls("found the brass keys", "The key of brass, found.")
        (1.0, 0.5)
    """
    scores = rouge_scorer(stemmer=True).score(target, generation)
    return float(scores["rouge1"].recall), float(scores["rougeL"].recall)


class TOFUScore(LoggedScore):
    """Score an unlearned model on TOFU as the official evaluation does.

    On each of four splits (``forget``, ``retain``, ``real_authors``, ``world_facts``) there are three numbers. The
    *probability* of an answer is the geometric mean of its token probabilities; on real authors and world facts it is
    divided by the sum over all options. *ROUGE* is the ROUGE-L recall of the generated answer. The *truth ratio* ``R``
    is the mean probability of wrong answers over that of the paraphrased answer, scored as ``min(R, 1/R)`` on the
    forget set and ``max(0, 1 - R)`` elsewhere. The *model utility* is the harmonic mean of the nine numbers of the last
    three splits. The *forget quality* is the p-value of a Kolmogorov-Smirnov test between the truth ratios on the
    forget set and those of a model trained on the retain set only, whose log is ``retain_log``.

    With ``memorisation`` the module hands in what the model says of each token. That gives the exact memorisation and
    the extraction strength of the answers of both sets and, if there are hold-out rows, the AUC of four membership
    attacks with DeLong's 95 % interval: 1 if every forget row is known as such, 0.5 if none is. The end of sequence is
    left out of all but the ``loss`` and ``zlib`` attacks.

    A row that comes twice, as padding of a distributed sampler, counts once.

    Args:
        retain_log: Log of a model trained on the retain set only: the official ``eval_log_aggregated.json``, or one
            that ``log_file`` wrote. Without it there is no forget quality.
        mean: Mean over the probabilities of the wrong answers, in every truth ratio: ``"geometric"`` as the official
            aggregation, ``"arithmetic"`` as the paper's definition.
        log_file: File to write the log of the test to, in the official format.
        memorisation: Whether to measure memorisation and membership too.
        part: Whether the test may be of a part of the log's forget rows, whose others are then left out.
        k: Share of the tokens that the attacks ``min_k`` and ``min_k_plus_plus`` average, in (0, 1].

    Raises:
        ValueError: If ``mean`` or ``k`` is out of its range, ``retain_log`` is malformed or has no forget rows.
        FileNotFoundError: If there is no file ``retain_log``.

    Example:
        >>> score = TOFUScore(memorisation=False)
        >>> rows = {"split": ["forget"] * 3, "row": torch.tensor([0, 0, 0]), "id": ["forget01/0"] * 3}
        >>> answers = {"role": ["answer", "paraphrased", "perturbed"], "choice": torch.tensor([0, 0, 0])}
        >>> labels = torch.full((3, 5), 1)
        >>> score.update({**rows, **answers, "labels": labels}, nll=torch.tensor([0.0, 1.0, 2.0]))
        >>> numbers = score.compute()
        >>> [round(float(numbers[f"forget/{name}"]), 4) for name in ("probability", "truth_ratio")]
        [1.0, 0.3679]

    References:
        Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", arXiv 2401.06121.
        Dorna et al., "OpenUnlearning: Accelerating LLM Unlearning via Unified Benchmarking of Methods and Metrics",
        arXiv 2506.12618.
    """

    def __init__(
        self,
        retain_log: str | None = None,
        mean: Literal["geometric", "arithmetic"] = "geometric",
        log_file: str | None = None,
        memorisation: bool = True,
        part: bool = False,
        k: float = 0.2,
    ) -> None:
        super().__init__(
            {
                "generation_keys": (torch.int64, 2),  # split and row of each generation
                "recalls": (torch.float64, 2),  # its ROUGE-1 and ROUGE-L
                "texts": (torch.uint8, 0),  # keys, prompt, generation and target as JSON, each ended by a zero
                "answer_keys": (torch.int64, 4),  # split, row, role and choice of each scored answer
                "nlls": (torch.float64, 0),
                "counts": (torch.int64, 0),
                "token_keys": (torch.int64, 2),  # split and row of each answer with token scores
                "token_values": (torch.float64, len(MEMORISED) + len(ATTACKS)),
            },
            log_file,
        )
        if mean not in MEANS:
            raise ValueError(f"mean must be 'geometric' or 'arithmetic', got {mean!r}.")
        if not 0 < k <= 1:
            raise ValueError(f"k must be a share in (0, 1], got {k}.")
        self.retain_log = None if retain_log is None else read_log(retain_log)
        if self.retain_log is not None and "forget" not in self.retain_log:
            raise ValueError(f"{retain_log} holds no forget rows; give the log of a test on the forget set.")
        self.mean: Literal["geometric", "arithmetic"] = mean
        self.part = part
        self.k = k
        self.needs_tokens = memorisation  # read by the module that feeds this metric

    def check_rows(self, numbers: Mapping[str, int]) -> None:
        """Check, before a test, that the retain log is of as many forget rows as the test will have.

        Args:
            numbers: Number of rows of each evaluated set.
        """
        if self.retain_log is None or "forget" not in numbers:
            return
        logged = len(self.retain_log["forget"]["avg_gt_loss"])
        if logged != numbers["forget"] and not (self.part and logged > numbers["forget"]):
            raise ValueError(
                f"The retain log is of another split or number of rows: it holds {logged} forget rows, and the test "
                f"has {numbers['forget']}; evaluate the same split and as many rows (eval_rows)."
            )

    def update(
        self,
        batch: Mapping[str, Any],
        generations: Sequence[str] | None = None,
        nll: Tensor | None = None,
        tokens: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> None:
        """Add the answers, or the NLLs, of a batch.

        Args:
            batch: ``split``, a list of strings, and ``row``, the number of each row in its file ``(batch,)``; perhaps
                ``id``, for messages. For ``generations`` also ``prompt`` and ``target``, lists of strings. For ``nll``
                also ``labels`` ``(batch, tokens)``, ``role`` (``"answer"``, ``"paraphrased"`` or ``"perturbed"``),
                ``choice``, the number of a perturbed answer ``(batch,)`` and, for ``tokens``, ``target``.
            generations: The model's answer to each row, special tokens left out.
            nll: Mean token NLL of each answer in nats, ``(batch,)``.
            tokens: ``log_probs``, ``correct``, ``means`` and ``deviations``, a 1-D tensor for each answer.

        Raises:
            TypeError: Unless exactly one of ``generations`` and ``nll`` is given.
            ValueError: If their number is not that of the ids, a split or role is unknown, an NLL is not finite, or the
                retain log is of another split or tokenizer.
        """
        if (generations is None) == (nll is None):
            raise TypeError("update takes exactly one of generations and nll.")
        rows = [int(row) for row in batch["row"]]
        check_known(row_names(batch), {"split": (batch["split"], EVALUATED)})
        splits = [EVALUATED.index(split) for split in batch["split"]]
        if generations is not None:
            self._update_generations(batch, splits, rows, generations)
        if nll is not None:
            self._update_answers(batch, splits, rows, nll, tokens)

    def _update_generations(
        self, batch: Mapping[str, Any], splits: list[int], rows: list[int], generations: Sequence[str]
    ) -> None:
        check_generations(generations, len(rows))
        texts = []
        for split, row, prompt, target, answer in zip(
            splits, rows, batch["prompt"], batch["target"], generations, strict=True
        ):
            if EVALUATED[split] == "forget":
                truth = self._retain_value("generated_text", row)
                if isinstance(truth, list) and len(truth) == 3 and str(truth[2]).strip() != target.strip():
                    raise ValueError(
                        f"The retain log is of another split: its forget row {row} has the answer {truth[2]!r}, "
                        f"and the forget set {target!r}."
                    )
            texts.append(json.dumps([split, row, prompt, answer, target]))
        self.append("generation_keys", list(zip(splits, rows, strict=True)))
        self.append("recalls", [rouge_recalls(t, g) for t, g in zip(batch["target"], generations, strict=True)])
        self.append_texts("texts", texts)

    def _update_answers(
        self,
        batch: Mapping[str, Any],
        splits: list[int],
        rows: list[int],
        nll: Tensor,
        tokens: Mapping[str, Sequence[Tensor]] | None,
    ) -> None:
        names = row_names(batch)
        check_scores("nll", names, nll)
        check_known(names, {"role": (batch["role"], ROLES)})
        roles = [ROLES.index(role) for role in batch["role"]]
        counts = batch["labels"][:, 1:].ne(-100).sum(1).tolist()
        for split, row, role, count in zip(splits, rows, roles, counts, strict=True):
            if EVALUATED[split] == "forget" and ROLES[role] == "answer":
                expected = self._retain_value("num_token_gt", row)
                if expected is not None and expected != count:
                    raise ValueError(
                        f"The retain log was made with another tokenizer or template: the answer of its forget row "
                        f"{row} has {expected} tokens, and here {count}."
                    )
        choices = [int(choice) for choice in batch["choice"]]
        self.append("answer_keys", list(zip(splits, rows, roles, choices, strict=True)))
        self.append("nlls", nll.tolist())
        self.append("counts", counts)
        if tokens is not None:
            self._update_tokens(batch, splits, rows, roles, tokens)

    def _update_tokens(
        self,
        batch: Mapping[str, Any],
        splits: list[int],
        rows: list[int],
        roles: list[int],
        tokens: Mapping[str, Sequence[Tensor]],
    ) -> None:
        attacked = (*SPLITS[:2], HOLDOUT)
        chosen = [i for i, split in enumerate(splits) if EVALUATED[split] in attacked and ROLES[roles[i]] == "answer"]
        if not chosen:
            return
        # an answer ends with the end of sequence
        inner = {name: [tokens[name][i][:-1].cpu() for i in chosen] for name in tokens}
        for i, row in zip(chosen, inner["log_probs"], strict=True):
            if len(row) == 0:
                name = row_names(batch)[i]
                raise ValueError(f"The answer of row {name!r} must have a token before the end of sequence.")
        whole = [tokens["log_probs"][i].cpu() for i in chosen]
        values = [
            torch.tensor([exact_memorisation(row) for row in inner["correct"]], dtype=torch.float64),
            torch.tensor([extraction_strength(row) for row in inner["correct"]], dtype=torch.float64),
            loss_attack(whole),
            zlib_attack(whole, [batch["target"][i] for i in chosen]),
            min_k_attack(inner["log_probs"], self.k),
            min_k_plus_plus_attack(inner["log_probs"], inner["means"], inner["deviations"], self.k),
        ]
        self.append("token_keys", [(splits[i], rows[i]) for i in chosen])
        self.append("token_values", torch.stack(values, dim=1))

    def _retain_value(self, statistic: str, row: int) -> Any:
        """Return a value of the retain log's forget row, or None if the log does not hold that statistic."""
        if self.retain_log is None:
            return None
        section = self.retain_log["forget"]
        if row not in section["avg_gt_loss"]:
            raise ValueError(
                f"The retain log is of another split or number of rows: it holds {len(section['avg_gt_loss'])} forget "
                f"rows, and row {row} is not among them; evaluate the same split and as many rows (eval_rows)."
            )
        return section.get(statistic, {}).get(row)

    def compute(self) -> dict[str, Tensor]:
        """Return the numbers by name, each a float64 scalar.

        Names are those of :func:`~lit_modules.metrics.tofu_scores.score_log`; with ``memorisation``
        ``{forget,retain}/{exact_memorisation,extraction_strength}`` and, with hold-out rows,
        ``mia/{loss,zlib,min_k,min_k_plus_plus}``, each with ``_low`` and ``_high``. NaN for what is missing.
        """
        log = self._log()
        numbers = score_log(log, self._compared(log), self.mean)
        missing = [name for name in UTILITY if math.isnan(numbers[name])]
        if missing:
            rank_zero_warn(f"The model utility is NaN, as no row came for {', '.join(missing)}.", UserWarning)
        numbers |= self._token_numbers()
        return self.scalars(numbers)

    def record(self) -> dict[str, Any]:
        """Return the numbers of :meth:`compute` ready for JSON, and the kind of mean; write ``log_file``."""
        return {**super().record(), "truth_ratio_mean": self.mean}

    def _write(self, path: str, log: Log) -> None:
        write_log(path, log)

    def _compared(self, log: Log) -> Log | None:
        """Return the retain log, of the tested forget rows alone if the test may be of a part of them."""
        if self.retain_log is None or not self.part:
            return self.retain_log
        rows = set(log.get("forget", {}).get("avg_gt_loss", {}))
        section = {
            name: {row: value for row, value in values.items() if row in rows}
            for name, values in self.retain_log["forget"].items()
        }
        return {**self.retain_log, "forget": section}

    def _log(self) -> Log:
        counts = self.keyed("answer_keys", "counts")
        answers = {
            (EVALUATED[split], row, ROLES[role], choice): (nll, counts[split, row, role, choice])
            for (split, row, role, choice), nll in self.keyed("answer_keys", "nlls").items()
        }
        texts = {(EVALUATED[split], row): words for split, row, *words in map(json.loads, self.all_texts("texts"))}
        recalls = {(EVALUATED[key[0]], key[1]): v for key, v in self.keyed("generation_keys", "recalls").items()}
        memorised = {
            (EVALUATED[split], row): dict(zip(MEMORISED, values, strict=False))
            for (split, row), values in self.keyed("token_keys", "token_values").items()
        }
        return build_log(answers, texts, recalls=recalls, further=memorised)

    def _token_numbers(self) -> dict[str, float]:
        if not self.needs_tokens:
            return {}
        answers = self.keyed("token_keys", "token_values")
        groups = {
            split: torch.tensor(
                [values for key, values in answers.items() if EVALUATED[key[0]] == split], dtype=torch.float64
            ).reshape(-1, len(MEMORISED) + len(ATTACKS))
            for split in ("forget", "retain", HOLDOUT)
        }
        numbers = {
            f"{split}/{name}": float(groups[split][:, i].mean())
            for split in ("forget", "retain")
            for i, name in enumerate(MEMORISED)
        }
        members, others = groups["forget"], groups[HOLDOUT]
        if len(members) > 1 and len(others) > 1:
            member = torch.arange(len(members) + len(others)) < len(members)
            for i, name in enumerate(ATTACKS, start=len(MEMORISED)):
                auc = attack_auc(torch.cat([members[:, i], others[:, i]]), member)
                numbers |= {f"mia/{name}": auc.auc, f"mia/{name}_low": auc.low, f"mia/{name}_high": auc.high}
        return numbers
