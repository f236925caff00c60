"""Update of an image-text model on few pictures of new concepts."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedModel

from lit_modules.coda.core.image_text_models import ImageTextArguments, ImageTextUpdate, answer_log_probs, generate
from lit_modules.coda.core.multiple_choice import Batch, Prediction, prediction
from lit_modules.utils.arguments import Unpack
from lit_modules.utils.hashing import stable_seed
from lit_modules.utils.random_state import preserved_random_state


class CoDA(ImageTextUpdate):
    """Teach an image-text model new concepts from few pictures, real and synthetic, and ask it about them.

    Each sample is one conversation: a user turn of exactly one picture and the question, and the answer. The loss is
    the mean negative log-likelihood of the answers' tokens and end tokens. Questions are never cut off, and training
    and evaluation have the same chat template and the same picture processing. Adapters are in the language model
    alone; the projector trains with a learning rate of its own, or not at all.

    Trained weights are float32, frozen ones of ``dtype``, in which all is computed whatever the trainer's precision,
    ``32-true`` or ``bf16-mixed``. A checkpoint holds what trains, and the name and revision of the base. Adapters
    of a folder are trained further; ``rank``, ``alpha``, ``dropout`` and ``target_modules``, if given, must be theirs.

    A batch is that of :class:`datamodules.FewShotPairs` without ``image_size``: ``image``, ``prompt``, ``answer``, and
    in validation and test ``options``, ``answer_option``, ``pair_id``, ``role`` and ``query``. Logs ``train/loss``,
    ``val/loss`` and, with a metric, ``val/acc_macro`` and its kin, ``test/...`` likewise; those of known pairs that
    are not updated on as ``val/retention/...``. Ask in both orders of the options, ``n_orders=2`` of the data, and
    ``position_bias`` is the share of answers that name the first one.

    ======================  ===========  =========
    preset                  coda_34b     small
    ======================  ===========  =========
    rank, alpha             128, 256     16, 32
    dropout                 0.05         0.05
    learning_rate           2e-4         1e-4
    projector               2e-5         frozen
    warmup_ratio, cosine    0.03         0.03
    dtype                   bfloat16     bfloat16
    max_epochs (trainer)    30           10
    batch_size (data)       5            2
    accumulate (trainer)    1            8
    ======================  ===========  =========

    Tried on one device; other shardings of 34B models are not tried.

    Args:
        model: Name of an image-text model on a hub, folder of one or of adapters, or a model.
        scoring: ``generate`` reads generated answers; ``loglik`` takes the option with the largest mean
            log-likelihood of its tokens and end token, and has no invalid answers.
        max_new_tokens: Longest generated answer, in tokens.
        temperature: 0 is greedy; the released code samples at 0.7. Draws come from ``seed`` and the questions' places.
        shared: Arguments of :class:`~lit_modules.coda.core.image_text_models.ImageTextUpdate`, by name.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        Zhou et al., "Contrastive Visual Data Augmentation", arXiv 2502.17709. Hu et al., "LoRA: Low-Rank Adaptation of
        Large Language Models", arXiv 2106.09685.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        *,
        scoring: Literal["generate", "loglik"] = "generate",
        max_new_tokens: int = 16,
        temperature: float = 0.0,
        **shared: Unpack[ImageTextArguments],
    ) -> None:
        super().__init__(model, **shared)
        if scoring not in ("generate", "loglik"):
            raise ValueError(f"scoring must be 'generate' or 'loglik', got {scoring!r}.")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be finite and not negative, got {temperature}.")
        self.scoring, self.max_new_tokens, self.temperature = scoring, max_new_tokens, temperature

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean negative log-likelihood of the answers' tokens."""
        if "label_weights" in batch:
            raise ValueError("CoDA takes no mixed pictures; set mix of the datamodule to 'none'.")
        with self.autocast():
            encoded = self.encode(batch["image"], batch["prompt"], batch["answer"])
            log_probs, num_tokens = answer_log_probs(self.model, encoded)
        return -log_probs.sum() / num_tokens.sum()

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int = 0) -> Prediction:
        """Answer a batch of questions, ``image``, ``prompt`` and ``options``.

        Returns:
            Lists of :func:`~lit_modules.coda.core.multiple_choice.prediction`, and with ``loglik`` ``option_scores``.
        """
        if self.scoring == "generate":
            index = batch["index"].tolist() if "index" in batch else []
            return prediction(batch, self.answer(batch["image"], batch["prompt"], index))
        scores = self.option_scores(batch["image"], batch["prompt"], batch["options"])
        chosen = [row.index(max(row)) for row in scores]
        answers = [names[option] for names, option in zip(batch["options"], chosen, strict=True)]
        return {**prediction(batch, answers, chosen), "option_scores": scores}

    @torch.no_grad()
    def answer(self, images: Sequence[Image], prompts: Sequence[str], key: Sequence[int] = ()) -> list[str]:
        """Answer questions about one image each.

        Args:
            images: One image for each question.
            prompts: Questions.
            key: Seed of drawn answers beside ``seed``, such as the questions' places in the data.
        """
        encoded, limit = self.encode(images, prompts), self.max_new_tokens
        seed = stable_seed(self.seed, "answers", list(key))
        # drawing leaves the random state of the training as it was
        with self.asking(), preserved_random_state(self.model.device, seed):
            tokenizer = self.processor.tokenizer
            answers = generate(self.model, tokenizer, encoded, max_new_tokens=limit, temperature=self.temperature)
        return [text.strip() for text in answers]

    @torch.no_grad()
    def option_scores(
        self, images: Sequence[Image], prompts: Sequence[str], options: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Return the mean log-likelihood of each option's tokens and end token as the answer.

        Args:
            images: One image for each question.
            prompts: Questions.
            options: Names among which each question asks, in its order.
        """
        self.configure_model()
        scores: list[list[float]] = [[] for _ in prompts]
        for index in range(max(map(len, options))):
            rows = [row for row, names in enumerate(options) if index < len(names)]
            names = [options[row][index] for row in rows]
            encoded = self.encode([images[row] for row in rows], [prompts[row] for row in rows], names)
            with self.asking():
                log_probs, num_tokens = answer_log_probs(self.model, encoded)
            for row, score in zip(rows, (log_probs / num_tokens).tolist(), strict=True):
                scores[row].append(score)
        return scores
