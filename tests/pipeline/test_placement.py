"""Workers are only asked for where nodes can hold them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from teachonce.pipeline.executors.ray import RayExecutor, place
from teachonce.pipeline.types import Resources
from teachonce.storage_schemas.errors import InputError


@pytest.mark.parametrize(
    ("room", "options", "expected"),
    [
        ([(2, 0)], {"cpus": 1}, (2, 1)),
        ([(2, 0)], {"cpus": 4}, (1, 1)),  # a worker larger than the only node shares its cores
        ([(3, 0), (3, 0)], {"cpus": 2}, (2, 2)),  # six cores, but no node holds two workers
        ([(8, 0), (4, 0)], {"cpus": 2, "workers": 3}, (3, 2)),
        ([(2, 0)], {"cpus": 2, "workers": 2}, (2, 1)),
        ([(2, 0)], {"cpus": 1, "workers": 5}, (5, 0.25)),
        ([(16, 4), (16, 2), (8, 0)], {"cpus": 4, "gpus": 1}, (6, 4)),
        ([(16, 1), (16, 2)], {"cpus": 2, "gpus": 0.5}, (6, 2)),  # two workers share each GPU
        ([(16, 1), (16, 2)], {"cpus": 1, "gpus": 0.3333}, (9, 1)),
        ([(2, 0)], {"cpus": 2, "workers": 0}, (1, 2)),  # nodes come only when they are wanted
        ([(4, 4)], {"cpus": 4, "gpus": 1, "workers": 4}, (4, 1)),
        ([(0.001, 0)], {"cpus": 1}, (1, 0.0078)),
    ],
)
def test_workers_fit(room, options, expected):
    assert place(room, **{"gpus": 0, "workers": None} | options) == expected


def test_too_few_gpus_are_an_error_and_not_a_wait():
    with pytest.raises(InputError) as error:
        place([(8, 1), (8, 0)], cpus=1, gpus=1, workers=2)
    assert (error.value.code, str(error.value.where), str(error.value.found)) == (
        "ray-gpus-too-few",
        "2 workers with 1 each",
        "1 on 2 nodes",
    )
    assert error.value.hint is not None
    with pytest.raises(InputError) as error:
        place([(8, 0)], cpus=1, gpus=1, workers=None)
    assert error.value.code == "ray-gpus-too-few"


def test_workers_share_no_gpu_where_none_is_used():
    stage: Any = SimpleNamespace(name="s", resources=Resources())
    nothing: Any = None
    with pytest.raises(InputError, match="no worker uses a GPU: --workers-per-gpu: found 2. Next: add --device cuda"):
        next(RayExecutor(workers_per_gpu=2).map(stage, nothing, [], nothing))
