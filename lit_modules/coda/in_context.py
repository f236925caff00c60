"""Questions to a chat model about new concepts, with examples in the prompt instead of an update."""

from collections.abc import Sequence

from PIL.Image import Image

from lit_modules.coda.backends.protocols import BackendError, ChatModel, ChatRequest, Reply, answers
from lit_modules.coda.core.concepts import prompt_text
from lit_modules.coda.core.conversations import check_conversation, conversation
from lit_modules.coda.core.multiple_choice import Batch, MultipleChoice, Prediction, QuestionArguments, prediction
from lit_modules.coda.core.store import RecordedChat, Store
from lit_modules.utils.arguments import Unpack
from lit_modules.utils.hashing import stable_seed

Example = tuple[Image, str]


class InContext(MultipleChoice):
    """Ask a chat model, local or behind an endpoint, about concepts that examples in the prompt show; nothing learns.

    It is the baseline for models that cannot be updated here, and with no examples the zero-shot one. Each example is
    a turn of the user with one picture and the question, and the right name as the answer; the picture that is asked
    about comes last. So the model sees the supports that an update would train on, asked in the same words. Attributes
    of the concepts stand in the questions if ``feature_context`` of the data says so.

    A batch is that of :class:`datamodules.FewShotPairs` without ``image_size``: ``image``, ``prompt``, ``options``,
    ``answer_option``, ``pair_id``, ``role``, ``query`` and, for examples, ``context``, which ``n_context`` of the data
    gives. Logs ``test/acc_macro`` and its kin, as :class:`CoDA` does.

    Args:
        chat: The model; ``images_per_message`` must allow all examples and one more picture.
        store: Folder in which answers are kept, so that no question is asked twice; ``None`` keeps none.
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 takes the likeliest answer.
        shared: Arguments of :class:`~lit_modules.coda.core.multiple_choice.MultipleChoice`, by name.

    Raises:
        ValueError: If an argument is out of its range; at the first batch, if a question has more pictures than the
            model takes.
        BackendError: If a question is not answered; with ``store``, the same line asks only what is missing.

    References:
        Zhou et al., "Contrastive Visual Data Augmentation", arXiv 2502.17709; how it updated a model behind an
        endpoint is not known here, and this is not said to be it.
    """

    def __init__(
        self,
        chat: ChatModel,
        store: str | None = None,
        max_new_tokens: int = 16,
        temperature: float = 0.0,
        **shared: Unpack[QuestionArguments],
    ) -> None:
        super().__init__(**shared)
        if max_new_tokens < 1 or not temperature >= 0:
            raise ValueError(
                f"max_new_tokens must be at least 1 and temperature not negative, got {max_new_tokens} and "
                f"{temperature}."
            )
        self.chat, self.store = chat, store
        self.max_new_tokens, self.temperature = max_new_tokens, temperature

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> Prediction:
        """Answer a batch of questions, ``image``, ``prompt``, ``options`` and, for examples, ``context``.

        Returns:
            Lists of :func:`~lit_modules.coda.core.multiple_choice.prediction`.
        """
        number = len(batch["prompt"])
        index = batch["index"].tolist() if "index" in batch else range(number)
        rows = zip(batch["image"], batch["prompt"], batch.get("context", [()] * number), index, strict=True)
        replies = self._ask([self.request(*row) for row in rows])
        return prediction(batch, [reply.text.strip() for reply in replies])

    def request(self, image: Image, prompt: str, examples: Sequence[Example] = (), place: int = 0) -> ChatRequest:
        """Return a question about a picture, after examples.

        Args:
            image: Picture that is asked about.
            prompt: Question.
            examples: Pictures with the names of what they show.
            place: Place of the question in the data, which a drawn answer depends on.

        Raises:
            ValueError: If there are more pictures than the model takes.
        """
        most = self.chat.capabilities.images_per_message
        if len(examples) + 1 > most:
            raise ValueError(
                f"A question has {len(examples) + 1} pictures, {len(examples)} of them examples, and "
                f"{self.chat.identity} takes {most}: lower n_context of the data, or set images_per_message of a model "
                "that was trained on more."
            )
        text = "\n".join(map(prompt_text, prompt.splitlines()))
        messages = [turn for _, name in examples for turn in conversation(text, prompt_text(name))]
        messages += conversation(text)
        check_conversation(messages, len(examples) + 1)
        pictures = (*(picture for picture, _ in examples), image)
        seed = stable_seed(self.seed, "answers", place) if self.temperature else None
        return ChatRequest(tuple(messages), pictures, self.max_new_tokens, self.temperature, seed=seed)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Refuse to train; see :meth:`configure_optimizers`."""
        self.configure_optimizers()

    def configure_optimizers(self) -> None:
        """Refuse to train.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "InContext learns nothing, so `fit` has nothing to do: run `test`, or `fit` with CoDA for a model that can "
            "be updated."
        )

    def _ask(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        if self.store is None:
            by_number = dict(answers(self.chat, requests))
            replies = [by_number[number] for number in range(len(requests))]
        else:
            ranks = 1 if self._trainer is None else self._trainer.world_size
            shard = (self.global_rank + 1, ranks) if ranks > 1 else None
            with Store(self.store, shard) as store:  # closed after each batch, so that a run that fails holds no lock
                replies = RecordedChat(self.chat, store).ask_many(requests)
        errors = [reply for reply in replies if isinstance(reply, BackendError)]
        if errors:
            rest = "the others are kept, and the same line asks again" if self.store else "set store to keep the others"
            raise BackendError(f"{len(errors)} of {len(replies)} questions were not answered ({errors[0]}); {rest}.")
        return [reply for reply in replies if isinstance(reply, Reply)]
