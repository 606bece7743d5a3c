"""A second kind of sample goes through shard, cache, stream, join and labelled samples, which know nothing of it.

The kind is defined here, in one class, as its file in `stages/samples/` would define it: signals in WAV files.
"""

from __future__ import annotations

import io
import json
import platform
import tarfile
import wave
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages import cache
from teachonce.stages.corpora.images import BadImage
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.decoding.threads import Threads
from teachonce.stages.inputs.image_set import open_images
from teachonce.stages.measures.labelled import LabelledImages
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.preprocess import Preprocess
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.pairs.target_join import join_targets
from teachonce.stages.samples.images import IMAGES
from teachonce.stages.samples.pixel_sample import PixelSample
from teachonce.stages.samples.registry import KINDS, kind_named
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.shard import plan_shard
from teachonce.stages.teachers import TeacherConfig, TeacherSpec
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.errors import InputError, MismatchError
from teachonce.storage_schemas.view_params import NO_COLOR, VIEW

SIZE = 16
VIEWS = ViewSpec(kind="random_resized_crop", count=2, seed=3, scale=(0.3, 0.9))


class Signals:
    """Signals of 16-bit numbers; a view is a stretch of time, perhaps reversed. A sample is int16 (time,)."""

    name = "signal"
    axes = ("channel", "time")
    dtype = np.int16

    def extensions(self):
        return frozenset({".wav"})

    def versions(self):
        return {"python": platform.python_version()}

    def reducer(self):
        return None

    def reduce(self, data, shorter_side, limit):
        raise NotImplementedError

    def probe(self, data, limit):
        self.decode(data, limit)
        return "wav"

    def decode(self, data, limit):
        try:
            with wave.open(io.BytesIO(data)) as file:
                count = file.getnframes()
                if count > limit:
                    raise BadImage(f"too long: {count} numbers, more than {limit}")
                signal = np.frombuffer(file.readframes(count), "<i2")
        except (wave.Error, EOFError) as error:
            raise BadImage(f"not a WAV file: {error}") from error
        if len(signal) < count:
            raise BadImage("cut WAV file")
        return signal

    def positions(self, sample):
        return len(sample)

    def size(self, sample):
        return 1, len(sample)

    def params(self, sample, key, spec):
        if not spec.is_random:
            return np.array([(0, 0, 1, len(sample), 0, *NO_COLOR)], VIEW)
        views = []
        for view in range(spec.count):
            share, start, flip = spec.numbers(key, view, 3)
            width = max(1, int(len(sample) * (spec.scale[0] + share * (spec.scale[1] - spec.scale[0]))))
            left = int(start * (len(sample) - width + 1))
            views.append((0, left, 1, width, int(flip < spec.flip), *NO_COLOR))
        return np.array(views, VIEW)

    def shape(self, size):
        return (1, size)

    def draw(self, out, sample, params, size, spec):
        stretch = sample[int(params["left"]) :][: int(params["width"])]
        drawn = stretch[np.arange(size) * len(stretch) // size]
        out[0] = drawn[::-1] if params["flip"] else drawn


class MomentsTeacher:
    """Says the mean and the largest number of a signal."""

    spec = TeacherSpec(
        family="test",
        model="moments",
        architecture="0",
        weights_digest="0",
        embed_dim=2,
        normalized=False,
        preprocess=Preprocess(size=SIZE, mean=(0, 0, 0), std=(1, 1, 1), sample_kind="signal"),
        takes_templates=False,
    )
    loaded = "moments"

    def to(self, device):
        return self

    def offers(self):
        return (SimpleNamespace(name="embedding", axes=("channel",), shape=(2,)),)

    def outputs(self, signals_NCT, names):
        return {"embedding": moments(signals_NCT)}


class ImageTeacher(MomentsTeacher):
    """Takes images, as it does not say otherwise."""

    spec = replace(MomentsTeacher.spec, preprocess=Preprocess(size=SIZE, mean=(0, 0, 0), std=(1, 1, 1)))


def moments(signals_NCT: torch.Tensor) -> torch.Tensor:
    signals_NT = signals_NCT[:, 0].float()
    return torch.stack([signals_NT.mean(1), signals_NT.amax(1)], 1)


def wav(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    signal = rng.integers(-3000, 3000, int(rng.integers(40, 90)), np.int16)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(signal.astype("<i2").tobytes())
    return buffer.getvalue()


def stretch(data: bytes, view: Any) -> np.ndarray:
    """A view of a file by plain arithmetic: int16 (time,)."""
    with wave.open(io.BytesIO(data)) as file:
        signal = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    left, width = int(view["left"]), int(view["width"])
    drawn = np.array([signal[left + i * width // SIZE] for i in range(SIZE)])
    return drawn[::-1] if view["flip"] else drawn


@pytest.fixture
def signals(monkeypatch):
    """The kind, registered."""
    kind = Signals()
    monkeypatch.setitem(KINDS, kind.name, kind)
    return kind


@pytest.fixture
def folder(tmp_path):
    """Twelve signals in two class folders, one of them cut; a picture beside them is no sample."""
    root = tmp_path / "sounds"
    for index in range(12):
        path = root / ("owl", "wren")[index % 2] / f"{index:02d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(wav(index))
    cut = root / "owl" / "04.wav"
    cut.write_bytes(cut.read_bytes()[:-10])
    (root / "owl" / "picture.jpg").write_bytes(b"\xff\xd8")
    return root


@pytest.fixture
def shards(signals, folder, tmp_path):
    return shard(folder, tmp_path / "shards", kind=signals)


@pytest.fixture
def store(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "load_teacher", lambda config: MomentsTeacher())
    stage = plan(shards, tmp_path / "s.zarr")
    run_stage(stage, stage.store, SerialExecutor(), progress=False)
    return stage.store


def plan(shards, out):
    return cache.plan_cache(
        str(shards.location),
        TeacherConfig(model="moments"),
        out=str(out),
        views=VIEWS,
        settings=CacheSettings(targets="embedding", encoding="fp32", batch_size=4),
        compute=Compute(device="cpu", precision="fp32", threads=1),
    )


def shard(folder, out, kind=IMAGES, **settings):
    settings = ShardSettings(shard_size=5, order="source", **settings)  # type: ignore[assignment]
    stage = plan_shard([str(folder)], out=str(out), settings=settings, kind=kind)  # type: ignore[arg-type]
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return ShardSet.open(str(out))


def members(shards: ShardSet) -> list[tuple[str, bytes, bytes]]:
    """(key, signal, json) of every usable sample, in row order, as a plain reader of tars finds them."""
    found = []
    for path in sorted(shards.location.path.glob("*.tar")):
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
        keys = [name.partition(".")[0] for name in files if name.endswith(".wav")]
        found += [(key, files[f"{key}.wav"], files[f"{key}.json"]) for key in keys]
    return found


def test_shards_hold_the_kind_and_refuse_what_it_refuses(shards, folder):
    corpus = json.loads((shards.location / "corpus.json").read_bytes())
    assert (corpus["sample_kind"], corpus["num_samples"], corpus["skipped"]) == ("signal", 12, 1)
    invalid = [bad for n in range(3) for bad in shards.receipt(n).invalid_rows]
    assert [(bad.path, bad.reason) for bad in invalid] == [("owl/04.wav", "cut WAV file")]
    expected = [wav(index) for index in (*range(0, 12, 2), *range(1, 12, 2)) if index != 4]
    assert [data for _, data, _ in members(shards)] == expected


def test_the_teacher_sees_the_stored_views(shards, store):
    with TargetStream(
        shards.location, store, image_size=SIZE, batch_size=3, targets=("embedding",), drop_last=False
    ) as stream:
        for epoch in range(2):
            batches = list(stream.batches(epoch))
            drawn = torch.cat([batch.images_NCHW for batch in batches])
            assert drawn.dtype == torch.int16
            assert drawn.shape == (11, 1, SIZE)
            torch.testing.assert_close(torch.cat([batch.targets["embedding"] for batch in batches]), moments(drawn))


def test_the_stream_and_the_join_draw_by_plain_arithmetic(shards, store):
    with TargetStream(shards.location, store, image_size=SIZE, batch_size=11, targets=("embedding",)) as stream:
        (batch,) = stream.batches(1)
    by_row = dict(zip(batch.rows_N.tolist(), batch.images_NCHW.numpy(), strict=True))
    samples = [{"__key__": key, "wav": data, "json": about} for key, data, about in members(shards)]
    joined = list(join_targets(store, view=1, image_size=SIZE, targets=("embedding",))(samples))
    assert len(joined) == 11
    seen = set()
    for sample in joined:
        expected = stretch(sample["wav"], sample["view"])
        assert np.array_equal(sample["image"], expected[None])
        assert np.array_equal(by_row[json.loads(sample["json"])["row"]], expected[None])
        seen.add((int(sample["view"]["left"]), int(sample["view"]["flip"])))
    assert len(seen) > 8


def test_a_store_tells_where_the_kind_is_drawn_otherwise(shards, store, monkeypatch):
    sample = PixelSample.take(shards, VIEWS, SIZE)
    assert sample.differences(shards, VIEWS) == []
    draw = Signals.draw

    def other(self, out, *given):
        draw(self, out, *given)
        out += 1

    monkeypatch.setattr(Signals, "draw", other)
    assert len(sample.differences(shards, VIEWS)) == sample.num_views == 11 * 8


def test_labelled_samples_are_of_the_kind(signals, folder):
    labelled = LabelledImages.open(str(folder), ("wren", "owl"), what="check", kind=signals)
    (views,) = labelled.center_views(MomentsTeacher.spec.preprocess, Threads(1))
    assert views.labels_N.tolist() == [1] * 5 + [0] * 6
    assert views.unusable == (1,)
    whole = {"left": 0, "flip": 0}
    for index, drawn in zip((0, 2, 6, 8, 10, *range(1, 12, 2)), np.concatenate(views.parts), strict=True):
        data = wav(index)
        assert np.array_equal(drawn[0], stretch(data, whole | {"width": (len(data) - 44) // 2}))


def test_kinds_are_never_mixed(signals, shards, folder, tmp_path, monkeypatch):
    assert open_images(str(shards.location)).kind is signals
    with pytest.raises(MismatchError) as error:
        open_images(str(shards.location), kind=IMAGES)
    assert (error.value.code, str(error.value.expected), str(error.value.found)) == (
        "sample-kind-other",
        "image (wanted here)",
        "signal",
    )
    monkeypatch.setattr(cache, "load_teacher", lambda config: ImageTeacher())
    with pytest.raises(MismatchError) as error:
        plan(shards, tmp_path / "s.zarr")
    assert (error.value.code, str(error.value.expected), str(error.value.found)) == (
        "sample-kind-other",
        "image (the teacher)",
        "signal",
    )
    with pytest.raises(MismatchError) as error:
        shard(folder, tmp_path / "shards")
    assert error.value.code == "output-other-settings"
    assert "sample_kind" in str(error.value.where)
    with pytest.raises(InputError) as refused:
        plan_shard([str(folder)], out=str(tmp_path / "small"), kind=signals, settings=ShardSettings(resize=8))
    assert (refused.value.code, refused.value.what) == (
        "sample-kind-not-resizable",
        "samples of kind 'signal' cannot be reduced",
    )
    monkeypatch.delitem(KINDS, "signal")
    with pytest.raises(MismatchError) as error:
        kind_named(shards.corpus.sample_kind, where=shards.location)
    assert error.value.code == "sample-kind-unknown"
    assert error.value.where is not None
    assert str(error.value.found).startswith("signal")
