"""What tests of any folder may use."""

from __future__ import annotations

import gc
import importlib.util
import os
import re
import signal
import sys
import urllib.parse
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent

# Tests side by side share the cores, and their threads wait without spinning. It counts before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# A shell that starts the tests in the background has Ctrl-C ignored, and so would all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Nothing is remembered from one test to another, or kept in a home; tests of that have a folder of their own. The hub keeps its cache.
os.environ.setdefault("HF_HOME", str(Path("~/.cache/huggingface").expanduser()))
os.environ["XDG_CACHE_HOME"] = "/dev/null/no-cache"
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = len(os.sched_getaffinity(0)) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))


def _load(name: str, path: Path) -> ModuleType:
    """A module beside the tests, which are no package."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def miniature() -> ModuleType:
    """The module stages/corpora/coop/miniature.py: `miniature.build(root, "oxford_pets", per_class={"train": 3, …})`."""
    return _load("miniature", HERE / "stages" / "corpora" / "coop" / "miniature.py")


@pytest.fixture(scope="session")
def published() -> ModuleType:
    """The module published.py: towers, losses and schedule of PromptSRC and PromptKD from their descriptions."""
    return _load("published", HERE / "published.py")


@pytest.fixture(scope="session")
def clip_kinds() -> ModuleType:
    """The module stages/teachers/clip_kinds.py: tiny configurations of every kind in open_clip's registry."""
    return _load("clip_kinds", HERE / "stages" / "teachers" / "clip_kinds.py")


@pytest.fixture(scope="session")
def stage_inputs() -> ModuleType:
    """The module stages/conftest.py, for tests beside that folder: pictures, shards of them, stores with known numbers."""
    return _load("stage_inputs", HERE / "stages" / "conftest.py")


@pytest.fixture(scope="session")
def load_module() -> Callable[[str, Path], ModuleType]:
    """`load_module(name, path)`: a script of the checkout as a module."""
    return _load


shared = _load("shared", HERE / "shared.py")


def pytest_configure(config: pytest.Config) -> None:
    """Nothing starts before a test needs it."""
    if shared.HERE not in os.environ:
        owner = shared.Owner()
        config.add_cleanup(owner.close)
    config.add_cleanup(gc.unfreeze)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that wait for Ray come first: others use the cores meanwhile, and no long one is left for the end."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


def pytest_collection_finish() -> None:
    """What the libraries brought along is there for good: a test that collects garbage need not look through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def python() -> Any:
    """`python.run("-m", "teachonce", "shard", …)`, `python.start(…)`: programs without the seconds of import; see warm_python.py."""
    script = HERE / "warm_python.py"
    folder = shared.share("warm", [sys.executable, script, "FOLDER/socket"], ready="listening")
    return _load("warm_python", script).WarmPython(folder / "socket")


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster of two CPUs on this machine.

    Attributes:
        address: for `--ray-address`.
        folder: what the command lines of all its processes name.
    """

    address: str
    folder: Path

    def workers(self) -> list[int]:
        """Processes of our actors: children of its raylet, by the titles that they have while they wait and while they work."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if _OUR_WORKER.match((entry / "cmdline").read_bytes()):
                    parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                    if bytes(self.folder) in Path(f"/proc/{parent}/cmdline").read_bytes():
                        found.append(int(entry.name))
            except OSError:
                continue
        return found


#: What Ray calls a process of an actor of ours: by the class, or by the task that it does.
_OUR_WORKER = re.compile(rb"ray::(RayWorker|[a-z][a-z -]*(: opening| \d))")


def start_cluster(name: str) -> Cluster:
    """The Ray cluster of this name, which all tests of this run that ask for it share."""
    command = [
        "env",
        "RAY_AUTH_MODE=disabled",
        "RAY_USAGE_STATS_ENABLED=0",
        "RAY_memory_monitor_refresh_ms=0",  # else it ends workers once the tests, or anyone beside them, fill 95 % of the memory
        "RAY_worker_register_timeout_seconds=600",  # else a worker that takes longer to start is given up, as on busy cores
        "RAY_gcs_server_port_wait_time_s=600",
        Path(sys.executable).with_name("ray"),
        "start",
        "--head",
        "--block",
        "--num-cpus=2",
        "--include-dashboard=false",
        "--node-ip-address=127.0.0.1",
        "--port=0",
        "--temp-dir=FOLDER",
    ]
    folder = shared.share(name, command, ready="Ray runtime started")
    address = re.search(r"--address='([\d.:]+)'", (folder / "printed").read_text())
    assert address is not None, (folder / "printed").read_text()
    return Cluster(address[1], folder)


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """One Ray for all tests that need any; those about a Ray that a command starts, or that end it, start their own."""
    return start_cluster("ray")


@pytest.fixture(scope="session")
def cluster_to_kill_in() -> Cluster:
    """A Ray for tests that kill its workers, which others would miss."""
    return start_cluster("kills")


@pytest.fixture(autouse=True)
def joins_without_tokens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once Ray has started in this process, its environment asks for tokens, which these clusters do not have."""
    if {"cluster", "cluster_to_kill_in"} & set(request.fixturenames):
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


@dataclass(frozen=True)
class ObjectStore:
    """A server of the S3 kind on this machine.

    Attributes:
        endpoint: its address.
        key, secret: what it lets in.
    """

    endpoint: str
    key: str = "tests"
    secret: str = "tests-secret"

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to use it."""
        keys = {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret, "AWS_REGION": "us-east-1"}
        return {**keys, "AWS_ENDPOINT_URL": self.endpoint}

    def make_bucket(self) -> str:
        """The name of a new one."""
        name = f"tests-{uuid.uuid4().hex[:12]}"
        import boto3  # half a second, for tests of buckets alone

        keys = {"aws_access_key_id": self.key, "aws_secret_access_key": self.secret}
        boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1", **keys).create_bucket(Bucket=name)
        return name


@pytest.fixture(scope="session")
def object_store() -> ObjectStore:
    """One S3 server for all tests: moto's, or the one that TEACHONCE_TEST_S3 names (http://KEY:SECRET@HOST:PORT)."""
    if own := os.environ.get("TEACHONCE_TEST_S3"):
        parts = urllib.parse.urlsplit(own)
        return ObjectStore(f"{parts.scheme}://{parts.hostname}:{parts.port}", str(parts.username), str(parts.password))
    command = [sys.executable, HERE / "s3_server.py"]
    folder = shared.share("s3", command, ready="Running on")
    address = re.search(r"Running on (http://[\d.:]+)", (folder / "printed").read_text())
    assert address is not None
    return ObjectStore(address[1])


@pytest.fixture
def bucket(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a new bucket, which this process and those that it starts may use."""
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{object_store.make_bucket()}"


@pytest.fixture(scope="session")
def listening() -> ModuleType:
    """The module listening.py: `listening.check_loopback_only(driver, mark, workers)`. It reads /proc, as Linux has it."""
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    return _load("listening", HERE / "listening.py")


@pytest.fixture(scope="session")
def object_proxy() -> ModuleType:
    """The module object_proxy.py: `with object_proxy.Proxy(endpoint, share=0.1).running() as proxy: …`."""
    return _load("object_proxy", HERE / "object_proxy.py")
