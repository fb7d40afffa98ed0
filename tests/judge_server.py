"""A chat endpoint on 127.0.0.1 for tests: right unless told otherwise."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def answers_of(prompt: str) -> dict[str, str]:
    """The answers by number, as they stand between the marks."""
    mark = re.escape(re.search(r"with the mark (\[[0-9a-f]{16}\])", prompt)[1])
    return dict(re.findall(rf"^{mark} answer (\d+)\n(.*?)\n{mark} end of answer \1$", prompt, re.DOTALL | re.MULTILINE))


def by_length(text: str) -> float:
    return min(1.0, len(text) / 100)


def reply_of(prompt: str, score: Callable[[str], float] = by_length) -> str:
    return json.dumps({"scores": {number: score(text) for number, text in answers_of(prompt).items()}})


def completion(content: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


class JudgeServer:
    """`behave` gets this server, the number of the call and the payload, and gives (status, body, headers)."""

    def __init__(self, behave: Callable[..., tuple[int, bytes, dict[str, str]]] | None = None) -> None:
        self.behave = behave or right
        self.payloads: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.times: list[float] = []
        self.now = self.most = 0
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(server.payloads)
                    server.payloads.append(payload)
                    server.headers.append(dict(self.headers))
                    server.paths.append(self.path)
                    server.times.append(time.monotonic())
                    server.now += 1
                    server.most = max(server.most, server.now)
                try:
                    status, body, headers = server.behave(server, number, payload)
                finally:
                    with lock:
                        server.now -= 1
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    for part in body if not isinstance(body, bytes) else [body]:
                        self.wfile.write(part)
                        self.wfile.flush()
                except OSError:  # the other side has gone
                    pass

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.block_on_close = False
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def prompts(self) -> list[str]:
        return [payload["messages"][0]["content"] for payload in self.payloads]

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def right(server: JudgeServer, number: int, payload: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
    return 200, completion(reply_of(payload["messages"][0]["content"])), {}
