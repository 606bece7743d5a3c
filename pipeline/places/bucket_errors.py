"""Owns what an object store's refusals mean, in one clear line. Of what it answers only its code is shown: the rest may name keys."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from ...storage_schemas.errors import StorageError, TeachonceError, Unreachable

#: How often a request that the library gave up is made again as a whole, such as one whose answer was cut off; the seconds before
#: the first time, which double; and how long after the first one no other is made.
TRIES, FIRST_WAIT, AGAIN_SECONDS = 5, 0.25, 30.0

Result = TypeVar("Result")

_CODE = re.compile(r"<Code>(\w+)</Code>|\bx-ms-error-code\W+(\w+)|\"reason\": *\"(\w+)\"|\(code: (\w+)\)")
_STATUS = re.compile(r"status code: (\d{3})")
_REGION = re.compile(r"<Region>([\w-]+)</Region>|region '?([a-z]{2}(?:-[a-z]+)+-\d)")


class _Refusal(NamedTuple):
    what: str
    code: str
    hint: str


_MISSING = _Refusal(
    "no such bucket", code="bucket-missing", hint="check its name, or create it; --endpoint names another server"
)
_EXPIRED = _Refusal(
    "the credentials have expired",
    code="bucket-credentials-expired",
    hint="renew them, then run the same command again; what was finished is kept",
)
_REFUSED = _Refusal(
    "the object store does not accept the credentials",
    code="bucket-credentials-refused",
    hint="check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the cloud's own",
)
_NONE = _Refusal(
    "no credentials for the object store",
    code="bucket-credentials-missing",
    hint="export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; of a public bucket: export AWS_SKIP_SIGNATURE=true",
)
_CLOCK = _Refusal(
    "the clock of this machine is off: the object store refuses its signatures",
    code="clock-off",
    hint="set the clock (timedatectl set-ntp true), then run the same command again",
)
_REGION_OTHER = _Refusal(
    "the bucket is in another region", code="bucket-region-other", hint="export AWS_REGION to the bucket's region"
)
_FULL = _Refusal(
    "the object store is full", code="bucket-full", hint="free some space, then run the same command again"
)

#: By the code in the store's answer.
_BY_CODE = {
    "NoSuchBucket": _MISSING,
    "ContainerNotFound": _MISSING,
    "InvalidBucketName": _MISSING,
    "ExpiredToken": _EXPIRED,
    "RequestExpired": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "InvalidAccessKeyId": _REFUSED,
    "SignatureDoesNotMatch": _REFUSED,
    "InvalidToken": _REFUSED,
    "InvalidClientTokenId": _REFUSED,
    "AuthenticationFailed": _REFUSED,
    "RequestTimeTooSkewed": _CLOCK,
    "AuthorizationHeaderMalformed": _REGION_OTHER,
    "PermanentRedirect": _REGION_OTHER,
    "IllegalLocationConstraintException": _REGION_OTHER,
    "QuotaExceeded": _FULL,
    "XMinioStorageFull": _FULL,
    "InsufficientCapacity": _FULL,
}


#: A whole object, or other bytes of it, in answer to a request for some; that is no failure on the way.
_NO_PARTS = re.compile(r"non-partial response when range requested|Requested \d+\.\.\d+, got \d+\.\.\d+")

#: What obstore puts before the reason of an error that has no kind of its own.
_GENERIC = re.compile(r"^Generic \w+ error: ")

_FORBIDDEN = ("AccessDenied", "AllAccessDisabled", "AuthorizationPermissionMismatch")


class Asked:
    """One request, or one and those that take its place."""

    def __init__(self, where: str, verb: str) -> None:
        self._where, self._verb, self._tries, self._start = where, verb, 0, time.monotonic()
        self.reason: Exception | None = None

    def again(self, error: Exception) -> None:
        """Wait before the same request is made again.

        Raises:
            Exception: the error, where another try would end as this one, or it was the last.
        """
        self._tries += 1
        if self._tries >= TRIES or not is_passing(error) or time.monotonic() - self._start > AGAIN_SECONDS:
            raise error
        time.sleep(FIRST_WAIT * 2 ** (self._tries - 1))

    def explain(self, error: Exception, request: Callable[[], object]) -> None:
        """Ask once more by a request whose answer says why, where this one's did not."""
        if _CODE.search(str(error)) is None and not is_passing(error):
            try:
                request()
            except Exception as reason:
                if not isinstance(reason, FileNotFoundError):
                    self.reason = reason


@contextlib.contextmanager
def asking(where: str, verb: str) -> Iterator[Asked]:
    """What the library raises inside becomes the errors of the Protocol.

    Args:
        where: the object or folder, for messages.
        verb: what is done to it: read, list, write, delete.
    """
    asked = Asked(where, verb)
    try:
        yield asked
    except (TeachonceError, GeneratorExit, KeyboardInterrupt):
        raise
    except FileNotFoundError as error:
        if _code(error) in _BY_CODE:
            raise as_clear_error(error, where=where, verb=verb) from None
        raise FileNotFoundError(2, "No such file", where) from None
    except Exception as error:
        if not is_of_the_library(error):
            raise
        raise as_clear_error(asked.reason or error, where=where, verb=verb) from None


def ask(where: str, verb: str, request: Callable[[], Result]) -> Result:
    """`asking`, for a request that may be made twice."""
    with asking(where, verb) as asked:
        while True:
            try:
                return request()
            except Exception as error:
                asked.again(error)


def as_clear_error(error: Exception, *, where: str, verb: str) -> TeachonceError:
    """The error for what a store answered, or that it did not."""
    text = str(error)
    code, status = _code(error), _status(error)
    refusal = _BY_CODE.get(code or "")
    if refusal is None:
        if "169.254.169.254" in text or "metadata.google" in text or "Missing AccessKeyId" in text:
            refusal = _NONE
        elif "Missing SecretAccessKey" in text or "Account must be specified" in text or status == 401:
            refusal = _NONE if status is None else _REFUSED
        elif "Received redirect without LOCATION" in text or status in (301, 307, 308):
            refusal = _REGION_OTHER
        elif status == 507:
            refusal = _FULL
    if refusal is not None:
        region = _REGION.search(text) if refusal is _REGION_OTHER else None
        name = None if region is None else region[1] or region[2]
        return StorageError(
            refusal.what,
            code=refusal.code,
            where=where,
            found=name or code,
            hint=refusal.hint if name is None else f"export AWS_REGION={name}",
        )
    if status == 403 or code in _FORBIDDEN:
        return StorageError(
            f"no permission to {verb}",
            code="bucket-permission-denied",
            where=where,
            found=code or "HTTP 403",
            hint=f"ask the bucket's owner for the right to {verb} there, then run the same command again",
        )
    if _NO_PARTS.search(text):
        return StorageError(
            "this server does not serve parts of objects as S3 does",
            code="bucket-without-ranges",
            where=where,
            expected="an answer 206 with the bytes that were asked for",
            found=_found(error),
            hint="use another server or a newer version of it",
        )
    if is_passing(error):
        return Unreachable(
            "the object store does not answer as it should",
            code="bucket-unreachable",
            where=where,
            found=_found(error),
            hint="check the network and the endpoint, then run the same command again; what was finished is kept",
        )
    if _kind(error) == "PreconditionError":
        return StorageError(
            "an object was written anew while it was read",
            code="object-changed",
            where=where,
            hint="see to it that nothing else writes there, then run the same command again",
        )
    return StorageError(
        f"the object store refuses to {verb}",
        code="bucket-refuses",
        where=where,
        found=_found(error),
        hint="check the bucket's settings, then run the same command again",
    )


def is_passing(error: Exception) -> bool:
    """Whether the same request may get an answer later: no answer, half of one, or that the store is busy."""
    if isinstance(error, (FileNotFoundError, ValueError, TeachonceError)) or _kind(error) in _FINAL:
        return False
    status = _status(error)
    if _code(error) in (*_BY_CODE, *_FORBIDDEN) or _NO_PARTS.search(str(error)):
        return False
    return status is None or (status >= 500 and status != 501) or status in (408, 429) or _code(error) == "SlowDown"


#: Errors of obstore's that another try does not change.
_FINAL = {
    "AlreadyExistsError",
    "PreconditionError",
    "NotModifiedError",
    "PermissionDeniedError",
    "UnauthenticatedError",
    "NotSupportedError",
    "InvalidPathError",
    "UnknownConfigurationKeyError",
}


def is_taken(error: Exception) -> bool:
    """Whether something has the name already that was to be written where nothing has it."""
    return _kind(error) == "AlreadyExistsError" or (_kind(error) == "PreconditionError" and _status(error) != 404)


def is_other_version(error: Exception) -> bool:
    """Whether what was to be replaced is no longer the one that was seen."""
    return _kind(error) == "PreconditionError" or isinstance(error, FileNotFoundError)


def is_past_the_end(error: Exception) -> bool:
    """Whether a range was asked for that begins where the object ends, or later."""
    return _status(error) == 416


def is_condition_unknown(error: Exception) -> bool:
    """Whether the store does not know conditions on writing."""
    return _kind(error) == "NotSupportedError" or _status(error) == 501 or _code(error) == "NotImplemented"


def is_of_the_library(error: Exception) -> bool:
    """Whether obstore raised it."""
    return type(error).__module__.startswith("obstore") or isinstance(error, OSError)


def _kind(error: Exception) -> str:
    return type(error).__name__


def _code(error: Exception) -> str | None:
    found = _CODE.search(str(error))
    return None if found is None else next(filter(None, found.groups()))


def _status(error: Exception) -> int | None:
    found = _STATUS.search(str(error))
    return None if found is None else int(found[1])


def _found(error: Exception) -> str:
    """What went wrong, without addresses, bodies or anything that might hold a secret."""
    status, code = _status(error), _code(error)
    if status is not None:
        return f"HTTP {status}" + (f" {code}" if code else "")
    text = str(error).partition("\n")[0]
    reason = text.rpartition(" - ")[2] if " - " in text else (_GENERIC.sub("", text) or _kind(error))
    return re.sub(r"https?://\S+", "…", reason)[:100]
