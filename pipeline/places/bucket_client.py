"""Owns how a process reaches a bucket: the client of its object store, with credentials, retries and limits of time.

Credentials come from the environment (`AWS_ACCESS_KEY_ID`, `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_KEY`, …), from the
cloud's own files (`~/.aws`, by boto3; gcloud's and az's by obstore), or from the machine's role. They are never part of a place, which
goes to other processes and into messages.
"""

from __future__ import annotations

import os
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

from ...storage_schemas.errors import MissingDependency, StorageError, TeachonceError
from .bucket_errors import as_clear_error
from .bucket_name import Bucket

#: Seconds until a connection must stand, a stream of bytes may pause, and one request may take in all.
CONNECT_SECONDS, PAUSE_SECONDS, REQUEST_SECONDS = 5, 20, 600

#: How often a request is sent again, and for how many seconds at most; waits begin with a tenth of a second and double.
RETRIES, RETRY_SECONDS, FIRST_WAIT, LONGEST_WAIT = 8, 120, 0.1, 10.0

#: Any of these in the environment: obstore finds the credentials by itself.
_AWS_KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SKIP_SIGNATURE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)

#: Where AWS's own tools keep profiles, and the variables that say otherwise.
_AWS_FILES = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}

#: Of this process. A client does not outlive a fork.
_clients: dict[tuple[int, Bucket], Any] = {}
_conditions: dict[Bucket, bool] = {}
_making = threading.Lock()


def client(bucket: Bucket) -> Any:
    """The client of a bucket, made once in each process.

    Raises:
        MissingDependency: obstore is not installed, or boto3 for a profile.
        StorageError: no credentials are found.
    """
    key = (os.getpid(), bucket)
    found = _clients.get(key)
    if found is None:
        with _making:
            found = _clients.get(key)
            if found is None:
                found = _clients[key] = _open(bucket)
    return found


def forget(bucket: Bucket) -> None:
    """Make the client anew when it is needed next."""
    _clients.pop((os.getpid(), bucket), None)
    _conditions.pop(bucket, None)


def knows_conditions(bucket: Bucket, found: bool | None = None) -> bool | None:
    """Whether the store writes on conditions (put if absent, put if unchanged), as found out in this process; None: not yet."""
    if found is not None:
        _conditions[bucket] = found
    return _conditions.get(bucket)


def _open(bucket: Bucket) -> Any:
    try:
        from obstore import store
    except ImportError as error:
        raise MissingDependency(f"{bucket.scheme}:// needs obstore", "pip install 'teachonce[urls]'") from error
    retry_config: Any = {
        "max_retries": RETRIES,
        "backoff": {"init_backoff": timedelta(seconds=FIRST_WAIT), "max_backoff": timedelta(seconds=LONGEST_WAIT)},
        "retry_timeout": timedelta(seconds=RETRY_SECONDS),
    }
    client_options: Any = {
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        "read_timeout": timedelta(seconds=PAUSE_SECONDS),
        "timeout": timedelta(seconds=REQUEST_SECONDS),
    }
    if bucket.endpoint.startswith("http://") or os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("true", "1"):
        client_options["allow_http"] = True
    given: dict[str, Any] = {"retry_config": retry_config, "client_options": client_options}
    try:
        if bucket.scheme == "s3":
            return store.S3Store(bucket.bucket, **given, **_aws(bucket))
        if bucket.scheme == "gs":
            return store.GCSStore(bucket.bucket, **given)
        endpoint = {"endpoint": bucket.endpoint} if bucket.endpoint else {}
        return store.AzureStore(bucket.bucket, **given, **endpoint)
    except TeachonceError:
        raise
    except Exception as error:
        raise as_clear_error(error, where=bucket.address(""), verb="read") from None


def _aws(bucket: Bucket) -> dict[str, Any]:
    given: dict[str, Any] = {"endpoint": bucket.endpoint} if bucket.endpoint else {}
    if any(os.environ.get(name) for name in _AWS_KEYS) or not _has_profile():
        return given
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise MissingDependency("credentials of AWS's own files need boto3", "pip install boto3") from error
    import boto3

    try:
        # boto3 renews what runs out as it is asked, and it is asked that often.
        provider = Boto3CredentialProvider(boto3.Session(), ttl=timedelta(minutes=5))
    except Exception as error:  # of botocore's own, such as a profile that is not there
        raise StorageError(
            "no credentials in AWS's own files",
            code="bucket-credentials-missing",
            where=bucket.address(""),
            found=error,
            hint="check AWS_PROFILE and ~/.aws, or export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ) from None
    return {**given, "credential_provider": provider}


def _has_profile() -> bool:
    if os.environ.get("AWS_PROFILE"):
        return True
    files = (os.environ.get(name) or usual for name, usual in _AWS_FILES.items())
    return any(Path(file).expanduser().exists() for file in files)
