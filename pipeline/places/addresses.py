"""Owns what the URLs of places mean: which place, and which name in it. None of them holds credentials."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ...storage_schemas.errors import InputError
from .bucket import BucketPlace
from .local import LOCAL
from .place import Place

#: Where an endpoint that is not the cloud's own is named, by scheme; the first that is set counts.
ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    "gs": (),
}

#: See `handed_on`.
_HANDED_ON = (*ENDPOINTS["s3"], *ENDPOINTS["az"], "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ALLOW_HTTP")

#: What signed URLs and those with keys have behind their `?`.
_SECRETS = re.compile(r"[?&](x-amz-|x-goog-|awsaccesskeyid|signature|sig=|token|access_key|secret)", re.IGNORECASE)


def open_bucket(scheme: str, rest: str) -> tuple[Place, str]:
    """From what stands behind `s3://`, `gs://` or `az://`.

    Raises:
        InputError: credentials in it, no bucket, or a name that no object can have.
    """
    bucket, _, name = rest.partition("/")
    if "@" in bucket or _SECRETS.search(rest):
        raise _secret(f"{scheme}://{'…@' * ('@' in bucket)}{bucket.rpartition('@')[2].partition('?')[0]}/…")
    url = f"{scheme}://{rest}"
    if not bucket:
        raise InputError(
            "a URL without a bucket", code="url-without-bucket", where=url, hint=f"write {scheme}://BUCKET/NAME"
        )
    name = name.strip("/")
    if any(part in ("", ".", "..") for part in name.split("/")) and name:
        raise InputError(
            "no object can have this name",
            code="object-name-impossible",
            where=url,
            expected="parts that are neither empty nor dots",
            found=name,
            hint="write it without // and /../",
        )
    return BucketPlace(scheme, bucket, endpoint_of(scheme)), name


def endpoint_of(scheme: str) -> str:
    """The endpoint that the environment names; '' for the cloud's own.

    Raises:
        InputError: it is no http(s) URL, or has credentials in it.
    """
    variable, endpoint = next(((v, e) for v in ENDPOINTS[scheme] if (e := os.environ.get(v))), ("", ""))
    if not endpoint:
        return ""
    parts = urlsplit(endpoint)
    if "@" in parts.netloc or _SECRETS.search(endpoint):
        raise _secret(f"{variable}={parts.scheme}://…@{parts.netloc.rpartition('@')[2]}")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(
            "not an endpoint",
            code="endpoint-malformed",
            where=variable,
            expected="http(s)://HOST:PORT",
            found=endpoint,
            hint="such as --endpoint http://127.0.0.1:9000",
        )
    return endpoint.rstrip("/")


@contextlib.contextmanager
def s3_endpoint(url: str) -> Iterator[None]:
    """Inside, this server is that of s3:// URLs, in this process and those that it starts.

    Raises:
        InputError: it is no http(s) URL, or has credentials in it.
    """
    name = ENDPOINTS["s3"][0]
    before = os.environ.get(name)
    os.environ[name] = url
    try:
        endpoint_of("s3")
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def handed_on() -> dict[str, str]:
    """What of the environment says where buckets are, for workers on other machines. Credentials are none of it."""
    return {name: value for name in _HANDED_ON if (value := os.environ.get(name))}


def open_file(rest: str) -> tuple[Place, str]:
    """From what stands behind `file://`.

    Raises:
        InputError: it names another machine.
    """
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise InputError(
            "a file:// URL of another machine, or without a path",
            code="file-url-malformed",
            where=f"file://{rest}",
            expected="file:///PATH",
            found=f"the machine {host!r}",
            hint="write the path alone, or file:///PATH",
        )
    return LOCAL, str(Path(f"/{unquote(path)}"))


def _secret(where: str) -> InputError:
    return InputError(
        "credentials in a URL are refused: commands, logs and files keep URLs",
        code="url-with-credentials",
        where=where,
        hint="export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and write the URL without them",
    )
