"""Owns which of the images that are measured a store's teacher saw: by their corpus where they are shards, else by content."""

from __future__ import annotations

import shlex

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import InputError, MismatchError
from ...storage_schemas.samples import content_digest
from ..corpora.images import BadImage
from ..corpora.shards import ShardSet
from ..inputs.image_set import ImageSet, Picture
from .stored_teacher import StoredTeacher

#: So many images, spread evenly, are looked at before any is measured: a wrong folder is refused at once.
_LOOK_AT = 16


class SamePictures:
    """The images whose key the store has, and whose content is the one that its teacher saw.

    A key is made of a corpus's name and a path, not of an image's content. Shards of the store's own corpus hold its pictures.
    Of anything else the content counts: the digest of each file is compared with the one in the manifest of the store's
    shards, which must be where `cache` found them.

    Args:
        teacher: from a store.
        image_set: what is measured; with its keys `keys_N` (`S32`) in order.

    Attributes:
        rows_N: row in the store of each image, int64; -1 where it has no usable sample of that key.
        others: paths of images, by row, that turned out to be another picture than that row's.

    Raises:
        InputError: no key is the store's, or what the pictures were cannot be known.
        MismatchError: the images have the store's keys, but are other pictures, or were not reduced alike.
    """

    def __init__(self, teacher: StoredTeacher, image_set: ImageSet, keys_N: NDArray[np.bytes_]) -> None:
        self._teacher, self._image_set = teacher, image_set
        self.others: dict[int, str] = {}
        self.rows_N = teacher.find(keys_N)
        self._digests_N: NDArray[np.bytes_] | None = None
        known = int((self.rows_N >= 0).sum())
        if not known:
            raise self._nothing_in_common()
        self._refuse_other_sizes()
        if self.of_the_store is None:
            self._digests_N = self._expected()
            self._look_at(np.flatnonzero(self.rows_N >= 0)[:: -(-known // _LOOK_AT)])

    @property
    def of_the_store(self) -> ShardSet | None:
        """The images, where they are shards of the store's own corpus, as they were when it was cached."""
        shards = self._image_set.shards
        return None if shards is None else shards.as_of(self._teacher.corpus_id)

    def before_reading(self, index: int, picture: Picture) -> tuple[bool, str | None]:
        """Whether an image may be the picture of its row, and the digest that its content must have to be it; None where
        that is known already.

        Args:
            index: of the image in the set.
        """
        if self.rows_N[index] < 0 or self._digests_N is None:
            return bool(self.rows_N[index] >= 0), None
        expected = self._digests_N[index].decode("ascii")
        if picture.digest is not None:
            return picture.digest == expected, None
        return True, expected

    def is_same(self, index: int, picture: Picture, data: bytes) -> bool:
        """Whether an image is the picture of its row; one that is another picture is kept in `others`.

        Args:
            index: of the image in the set.
            picture: the image, and `data` its bytes.
        """
        may_be, digest = self.before_reading(index, picture)
        is_it = may_be and digest in (None, content_digest(data))
        row = int(self.rows_N[index])
        if row >= 0 and not is_it:
            self.others[row] = picture.path
        return is_it

    def note(self) -> str:
        """A line for people about images that are other pictures, or ''."""
        if not self.others:
            return ""
        first = self.others[min(self.others)]
        return f"other pictures than the store's under its names, left out of the agreement: {len(self.others)} ({first} is the first)"

    def _nothing_in_common(self) -> InputError:
        cached = self._teacher.shards
        return InputError(
            "none of the images has a key in the store",
            code="images-not-in-store",
            where=self._teacher.location,
            expected="a corpus with another name" if cached is None else f"corpus '{cached.corpus.name}'",
            found=f"corpus '{self._image_set.name}'",
            hint="pass the shards that were cached, or --name with their corpus's name, or leave out --store",
        )

    def _refuse_other_sizes(self) -> None:
        """Reduced images are other pictures than their originals, whose digests they keep."""
        cached, own = self._teacher.shards, self._image_set.shards
        if cached is None:
            if self.of_the_store is None:
                raise InputError(
                    "whether these are the pictures that the store's teacher saw cannot be known",
                    code="images-cannot-be-compared",
                    where=self._teacher.location,
                    found=self._teacher.no_shards,
                    hint="pass the shards that were cached as IMAGES, or leave out --store",
                )
            return  # their pixels are compared with the teacher's
        store_form, own_form = cached.reduced, {} if own is None else own.reduced
        if self.of_the_store is not None:  # what another Pillow makes of them shows in their pixels
            store_form, own_form = ({k: v for k, v in form.items() if k == "resize"} for form in (store_form, own_form))
        if store_form != own_form:
            raise MismatchError(
                "the images were not reduced as those were that the store's teacher saw",
                code="images-other-form",
                where=self._teacher.location,
                expected=f"{_form_text(store_form)}, as in {cached.location}",
                found=_form_text(own_form),
                hint=self._hint(cached),
            )

    def _expected(self) -> NDArray[np.bytes_]:
        """The digest (`S32`) that the store's shards record of each image's row; empty where it has none."""
        assert self._teacher.shards is not None
        manifest, size = self._teacher.shards.manifest(), self._teacher.shards.corpus.shard_size
        digests_N = np.zeros(len(self.rows_N), "S32")
        shards_N = np.where(self.rows_N >= 0, self.rows_N // size, -1)
        for shard in np.unique(shards_N[shards_N >= 0]).tolist():
            here = np.flatnonzero(shards_N == shard)
            digests_N[here] = np.array(manifest.digests(shard), "S32")[self.rows_N[here] % size]
        return digests_N

    def _look_at(self, indices: NDArray[np.int64]) -> None:
        wanted, looked = set(indices.tolist()), 0
        for index, picture in enumerate(self._image_set.pictures()):
            if index not in wanted:
                continue
            try:
                if self.is_same(index, picture, picture.read()):
                    return
            except BadImage:
                continue
            looked += 1
        if looked:
            first = self.others[min(self.others)]
            assert self._teacher.shards is not None
            raise MismatchError(
                "the images have the store's names, but are other pictures",
                code="images-other-pictures",
                where=self._teacher.location,
                expected=f"the files that {self._teacher.shards.location} was made of",
                found=f"other content in {first} and {looked - 1} more of {looked} that were looked at",
                hint=self._hint(self._teacher.shards),
            )

    def _hint(self, shards: ShardSet) -> str:
        command = [
            "teachonce",
            "evaluate",
            "BUNDLE",
            str(shards.location),
            "--store",
            str(self._teacher.location),
        ]
        return f"{shlex.join(command)}, or leave out --store"


def _form_text(form: dict[str, object]) -> str:
    if not form:
        return "original files"
    pillow = f" by Pillow {form['pillow']}" if "pillow" in form else ""
    return f"images reduced to {form['resize']} pixels{pillow}"
