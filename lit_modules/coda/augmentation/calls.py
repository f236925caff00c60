"""Asking a chat model and keeping each answer at once, so that none is asked for twice, in this run or a later one."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lit_modules.coda.backends.protocols import (
    BackendError,
    BatchChatModel,
    ChatModel,
    ChatRequest,
    Counts,
    Reply,
    Usage,
)
from lit_modules.coda.core.store import Store
from lit_modules.utils.hashing import stable_hash


def answers(model: ChatModel, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Reply | BackendError]]:
    """Yield the number of a question with its answer or its error, together where the model answers many at once.

    Args:
        model: The model.
        requests: Questions.

    Raises:
        BudgetExhausted: If the model's budget is used up.
    """
    if not requests:
        return
    if isinstance(model, BatchChatModel):
        yield from model.chat_many(requests)
        return
    for number, one in enumerate(requests):
        try:
            reply: Reply | BackendError = model.chat(
                one.messages, one.images, one.max_new_tokens, one.temperature, one.schema, one.seed
            )
        except BackendError as error:
            reply = error
        yield number, reply


def answered(reply: Reply | BackendError) -> Reply:
    """Return a reply, or raise the error in its place."""
    if isinstance(reply, BackendError):
        raise reply
    return reply


class RecordedChat:
    """A chat model whose answers are kept in a store, a file each, under a hash of everything that shapes the answer.

    Args:
        model: The model.
        store: Where answers are kept.
        report: Takes the counts of each call.

    Attributes:
        calls: Calls of the model so far; answers from the store are none.
    """

    def __init__(self, model: ChatModel, store: Store, report: Callable[[Counts], None] | None = None) -> None:
        self.model, self.store = model, store
        self.report = report
        self.calls = 0
        self._failed: dict[str, BackendError] = {}  # of this run; a later one asks again
        self._seen: set[str] = set()  # answered or read in this run

    def ask(self, request: ChatRequest) -> Reply:
        """Return the answer to one question.

        Raises:
            BackendError: If the model could not answer.
        """
        return answered(self.ask_many([request])[0])

    def ask_many(self, requests: Sequence[ChatRequest]) -> list[Reply | BackendError]:
        """Return the answer, or the error, of each question; those that are not kept are asked together, each once.

        Raises:
            BudgetExhausted: If the model's budget is used up; answers that came before it are kept.
            ValueError: If a question has more images than the model takes.
        """
        most = self.model.capabilities.images_per_message
        for request in requests:
            if len(request.images) > most:
                raise ValueError(f"{self.model.identity} takes {most} images in a message, got {len(request.images)}.")
        records = [request.record() for request in requests]
        keys = [stable_hash("call", self.model.identity, record) for record in records]
        found: dict[str, Reply | BackendError] = {}
        missing: dict[str, int] = {}
        for place, key in enumerate(keys):
            if key in found or key in missing:
                continue
            kept: Reply | BackendError | None = self._failed.get(key) or self._kept(key)
            if kept is None:
                missing[key] = place
            else:
                found[key] = kept
        earlier = {key for key, reply in found.items() if isinstance(reply, Reply)} - self._seen
        self._seen.update(earlier, missing)
        if earlier and self.report is not None:
            self.report(Counts(cached=len(earlier)))
        places = list(missing.values())
        started = time.perf_counter()
        for number, reply in answers(self.model, [requests[place] for place in places]):
            place = places[number]
            found[keys[place]] = reply
            if isinstance(reply, BackendError):
                self._failed[keys[place]] = reply
            else:
                if not reply.cut_off:  # a later run asks again
                    self._keep(keys[place], records[place], reply)
                self.calls += 1
                if self.report is not None:
                    now = time.perf_counter()
                    usage = reply.usage
                    self.report(Counts(1, usage.input_tokens, usage.output_tokens, 0, now - started))
                    started = now
        return [found[key] for key in keys]

    def _kept(self, key: str) -> Reply | None:
        record = self.store.read_done(["calls", f"{key}.json"], key)
        if record is None:
            return None
        reply = record["reply"]
        usage = Usage(reply["input_tokens"], reply["output_tokens"])
        return Reply(reply["text"], reply["model"], usage, cached=True)

    def _keep(self, key: str, request: dict[str, Any], reply: Reply) -> None:
        answer = {
            "text": reply.text,
            "model": reply.model,
            "input_tokens": reply.usage.input_tokens,
            "output_tokens": reply.usage.output_tokens,
        }
        record = {"key": key, "model": self.model.identity, "request": request, "reply": answer}
        self.store.write_json(["calls", f"{key}.json"], record)
