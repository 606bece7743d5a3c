"""The whole way with every path an s3:// URL, in processes of their own: the same bytes as on the disk, however often it is killed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from teachonce.pipeline.storage import Location, s3_endpoint

pytestmark = pytest.mark.slow

TEACHER = ("--teacher", "timm:test_resnet", "--teacher-pretrained", "random", "--threads", 1)
STUDENT = ("--student", "timm:test_resnet", "--student-size", 32, "--recipe", "kd", "--batch-size", 4, "--threads", 1)
SERIAL = ("--executor", "serial")
ON_RAY = ("--executor", "ray", "--workers", 2)

FAULTS = ("500", "503", "slow down", "stall", "cut body", "lose request", "lose answer", "cut answer")

#: What no run repeats: seconds, and the moment of a line of the log.
TIMES = ("/timings/", "/run/", "/tensorboard/")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two classes of pictures, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos") / "photos"
    rng = np.random.default_rng(0)
    for index in range(36):
        path = folder / ("red fox", "house-cat")[index % 2] / f"{index:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        small.resize((60, 48), Image.Resampling.BICUBIC).save(path)
    (folder / "red fox" / "bad.jpg").write_bytes(b"")
    return folder


def commands(photos: Path, root: str, where: tuple[object, ...]) -> dict[str, tuple[object, ...]]:
    """The main way, step by step; `where` is the executor of those that take one."""
    shards, store, student = (f"{root}/{name}" for name in ("shards", "store", "student"))
    return {
        "shard": ("shard", photos, "--shard-size", 4, *where, "--out", shards),
        "vectors": ("vectors", *TEACHER, *SERIAL, "--out", store),
        "cache": ("cache", shards, *TEACHER, "--views", 2, *where, "--out", store),
        "distill": ("distill", shards, store, *STUDENT, "--epochs", 3, "--checkpoint-every", 5, "--out", student),
    }


@pytest.fixture(scope="module")
def on_disk(photos, run, tmp_path_factory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("disk") / "all"
    for words in commands(photos, str(root), SERIAL).values():
        run(*words)
    return files(Location.of(root))


def files(root: Location) -> dict[str, bytes]:
    names = [name for name in root.entries(deep=True) if not any(part in f"/{name}" for part in TIMES)]
    found = {name: (root / name).read_bytes() for name in sorted(names)}
    # The root of the store says where the shards are, under a seal.
    described = json.loads(found.pop("store/zarr.json"))
    about = described["attributes"]["cache"]
    assert about.pop("seal")
    assert about.pop("shards") == (root / "shards").address
    found["store/zarr.json"] = json.dumps(described).encode()
    return found


def same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, data in found.items() if data != expected[name]] == []


@pytest.mark.parametrize(
    "where", [pytest.param(SERIAL, id="serial"), pytest.param(ON_RAY, id="ray", marks=pytest.mark.ray)]
)
def test_the_main_way(where, photos, on_disk, run, bucket, tmp_path):
    root = f"{bucket}/deep/all"
    for words in commands(photos, root, where).values():
        run(*words)
    same(files(Location.of(root)), on_disk)
    shards, store, student = (f"{root}/{name}" for name in ("shards", "store", "student"))
    run("verify", shards, store, "--full", *SERIAL)
    assert "red fox" in run("inspect", store)
    assert '"state": "complete"' in run("status", root, "--json")
    run("evaluate", student, shards, "--store", store)
    # Nothing but what a command was told to write, and no lock that is left.
    assert [name for name in Location.of(bucket).entries(deep=True) if not name.startswith("deep/all/")] == []
    assert not any("driver" in name or "lease" in name for name in Location.of(bucket).entries(deep=True))


def test_killed_in_the_middle_and_resumed(photos, on_disk, run, start, bucket, tmp_path):
    root = Location.of(bucket) / "all"
    for name, words in commands(photos, root.address, SERIAL).items():
        if name == "distill":
            words += ("--local-cache", tmp_path / "copies", "--local-cache-gb", 1)
        if name in ("cache", "distill"):
            kills = 0
            for goal in (1, 4):
                process = start(*words)
                while process.poll() is None and progress(root, name) < goal:
                    time.sleep(0.01)
                process.kill()
                kills += process.wait() < 0
            assert kills == 2
        run(*words)
    same(files(root), on_disk)
    assert any((tmp_path / "copies").glob("??/*"))


def progress(root: Location, step: str) -> int:
    """Shards that are cached; steps, by checkpoints, that were trained."""
    if step == "cache":
        return len((root / "store" / "ledger" / "cache" / "receipts").names())
    saved = (root / "student" / "run" / "checkpoint.safetensors").changed_at()
    return 0 if saved is None else 4


def test_two_drivers_of_one_store(photos, on_disk, run, start, bucket):
    root = Location.of(bucket) / "all"
    words = commands(photos, root.address, SERIAL)
    for name in ("shard", "vectors"):
        run(*words[name])
    first = start(*words["cache"])
    while first.poll() is None and progress(root, "cache") < 1:
        time.sleep(0.01)
    second = start(*words["cache"])
    assert second.wait() == 1
    assert second.stderr.splitlines()[-1].startswith(
        f"Error: another command is writing there: {root}/store: expected one at a time, found teachonce cache, process {first.pid} on "
    )
    assert first.wait() == 0, first.stderr
    same(files(root), {name: data for name, data in on_disk.items() if not name.startswith("student/")})


# --- through a server that fails

#: A command whose waits are short.
IMPATIENT = """
from teachonce.pipeline.places import bucket_client, bucket_errors
bucket_client.PAUSE_SECONDS, bucket_client.FIRST_WAIT, bucket_client.LONGEST_WAIT = 1.0, 0.01, 0.2
bucket_client.RETRIES, bucket_errors.FIRST_WAIT = {retries}, 0.02
from teachonce.__main__ import main
main()
"""


@pytest.fixture
def through(object_proxy, object_store, python, bucket, monkeypatch):
    """`proxy, run = through(share=…)`: commands whose bucket is behind a proxy."""
    with ExitStack() as stack:

        def one(*, retries: int = 6, **settings: Any) -> tuple[Any, Callable[..., Any]]:
            proxy = stack.enter_context(object_proxy.Proxy(object_store.endpoint, stall=1.5, **settings).running())
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
            return proxy, lambda *words: python.run("-W", "ignore", "-c", IMPATIENT.format(retries=retries), *words)

        yield one


def test_the_main_way_through_a_server_that_fails(photos, on_disk, through, bucket, object_store):
    proxy, run = through(share=0.06, seed=3)
    for words in commands(photos, f"{bucket}/all", SERIAL).values():
        told = run(*words)
        assert told.returncode == 0, told.stderr
    assert proxy.failed.keys() == set(FAULTS), proxy.failed
    with s3_endpoint(object_store.endpoint):
        same(files(Location.of(bucket) / "all"), on_disk)


#: What a server answers in the middle of a step, and the line that says so; one after another, each once two files of this
#: name have been written.
ENDS = {
    "shard": ("shards/0", [((507, "XMinioStorageFull"), "the object store is full")]),
    "cache": (
        "store/ledger/cache/receipts/0",
        [
            ((400, "ExpiredToken"), "the credentials have expired"),
            # write; or delete, where a note of an earlier failure was
            ((403, "AccessDenied"), "no permission to "),
            ((403, "RequestTimeTooSkewed"), "the clock of this machine is off"),
        ],
    ),
    "distill": (
        "student/run/checkpoint",
        [
            ((400, "ExpiredToken"), "the credentials have expired"),
            ((503, "SlowDown"), "the object store does not answer as it should"),
        ],
    ),
}


def test_what_ends_a_run_in_its_middle(photos, on_disk, through, bucket, object_proxy, object_store):
    """One line says what, nothing is half there, and the same command goes on, to the same bytes in the end."""
    proxy, run = through(retries=1)
    root = f"{bucket}/all"
    for name, words in commands(photos, root, SERIAL).items():
        done, ends = ENDS.get(name, ("", []))
        for answer, line in ends:
            proxy.seen.clear()

            def rule(request, done=done, answer=answer):
                enough = sum(seen.method in ("PUT", "POST") and done in seen.path for seen in list(proxy.seen)) > 1
                return object_proxy.Answer(*answer) if enough and request.method in ("PUT", "POST") else None

            proxy.rule = rule
            told = run(*words)
            assert told.returncode == 1, (name, answer, told.stderr)
            assert "Traceback" not in told.stderr
            assert line in told.stderr.splitlines()[-1], told.stderr
            proxy.rule = lambda request: None
        told = run(*words)
        assert told.returncode == 0, told.stderr
    with s3_endpoint(object_store.endpoint):
        same(files(Location.of(root)), on_disk)
