"""What is wrong in all shards alike is not mended shard by shard."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.stages.verifying.finding import Finding
from teachonce.stages.verifying.one_way import in_one_way
from teachonce.storage_schemas.errors import MismatchError

HINT = "cache into a new store, with that put right"


def finding(shard: int, code: str = "teacher-saw-mirrored", *, of_run: bool = True) -> Finding:
    error = MismatchError("mirrored views", code=code, where=f"s.zarr, shard {shard}", hint=HINT)
    return Finding(error=error, shard=shard, mendable=True, of_run=of_run)


def mendable(findings: list[Finding], looked_at: range = range(3)) -> list[bool]:
    return [found.mendable for found in in_one_way(findings, looked_at, "shards", "s 1.zarr")]


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        ([finding(0), finding(1), finding(2)], [False] * 3),
        ([finding(0), finding(2)], [True] * 2),
        ([finding(0), finding(1), finding(2, "another-teacher")], [True] * 3),
        ([finding(shard, of_run=False) for shard in range(3)], [True] * 3),
        ([finding(0), finding(1), finding(2), finding(1, "values-shifted", of_run=False)], [False] * 3 + [True]),
    ],
)
def test_only_a_cause_of_all_shards_is_one_of_the_whole_run(findings, expected):
    assert mendable(findings) == expected


def test_the_command_is_named():
    (found, *_) = in_one_way([finding(shard) for shard in range(3)], range(3), "shards", "s 1.zarr")
    assert found.error.fields["hint"] == (
        f"all shards are so, and --repair would be a second run: {HINT} "
        "(teachonce cache shards --teacher … --out 's 1.zarr-2')"
    )
    assert (found.code, found.shard) == ("teacher-saw-mirrored", 0)


def test_repair_leaves_a_store_of_another_scale_as_it_is(pair, plant, teacher):
    before = {f: f.read_bytes() for f in pair.store.rglob("*") if f.is_file()}
    for shard in range(4):
        pair.rewrite(shard, plant.changed("logits", lambda values: values * 3))
    spoilt = {f: f.read_bytes() for f in pair.store.rglob("*") if f.is_file()}
    assert spoilt != before
    words = ["--repair", "--teacher", "20", "--teacher-model", teacher.model]
    result = CliRunner().invoke(main, ["verify", str(pair.shards), str(pair.store), *words])
    assert result.exit_code == 4, result.output
    assert "verify: nothing here can be repaired from the tars" in result.stderr
    assert "[logit-scale-other]" in result.stdout
    assert "all shards are so, and --repair would be a second run" in result.stdout
    assert {f: f.read_bytes() for f in pair.store.rglob("*") if f.is_file()} == spoilt
