"""What tests of `judge` share: an endpoint on this machine, and a question."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rewards import Score, Verifier
from rewards.workers.call import score_completions
from rollout import Completion, Prompt

AXES = {"accuracy": "same final answer", "style": "reads well"}
Script = Callable[["Endpoint", dict[str, Any]], tuple[int, Any]]


class Endpoint:
    """A chat endpoint on this machine: it keeps what it is asked, and replies as its script says: (status, body)."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.script: Script = lambda endpoint, request: saying('{"accuracy": 1}')
        self.now = self.most = self.connections = 0
        self.retry_after = 0.01  # seconds
        endpoint, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet

            def setup(self) -> None:
                super().setup()
                with lock:
                    endpoint.connections += 1

            def finish(self) -> None:
                super().finish()
                with lock:
                    endpoint.connections -= 1

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    endpoint.asked.append(request | {"path": self.path, "key": self.headers["Authorization"]})
                    endpoint.now += 1
                    endpoint.most = max(endpoint.most, endpoint.now)
                status, body = endpoint.script(endpoint, request)
                with lock:
                    endpoint.now -= 1
                payload = (body if isinstance(body, str) else json.dumps(body)).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.send_header("Retry-After", str(endpoint.retry_after))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 64

            def handle_error(self, *args: object) -> None:  # a client that did not wait
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


def saying(content: Any, finish_reason: str = "stop", **message: Any) -> tuple[int, Any]:
    """A reply of the judge."""
    message = {"role": "assistant", "content": content} | message
    choice = {"index": 0, "finish_reason": finish_reason, "message": message}
    return 200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def asked_for(answer: object = "17", **fields: Any) -> Prompt:
    return Prompt(**{"id": "p-7", "messages": [{"role": "user", "content": "8+9=?"}], "answer": answer} | fields)


def scores(verifier: Verifier, *texts: str, prompt: Prompt | None = None) -> list[Score]:
    return score_completions(verifier, prompt or asked_for(), [Completion(text=text) for text in texts])
