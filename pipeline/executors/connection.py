"""Owns joining a Ray cluster, or starting a Ray on this machine, and leaving it."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from ...storage_schemas.errors import InputError
from ..sockets import folder_for_sockets
from .head import is_reachable
from .native_stderr import last_lines, put_back, set_aside
from .shipped import shipped

#: Ray's settings, unless the user's environment has others. Ray reads some of it as it is imported, so this module
#: sets it first; nothing else in the package imports Ray.
_SETTINGS = {
    # With `uv run`, Ray would upload the working directory, and start workers by `uv run` in that copy.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # workers without a GPU of their own see them all
    # Of a Ray that starts here: busy cores, and libraries on a network mount, are slow.
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_gcs_server_port_wait_time_s": "300",
}
for _name, _value in _SETTINGS.items():
    os.environ.setdefault(_name, _value)

#: For a node of our own to be known to its Ray, which itself waits half a minute.
_NODE_SECONDS = 180.0

#: Whether this machine's Ray may be joined by others.
_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"

#: What Ray says where a cluster asks for a token, and none or another was given.
_TOKENS = ("InvalidAuthToken", "no authentication token")

#: Bytes of /ray/session_2026-01-01_12-00-00_123456_4194304/sockets/plasma_store, and some more.
_SOCKET_BELOW = 70


def connect(address: str | None) -> None:
    """Join the cluster at `address` (`auto` or host:port), or start Ray on this machine. Once per process.

    What starts on this machine listens on loopback only; a cluster that is joined stays as it is. What workers and Ray's own
    helpers write to stdout and stderr is in Ray's logs; what people should see, workers report.

    Raises:
        InputError: no cluster answers at `address`, or it does not take this process in; Ray cannot start here.
    """
    import ray

    if ray.is_initialized():
        return
    set_aside()
    # Ray prints on the driver's stdout what went wrong on a node; what matters of it comes as an outcome.
    worker: Any = sys.modules["ray._private.worker"]
    worker._worker_logs_enabled = False
    if address is None:
        # A Ray of our own sends no usage statistics.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        folder = _session_folder()
        try:
            with _loopback_only(), _patience():
                ray.init(
                    address="local",
                    include_dashboard=False,
                    logging_level="error",
                    log_to_driver=False,
                    _temp_dir=folder,
                )
        except Exception as error:  # a plain one, where its processes take too long
            raise InputError(
                "Ray cannot start on this machine",
                code="ray-start-failed",
                where=folder or "/tmp/ray",
                found=str(error) or type(error).__name__,
                hint="if the machine is busy, run the same command again later; --executor serial works without Ray",
            ) from error
        return
    host = address.removeprefix("ray://")
    if host.rpartition(":")[2].isdecimal() and not is_reachable(host, seconds=10):
        raise _no_cluster(address)  # at once; Ray itself would try for minutes
    try:
        with shipped() as runtime_env:
            ray.init(address=address, logging_level="error", log_to_driver=False, runtime_env=runtime_env)
    except Exception as error:  # versions that differ are a RuntimeError, a token that is missing a ConnectionError
        found = last_lines() or str(error)
        if any(words in found or words in str(error) for words in _TOKENS):
            raise InputError(
                "the Ray cluster asks for a token",
                code="ray-token-missing",
                where=address,
                expected="the token of the cluster",
                found="none, or another one",
                hint="export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=FILE, a file with that token, then run the same command again",
            ) from error
        if address == "auto":
            raise _no_cluster(address) from error
        raise InputError(
            "the Ray cluster does not take this command in",
            code="ray-cluster-refuses",
            where=address,
            found=found,
            hint=f"give it Ray {ray.__version__} as here",
        ) from error


def _no_cluster(address: str) -> InputError:
    return InputError(
        "no Ray cluster answers",
        code="ray-cluster-missing",
        where=address,
        hint="start one with `ray start --head`, or leave out --ray-address",
    )


def _session_folder() -> str | None:
    """Where a local Ray keeps its session; None for where it would itself.

    Raises:
        InputError: no folder has a path that is short enough for sockets.
    """
    usual = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    folder = folder_for_sockets(usual, _SOCKET_BELOW, "RAY_TMPDIR")
    return None if folder == usual else f"{folder}/ray"


@contextlib.contextmanager
def _loopback_only() -> Iterator[None]:
    """A Ray that starts within takes 127.0.0.1 as its node's address, and then every process of it listens there only.

    `ray.init(_node_ip_address="127.0.0.1")` takes the address of the network card instead. What Ray offers is the variable by
    which it does the same on macOS, unless the user has set it. The driver read it when it imported Ray, its children read it now.
    """
    import ray  # noqa: F401

    if _CLUSTERS in os.environ:
        yield
        return
    constants: Any = sys.modules["ray._private.ray_constants"]
    before = constants.ENABLE_RAY_CLUSTER
    os.environ[_CLUSTERS], constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        del os.environ[_CLUSTERS]
        constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """A Ray that starts within has `_NODE_SECONDS` for its node, too: of all its limits, this one has no setting.

    Ray asks for the node until half a minute has gone by. Each time, it is asked here until it is there.
    """
    import ray  # noqa: F401

    services: Any = sys.modules["ray._private.services"]
    get_node, until = services.get_node, time.monotonic() + _NODE_SECONDS

    def patient(*args: Any) -> Any:
        while True:
            try:
                return get_node(*args)
            except RuntimeError:  # it is not known yet, or the one that knows has not answered
                if time.monotonic() > until:
                    raise
            time.sleep(0.1)

    services.get_node = patient
    try:
        yield
    finally:
        services.get_node = get_node


def disconnect() -> None:
    """Leave the cluster, or stop the local Ray that `connect` started."""
    import ray

    ray.shutdown()
    put_back()
