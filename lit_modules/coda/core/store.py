"""Run directory of the CoDA augmentation, and the chat model whose answers it keeps."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lit_modules.coda.backends.protocols import (
    BackendError,
    ChatModel,
    ChatRequest,
    Counts,
    Reply,
    Usage,
    answered,
    answers,
)
from lit_modules.utils.hashing import stable_hash
from lit_modules.utils.run_directory import DirectoryInUse as StoreInUse
from lit_modules.utils.run_directory import RunDirectory, stage_key

__all__ = ["RecordedChat", "Store", "StoreInUse", "stage_key"]


class Store(RunDirectory):
    """Records and images of a run of the augmentation; see :class:`~lit_modules.utils.run_directory.RunDirectory`.

    A unit of work is done when its record exists, the record's key fits, and the files that it names have the hashes
    that it says. Names that come from models or data are never used for files.
    """

    def __init__(self, folder: str | Path, shard: tuple[int, int] | None = None, writable: bool = True) -> None:
        super().__init__(folder, shard, writable, noun="store")


class RecordedChat:
    """Chat model whose answers are kept in a store, a file each, named by the hash of all that shapes the answer.

    ``report`` takes the counts of each call; ``calls`` counts those of the model, without answers from the store.
    """

    def __init__(self, model: ChatModel, store: Store, report: Callable[[Counts], None] | None = None) -> None:
        self.model, self.store = model, store
        self.report = report or (lambda counts: None)
        self.calls = 0
        self._failed: dict[str, BackendError] = {}  # of this run; a later one asks again
        self._seen: set[str] = set()  # answered or read in this run

    def ask(self, request: ChatRequest) -> Reply:
        """Return the answer to one question, or raise its ``BackendError``."""
        return answered(self.ask_many([request])[0])

    def ask_many(self, requests: Sequence[ChatRequest]) -> list[Reply | BackendError]:
        """Return the answer, or the error, of each question; unknown ones are asked together, each once."""
        most = self.model.capabilities.images_per_message
        for request in requests:
            if len(request.images) > most:
                raise ValueError(f"{self.model.identity} takes {most} images in a message, got {len(request.images)}.")
        keys = [stable_hash("call", self.model.identity, request.record()) for request in requests]
        by_key = dict(zip(keys, requests, strict=True))
        replies: dict[str, Reply | BackendError] = {}
        for key in by_key:
            reply = self._failed.get(key) or self._read(key)
            if reply is not None:
                replies[key] = reply
        missing = [key for key in by_key if key not in replies]
        earlier = {key for key, reply in replies.items() if isinstance(reply, Reply)} - self._seen
        self._seen.update(earlier, missing)
        if earlier:
            self.report(Counts(cached=len(earlier)))
        started = time.perf_counter()
        for number, answer in answers(self.model, [by_key[key] for key in missing]):
            key = missing[number]
            replies[key] = answer
            if isinstance(answer, BackendError):
                self._failed[key] = answer
                continue
            if not answer.cut_off:  # a later run asks again
                self._write(key, by_key[key], answer)
            self.calls += 1
            now = time.perf_counter()
            self.report(
                Counts(1, answer.usage.input_tokens, answer.usage.output_tokens, images=0, seconds=now - started)
            )
            started = now
        return [replies[key] for key in keys]

    def _read(self, key: str) -> Reply | None:
        record = self.store.read_done(["calls", f"{key}.json"], key)
        if record is None:
            return None
        reply = record["reply"]
        usage = Usage(reply["input_tokens"], reply["output_tokens"])
        return Reply(reply["text"], reply["model"], usage, cached=True)

    def _write(self, key: str, request: ChatRequest, reply: Reply) -> None:
        fields = {
            "text": reply.text,
            "model": reply.model,
            "input_tokens": reply.usage.input_tokens,
            "output_tokens": reply.usage.output_tokens,
        }
        record = {"key": key, "model": self.model.identity, "request": request.record(), "reply": fields}
        self.store.write_json(["calls", f"{key}.json"], record)
