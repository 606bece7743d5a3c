"""Labels and domains as targets: what the manifest has of each row, beside the store's own targets."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
from teachonce.stages.pairs.manifest_labels import ManifestLabels, domain_of
from teachonce.stages.pairs.stream import TargetStream
from teachonce.storage_schemas.errors import InputError

#: Of the three folders of `pictures`; a class more, in another spelling.
NAMES = ("zebra", "blue-jay", "Red Fox", "owl")


@pytest.mark.parametrize("workers", [0, 1])
def test_each_row_gets_the_class_of_its_folder(known_store, workers):
    entries = list(known_store.shards.manifest())
    source = ManifestLabels.of(known_store.shards, ("label",), NAMES)
    assert pickle.loads(pickle.dumps(source)) == source
    options = {"image_size": 8, "batch_size": 8, "num_workers": workers, "drop_last": False}
    with TargetStream(
        known_store.shards, known_store.location, targets=("logits", "label"), sources=(source,), **options
    ) as stream:
        batches = list(stream.batches(0))
    with TargetStream(known_store.shards, known_store.location, targets=("logits",), **options) as stream:
        plain = list(stream.batches(0))
    expected = {"red fox": 2, "Blue_Jay": 1}
    for batch, without in zip(batches, plain, strict=True):
        labels = [entries[row].path.split("/")[0] for row in batch.rows_N.tolist()]
        assert batch.targets["label"].tolist() == [expected.get(label, -1) for label in labels]
        assert str(batch.targets["label"].dtype) == "torch.int64"
        assert batch.targets["logits"].equal(without.targets["logits"])
        assert batch.images_NCHW.equal(without.images_NCHW)


def test_what_has_no_label_is_counted(known_store):
    source = ManifestLabels.of(known_store.shards, ("label",), NAMES)
    entries = [entry for entry in known_store.shards.manifest() if entry.label not in ("red fox", "Blue_Jay")]
    assert (source.unlabelled, source.example, source.found) == (len(entries), entries[0].path, entries[0].label)
    assert source.note == f"{48 - len(entries)} of 48 images have a label that is a class"
    with pytest.raises(InputError) as error:
        source.require_all("vl2v")
    assert str(error.value) == (
        f"recipe vl2v needs a label of every image, and {len(entries)} images of 48 have none that is the name of a class: "
        f"{entries[0].path}: expected the name of a class, found {entries[0].label}. Next: shard only folders whose names are "
        "classes, or compute class vectors of these classes too"
    )
    ManifestLabels.of(known_store.shards, ("label",), ("red fox", "blue jay", entries[0].label)).require_all("vl2v")


def test_a_corpus_without_labels_or_domains(known_store):
    where = known_store.shards.location
    with pytest.raises(InputError) as error:
        ManifestLabels.of(known_store.shards, ("label",), ("owl", "zebra"))
    assert str(error.value).startswith(
        f"no label of this corpus is the name of a class: {where}: expected names like 'owl'"
    )
    with pytest.raises(InputError) as error:
        ManifestLabels.of(known_store.shards, ("domain",), None)
    assert str(error.value).startswith(
        f"this corpus has no domains: {where}: expected images at DOMAIN/CLASS/IMAGE, of 2 domains or more"
    )


def test_domains_are_the_folders_above_the_classes(pictures, make_shards, make_store, tmp_path):

    for domain in ("sketch", "Photo"):
        shutil.copytree(pictures, tmp_path / "all" / domain)
    shards = make_shards(tmp_path / "all", tmp_path / "shards", shard_size=13)
    source = ManifestLabels.of(shards, ("domain",), None)
    assert source.domains == ("Photo", "sketch")
    assert source.note == "domains Photo, sketch"
    store = make_store(shards, tmp_path / "s.zarr")
    entries = list(shards.manifest())
    with TargetStream(
        shards, store.location, image_size=8, batch_size=16, targets=("domain",), sources=(source,)
    ) as stream:
        for batch in stream.batches(1):
            found = [source.domains[number] for number in batch.targets["domain"].tolist()]
            assert found == [entries[row].path.split("/")[0] for row in batch.rows_N.tolist()]
            assert batch.targets["domain"].numpy().dtype == np.int64


@pytest.mark.parametrize(
    ("path", "domain"), [("a/b/c.jpg", "a"), ("x/a/b/c.jpg", "a"), ("b/c.jpg", ""), ("c.jpg", ""), ("a//c.jpg", "a")]
)
def test_domain_of_a_path(path, domain):
    assert domain_of(path) == domain
