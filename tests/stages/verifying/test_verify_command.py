"""`teachonce verify` as it is typed: what it prints, and what it exits with."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from teachonce.cli import main


def verify(pair, *words: str):
    return CliRunner().invoke(main, ["verify", str(pair.shards), str(pair.store), *words])


def test_clean(made):
    result = verify(made, "--quick")
    assert (result.exit_code, result.stdout) == (0, f"{made.store}: clean (quick; 4 shards, 48 rows)\n")
    result = verify(made)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{made.store}: clean (full; 4 shards, 48 rows, ")


def test_damage_is_3_and_goes_before_the_rest(pair):
    (pair.store / "ledger" / "cache" / "receipts" / "000003.json").unlink()
    assert verify(pair, "--quick").exit_code == 5
    (pair.ledger.folder / "receipts" / "000009.json").write_bytes(b"{}")
    assert verify(pair, "--quick").exit_code == 4
    pair.chunk("logits", 1).unlink()
    result = verify(pair, "--quick", "--json")
    assert result.exit_code == 3
    facts = json.loads(result.stdout)
    assert (facts["verdict"], facts["exit_code"], facts["rows"], facts["level"]) == ("damaged", 3, 48, "quick")
    found = {finding["code"]: finding for finding in facts["findings"]}
    assert set(found) == {"stage-unfinished", "receipt-of-no-shard", "file-missing", "shard-unfinished"}
    assert found["file-missing"] == {
        "verdict": "damaged",
        "what": "a chunk of 'logits' is missing",
        "code": "file-missing",
        "where": str(pair.chunk("embedding", 1)).replace("embedding", "logits"),
        "expected": f"{pair.receipt(1).outputs[-1].bytes} bytes",
        "found": "no file",
        "hint": f"restore it from a copy, or teachonce verify {pair.shards} {pair.store} --repair",
        "shard": 1,
        "mendable": True,
    }


def test_many_findings_of_one_cause_are_counted(pair):
    for shard in range(4):
        pair.chunk("logits", shard).unlink()
    lines = verify(pair, "--quick").stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["a chunk of 'logits' is missing"] * 3
    assert lines[3] == "  … and 1 more with the code file-missing; --json lists them all"
    assert lines[4] == f"{pair.store}: damaged: 4 findings (quick; 4 shards, 48 rows)"


def test_levels_exclude_each_other(made):
    result = verify(made, "--quick", "--full")
    assert result.exit_code == 1
    assert "two levels that exclude each other: --quick, --full [options-exclude-each-other]" in result.stderr


def test_nothing_to_look_at(made, tmp_path):
    result = CliRunner().invoke(main, ["verify", str(made.shards), str(tmp_path / "none")])
    assert result.exit_code == 1
    assert "no target store here" in result.stderr
    result = CliRunner().invoke(main, ["verify", str(made.store), str(made.shards)])
    assert f"Next: teachonce verify {made.shards} {made.store}" in result.stderr


@pytest.mark.ray
def test_on_ray_it_finds_the_same(python, pair, cluster):
    path = pair.chunk("embedding", 2)
    data = bytearray(path.read_bytes())
    data[9] ^= 1
    path.write_bytes(data)
    words = ("verify", pair.shards, pair.store, "--json", "--executor", "ray", "--ray-address", cluster.address)
    there = python.start("-W", "ignore", "-m", "teachonce", *words, "--workers", 2)
    here = verify(pair, "--json")
    assert there.wait() == here.exit_code == 3, there.stderr
    assert json.loads(there.stdout) == json.loads(here.stdout)
    assert json.loads(here.stdout)["findings"][0]["code"] == "file-bit-flipped"


def test_neither_level_imports_torch(made):
    code = (
        "import sys; from teachonce.cli import main\n"
        f"try: main(['verify', {str(made.shards)!r}, {str(made.store)!r}])\n"
        "except SystemExit as ended: assert ended.code == 0, ended.code\n"
        "print(sorted({'torch', 'ray', 'open_clip', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
