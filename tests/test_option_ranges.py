"""Every numeric option of every command has a range, and what lies outside it, NaN and infinity among that, is a usage error."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator

import click
import numpy as np
import pytest
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.commands.types import Finite, Numbers
from teachonce.pipeline.settings import LARGEST_SEED

#: Any finite numbers will do: the colours' scale is the model's own.
WITHOUT_RANGE = {"--teacher-mean", "--student-mean"}
SEEDS = {"--order-seed", "--seed", "--seeds", "--view-seed", "--teacher-seed"}
NUMBERS = (click.types.IntParamType, click.types.FloatParamType, Numbers)
HEAVY = {"torch", "torchvision", "ray", "zarr", "open_clip", "timm", "numpy", "pyarrow", "PIL"}


def commands(group: click.Group = main, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*above, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*above, name))


def numeric() -> list[tuple[tuple[str, ...], click.Parameter]]:
    """(words of the command, parameter) of all that take numbers."""
    return [(words, p) for words, command in commands() for p in command.params if isinstance(p.type, NUMBERS)]


OPTIONS = numeric()
NAMES = [f"{' '.join(words)} {parameter.opts[0]}" for words, parameter in OPTIONS]


def one_of(parameter: click.Parameter) -> click.IntRange | Finite:
    """The type of the number, or of each of several."""
    return parameter.type.each if isinstance(parameter.type, Numbers) else parameter.type  # type: ignore[return-value]


def with_one(parameter: click.Parameter, bad: str) -> Iterator[str]:
    """The number, or several with it in each place beside good ones."""
    if not isinstance(parameter.type, Numbers):
        yield bad
        return
    count, kind = parameter.type.count or 3, parameter.type.each
    good = inside(kind)[-1] if isinstance(kind, Finite) and kind.max_open else "1"
    for place in range(count):
        yield ",".join(bad if i == place else good for i in range(count))


def outside(kind: click.IntRange | Finite) -> list[str]:
    """Numbers beyond both ends of a range, as near as they come."""
    found = []
    for end, is_open, away in ((kind.min, kind.min_open, -math.inf), (kind.max, kind.max_open, math.inf)):
        if end is None:
            continue
        if isinstance(kind, click.IntRange):
            found.append(str(end + (1 if away > 0 else -1)))
        else:
            found.append(repr(float(end) if is_open else math.nextafter(end, away)))
    return found


def inside(kind: click.IntRange | Finite) -> list[str]:
    """The ends of a range, or what is nearest to an end that does not belong to it."""
    found = []
    for end, is_open, towards in ((kind.min, kind.min_open, math.inf), (kind.max, kind.max_open, -math.inf)):
        if end is not None:
            found.append(repr(math.nextafter(end, towards) if is_open else end))
    return found or ["-1e300", "1e300"]


def test_there_are_some_in_every_command_that_computes() -> None:
    assert {words for words, _ in OPTIONS} >= {
        ("shard",),
        ("pretrain",),
        ("vectors",),
        ("cache",),
        ("distill",),
        ("evaluate",),
        ("predict",),
        ("benchmark", "promptkd"),
    }
    assert {p.opts[0] for _, p in OPTIONS} >= SEEDS | WITHOUT_RANGE | {
        "--lr",
        "--temperature",
        "--gpa-std",
        "--view-ratio",
    }


@pytest.mark.parametrize(("words", "parameter"), OPTIONS, ids=NAMES)
def test_each_has_a_range(words: tuple[str, ...], parameter: click.Parameter) -> None:
    kind = one_of(parameter)
    assert isinstance(kind, (click.IntRange, Finite)), "give it a range: IntRange, Finite or Numbers of them"
    assert kind.min is not None or parameter.opts[0] in WITHOUT_RANGE
    assert not kind.clamp
    for end in inside(kind):
        for text in with_one(parameter, end):
            parameter.type.convert(text, parameter, None)
    if parameter.default is not None and str(parameter.default) != "Sentinel.UNSET":
        parameter.type.convert(parameter.default, parameter, None)


@pytest.mark.parametrize(("words", "parameter"), OPTIONS, ids=NAMES)
def test_outside_is_a_usage_error(words: tuple[str, ...], parameter: click.Parameter) -> None:
    kind = one_of(parameter)
    bad = ["nan", "-nan", "inf", "-inf", "Infinity", "1e400", "", "x", *outside(kind)]
    if parameter.opts[0] not in WITHOUT_RANGE:
        bad.append("-1")
    texts = [text for number in bad for text in with_one(parameter, number)]
    if isinstance(parameter.type, Numbers) and parameter.type.count is not None:
        texts += [",".join("1" * (parameter.type.count + more)) for more in (-1, 1)]
    for text in texts:
        result = CliRunner().invoke(main, [*words, f"{parameter.opts[0]}={text}"])
        assert result.exit_code == 2, f"{text!r}: {result.output}"
        assert f"Invalid value for '{parameter.opts[0]}'" in result.stderr, result.stderr
        assert result.stdout == ""


def test_a_usage_error_imports_nothing_heavy() -> None:
    calls = [[*words, f"{parameter.opts[0]}=nan"] for words, parameter in OPTIONS]
    code = f"""
import json, sys
from click.testing import CliRunner
from teachonce.cli import main
for call in {calls!r}:
    assert CliRunner().invoke(main, call).exit_code == 2, call
print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert sorted(HEAVY & set(json.loads(done.stdout))) == []


def test_what_a_person_reads() -> None:
    def line(*words: str) -> str:
        return CliRunner().invoke(main, words).stderr.splitlines()[-1]

    assert line("distill", "--lr", "nan") == "Error: Invalid value for '--lr': 'nan' is not a finite number."
    assert line("distill", "--lr", "0") == "Error: Invalid value for '--lr': 0.0 is not in the range x>0."
    assert line("distill", "--ema", "1") == "Error: Invalid value for '--ema': 1.0 is not in the range 0<=x<1."
    assert line("cache", "--teacher-std", "0.2,0,0.2") == (
        "Error: Invalid value for '--teacher-std': 0.0 is not in the range x>0."
    )
    assert line("cache", "--view-scale", "0.5") == (
        "Error: Invalid value for '--view-scale': '0.5' is not 2 numbers with commas between them"
    )
    assert line("benchmark", "promptkd", "--seeds", "1,x") == (
        "Error: Invalid value for '--seeds': 'x' is not a valid integer range."
    )
    assert line("pretrain", "--seed", "-1") == (
        "Error: Invalid value for '--seed': -1 is not in the range 0<=x<=4294967295."
    )


def test_seeds_share_one_range() -> None:
    assert {p.opts[0] for _, p in OPTIONS if (one_of(p).min, one_of(p).max) == (0, LARGEST_SEED)} == SEEDS
    assert {p.opts[0] for _, p in OPTIONS if "seed" in p.opts[0]} == SEEDS


def draws(seed: int) -> list[object]:
    """What each of those that take a seed makes of it: weights, shots, views, and the seed of a step."""
    import torch
    from teachonce.stages.pretraining.few_shot import sample_shots
    from teachonce.stages.training.trainer import step_seed

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = torch.rand(4).tolist()
    shots_N = sample_shots(
        np.repeat(np.arange(2), 500),
        np.full(1000, -1),
        shots=8,
        seed=seed,
        only_C=np.ones(2, np.bool_),
        names=("a", "b"),
    )
    return [weights, shots_N.tolist(), views(seed), step_seed(seed, 3)]


def views(seed: int) -> object:
    """A sample's views as a store that was made with this seed describes them."""
    from teachonce.stages.views.spec import ViewSpec

    stored = json.loads(json.dumps(ViewSpec(kind="random_resized_crop", count=2, seed=seed).to_json()))
    return ViewSpec.from_json(stored).params("key", 900, 800).tolist()


def test_whatever_takes_a_seed_tells_them_apart() -> None:
    assert LARGEST_SEED == 2**32 - 1
    for drawn in zip(*map(draws, (0, 1, 2**31 - 1, 2**31, 2**32 - 1)), strict=True):
        assert all(a != b for i, a in enumerate(drawn) for b in drawn[:i])
    # Beyond the range, not all of them do.
    assert draws(2**32)[0] == draws(0)[0]
    assert draws(-1)[1] == draws(1)[1]


def test_stores_of_any_seed_are_still_read() -> None:
    drawn = [views(seed) for seed in (-5, 5, 2**32 + 5, 2**70)]
    assert all(a != b for i, a in enumerate(drawn) for b in drawn[:i])
