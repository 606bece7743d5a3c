"""Owns reading URLs: http(s) through httpx2, object stores (s3, gs, az) through obstore.

What keeps the bytes away is of two kinds. Of the address: it is missing, forbidden, malformed, too large; that is an
`InputError` about this one URL. Transient: the network, a host, a server with a problem; that is `Unreachable`, after a few
tries, and is no fault of the image.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..storage_schemas.errors import InputError, MissingDependency, Unreachable

if TYPE_CHECKING:
    import httpx2

#: Larger bodies are not read into memory, unless a caller sets another limit.
MAX_BYTES = 1 << 30

#: How long a connection may take. Two lost packets are forgiven; a dead host costs this, `ATTEMPTS` times.
CONNECT_SECONDS = 5.0

#: How long a server may be silent before and while it answers.
READ_SECONDS = 30.0

#: A body that takes longer than this has to come at `MIN_BYTES_A_SECOND` on average: a trickle would never end.
PATIENCE_SECONDS = 60.0
MIN_BYTES_A_SECOND = 10_000

#: Attempts at transient errors, the first included, and the wait before the second, which doubles.
ATTEMPTS = 3
BACKOFF_SECONDS = 0.5

#: The longest wait that a server may request (Retry-After); one that requests more is not tried again.
MAX_WAIT_SECONDS = 10.0

MAX_REDIRECTS = 5

_WEB = ("http", "https")
_OBJECT_STORES = ("s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss")

#: Statuses of the moment, beside 5xx: a request that came too slowly, too early, too often.
_PASSING = (408, 425, 429)


def read_url(url: str, *, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes behind an http(s), s3, gs or az URL. The query of an http(s) URL is sent as it is given.

    Safe to call from several threads. Proxies and certificates come from the environment, as httpx2 documents.

    Args:
        url: the address; what HTTP cannot carry (spaces, other alphabets) is percent-encoded, a fragment is not sent.
        max_bytes: a larger body is refused: by its announced length before it is read, and by its real one while it is.

    Raises:
        MissingDependency: the library that reads this kind of URL is not installed.
        InputError: of this URL: another scheme, malformed, not found, forbidden, too large, redirected too often.
        Unreachable: of the moment: no connection, silence, a broken body, status 408, 425, 429 or 5xx, three times over.
    """
    scheme = url.partition("://")[0].lower()
    if scheme in _WEB:
        return _retried(functools.partial(_read_web, url, max_bytes), url)
    if scheme in _OBJECT_STORES:
        return _read_object(url, max_bytes)
    raise InputError(
        "URLs of this kind are not read",
        code="url-scheme-unknown",
        where=url,
        expected=", ".join((*_WEB, "s3", "gs or az")),
        found=scheme,
    )


class _TransientError(Exception):
    """An error that may pass. `wait` is what the server requests, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def _retried(read: Callable[[], bytes], url: str) -> bytes:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return read()
        except _TransientError as trouble:
            if attempt == ATTEMPTS or trouble.wait > MAX_WAIT_SECONDS:
                raise _unreachable(url, trouble) from trouble
            time.sleep(max(trouble.wait, BACKOFF_SECONDS * 2 ** (attempt - 1)))
    raise AssertionError("a loop that returns or raises")


@functools.cache
def _client(process: int) -> httpx2.Client:
    """One client for all threads of a process: it keeps connections open. A forked process gets its own."""
    from http.cookiejar import CookieJar, DefaultCookiePolicy

    import httpx2

    return httpx2.Client(
        # No answer changes what the next request sends.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        headers={"user-agent": "teachonce", "accept-encoding": "identity"},
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=5.0),
    )


def _read_web(url: str, max_bytes: int) -> bytes:
    """One try, redirects included."""
    try:
        import httpx2
    except ImportError as error:
        raise MissingDependency("reading http(s) URLs needs httpx2", "pip install 'teachonce[urls]'") from error
    try:
        target = _parsed(httpx2.URL, url)
        for _ in range(MAX_REDIRECTS + 1):
            answer = _get(target, url, max_bytes)
            if isinstance(answer, bytes):
                return answer
            target = _parsed(target.join, answer)
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError, ValueError) as error:
        raise InputError("cannot read", code="url-unreadable", where=url, found=_first_line(error)) from error
    except httpx2.TransportError as error:
        raise _TransientError(_first_line(error)) from error
    except httpx2.DecodingError as error:
        raise InputError(
            "cannot read", code="url-unreadable", where=url, found=f"a damaged body: {_first_line(error)}"
        ) from error
    raise InputError("cannot read", code="url-unreadable", where=url, found=f"more than {MAX_REDIRECTS} redirects")


def _parsed(parse: Callable[[str], httpx2.URL], text: str) -> httpx2.URL:
    """Raises ValueError where it is no http(s) URL with a host."""
    address = parse(text)
    if address.scheme not in _WEB:
        raise ValueError(f"a redirect to {text}, which is not http or https")
    if not address.host:
        raise ValueError("no host")
    if not 0 < (address.port or 80) < 65536:
        raise ValueError(f"no such port: {address.port}")  # the system's resolver would take another one
    return address


def _get(target: httpx2.URL, url: str, max_bytes: int) -> bytes | str:
    """The body, or where a redirect leads. `url` is the one that the user named."""
    import httpx2

    timeout = httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    with _client(os.getpid()).stream("GET", target, timeout=timeout, follow_redirects=False) as response:
        status = response.status_code
        if status in _PASSING or status >= 500:
            raise _TransientError(_status(response), wait=_seconds(response.headers.get("retry-after", "")))
        if response.has_redirect_location:
            return response.headers["location"]
        if not response.is_success:
            raise InputError("cannot read", code="url-unreadable", where=url, found=_status(response))
        announced = response.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > max_bytes:
            raise _too_large(url, f"{int(announced)} bytes", max_bytes)
        start, body = time.monotonic(), bytearray()
        for part in response.iter_bytes():
            body += part
            if len(body) > max_bytes:
                raise _too_large(url, "a body that goes on", max_bytes)
            seconds = time.monotonic() - start
            if seconds > PATIENCE_SECONDS and len(body) < MIN_BYTES_A_SECOND * seconds:
                raise _TransientError(f"too slow: {len(body)} bytes in {seconds:.0f} seconds")
        return bytes(body)


def _read_object(url: str, max_bytes: int) -> bytes:
    try:
        import obstore
        from obstore import exceptions
        from obstore.store import from_url
    except ImportError as error:
        raise MissingDependency("reading s3, gs and az URLs needs obstore", "pip install 'teachonce[urls]'") from error
    # Client options are left to the environment: any given here would put aside AWS_ALLOW_HTTP and its like. obstore's own
    # limits are 5 seconds to connect and 30 for a whole answer.
    retry_config: Any = {
        "max_retries": ATTEMPTS - 1,
        "backoff": {"init_backoff": timedelta(seconds=BACKOFF_SECONDS)},
        "retry_timeout": timedelta(seconds=READ_SECONDS),
    }
    base, _, name = url.rpartition("/")
    try:
        store = from_url(base, retry_config=retry_config)
    except Exception as error:  # a ValueError or one of obstore's, by what is wrong with the address
        raise InputError("cannot read", code="url-unreadable", where=url, found=_first_line(error)) from error
    try:
        found = obstore.get(store, name)
        size = int(found.meta["size"])
        body = bytes(found.bytes()) if size <= max_bytes else b""
    except (
        FileNotFoundError,
        PermissionError,
        exceptions.PermissionDeniedError,
        exceptions.UnauthenticatedError,
        exceptions.NotFoundError,
        exceptions.InvalidPathError,
        exceptions.NotSupportedError,
    ) as error:
        raise InputError("cannot read", code="url-unreadable", where=url, found=_first_line(error)) from error
    except (exceptions.BaseError, OSError) as error:
        raise _unreachable(url, error) from error
    if size > max_bytes:
        raise _too_large(url, f"{size} bytes", max_bytes)
    return body


def _unreachable(url: str, error: Exception) -> Unreachable:
    return Unreachable(
        "cannot be read at the moment",
        code="unreachable-now",
        where=url,
        found=_first_line(error),
        hint="check the network and the server, then run the same command again",
    )


def _too_large(url: str, found: str, max_bytes: int) -> InputError:
    return InputError(
        "file too large", code="file-too-large", where=url, expected=f"at most {max_bytes} bytes", found=found
    )


def _status(response: httpx2.Response) -> str:
    return f"HTTP {response.status_code} {response.reason_phrase}".rstrip()


def _seconds(retry_after: str) -> float:
    """Retry-After in seconds; its other form, a date, is ignored."""
    return float(retry_after) if retry_after.isdecimal() else 0.0


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
