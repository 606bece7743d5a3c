"""`--unit-timeout` is refused where nothing would come of it."""

from __future__ import annotations

import pytest
from teachonce.commands.executor import CachingExecutorSettings, ExecutorSettings, TrainingExecutorSettings
from teachonce.pipeline import stopping
from teachonce.pipeline.executors.ray import RayExecutor
from teachonce.storage_schemas.errors import InputError


@pytest.fixture(autouse=True)
def no_signals(monkeypatch):
    monkeypatch.setattr(stopping, "arm", lambda grace: None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ExecutorSettings(executor="serial", unit_timeout=5.0), "a time limit for a unit needs --executor ray"),
        (
            CachingExecutorSettings(executor="serial", workers_per_gpu=2),
            "several workers for a GPU need --executor ray",
        ),
        (TrainingExecutorSettings(workers=2, unit_timeout=5.0), "training on several workers has no time limit"),
    ],
)
def test_where_no_limit_is_kept_it_is_refused(settings, message):
    with pytest.raises(InputError) as caught:
        settings.make()
    assert str(caught.value).startswith(message)


def test_on_ray_it_reaches_the_executor():
    executor = ExecutorSettings(unit_timeout=5.0).make()
    assert isinstance(executor, RayExecutor)
    assert executor.unit_timeout == 5.0
