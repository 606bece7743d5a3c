"""A worker's death on Ray is one line that says what Ray knows of it."""

from __future__ import annotations

from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, OutOfMemoryError, RaySystemError
from teachonce.pipeline.executors.deaths import Death


def _death(error: Exception):
    return Death.of(error).of_unit(4)


def _died(message: str) -> ActorDiedError:
    return ActorDiedError(ActorDiedErrorContext(error_message=message, class_name="RayWorker", actor_id=bytes(16)))


def test_a_worker_that_ray_ended_for_memory_is_told_from_one_that_crashed():
    """In Ray's own words."""
    full = "1 worker(s) were killed due to the node running low on memory. Memory on the node was 7.7GB / 8.0GB."
    for error in (_died(full), OutOfMemoryError(full)):
        assert _death(error).code == "node-out-of-memory"
        assert str(_death(error)).startswith("its node ran out of memory")
    crashed = _died(
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
        "Worker unexpectedly exits with a connection error code 2. End of file."
    )
    assert _death(crashed).code == "worker-died"
    assert "SYSTEM_ERROR: Worker unexpectedly exits with a connection error code 2" in str(_death(crashed))
    assert "RaySystemError: System error: no such module" in str(_death(RaySystemError("no such module")))
