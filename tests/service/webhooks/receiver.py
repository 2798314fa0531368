"""Where webhooks go in tests: a real server on this machine, in the clear or over TLS."""

from __future__ import annotations

import ssl
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Receiver:
    """Keeps what it is sent, and answers with the statuses given, the last one for ever, after ``pause_s``. ``names``:
    the hosts that TLS clients asked for, whether or not they stayed."""

    def __init__(self, *statuses: int, tls: ssl.SSLContext | None = None, pause_s: float = 0) -> None:
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.names: list[str | None] = []
        receiver, left = self, list(statuses)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.received.append(({name.lower(): value for name, value in self.headers.items()}, body))
                time.sleep(pause_s)
                self.send_response(left.pop(0) if len(left) > 1 else left[0])
                self.send_header("Location", receiver.url + "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST  # a redirect that is followed may become one

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls:
            tls.sni_callback = lambda _line, name, _context: self.names.append(name)
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.port = int(self.server.server_address[1])
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        Thread(target=self.server.serve_forever, args=[0.02], daemon=True).start()

    def wait(self, count: int) -> None:
        deadline = time.monotonic() + 10
        while len(self.received) < count:
            assert time.monotonic() < deadline, self.received
            time.sleep(0.02)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
