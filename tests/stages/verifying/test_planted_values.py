"""Planted disasters that only the teacher shows: values that are whole, vouched for, and not what it gives. Each is found by its cause."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from teachonce.stages.corpora.images import decode
from teachonce.stages.models.preprocess import Normalize
from teachonce.stages.samples.images import IMAGES
from teachonce.stages.samples.kind import draw_views
from teachonce.stages.settings.verify import VerifyTeacherSettings
from teachonce.stages.teachers import TeacherConfig, load_teacher
from teachonce.stages.verifying.picture_causes import coarse_chroma
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.class_vectors import ClassVectors, read_class_vectors
from teachonce.storage_schemas.target_store import open_root

#: What spoils a store -> codes of what is found.
DISASTERS: dict[str, tuple[Callable, set[str]]] = {}


def disaster(*codes: str):
    def add(spoil: Callable) -> Callable:
        DISASTERS[spoil.__name__] = (spoil, set(codes))
        return spoil

    return add


class Recached:
    """Writes what a teacher gives for pictures that are made in another way, by this test's own loop."""

    def __init__(self, pair: Any, plant: Any, config: TeacherConfig) -> None:
        self.pair, self.plant, self.config = pair, plant, config

    def embed(self, pixels: np.ndarray, *, normalize: Normalize | None = None, model: Any = None) -> np.ndarray:
        teacher: Any = load_teacher(self.config)
        with torch.inference_mode():
            x = (normalize or Normalize(teacher.spec.preprocess))(torch.from_numpy(pixels))
            return torch.nn.functional.normalize((model or teacher.model).encode_image(x), dim=-1).numpy()

    def all(
        self,
        draw: Callable[[Image.Image, np.ndarray, str], np.ndarray],
        *,
        vectors: ClassVectors | None = None,
        logits: Callable[[np.ndarray], np.ndarray] | None = None,
        **how: Any,
    ) -> None:
        """Every shard's rows anew; `draw` gives uint8 (view, 3, 32, 32) of an image, its stored views and its key."""
        vectors = vectors or read_class_vectors(open_root(str(self.pair.store)), "")
        for shard in range(4):
            reader = self.pair.shard_set.reader(shard)

            def change(block, reader=reader, shard=shard):
                targets = {name: np.array(values) for name, values in block.targets.items()}
                for offset in np.flatnonzero(block.valid):
                    image = decode(reader.read(13 * shard + int(offset)))
                    pixels = draw(image, block.view_params[offset], block.keys[offset])
                    targets["embedding"][offset] = self.embed(np.ascontiguousarray(pixels), **how)
                    targets["logits"][offset] = vectors.logits(targets["embedding"][offset])
                return replace(block, targets=targets)

            self.pair.rewrite(shard, change)


def drawn(spec: ViewSpec, image: Any, params: Any, key: str) -> np.ndarray:
    return draw_views(IMAGES, image, params, 32, spec)


@disaster("teacher-saw-mirrored")
def mirrored(recached, views):
    recached.all(lambda *about: drawn(views, *about)[..., ::-1])


@disaster("teacher-saw-other-channels")
def blue_for_red(recached, views):
    recached.all(lambda *about: drawn(views, *about)[:, ::-1])


@disaster("teacher-saw-normalised-otherwise")
def normalised_as_imagenet(recached, views):
    own = load_teacher(recached.config).spec.preprocess
    imagenet = replace(own, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    recached.all(lambda *about: drawn(views, *about), normalize=Normalize(imagenet))


@disaster("teacher-saw-normalised-otherwise")
def not_divided_by_255(recached, views):
    own = load_teacher(recached.config).spec.preprocess

    class Plain(Normalize):
        def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
            return (images_NCHW.float() - self.mean) / self.std

    recached.all(lambda *about: drawn(views, *about), normalize=Plain(own))


@disaster("teacher-saw-resampled-otherwise")
def another_filter(recached, views):
    recached.all(lambda *about: drawn(replace(views, interpolation="bilinear"), *about))


@disaster("teacher-saw-resampled-otherwise")
def without_antialiasing(recached, views):
    def draw(image, params, key):
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float()
        out = []
        for top, left, height, width, flip, *_ in params.tolist():
            box = pixels[None, :, top : top + height, left : left + width]
            view = torch.nn.functional.interpolate(box, (32, 32), mode="bilinear")[0].round().byte()
            out.append((view.flip(-1) if flip else view).numpy())
        return np.stack(out)

    recached.all(draw)


@disaster("teacher-saw-cropped-otherwise")
def cropped_in_the_middle(recached, views):
    center = ViewSpec(kind="center", interpolation=views.interpolation)
    recached.all(lambda image, params, key: np.repeat(drawn(center, image, params[:1], key), len(params), axis=0))


@disaster("teacher-saw-decoded-otherwise")
def chroma_of_another_decoder(recached, views):
    recached.all(lambda image, params, key: drawn(views, coarse_chroma(image), params, key))


def each(recached, name: str, change: Callable[[np.ndarray], np.ndarray], shards=range(4)) -> None:
    for shard in shards:
        recached.pair.rewrite(shard, recached.plant.changed(name, change))


@disaster("values-shifted")
def values_shifted_by_one(recached, views):
    def shift(block):
        usable = np.flatnonzero(block.valid)
        targets = {name: np.array(values) for name, values in block.targets.items()}
        for values in targets.values():
            values[usable] = values[np.roll(usable, 1)]
        return replace(block, targets=targets)

    recached.pair.rewrite(0, shift)


@disaster("values-in-another-order")
def values_in_another_order(recached, views):
    def shuffle(block):
        usable = np.flatnonzero(block.valid)
        targets = {name: np.array(values) for name, values in block.targets.items()}
        order = np.random.default_rng(5).permutation(usable)
        for values in targets.values():
            values[usable] = values[order]
        return replace(block, targets=targets)

    recached.pair.rewrite(0, shuffle)


@disaster("values-of-another-view")
def views_exchanged(recached, views):
    for name in ("logits", "embedding"):
        each(recached, name, lambda values: values[:, ::-1])


@disaster("values-of-another-shard")
def values_of_another_shard(recached, views):
    from teachonce.storage_schemas.store_description import StoreDescription
    from teachonce.storage_schemas.target_store import read_block

    root = open_root(str(recached.pair.store))
    other = read_block(root, StoreDescription.read(root, "").spec, 3)

    def exchange(block):
        targets = {name: np.array(values) for name, values in block.targets.items()}
        usable, theirs = np.flatnonzero(block.valid), np.flatnonzero(other.valid)
        for name, values in targets.items():
            values[usable[: len(theirs)]] = other.targets[name][theirs]
            values[usable[len(theirs) :]] += 1e-3  # whatever stands there
        return replace(block, targets=targets)

    recached.pair.rewrite(0, exchange)


@disaster("classes-in-another-order")
def logits_in_another_order(recached, views):
    each(recached, "logits", lambda values: values[..., [2, 0, 1]])


@disaster("logit-scale-other")
def another_logit_scale(recached, views):
    each(recached, "logits", lambda values: values * 5)


@disaster("logit-bias-other")
def another_bias(recached, views):
    each(recached, "logits", lambda values: values + np.array([0.5, -1, 2], np.float32))


@disaster("values-not-of-teacher")
def noise(recached, views):
    rng = np.random.default_rng(0)

    def blur(values):
        values = values + rng.normal(0, 0.3, values.shape).astype(np.float32)
        return values / np.linalg.norm(values, axis=-1, keepdims=True)

    each(recached, "embedding", blur)


@disaster("teacher-other-precision")
def in_bf16(recached, views):
    teacher: Any = load_teacher(recached.config)
    model = copy.deepcopy(teacher.model)

    class Bf16:
        @staticmethod
        def encode_image(x):
            with torch.autocast("cpu", torch.bfloat16):
                return model.encode_image(x).float()

    recached.all(lambda *about: drawn(views, *about), model=Bf16)


@disaster("teacher-weights-random")
def weights_not_loaded(recached, views):
    random: Any = load_teacher(replace(recached.config, pretrained="random"))
    recached.all(lambda *about: drawn(views, *about), model=copy.deepcopy(random.model))


@pytest.fixture
def recached(pair, plant, teacher) -> Recached:
    return Recached(pair, plant, teacher)


@pytest.fixture
def views(plant) -> ViewSpec:
    return replace(plant.VIEWS, interpolation="bicubic")


def ask(pair, config: TeacherConfig, rows: int = 40) -> list:
    settings = VerifyTeacherSettings(rows=rows, model=config.model, pretrained=config.pretrained)
    return pair.findings(teacher=settings)


@pytest.mark.parametrize("name", DISASTERS)
def test_planted_values_are_found_by_their_cause(name, recached, views, teacher):
    spoil, codes = DISASTERS[name]
    assert recached.pair.codes() == []
    spoil(recached, views)
    assert recached.pair.codes() == [], "no digest finds it"
    found = ask(recached.pair, teacher)
    assert {finding.code for finding in found} == codes, [str(finding.error) for finding in found]
    assert not any("most likely" in finding.error.what for finding in found) or name == "in_bf16"


def test_what_the_teacher_gives_is_clean(made, teacher):
    assert ask(made, teacher) == []
    settings = VerifyTeacherSettings(rows=7, model=teacher.model)
    report = made.report(teacher=settings)
    assert report.asked.rows == 7
    assert max(report.asked.far["embedding"]["cosine"]) < 1e-10
    assert report.to_json()["teacher"]["targets"]["logits"]["kl"]["largest"] < 1e-9


@pytest.fixture(scope="session")
def other_teacher(tiny_clip_teacher, tmp_path_factory) -> TeacherConfig:
    """The same architecture, trained otherwise."""
    import safetensors.torch

    folder = shutil.copytree(tiny_clip_teacher, tmp_path_factory.mktemp("other") / "tiny-clip")
    file = folder / "open_clip_model.safetensors"
    weights = safetensors.torch.load_file(file)
    generator = torch.Generator().manual_seed(3)
    save_file({name: w + 0.05 * torch.randn(w.shape, generator=generator) for name, w in weights.items()}, file)
    return TeacherConfig(model=f"local-dir:{folder}")


def test_another_teacher_is_named(made, other_teacher):
    found = ask(made, other_teacher)
    assert {finding.code for finding in found} == {"another-teacher"}
    assert not any(finding.mendable for finding in found)
    assert "(the store)" in found[0].error.expected
    assert "(the teacher that ran)" in found[0].error.found


def test_a_store_of_random_weights_is_named(picture_shards, teacher, plant, tmp_path):
    random = replace(teacher, pretrained="random")
    store = plant.make_store(picture_shards, tmp_path / "s.zarr", random)
    found = ask(plant.Pair(picture_shards.location.path, store), teacher)
    assert {finding.code for finding in found} == {"teacher-weights-random"}


def test_one_wrong_row_among_many_is_found(pair, plant, teacher):
    def spoil(values):
        values[7] = -values[7]
        return values

    pair.rewrite(2, plant.changed("embedding", spoil))
    found = ask(pair, teacher, rows=100)
    assert [finding.code for finding in found] == ["values-not-of-teacher"]
    assert found[0].rows == [2 * 13 + 7]
    assert found[0].mendable


def test_rows_are_those_of_the_seed_and_come_from_all_shards(made, teacher):
    from teachonce.stages.verifying.sampled_rows import RowSampler, rows_per_shard
    from teachonce.stages.verifying.whole import look_at_whole

    assert rows_per_shard(10, 4, 0) == rows_per_shard(10, 4, 0)
    assert sorted(rows_per_shard(10, 4, 0)) == [2, 2, 3, 3]
    assert sum(rows_per_shard(2, 4, 1)) == 2
    whole, _ = look_at_whole(str(made.shards), str(made.store))
    assert whole is not None
    few, more = (RowSampler(whole, 0).draw(1, count) for count in (3, 6))
    assert few is not None
    assert more is not None
    assert set(few.rows) < set(more.rows)
    assert list(few.rows) == list(RowSampler(whole, 0).draw(1, 3).rows)
    assert list(few.rows) != list(RowSampler(whole, 1).draw(1, 3).rows)


@pytest.mark.parametrize("encoding", ["fp16", "fp32"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rounding_is_no_finding(picture_shards, teacher, plant, tmp_path, encoding, precision):
    compute = replace(plant.CPU, precision=precision)
    store = plant.make_store(
        picture_shards, tmp_path / "s.zarr", teacher, encoding=encoding, compute=compute, batch_size=5
    )
    assert ask(plant.Pair(picture_shards.location.path, store), teacher) == []


def test_a_folder_has_to_be_named(made):
    from teachonce.storage_schemas.errors import InputError

    with pytest.raises(InputError, match="the store does not say where its teacher is") as error:
        made.codes(teacher=VerifyTeacherSettings(rows=4))
    assert error.value.hint == "add --teacher-model local-dir:FOLDER, as `cache` was given it"
