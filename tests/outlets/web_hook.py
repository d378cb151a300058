"""A small web server that keeps what is posted to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class WebHook:
    """What was posted so far; `status` is answered."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.status = 200
        self.bodies: list[bytes] = []


@contextmanager
def serving_web_hook() -> Iterator[WebHook]:
    """A server on a port of its own, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            hook.bodies.append(self.rfile.read(length))
            self.send_response(hook.status)
            self.end_headers()

        def log_request(self, code: object = "-", size: object = "-") -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hook = WebHook(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield hook
        finally:
            server.shutdown()
            thread.join()
