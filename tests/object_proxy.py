"""A proxy in front of an S3 server, for tests: counts requests, answers some itself, and fails at random, by a seed."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

#: Every way to fail. The last four leave the client without knowing whether the request was done.
FAULTS = ("500", "503", "slow down", "stall", "cut body", "lose request", "lose answer", "cut answer")

#: Of hop-by-hop headers a proxy makes its own.
_OWN = {"connection", "transfer-encoding", "content-length", "keep-alive"}


@dataclass(frozen=True)
class Answer:
    """What the proxy says itself: an error as S3 words it."""

    status: int
    code: str
    more: str = ""

    def body(self) -> bytes:
        return f"<Error><Code>{self.code}</Code><Message>no</Message>{self.more}</Error>".encode()


@dataclass(frozen=True)
class Request:
    """What came by."""

    method: str
    path: str
    headers: dict[str, str]

    @property
    def is_list(self) -> bool:
        return "list-type=" in self.path


@dataclass
class Proxy:
    """A proxy that runs.

    Attributes:
        upstream: the address of the server behind it.
        share: how many of all requests fail at random.
        kinds: of `FAULTS`, which of them.
        stall: seconds without a byte.
        rule: answers a request instead of the server, or None. It may change the request's headers.
        seen: all requests so far.
        failed: how often each fault happened.
    """

    upstream: str
    share: float = 0.0
    kinds: tuple[str, ...] = FAULTS
    seed: int = 0
    stall: float = 3.0
    rule: Callable[[Request], Answer | None] = lambda request: None
    seen: list[Request] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)
    endpoint: str = ""
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    def fault(self) -> str | None:
        with self._turn:
            kind = self._chance.choice(self.kinds) if self._chance.random() < self.share else None
            if kind is not None:
                self.failed[kind] = self.failed.get(kind, 0) + 1
            return kind

    @contextlib.contextmanager
    def running(self) -> Iterator[Proxy]:
        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 128

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that went away is none."""

        server = Server(("127.0.0.1", 0), type("Bound", (_Handler,), {"proxy": self}))
        self.endpoint = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self._behind = http.client.HTTPConnection(urlsplit(self.proxy.upstream).netloc)

    def finish(self) -> None:
        self._behind.close()
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *arguments: object) -> None:
        """Nothing."""

    def _pass(self) -> None:
        request = Request(self.command, self.path, dict(self.headers.items()))
        self.proxy.seen.append(request)
        size = int(self.headers.get("content-length") or 0)
        kind = self.proxy.fault()
        if kind == "lose request":
            self.rfile.read(size // 2)
            return self._drop()
        body = self.rfile.read(size)
        own = self.proxy.rule(request)
        if kind in ("500", "503", "slow down"):
            status = 500 if kind == "500" else 503
            own = Answer(status, {"500": "InternalError", "503": "ServiceUnavailable"}.get(kind, "SlowDown"))
        if own is not None:
            return self._send(own.status, "no", [], own.body())
        if kind == "stall":
            time.sleep(self.proxy.stall)
            return self._drop()
        status, reason, headers, answer = self._forward(request, body)
        if kind == "lose answer":
            return self._drop()
        if kind in ("cut body", "cut answer"):
            self._send(status, reason, headers, answer, cut=True)
            return self._drop()
        self._send(status, reason, headers, answer)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

    def _forward(self, request: Request, body: bytes) -> tuple[int, str, list[tuple[str, str]], bytes]:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _OWN}
        for attempt in range(2):
            try:
                self._behind.request(
                    request.method, request.path, body or None, {**headers, "Content-Length": str(len(body))}
                )
                answer = self._behind.getresponse()
                return answer.status, answer.reason, answer.getheaders(), answer.read()
            except (http.client.HTTPException, OSError):
                self._behind.close()  # the server ends connections that idle
                if attempt:
                    raise
        raise AssertionError

    def _send(
        self, status: int, reason: str, headers: list[tuple[str, str]], body: bytes, *, cut: bool = False
    ) -> None:
        self.send_response_only(status, reason)
        is_head = self.command == "HEAD"
        length = next((value for name, value in headers if name.lower() == "content-length"), str(len(body)))
        for name, value in headers:
            if name.lower() not in _OWN:
                self.send_header(name, value)
        self.send_header("Content-Length", length if is_head else str(len(body)))
        self.end_headers()
        if not is_head:
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.wfile.flush()

    def _drop(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
