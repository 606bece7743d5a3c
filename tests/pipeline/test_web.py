"""URLs against real servers on loopback: what is sent, what is retried, what is refused, and how long it takes."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from teachonce.pipeline import web
from teachonce.pipeline.web import read_url
from teachonce.stages.corpora.images import MAX_BYTES
from teachonce.storage_schemas.errors import InputError, Unreachable

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@dataclass
class Site:
    """A server whose answers are set by path; it keeps the request targets as they came."""

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    targets: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    port: int = 0

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def on(self, path: str, *answers: Answer) -> str:
        """Answer the requests for `path` in this order, the last one again and again. Returns its URL."""
        self.answers[path] = list(answers)
        return self.base + path


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(web, "BACKOFF_SECONDS", 0.01)
    web._client.cache_clear()
    yield
    web._client.cache_clear()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.targets.append(self.path)
            site.headers.append({name.lower(): value for name, value in self.headers.items()})
            answers = site.answers.get(self.path.partition("?")[0], [says(404)])
            (answers.pop(0) if len(answers) > 1 else answers[0])(self)

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the reader has had enough
                super().handle()

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 64

    with Server(("127.0.0.1", 0), Handler) as server:
        site.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield site
        server.shutdown()
        thread.join()


def says(status: int, body: bytes = b"", **headers: object) -> Answer:
    """An answer with this status, and headers whose `_` stand for `-`."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in ({"Content_Length": len(body)} | headers).items():
            request.send_header(name.replace("_", "-"), str(value))
        request.end_headers()
        request.wfile.write(body)

    return answer


def streams(parts: int, part: bytes, pause: float = 0.0) -> Answer:
    """An answer without a length, in `parts` parts."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        for _ in range(parts):
            request.wfile.write(part)
            time.sleep(pause)

    return answer


def hangs_up(request: http.server.BaseHTTPRequestHandler) -> None:
    request.connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "query",
    [
        "size=200&sig=a%2Fb",
        "sig=a%2fb%3D%3d&x=%41",
        "url=https://images.example/a/b.jpg?size=1&x=2",
        "off=100%&sig=a%2Fb",
        "q=a+b;c,d:e@f/g?h!$'()*~[]|{}",
        "a=1&&b=",
    ],
)
def test_a_query_is_sent_as_it_is_given(site, query):
    url = site.on("/a%2Fb/c.jpg", says(200, b"pixels"))
    assert read_url(f"{url}?{query}") == b"pixels"
    assert site.targets == [f"/a%2Fb/c.jpg?{query}"]


def test_what_http_cannot_carry_is_encoded_and_a_fragment_stays_here(site):
    url = site.on("/%C3%A9%20x.jpg", says(200, b"pixels"))
    assert read_url(f'{site.base}/é x.jpg?q=é "#part') == b"pixels"
    assert site.targets == ["/%C3%A9%20x.jpg?q=%C3%A9%20%22"]
    assert url.endswith("x.jpg")


def test_the_scheme_may_be_written_in_capitals_and_the_host_alone(site):
    site.on("/", says(200, b"root"))
    assert read_url(f"HTTP://127.0.0.1:{site.port}") == b"root"
    assert read_url(f"Http://user:secret@LOCALHOST:{site.port}/?x=1") == b"root"
    assert site.headers[1]["authorization"] == "Basic dXNlcjpzZWNyZXQ="


def test_redirects_are_followed_with_their_query_as_given(site):
    url = site.on("/old", says(302, Location="/new?sig=a%2Fb&u=http://x/y"))
    site.on("/new", says(301, Location="last"))
    site.on("/last", says(200, b"there"))
    assert read_url(url) == b"there"
    assert site.targets == ["/old", "/new?sig=a%2Fb&u=http://x/y", "/last"]


def test_redirects_end(site):
    url = site.on("/round", says(302, Location="/round"))
    with pytest.raises(InputError) as error:
        read_url(url)
    assert (error.value.code, str(error.value.where), str(error.value.found)) == (
        "url-unreadable",
        str(url),
        "more than 5 redirects",
    )
    assert len(site.targets) == 6


@pytest.mark.parametrize("where", ["file:///etc/hostname", "ftp://127.0.0.1/x", "s3://bucket/x", "http:///x"])
def test_redirects_lead_to_http_only(site, where):
    url = site.on("/away", says(302, Location=where))
    with pytest.raises(InputError) as error:
        read_url(url)
    assert (error.value.code, str(error.value.where)) == ("url-unreadable", str(url))
    assert error.value.found is not None


@pytest.mark.parametrize("url", ["file:///etc/hostname", "FILE:///etc/hostname", "memory:///x", "ftp://h/x", "://x"])
def test_other_schemes_are_refused(url):
    with pytest.raises(InputError) as error:
        read_url(url)
    assert error.value.code == "url-scheme-unknown"


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///a",
        "http://h:x/",
        "http://[::1/",
        "http://127.0.0.1:99999/",
        "http://h/\x07",
        "http://h/\udc80",
        "http://" + "a" * 300 + "/",
    ],
)
def test_malformed_addresses_are_of_the_image(url):
    with pytest.raises(InputError) as error:
        read_url(url)
    assert error.value.code == "url-unreadable"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451, 304])
def test_what_the_server_refuses_is_of_the_image_and_asked_once(site, status):
    url = site.on("/gone", says(status))
    with pytest.raises(InputError) as error:
        read_url(url)
    assert (error.value.code, str(error.value.where)) == ("url-unreadable", str(url))
    assert str(error.value.found).startswith(f"HTTP {status} ")
    assert len(site.targets) == 1


@pytest.mark.parametrize("trouble", [says(503), says(429), says(500), says(408), hangs_up])
def test_trouble_of_the_moment_is_tried_again(site, trouble):
    url = site.on("/busy", trouble, trouble, says(200, b"at last"))
    assert read_url(url) == b"at last"
    assert len(site.targets) == 3


@pytest.mark.parametrize("trouble", [says(502, b"<html>"), says(429), hangs_up])
def test_trouble_that_stays_is_unreachable_not_a_bad_image(site, trouble):
    url = site.on("/down", trouble)
    with pytest.raises(Unreachable) as error:
        read_url(url)
    assert (error.value.code, str(error.value.where)) == ("unreachable-now", str(url))
    assert error.value.found is not None
    assert str(error.value.hint).startswith("check the network")
    assert len(site.targets) == web.ATTEMPTS


def test_the_server_says_how_long_to_wait(site):
    url = site.on("/later", says(503, Retry_After=1), says(200, b"x"))
    start = time.monotonic()
    assert read_url(url) == b"x"
    assert time.monotonic() - start >= 1
    url = site.on("/tomorrow", says(429, Retry_After=86400))
    with pytest.raises(Unreachable) as error:
        read_url(url)
    assert error.value.code == "unreachable-now"
    assert "HTTP 429" in str(error.value.found)
    assert len(site.targets) == 3
    url = site.on("/date", says(503, Retry_After="Fri, 31 Dec 1999 23:59:59 GMT"), says(200, b"y"))
    assert read_url(url) == b"y"


def test_refused_connections_are_unreachable_in_seconds():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(Unreachable) as error:
        read_url(f"http://127.0.0.1:{port}/a.jpg")
    assert error.value.code == "unreachable-now"
    assert "refused" in str(error.value.found)
    assert time.monotonic() - start < 2


def test_a_dead_host_is_unreachable_in_seconds(monkeypatch):
    """A full backlog drops connections as a dead host's network does: no answer at all."""
    monkeypatch.setattr(web, "CONNECT_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(silent.getsockname())
        time.sleep(0.1)
        start = time.monotonic()
        with pytest.raises(Unreachable) as error:
            read_url(f"http://127.0.0.1:{silent.getsockname()[1]}/a.jpg")
        assert error.value.code == "unreachable-now"
        assert "timed out" in str(error.value.found)
        for one in waiting:
            one.close()
    assert 0.8 < time.monotonic() - start < 3


def test_the_limits_add_up_to_seconds(monkeypatch):
    monkeypatch.undo()
    waits = sum(web.BACKOFF_SECONDS * 2**i for i in range(web.ATTEMPTS - 1))
    assert web.ATTEMPTS * web.CONNECT_SECONDS + waits < 20


def test_a_silent_server_is_unreachable(site, monkeypatch):
    monkeypatch.setattr(web, "READ_SECONDS", 0.2)
    url = site.on("/silent", lambda request: time.sleep(1))
    with pytest.raises(Unreachable) as error:
        read_url(url)
    assert error.value.code == "unreachable-now"
    assert "timed out" in str(error.value.found)
    url = site.on("/half", streams(2, b"x", pause=1))
    with pytest.raises(Unreachable) as error:
        read_url(url)
    assert error.value.code == "unreachable-now"
    assert "timed out" in str(error.value.found)


def test_a_slow_body_is_read_and_a_trickle_is_not(site, monkeypatch):
    url = site.on("/slow", streams(5, b"x" * 100, pause=0.05))
    assert read_url(url) == b"x" * 500
    monkeypatch.setattr(web, "PATIENCE_SECONDS", 0.2)
    with pytest.raises(Unreachable, match="found too slow: [0-9]+ bytes in 0 seconds"):
        read_url(site.on("/trickle", streams(100, b"x", pause=0.05)))


def test_an_announced_body_over_the_limit_is_not_read(site):
    written = []

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(1 << 40))
        request.end_headers()
        try:
            while True:
                written.append(request.wfile.write(b"x" * 65536))
        except OSError:
            pass

    url = site.on("/huge", answer)
    expected = f"^file too large: {url}: expected at most 1000 bytes, found {1 << 40} bytes$"
    with pytest.raises(InputError, match=expected):
        read_url(url, max_bytes=1000)
    assert len(site.targets) == 1
    assert read_url(site.on("/fits", says(200, b"x" * 1000)), max_bytes=1000) == b"x" * 1000
    assert web.MAX_BYTES == MAX_BYTES


def test_an_endless_body_is_left_at_the_limit(site):
    url = site.on("/endless", streams(1 << 40, b"x" * 4096))
    with pytest.raises(InputError) as error:
        read_url(url, max_bytes=100_000)
    assert (error.value.code, str(error.value.where)) == ("file-too-large", str(url))
    assert str(error.value.expected).startswith("at most 100000 bytes")


def test_a_compressed_bomb_is_left_at_the_limit(site):
    packed = gzip.compress(b"\0" * 50_000_000)
    assert len(packed) < 100_000
    url = site.on("/bomb", says(200, packed, Content_Encoding="gzip"))
    with pytest.raises(InputError) as error:
        read_url(url, max_bytes=100_000)
    assert error.value.code == "file-too-large"
    assert site.headers[0]["accept-encoding"] == "identity"
    assert read_url(url) == b"\0" * 50_000_000
    with pytest.raises(InputError) as error:
        read_url(site.on("/broken", says(200, b"no gzip", Content_Encoding="gzip")))
    assert error.value.code == "url-unreadable"
    assert "a damaged body" in str(error.value.found)


def test_a_body_shorter_than_announced_is_never_an_image(site):
    url = site.on("/cut", says(200, b"half", Content_Length=8), says(200, b"half+end"))
    assert read_url(url) == b"half+end"
    with pytest.raises(Unreachable):
        read_url(site.on("/always", says(200, b"half", Content_Length=8)))


def test_answers_change_no_later_request(site):
    url = site.on("/cookie", says(200, b"x", Set_Cookie="id=1"))
    read_url(url)
    read_url(url)
    assert "cookie" not in site.headers[1]


def test_many_threads_share_a_client(site):
    url = site.on("/a", says(200, b"x" * 5000))
    bodies: list[bytes] = []
    threads = [threading.Thread(target=lambda: bodies.append(read_url(url))) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bodies == [b"x" * 5000] * 24


def test_object_stores_are_read_by_obstore(site, monkeypatch):
    """The same server, spoken to as an S3 bucket."""
    settings = {
        "AWS_ENDPOINT": site.base,
        "AWS_ALLOW_HTTP": "true",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_REGION": "x",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    stamp = {"Last_Modified": "Thu, 01 Jan 2026 00:00:00 GMT", "ETag": '"1"'}
    site.on("/bucket/folder/a%20b.jpg", says(200, b"pixels", **stamp))
    assert read_url("s3://bucket/folder/a b.jpg") == b"pixels"
    with pytest.raises(InputError) as error:
        read_url("s3://bucket/folder/a b.jpg", max_bytes=3)
    assert (error.value.code, str(error.value.expected), str(error.value.found)) == (
        "file-too-large",
        "at most 3 bytes",
        "6 bytes",
    )
    assert error.value.where is not None
    with pytest.raises(InputError) as error:
        read_url("s3://bucket/none.jpg")
    assert error.value.code == "url-unreadable"
    assert str(error.value.where).startswith("s3://bucket/none.jpg")
    site.on("/bucket/forbidden.jpg", says(403))
    with pytest.raises(InputError) as error:
        read_url("s3://bucket/forbidden.jpg")
    assert error.value.code == "url-unreadable"
    assert str(error.value.where).startswith("s3://bucket/forbidden.jpg")
    site.on("/bucket/down.jpg", says(503))
    before = len(site.targets)
    with pytest.raises(Unreachable) as unreachable:
        read_url("s3://bucket/down.jpg")
    assert unreachable.value.code == "unreachable-now"
    assert str(unreachable.value.where).startswith("s3://bucket/down.jpg")
    assert len(site.targets) - before == web.ATTEMPTS
