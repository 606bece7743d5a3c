"""A bucket behind a proxy that fails: what was written is whole, what cannot be had is one clear line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
from teachonce.pipeline.driver import only_driver
from teachonce.pipeline.places import bucket as bucket_module
from teachonce.pipeline.places import bucket_client, bucket_errors
from teachonce.pipeline.places.place import NoLocksError
from teachonce.pipeline.storage import Location, s3_endpoint
from teachonce.storage_schemas.errors import StorageError, Unreachable

FAULTS = ("500", "503", "slow down", "stall", "cut body", "lose request", "lose answer", "cut answer")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of a hundredth."""
    monkeypatch.setattr(bucket_client, "PAUSE_SECONDS", 0.3)
    monkeypatch.setattr(bucket_client, "FIRST_WAIT", 0.002)
    monkeypatch.setattr(bucket_client, "LONGEST_WAIT", 0.05)
    monkeypatch.setattr(bucket_errors, "FIRST_WAIT", 0.005)


@pytest.fixture
def behind(object_proxy: ModuleType, object_store: Any, bucket: str) -> Iterator[Callable[..., tuple[Any, Location]]]:
    """`behind(share=…)`: a proxy, and a folder in the bucket behind it."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def one(**settings: Any) -> tuple[Any, Location]:
            proxy = object_proxy.Proxy(object_store.endpoint, stall=0.6, **settings)
            stack.enter_context(proxy.running())
            stack.enter_context(s3_endpoint(proxy.endpoint))
            return proxy, Location.of(bucket) / "root"

        yield one


@pytest.mark.parametrize("kind", FAULTS)
def test_every_verb_survives_every_fault(kind, behind, bucket, object_store, monkeypatch):
    monkeypatch.setattr(bucket_module, "PART_BYTES", 5 << 20)
    proxy, root = behind(share=0.3, kinds=(kind,), seed=FAULTS.index(kind))
    data = os.urandom(40_000)
    for number in range(4):
        file = root / f"{number}.bin"
        file.write_bytes(data)
        assert file.read_bytes() == data
        assert (file.size(), file.read_range(39_990, 20)) == (40_000, data[-10:])
        assert (root / "plan" / f"{number}").write_if_absent(b"mine")
        assert not (root / "plan" / f"{number}").write_if_absent(b"yours")
        held = (root / "ledger" / "driver.json").hold(b"me")
        assert held is not None
        assert (root / "ledger" / "driver.json").hold(b"you") is None
        held.release()
    large = os.urandom(11 << 20)
    with (root / "large.bin").create() as writer:
        writer.write(large)
    assert (root / "large.bin").read_bytes() == large
    assert (root / "none").stat() is None
    assert sorted(root.entries(deep=True)) == sorted(
        ["large.bin", *(f"{n}.bin" for n in range(4)), *(f"plan/{n}" for n in range(4))]
    )
    (root / "0.bin").remove()
    (root / "plan").remove_folder()
    assert root.names() == ["1.bin", "2.bin", "3.bin", "large.bin"]
    assert proxy.failed[kind] >= 3


def test_one_driver_at_a_time_whatever_is_lost(behind):
    """Leases by conditional PUTs whose answers are lost: their holder knows what is his."""
    _, root = behind(share=0.4, kinds=("lose answer",), seed=5)
    for number in range(10):
        with only_driver(root / f"{number}", "teachonce cache"):
            held = (root / f"{number}" / "ledger" / "driver.json").hold(b"")
            assert held is None
        assert not (root / f"{number}").exists()


def test_of_many_first_writers_one_is_the_first_whatever_is_lost(behind):
    _, root = behind(share=0.3, kinds=("lose answer", "lose request", "500"), seed=7)
    for turn in range(5):
        with ThreadPoolExecutor(6) as threads:
            first = list(threads.map(lambda n, turn=turn: (root / f"{turn}").write_if_absent(b"%d" % n), range(6)))
        assert sum(first) == 1
        assert (root / f"{turn}").read_bytes() == b"%d" % first.index(True)


def test_a_server_that_never_answers_as_it_should(behind, monkeypatch):
    monkeypatch.setattr(bucket_client, "RETRIES", 2)
    proxy, root = behind(share=1.0, kinds=("slow down",))
    with pytest.raises(Unreachable) as error:
        (root / "a").write_bytes(b"x")
    assert str(error.value).startswith(
        f"the object store does not answer as it should: {root}/a: found HTTP 503 SlowDown. Next: check the network and the endpoint"
    )
    assert len(proxy.seen) == 3 * bucket_errors.TRIES
    proxy.share = 0.0
    assert not (root / "a").exists()


def test_nobody_at_the_endpoint(bucket, monkeypatch):
    monkeypatch.setattr(bucket_client, "RETRIES", 1)
    with s3_endpoint("http://127.0.0.1:9"):
        root = Location.of(bucket) / "root"
        with pytest.raises(Unreachable) as error:
            root.exists()
    assert error.value.code == "bucket-unreachable"
    assert str(error.value.where) == str(root)


@pytest.mark.parametrize(
    ("when", "answer", "act", "line"),
    [
        ("PUT", (403, "AccessDenied"), "write", "no permission to write: {root}/a: found AccessDenied. Next: ask "),
        ("GET", (403, "AccessDenied"), "read", "no permission to read: {root}/old: found AccessDenied. Next: ask "),
        ("list", (403, "AccessDenied"), "list", "no permission to list: {root}: found AccessDenied. Next: ask "),
        ("HEAD", (403, "AccessDenied"), "stat", "no permission to read: {root}/old: found HTTP 403. Next: ask "),
        (
            "POST",
            (403, "AccessDenied"),
            "remove",
            "no permission to delete: {root}/old: found AccessDenied. Next: ask ",
        ),
        (
            "",
            (400, "ExpiredToken"),
            "stat",
            "the credentials have expired: {root}/old: found ExpiredToken. Next: renew them",
        ),
        (
            "",
            (403, "RequestTimeTooSkewed"),
            "stat",
            "the clock of this machine is off: the object store refuses its signatures: {root}/old: ",
        ),
        ("", (403, "SignatureDoesNotMatch"), "write", "the object store does not accept the credentials: {root}/a: "),
        (
            "",
            (400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"),
            "stat",
            "the bucket is in another region: {root}/old: found eu-west-1. Next: export AWS_REGION=eu-west-1",
        ),
        ("", (301, "PermanentRedirect"), "write", "the bucket is in another region: {root}/a"),
        ("", (404, "NoSuchBucket"), "write", "no such bucket: {root}/a: found NoSuchBucket. Next: check its name"),
        ("", (404, "NoSuchBucket"), "stat", "no such bucket: {root}/old: found NoSuchBucket. Next: check its name"),
        ("", (507, "XMinioStorageFull"), "write", "the object store is full: {root}/a: "),
    ],
)
def test_what_a_server_refuses_is_one_line(when, answer, act, line, behind, object_proxy, monkeypatch):
    monkeypatch.setattr(bucket_client, "RETRIES", 1)
    monkeypatch.setattr(bucket_errors, "TRIES", 1)
    proxy, root = behind()
    (root / "old").write_bytes(b"x")
    acts = {
        "write": lambda: (root / "a").write_bytes(b"x"),
        "read": lambda: (root / "old").read_bytes(),
        "list": lambda: root.names(),
        "stat": lambda: (root / "old").exists(),
        "remove": lambda: (root / "old").remove(),
    }
    proxy.rule = lambda request: (
        object_proxy.Answer(*answer) if when in ("", "list" if request.is_list else request.method) else None
    )
    with pytest.raises(StorageError) as error:
        acts[act]()
    assert str(error.value).startswith(line.format(root=root))
    proxy.rule = lambda request: None
    assert ((root / "old").read_bytes(), root.names()) == (b"x", ["old"])


@pytest.mark.parametrize("kind", ["refuses", "ignores", "ignores If-Match"])
def test_a_store_without_conditional_writes_has_no_locks(kind, behind, object_proxy, capsys):
    """It says so, or, worse, does not: old MinIO and Ceph wrote whatever the condition was."""
    proxy, root = behind()

    def without(request: Any) -> Any:
        conditions = [name for name in request.headers if name.lower() in ("if-match", "if-none-match")]
        if kind == "refuses" and conditions:
            return object_proxy.Answer(501, "NotImplemented")
        for name in conditions:
            if kind == "ignores" or name.lower() == "if-match":
                del request.headers[name]
        return None

    proxy.rule = without
    with pytest.raises(NoLocksError):
        (root / "driver.json").hold(b"me")
    assert list(root.entries(deep=True)) == []
    with only_driver(root, "teachonce cache"):
        pass
    assert capsys.readouterr().err == (
        f"{root}: this object store has no conditional writes, so no locks: see to it that no other command writes there\n"
    )
    assert [(root / "plan.json").write_if_absent(data) for data in (b"1", b"2")] == [True, False]
    assert (root / "plan.json").read_bytes() == b"1"
