"""An OpenAI-compatible endpoint on this machine: a real HTTP server, whose replies a test decides."""

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from sdft_jax.config.settings import JudgeConfig


@dataclasses.dataclass(frozen=True)
class Response:
    """Any response of HTTP."""

    status: int
    body: bytes = b"{}"
    headers: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass
class Endpoint:
    """A running server."""

    url: str
    respond: Callable[[list[dict]], str | Response | None]
    """(messages) -> the text of the reply, or any response, or None to close the connection."""
    bodies: list[dict] = dataclasses.field(default_factory=list)
    """The bodies of all requests, in order of arrival."""
    keys: set[str] = dataclasses.field(default_factory=set)
    """The keys of all requests."""

    def settings(self, cache, *more: str) -> list[str]:
        """Return overrides that make this the judge, without repetitions after a failure."""
        return [
            f"judge.url={self.url}",
            "judge.model=grader",
            f"judge.cache={cache}",
            "judge.retries=0",
            *more,
        ]

    def config(self, cache, **more) -> JudgeConfig:
        """Return the same settings as a section."""
        return JudgeConfig(**{"url": self.url, "model": "grader", "cache": str(cache), "retries": 0, **more})


@contextlib.contextmanager
def serve(respond: Callable[[list[dict]], str | Response | None]) -> Iterator[Endpoint]:
    """Start a server on a free port, and stop it at the end."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            endpoint.bodies.append(body)
            endpoint.keys.add(self.headers["Authorization"].removeprefix("Bearer "))
            known = self.path.endswith("/chat/completions")
            reply = endpoint.respond(body["messages"]) if known else Response(404)
            if reply is None:
                return
            if isinstance(reply, str):
                choice = {"index": 0, "message": {"role": "assistant", "content": reply}}
                completion = {"object": "chat.completion", "model": body["model"], "choices": [choice]}
                reply = Response(200, json.dumps(completion).encode())
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **dict(reply.headers)}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1", respond)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
