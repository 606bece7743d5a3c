"""Under torchrun, commands whose processes do not work together are refused by name; slices are shared out by whoever starts them."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from teachonce.cli import main

LAUNCHED = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
TEACHER = ["--teacher", "timm:test_vit"]


@pytest.mark.parametrize("words", [["pretrain", "shots", *TEACHER], ["shard", "photos"]])
def test_refused(words, tmp_path):
    done = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "out")], env=LAUNCHED)
    assert done.exit_code == 1
    assert done.output.splitlines()[-1] == (
        f"Error: torchrun starts several processes, and `teachonce {words[0]}` is one alone: WORLD_SIZE=2: expected `teachonce distill`, "
        f"or no torchrun, found teachonce {words[0]} [not-under-torchrun]. Next: start it without torchrun"
    )
    assert not (tmp_path / "out").exists()


def test_a_slice_is_not(tmp_path):
    done = CliRunner().invoke(
        main, ["shard", str(tmp_path / "none"), "--slice", "1/2", "--out", str(tmp_path / "out")], env=LAUNCHED
    )
    assert done.exit_code == 1
    assert "torchrun" not in done.output
