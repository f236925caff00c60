"""Answers of an image-text model by `LocalChat` in batches against `transformers serve`, asked through `RemoteChat`.

Both have the LLaVA-NeXT and the questions of `coda_generation.py`, and one thread; the server is a process of its own,
so the times are of the wall. Greedy answers have to be equal. Left out where `transformers[serving]` is missing.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from coda_generation import questions, texts
from coda_models import save_llava
from timing import Table, in_turns, seconds
from transformers.utils import import_utils

from lit_modules.coda import BackendError, BoundedEndpoint, LocalChat, RemoteChat


@contextmanager
def server(folder: str) -> Iterator[str]:
    """Serve a saved model, and yield the address up to the version."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import torch; torch.set_num_threads(1); from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", code, "serve", folder, "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*command, "--device", "cpu"], stdout=log, stderr=log, env=environment)
        try:
            while socket.socket().connect_ex(("127.0.0.1", port)):
                if process.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(f"transformers serve has ended: {log.read().decode()[-2000:]}")
                time.sleep(1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(30)


def written(answer: Any) -> str:
    """Return the text of an answer; `RemoteChat` refuses an empty one, which a random network gives now and then."""
    if isinstance(answer, BackendError):
        return "" if "no text" in str(answer) else str(answer)
    return str(getattr(answer, "text", answer)).strip()


def serve(number: int, batch_size: int, rounds: int) -> list[Table]:
    """Time the answers to some questions of each kind."""
    if not import_utils.is_serve_available():  # type: ignore[no-untyped-call]
        print('\ntransformers serve is left out: it needs transformers[serving], pip install "lit-modules[serving]"')
        return []
    table = Table("Served generation", rounds, "transformers", "fastapi", time="wall time of an answer")
    with tempfile.TemporaryDirectory() as folder:
        save_llava(folder, 320, 5, texts(), 112)
        settings = Path(folder) / "generation_config.json"
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "repetition_penalty": 1.0}))
        with server(folder) as address:
            ways: dict[str, Any] = {
                "ours": LocalChat(folder, device="cpu", batch_size=batch_size),
                "serve": RemoteChat(BoundedEndpoint(address, folder), token_field="max_completion_tokens"),
            }
            for name, asked in questions(number).items():
                answers: dict[str, list[str]] = {}

                def timed(way: str, asked: Any = asked, answers: dict[str, list[str]] = answers) -> float:
                    second, found = seconds(lambda: dict(ways[way].chat_many(asked)), time.perf_counter)
                    answers[way] = [written(found[place]) for place in range(len(asked))]
                    return second / len(asked)

                for way in ways.values():
                    dict(way.chat_many(asked[:1]))  # loads the model
                own, served = in_turns(rounds, partial(timed, "ours"), partial(timed, "serve"))
                pairs = list(zip(answers["ours"], answers["serve"], strict=True))
                other = [pair for pair in pairs if pair[0] != pair[1]]
                first = f", the first other: {other[0]}".replace("|", "/") if other else ""
                table.add(
                    f"{len(asked)} {name}, {batch_size} at a time",
                    own,
                    {"transformers serve": served},
                    f"{len(asked) - len(other)} of {len(asked)} answers equal{first}",
                    void="answers differ" if other else "",
                    unit="ms",
                )
    return [table]
