"""What buckets add to the contract of places: URLs, locks that a dead holder loses, first writers whose answers are lost."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time

import obstore
import pytest
from teachonce.pipeline.driver import Driver, drivers_of, only_driver
from teachonce.pipeline.places import bucket as bucket_module
from teachonce.pipeline.places import bucket_client, bucket_lease, bucket_log
from teachonce.pipeline.places.bucket import BucketPlace
from teachonce.pipeline.places.place import NoLocksError
from teachonce.pipeline.storage import Location, handed_on, s3_endpoint
from teachonce.storage_schemas.errors import BusyError, InputError, StorageError, TeachonceError


@pytest.fixture
def root(bucket: str) -> Location:
    return Location.of(bucket) / "root"


# --- URLs


@pytest.mark.parametrize(
    ("url", "line"),
    [
        (
            "s3://AKIAKEY:hush@photos/a",
            "credentials in a URL are refused: commands, logs and files keep URLs: s3://…@photos/…. Next: ",
        ),
        (
            "s3://photos/a?X-Amz-Signature=hush",
            "credentials in a URL are refused: commands, logs and files keep URLs: s3://photos/…",
        ),
        (
            "az://photos/a?sv=1&sig=hush",
            "credentials in a URL are refused: commands, logs and files keep URLs: az://photos/…",
        ),
        ("s3:///a", "a URL without a bucket: s3:///a. Next: write s3://BUCKET/NAME"),
        (
            "gs://b/a//c",
            "no object can have this name: gs://b/a//c: expected parts that are neither empty nor dots, found a//c",
        ),
        ("gs://b/a/../c", "no object can have this name: gs://b/a/../c: "),
        (
            "file://host/a",
            "a file:// URL of another machine, or without a path: file://host/a: expected file:///PATH, found the machine 'host'",
        ),
    ],
)
def test_urls_that_are_refused(url, line):
    with pytest.raises(InputError) as error:
        Location.of(url)
    assert str(error.value).startswith(line)
    assert "hush" not in error.value.line


def test_urls_and_what_they_are(tmp_path, monkeypatch):
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert Location.of("s3://photos/a/b/") == Location(BucketPlace("s3", "photos"), "a/b")
    assert (Location.of("gs://photos").full_name, Location.of("az://c/x").address) == ("", "az://c/x")
    assert Location.of(f"file://{tmp_path}/a%20b") == Location.of(tmp_path / "a b")
    with s3_endpoint("http://127.0.0.1:9000/"):
        inside = Location.of("s3://photos/a")
        assert inside.place == BucketPlace("s3", "photos", "http://127.0.0.1:9000")
        assert handed_on()["AWS_ENDPOINT_URL_S3"] == "http://127.0.0.1:9000/"
    assert inside != Location.of("s3://photos/a")
    for endpoint, code in (("127.0.0.1:9000", "endpoint-malformed"), ("http://key:hush@host", "url-with-credentials")):
        with pytest.raises(InputError) as error, s3_endpoint(endpoint):
            pass
        assert (error.value.code, "hush" in error.value.line) == (code, False)
    assert "AWS_ENDPOINT_URL_S3" not in os.environ


def test_a_bucket_goes_to_other_processes_without_its_credentials(root, object_store):
    (root / "a").write_bytes(b"x")
    sent = pickle.dumps(root / "a")
    assert (pickle.loads(sent), object_store.secret.encode() in sent) == (root / "a", False)
    assert pickle.loads(sent).read_bytes() == b"x"


def test_credentials_of_awss_own_files(root, object_store, tmp_path, monkeypatch):
    """Signed by the keys of a profile, in a process that has no others."""
    keys = f"aws_access_key_id = {object_store.key}\naws_secret_access_key = {object_store.secret}\n"
    (tmp_path / "credentials").write_text(f"[work]\n{keys}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "work")
    (root / "a").write_bytes(b"x")
    assert (root / "a").read_bytes() == b"x"
    assert bucket_client.client(root.place).credential_provider().get("access_key_id") == object_store.key  # type: ignore[arg-type]
    monkeypatch.setenv("AWS_PROFILE", "play")
    bucket_client.forget(root.place)  # type: ignore[arg-type]
    with pytest.raises(StorageError) as error:
        (root / "a").read_bytes()
    assert error.value.code == "bucket-credentials-missing"


# --- what is written


def test_large_files_go_in_parts(root, monkeypatch):
    monkeypatch.setattr(bucket_module, "PART_BYTES", 5 << 20)
    data = os.urandom(12 << 20)
    with (root / "made.bin").create() as file:
        for start in range(0, len(data), 1 << 20):
            file.write(data[start : start + (1 << 20)])
    (root / "written.bin").write_bytes(data)
    for name in ("made.bin", "written.bin"):
        assert (root / name).read_bytes() == data
        assert (root / name).read_range(6 << 20, 10) == data[6 << 20 :][:10]
        # The ETag of an object that came in parts ends with their number.
        assert root.place.version(f"root/{name}").strip('"').endswith("-3")  # type: ignore[attr-defined]


def test_a_first_writer_whose_answer_is_lost_is_still_the_first(root, monkeypatch):
    """The library sends it again, and is told that there is one: its own."""
    put = obstore.put
    lost: list[str] = []

    def lose_the_answer(store, name, data, **options):
        if options.get("mode") == "create" and not lost:
            lost.append(name)
            put(store, name, data, **options)
            raise obstore.exceptions.GenericError("Generic S3 error: connection closed before message completed")
        return put(store, name, data, **options)

    monkeypatch.setattr(obstore, "put", lose_the_answer)
    assert (root / "plan.json").write_if_absent(b"mine")
    assert lost == ["root/plan.json"]
    assert not (root / "plan.json").write_if_absent(b"yours")
    assert (root / "plan.json").read_bytes() == b"mine"


def test_an_object_that_is_written_anew_while_it_is_open(root):
    (root / "a.tar").write_bytes(b"0123456789")
    reader = (root / "a.tar").open_ranges()
    assert reader.read(2, 3) == b"234"
    (root / "a.tar").write_bytes(b"abcdefghij")
    with pytest.raises(StorageError) as error:
        reader.read(2, 3)
    assert (error.value.code, str(error.value.where)) == ("object-changed", str(root / "a.tar"))


def test_a_log_is_sent_now_and_then_and_at_the_end(root, monkeypatch):
    sent: list[int] = []
    write = BucketPlace.write
    monkeypatch.setattr(
        BucketPlace, "write", lambda self, name, data, **o: (sent.append(len(data)), write(self, name, data, **o))[1]
    )
    with (root / "log").append() as file:
        for _ in range(100):
            file.write(b"line\n")
            file.flush()
    assert sent == [5, 500]
    monkeypatch.setattr(bucket_log, "SECONDS_BETWEEN", 0.0)
    with (root / "log").append() as file:
        for _ in range(3):
            file.write(b"line\n")
            file.flush()
    assert (sent[2:], (root / "log").read_bytes()) == ([505, 510, 515], b"line\n" * 103)


# --- locks


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(bucket_lease, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(bucket_lease, "LEASE_SECONDS", 2.5)
    monkeypatch.setattr(bucket_lease, "LOOK_SECONDS", 0.05)


HOLD = """
import sys, time
from teachonce.pipeline.places import bucket_lease
from teachonce.pipeline.storage import Location
bucket_lease.BEAT_SECONDS = 0.1
print("held" if Location.of(sys.argv[1]).hold(b"me") else "busy", flush=True)
time.sleep(60)
"""


def holder(lock: Location) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, lock.address], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_killed_process_of_this_machine_holds_nothing_at_once(root):
    lock = root / "driver.json"
    process = holder(lock)
    try:
        assert (lock.is_held(), lock.hold(b"you")) == (True, None)
    finally:
        process.kill()
        process.communicate()
    assert not lock.is_held()
    held = lock.hold(b"you")
    assert held is not None
    assert (lock.is_held(), lock.read_bytes()) == (True, b"you")
    held.release()
    assert not root.exists()


def test_a_process_elsewhere_is_believed_while_it_renews(root, quick, monkeypatch):
    lock = root / "driver.json"
    process = holder(lock)
    try:
        monkeypatch.setattr(bucket_lease, "_machine", lambda: "another")
        assert (lock.is_held(), lock.hold(b"you")) == (True, None)
    finally:
        process.kill()
        process.communicate()
    start = time.monotonic()
    held = lock.hold(b"you")
    assert held is not None
    assert time.monotonic() - start >= 2.5  # not before the lease has run out
    assert lock.read_bytes() == b"you"
    held.release()
    assert not lock.exists()


def test_who_lost_the_lock_writes_no_more(root, quick, monkeypatch):
    lock = root / "driver.json"
    monkeypatch.setattr(bucket_lease._Lease, "_renew_on", lambda self: None)  # asleep
    held = lock.hold(b"me")
    assert held is not None
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(bucket_lease, "_machine", lambda: "another")
        other = bucket_lease._Lease(root.place, lock.full_name)  # type: ignore[arg-type]
        found = other.look()
        assert found is not None
        assert other.replace(found.version)
        other.write(b"you")
    time.sleep(2.1)
    for write in (
        lambda: (root / "a").write_bytes(b"x"),
        lambda: (root / "a").write_if_absent(b"x"),
        lambda: (root / "a").remove(),
    ):
        with pytest.raises(BusyError) as error:
            write()
        assert (error.value.code, str(error.value.where)) == ("lock-lost", str(lock))
    held.release()
    assert (lock.read_bytes(), (root / "a").exists()) == (b"you", False)


def test_a_holder_that_slept_and_was_not_missed_goes_on(root, quick, monkeypatch):
    monkeypatch.setattr(bucket_lease._Lease, "_renew_on", lambda self: None)
    held = (root / "driver.json").hold(b"me")
    assert held is not None
    time.sleep(2.2)
    (root / "a").write_bytes(b"x")
    held.release()
    assert root.names() == ["a"]


def test_a_server_that_compares_bare_etags(bucket, object_store, object_proxy, quick, monkeypatch):
    """As Ceph's gateway of 2021 does: the quotes of a condition are taken for a part of the ETag."""

    def compares(request):
        tag = next((value for name, value in request.headers.items() if name.lower() == "if-match"), "")
        if request.method == "PUT" and tag.startswith('"'):
            return object_proxy.Answer(412, "PreconditionFailed")
        if request.method == "PUT" and tag:
            request.headers.update({name: f'"{tag}"' for name in request.headers if name.lower() == "if-match"})
        return None

    with object_proxy.Proxy(object_store.endpoint, rule=compares).running() as proxy, s3_endpoint(proxy.endpoint):
        root = Location.of(bucket) / "root"
        lock = root / "driver.json"
        held = lock.hold(b"me")
        assert held is not None
        lease = bucket_lease._Lease(root.place, lock.full_name)  # type: ignore[arg-type]
        first = lease.look()
        time.sleep(0.5)
        assert first is not None
        assert lease.look().version != first.version  # type: ignore[union-attr]
        assert lock.hold(b"you") is None
        monkeypatch.setattr(bucket_lease, "_bare_tags", set())
        monkeypatch.setattr(bucket_lease._Lease, "_renew", lambda self: None)
        monkeypatch.setattr(bucket_lease, "_machine", lambda: "another")
        taken = lock.hold(b"you")  # once the first one's has run out
        assert taken is not None
        assert lock.read_bytes() == b"you"
        taken.release()
        held.release()


def test_a_server_that_replaces_on_no_condition_has_no_locks(bucket, object_store, object_proxy):
    def refuses(request):
        asked = request.method == "PUT" and "if-match" in {name.lower() for name in request.headers}
        return object_proxy.Answer(412, "PreconditionFailed") if asked else None

    with object_proxy.Proxy(object_store.endpoint, rule=refuses).running() as proxy, s3_endpoint(proxy.endpoint):
        root = Location.of(bucket) / "root"
        with pytest.raises(NoLocksError):
            (root / "driver.json").hold(b"me")
        assert root.names() == []


def test_a_command_is_refused_by_name_while_another_drives(root, capsys):
    with only_driver(root, "teachonce cache"):
        assert len(drivers_of(root)) == 1
        with pytest.MonkeyPatch.context() as patch:
            from teachonce.pipeline import driver

            patch.setattr(driver, "_held", set())
            with pytest.raises(BusyError) as error, only_driver(root, "teachonce distill"):
                pass
    assert isinstance(error.value.found, Driver)
    assert error.value.found.command == "teachonce cache"
    assert drivers_of(root) == []


# --- refusals


def refused(text: str) -> TeachonceError:
    from teachonce.pipeline.places.bucket_errors import as_clear_error

    return as_clear_error(obstore.exceptions.GenericError(text), where="s3://b/a", verb="write")


ANSWER = "Generic S3 error: Error performing PUT http://u:hush@h/b/a in 1ms - Server returned non-2xx status code: {}: <Error><Code>{}</Code><AWSAccessKeyId>hush</AWSAccessKeyId>{}</Error>"


@pytest.mark.parametrize("reason", ["Received non-partial response when range requested", "Requested 0..1, got 0..2"])
def test_a_server_that_answers_with_other_parts_than_it_was_asked_for(reason):
    """As `rclone serve s3` and s3rver do: trying again does not help."""
    from teachonce.pipeline.places.bucket_errors import is_passing

    assert str(refused(f"Generic S3 error: {reason}\n\nDebug source: …")) == (
        "this server does not serve parts of objects as S3 does: s3://b/a: expected an answer 206 with the bytes that were asked "
        f"for, found {reason}. Next: use another server or a newer version of it"
    )
    assert not is_passing(obstore.exceptions.GenericError(f"Generic S3 error: {reason}"))


@pytest.mark.parametrize(
    ("status", "code", "more", "line"),
    [
        (
            "400 Bad Request",
            "ExpiredToken",
            "",
            "the credentials have expired: s3://b/a: found ExpiredToken. Next: renew them, ",
        ),
        (
            "403 Forbidden",
            "RequestTimeTooSkewed",
            "",
            "the clock of this machine is off: the object store refuses its signatures: s3://b/a: ",
        ),
        (
            "403 Forbidden",
            "InvalidAccessKeyId",
            "",
            "the object store does not accept the credentials: s3://b/a: found InvalidAccessKeyId. ",
        ),
        (
            "403 Forbidden",
            "SignatureDoesNotMatch",
            "",
            "the object store does not accept the credentials: s3://b/a: found SignatureDoesNotMatch. ",
        ),
        (
            "403 Forbidden",
            "AccessDenied",
            "",
            "no permission to write: s3://b/a: found AccessDenied. Next: ask the bucket's owner for the right to write there",
        ),
        (
            "400 Bad Request",
            "AuthorizationHeaderMalformed",
            "<Region>eu-west-1</Region>",
            "the bucket is in another region: s3://b/a: found eu-west-1. Next: export AWS_REGION=eu-west-1",
        ),
        (
            "301 Moved",
            "PermanentRedirect",
            "",
            "the bucket is in another region: s3://b/a: found PermanentRedirect. Next: export AWS_REGION to",
        ),
        (
            "503 Slow Down",
            "SlowDown",
            "",
            "the object store does not answer as it should: s3://b/a: found HTTP 503 SlowDown. Next: check the network",
        ),
        ("507 Full", "XMinioStorageFull", "", "the object store is full: s3://b/a: "),
        (
            "405 Not Allowed",
            "MethodNotAllowed",
            "",
            "the object store refuses to write: s3://b/a: found HTTP 405 MethodNotAllowed. ",
        ),
    ],
)
def test_what_a_store_refuses_is_one_clear_line(status, code, more, line):
    error = refused(ANSWER.format(status, code, more))
    assert str(error).startswith(line)
    assert "hush" not in error.line


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (
            "Generic S3 error: Error performing HEAD http://h:5/b/a in 2s, after 8 retries - HTTP error: error sending request",
            "bucket-unreachable",
        ),
        ("Generic S3 error: Missing AccessKeyId", "bucket-credentials-missing"),
        (
            "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 1s - HTTP error",
            "bucket-credentials-missing",
        ),
    ],
)
def test_no_answer_and_no_credentials(text, code):
    assert refused(text).code == code
