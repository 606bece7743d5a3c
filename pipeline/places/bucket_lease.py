"""Owns locks in buckets: a lease beside the locked name, which its holder renews, and which a dead holder loses.

A lease is a small object, `.NAME.lease`. It is made by a PUT that succeeds only where there is none, and renewed every
`BEAT_SECONDS` by one that succeeds only where it is as it was (by its ETag), with other bytes each time. Nobody compares clocks: who
finds a lease looks at it again, and takes it over once it has not changed for `LEASE_SECONDS` by his own watch. Of a process of
this machine it is known at once whether it still runs. A holder whose lease another one has taken writes no more.

A store that does not know such PUTs, or ignores their conditions, has no locks: this is tried out on the lease itself. Some (Ceph's
gateway of 2021) compare a condition's ETag without its quotes: those get it so.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import uuid
from typing import Any, Literal

from ...storage_schemas.errors import BusyError, StorageError
from .bucket_client import client, knows_conditions
from .bucket_errors import ask, asking, is_condition_unknown, is_other_version, is_taken
from .bucket_name import Bucket
from .files import read_file
from .place import NoLocksError

#: A lease is renewed so often, and lost after so long without that.
BEAT_SECONDS, LEASE_SECONDS = 10.0, 60.0

#: Between two looks at another one's.
LOOK_SECONDS = 0.5

#: Buckets of stores that compare a condition's ETag without its quotes, as found out in this process.
_bare_tags: set[Bucket] = set()

#: Leases of this process.
_held: dict[Bucket, list[_Lease]] = {}


def is_lease(name: str) -> bool:
    """Whether the last part of a name is that of a lease."""
    return name.startswith(".") and name.endswith(".lease")


def hold(bucket: Bucket, name: str, content: bytes) -> _Lease | None:
    """`Place.hold`.

    Raises:
        NoLocksError: the store does not write on conditions.
    """
    if knows_conditions(bucket) is False:
        raise NoLocksError("the object store does not write on conditions")
    lease = _Lease(bucket, name)
    while True:
        try:
            if lease.make():
                break
            found = lease.look()
            if found is None:
                continue  # let go of between the two
            lives = found.lives()
            if lives or (lives is None and not _stays_unchanged(lease, found)):
                return None
            if lease.replace(found.version):
                break
        except NoLocksError:
            knows_conditions(bucket, False)
            raise
    lease.start()
    try:
        lease.write(content)
    except BaseException:
        lease.release()
        raise
    return lease


def is_held(bucket: Bucket, name: str) -> bool:
    """`Place.is_held`, for people who look: by the clocks of this machine and the store, and what runs here."""
    found = _Lease(bucket, name).look()
    if found is None:
        return False
    lives = found.lives()
    return time.time() - found.written_at < LEASE_SECONDS if lives is None else lives


def check_leases(bucket: Bucket) -> None:
    """Before each write: this process still has what it holds there.

    Raises:
        BusyError: another process has taken it over.
    """
    for lease in _held.get(bucket, ()):
        lease.check()


def _stays_unchanged(lease: _Lease, found: _Found) -> bool:
    """Watch another one's lease until it is renewed (False), or has not been for as long as one lasts (True)."""
    start = time.monotonic()
    has_said = False
    while time.monotonic() - start < LEASE_SECONDS:
        time.sleep(LOOK_SECONDS)
        now = lease.look()
        if now is None or now.version != found.version:
            return now is None
        if not has_said and time.monotonic() - start > BEAT_SECONDS * 1.5:
            has_said = True
            print(
                f"{lease.where}: its holder is silent; taken over in {LEASE_SECONDS - BEAT_SECONDS * 1.5:.0f} s unless it is back",
                file=sys.stderr,
            )
    return True


class _Found:
    """A lease as it lies there."""

    def __init__(self, data: bytes, meta: Any) -> None:
        self.version: dict[str, str] = _version(meta)
        self.written_at: float = meta["last_modified"].timestamp()
        try:
            fields = json.loads(data)
            self.token, self._machine = str(fields["token"]), str(fields["machine"])
            self._pid, self._began = int(fields["pid"]), str(fields["began"])
        except (ValueError, KeyError, TypeError):
            self.token = self._machine = self._began = ""
            self._pid = 0

    def lives(self) -> bool | None:
        """Whether its process still runs; None where it is one of another machine, or of this one before its last start."""
        return _began(self._pid) == self._began if self._machine and self._machine == _machine() else None


class _Lease:
    """One that this process holds, or tries to get."""

    def __init__(self, bucket: Bucket, name: str) -> None:
        folder, slash, last = name.rpartition("/")
        self._bucket, self._name, self._lease = bucket, name, f"{folder}{slash}.{last}.lease"
        self._token, self._beat = uuid.uuid4().hex, 0
        self._version: dict[str, str] = {}
        self._renewed_at = time.monotonic()
        self._is_lost = False
        self._turn = threading.Lock()
        self._ended = threading.Event()

    @property
    def where(self) -> str:
        return self._bucket.address(self._name)

    def make(self) -> bool:
        """Make it where there is none.

        Raises:
            NoLocksError: the store does not write on conditions, or says so and writes all the same.
        """
        made = self._put("create")
        if made and knows_conditions(self._bucket) is None:
            # Twice what must fail. A store that ignores conditions would let everybody in.
            if self._put("create", keep=False) or self._put({"e_tag": '"0"', "version": "0"}, keep=False):
                self._remove(self._lease)
                raise NoLocksError("the object store ignores conditions on writing")
            try:
                if not self._put(self._version):  # and once what must not
                    return False
            except NoLocksError:
                self._remove(self._lease)
                raise
            knows_conditions(self._bucket, True)
        return made

    def replace(self, version: dict[str, str]) -> bool:
        """Take over what is still of this version."""
        return self._put(version)

    def look(self) -> _Found | None:
        """What lies there now."""
        try:
            return ask(self.where, "read", self._read)
        except FileNotFoundError:
            return None

    def _read(self) -> _Found:
        found = _obstore().get(client(self._bucket), self._lease)
        return _Found(bytes(found.bytes()), found.meta)

    def start(self) -> None:
        """From now on it is renewed, and `check_leases` minds it."""
        _held.setdefault(self._bucket, []).append(self)
        threading.Thread(target=self._renew_on, name="lease", daemon=True).start()

    def write(self, content: bytes) -> None:
        """What the locked name has in it."""
        ask(self.where, "write", lambda: _obstore().put(client(self._bucket), self._name, content))

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            ask(self.where, "delete", lambda: _obstore().delete(client(self._bucket), name))

    def check(self) -> None:
        """Renew it at once where that is due for long, as after a machine's sleep.

        Raises:
            BusyError: another process has taken it over.
        """
        if not self._is_lost and time.monotonic() - self._renewed_at > LEASE_SECONDS * 0.8:
            self._renew()
        if self._is_lost:
            raise BusyError(
                "another command has taken this one's place: its lock was not renewed in time",
                code="lock-lost",
                where=self.where,
                expected=f"a renewal every {BEAT_SECONDS:.0f} s",
                found=f"none for {LEASE_SECONDS:.0f} s or more",
                hint="wait for the other one, or end it, then run the same command again",
            )

    def release(self) -> None:
        """Let go of it, unless another process has it."""
        self._ended.set()
        with self._turn:
            _held.get(self._bucket, [self]).remove(self)
            if self._is_lost:
                return
            with contextlib.suppress(StorageError):  # then it runs out
                self._remove(self._name)
                self._remove(self._lease)

    def _renew_on(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self._renew()

    def _renew(self) -> None:
        with self._turn, contextlib.suppress(StorageError, OSError):  # no answer now: there are more beats to come
            if self._ended.is_set() or self._is_lost:
                return
            if not self._put(self._version):
                self._is_lost = True

    def _put(self, on: dict[str, str] | Literal["create"], *, keep: bool = True) -> bool:
        """Write it where it is of a version, or where there is none. False: the condition does not hold.

        Raises:
            NoLocksError: the store does not write on such a condition.
        """
        self._beat += 1
        fields = {"token": self._token, "beat": self._beat, "machine": _machine()}
        fields |= {"pid": os.getpid(), "began": _began(os.getpid())}
        data = json.dumps(fields).encode() + b"\n"
        with asking(self.where, "write") as asked:
            while True:
                mode: Any = _bare(on) if on != "create" and self._bucket in _bare_tags else on
                try:
                    put = _obstore().put(client(self._bucket), self._lease, data, mode=mode)
                except Exception as error:
                    if is_condition_unknown(error):
                        raise NoLocksError("the object store does not write on conditions") from error
                    if is_taken(error) or is_other_version(error):
                        found = self.look() if keep else None
                        if found is not None and found.version == on:  # it is what the condition says
                            if self._bucket in _bare_tags:
                                _bare_tags.discard(self._bucket)
                                raise NoLocksError("the object store does not replace on conditions") from error
                            _bare_tags.add(self._bucket)
                            continue
                        # An answer may have been lost: then what lies there is what was just written.
                        if found is None or found.token != self._token:
                            return False
                        self._version, self._renewed_at = found.version, time.monotonic()
                        return True
                    asked.again(error)
                else:
                    if keep:
                        self._version, self._renewed_at = _version(put), time.monotonic()
                    return True


def _version(found: Any) -> dict[str, str]:
    """What a store distinguishes versions by, as a condition takes it."""
    given = {key: found[key] for key in ("e_tag", "version")}
    return {key: value for key, value in given.items() if value is not None}


def _bare(version: dict[str, str]) -> dict[str, str]:
    """The same, its ETag without quotes."""
    return {key: value.strip('"') if key == "e_tag" else value for key, value in version.items()}


def _machine() -> str:
    """This machine since its last start, and the space in which its processes have numbers; '' where that is not known."""
    try:
        boot = read_file(b"/proc/sys/kernel/random/boot_id").decode().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115
    except OSError:
        return ""


def _began(pid: int) -> str:
    """When a process began, in ticks since the machine did; '' where there is none, or only its remains."""
    try:
        fields = read_file(f"/proc/{pid}/stat".encode()).rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def _obstore() -> Any:
    import obstore

    return obstore
