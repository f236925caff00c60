"""An OpenAI-compatible server on this machine that answers as a test tells it to, and remembers what it was asked."""

import base64
import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from PIL import Image

Answer = tuple[int, Any]
FORMS = ("ring", "disc", "cone", "shell", "wedge", "arch", "bowl", "drum", "coil", "slab")


def chat(content: str) -> Answer:
    return 200, {"choices": [{"message": {"role": "assistant", "content": content}}]}


def captions(request: dict[str, Any]) -> Answer:
    """Answer with as many good captions as were asked for."""
    asked = json.loads(request["messages"][1]["content"])
    what = " and ".join(asked["functions"])
    return chat(json.dumps([f"A wooden {form} made to {what}." for form in FORMS[: asked["captions"]]]))


def image(request: dict[str, Any], colour: str = "teal") -> Answer:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return 200, {"data": [{"b64_json": base64.b64encode(file.getvalue()).decode()}]}


def usual(request: dict[str, Any]) -> Answer:
    return captions(request) if "messages" in request else image(request)


class ScriptedServer:
    """Serve on a free port while the context lasts.

    Args:
        answer: Takes a request and its number from 0, and returns a status and what to send as JSON; a status may come
            with headers, as a pair.
    """

    def __init__(self, answer: Callable[[dict[str, Any], int], tuple[Any, Any]] | None = None) -> None:
        self.answer = answer or (lambda request, number: usual(request))
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.busy = self.most_busy = 0
        lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(owner.requests)
                    owner.requests.append(request)
                    owner.paths.append(self.path)
                    owner.keys.append(self.headers.get("Authorization"))
                    owner.busy += 1
                    owner.most_busy = max(owner.most_busy, owner.busy)
                status, data = owner.answer(request, number)
                status, headers = status if isinstance(status, tuple) else (status, {})
                body = data if isinstance(data, bytes) else json.dumps(data).encode()
                with lock:
                    owner.busy -= 1
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Stay silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> "ScriptedServer":
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()
