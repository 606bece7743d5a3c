"""What is remembered of weights: used while everything agrees, and never else. Digests are compared with those computed anew."""

from __future__ import annotations

import json
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from teachonce.pipeline.user_cache import cache_folder
from teachonce.pipeline.user_files import FileState, UserFile
from teachonce.stages.models import known_weights
from teachonce.stages.models.known_weights import KnownWeights, weights_sample
from teachonce.stages.models.weights import weights_digest

FILLED = {"family": "test", "size": 32}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what is remembered; empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teachonce" / "weights"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The digests that were computed, in order."""
    digests: list[str] = []

    def compute(module: torch.nn.Module) -> str:
        digests.append(weights_digest(module))
        return digests[-1]

    monkeypatch.setattr(known_weights, "weights_digest", compute)
    return digests


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Weights of a module with a matrix that is sampled and one that is not."""
    torch.manual_seed(1)
    save_file({"weight": torch.randn(128, 256), "bias": torch.randn(128)}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def module_of(file: Path) -> torch.nn.Module:
    module = torch.nn.Linear(256, 128)
    module.load_state_dict(load_file(file))
    return module


def settled(file: Path) -> FileState:
    """The file's state as one sees it who comes ten seconds later."""
    state = UserFile.of(file).state()
    assert state is not None
    return replace(state, seen=state.seen + 10)


def digest(file: Path, filled: Any = FILLED, **options: Any) -> str:
    return KnownWeights(settled(file), filled, **options).digest(module_of(file))


def test_weights_are_hashed_once(cache, hashed, file) -> None:
    assert [digest(file), digest(file), digest(file)] == [weights_digest(module_of(file))] * 3
    assert len(hashed) == 1
    (entry,) = cache.iterdir()
    assert entry.stat().st_size < 1000
    assert digest(file, rehash=True) == hashed[0]
    assert len(hashed) == 2
    digest(file)
    assert len(hashed) == 2


def test_another_module_or_library_is_another_entry(cache, hashed, file, monkeypatch) -> None:
    digest(file)
    digest(file, {**FILLED, "size": 48})
    assert (len(hashed), len(list(cache.iterdir()))) == (2, 2)
    monkeypatch.setattr(known_weights, "_versions", lambda: {"torch": "0"})
    digest(file)  # takes the place of the first
    digest(file)
    assert (len(hashed), len(list(cache.iterdir()))) == (3, 2)


def rewrite(file: Path, change: float) -> None:
    """Other weights of the same size, in the same file: path and inode stay, and the times that programs can set."""
    times = file.stat()
    tensors = {name: value + change for name, value in load_file(file).items()}
    data = file.with_name("other")
    save_file(tensors, data)
    file.write_bytes(data.read_bytes())
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    now = file.stat()
    assert (now.st_size, now.st_ino, now.st_mtime_ns) == (times.st_size, times.st_ino, times.st_mtime_ns)


def test_a_changed_file_is_hashed_again(cache, hashed, file) -> None:
    first = digest(file)
    rewrite(file, 1.0)
    assert digest(file) == weights_digest(module_of(file)) != first
    assert len(hashed) == 2


@pytest.mark.parametrize("what", ["path", "size", "modified_ns", "changed_ns", "inode", "device"])
def test_each_fact_of_the_file_counts(what, cache, hashed, file) -> None:
    digest(file)
    state = settled(file)
    other: Any = str(shutil.copy(file, file.with_name("copy"))) if what == "path" else getattr(state, what) + 1
    KnownWeights(replace(state, **{what: other}), FILLED).digest(module_of(file))
    assert len(hashed) == 2


def test_weights_that_differ_under_the_same_facts_are_noticed(cache, hashed, file) -> None:
    """As where a file system tells no changes: the sample is of all tensors."""
    state = settled(file)
    KnownWeights(state, FILLED).digest(module_of(file))
    for change in (1.0, 0.001):
        rewrite(file, change)
        assert KnownWeights(state, FILLED).digest(module_of(file)) == weights_digest(module_of(file))
    assert len(set(hashed)) == 3


def test_the_sample_covers_names_types_shapes_and_small_tensors_whole(file) -> None:
    def sample(**tensors: torch.Tensor) -> str:
        module = torch.nn.Module()
        for name, value in tensors.items():
            module.register_buffer(name, value)
        return weights_sample(module)

    small, large = torch.zeros(64), torch.zeros(300, 300)
    last, one = torch.zeros(64), torch.zeros(300, 300)
    last[-1], one[:, 7] = 1e-30, 1.0
    samples = [
        sample(a=small, b=large),
        sample(a=small, c=large),
        sample(a=small, b=large.reshape(-1)),
        sample(a=small.double(), b=large),
        sample(a=last, b=large),
        sample(a=small, b=one),
    ]
    assert len(set(samples)) == len(samples)


def test_what_was_just_written_is_not_kept(cache, hashed, file) -> None:
    """A second change within a tick of the clock would leave the same times."""
    state = UserFile.of(file).state()
    assert state is not None
    for seconds, entries in ((1.9, 0), (2.1, 1)):
        seen = max(state.modified_ns, state.changed_ns) / 1e9 + seconds
        KnownWeights(replace(state, seen=seen), FILLED).digest(module_of(file))
        assert len(list(cache.glob("*"))) == entries
    assert len(hashed) == 2


def test_what_changes_while_it_is_read_is_not_kept(cache, hashed, file) -> None:
    known, module = KnownWeights(settled(file), FILLED), module_of(file)
    rewrite(file, 1.0)
    known.digest(module)
    assert list(cache.glob("*")) == []


@pytest.mark.parametrize("damage", [b"", b"{", b"{}", b'{"digest": 1}', None])
def test_a_damaged_entry_is_not_used(damage, cache, hashed, file) -> None:
    expected = digest(file)
    (entry,) = cache.iterdir()
    fields = json.loads(entry.read_bytes())
    entry.write_bytes(json.dumps({**fields, "digest": "00" * 16}).encode() if damage is None else damage)
    assert digest(file) == expected
    assert len(hashed) == 2
    assert digest(file) == expected  # it was mended
    assert len(hashed) == 2


@pytest.mark.parametrize("folder", ["/dev/null/x", "relative", "read-only", "no home"])
def test_no_place_to_remember_is_no_error(folder, cache, hashed, file, tmp_path, monkeypatch) -> None:
    """Of a relative path nothing is made, as the specification of these folders has it."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    if folder == "read-only":
        cache.mkdir(parents=True)
        cache.chmod(stat.S_IRUSR | stat.S_IXUSR)
    elif folder == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", _no_home)
        assert cache_folder() is None
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", folder)
    assert digest(file) == digest(file) == weights_digest(module_of(file))
    if folder == "relative":
        assert (len(hashed), len(list((home / ".cache" / "teachonce" / "weights").iterdir()))) == (1, 1)
        assert not Path("relative").exists()
    elif folder != "read-only" or os.geteuid() != 0:
        assert len(hashed) == 2


def _no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_weights_of_no_file_are_hashed_each_time(cache, hashed, file) -> None:
    for _ in range(2):
        known = KnownWeights.of(None, FILLED)
        known.digest(module_of(file))
        assert not known.is_tried({})
        known.note_tried({})
    assert (len(hashed), cache.exists()) == (2, False)


def test_that_a_module_was_tried_is_remembered_for_its_conditions(cache, hashed, file, monkeypatch) -> None:
    def known(**options: Any) -> KnownWeights:
        one = KnownWeights(settled(file), FILLED, **options)
        one.digest(module_of(file))
        return one

    assert not known().is_tried({"mean": 1})
    known().note_tried({"mean": 1})
    assert known().is_tried({"mean": 1})
    assert not known().is_tried({"mean": 2})
    assert not known(rehash=True).is_tried({"mean": 1})
    known().note_tried({"mean": 1})
    monkeypatch.setattr("platform.machine", lambda: "another")
    assert not known().is_tried({"mean": 1})
