"""Owns labelled images: pictures whose labels are class names, with their class ids, in a fixed order."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import InputError
from ..corpora.label import NoLabels, no_labels_text
from ..corpora.left_out import left_out_text
from ..decoding.work import Pool
from ..inputs.class_match import ClassMatcher, Match
from ..inputs.image_set import ImageSet, Picture, open_images
from ..inputs.picture_batches import picture_batches
from ..inputs.picture_views import PictureViews, Wanted
from ..models.forward import Parts
from ..models.preprocess import Preprocess
from ..samples.images import IMAGES
from ..samples.kind import SampleKind

#: Images in a batch to look at.
BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class CenterViews:
    """Test-time views of some labelled images.

    Attributes:
        parts: of the kind's dtype, one array (image, *shape of the kind) behind the other.
        labels_N: int64 class ids of them.
        unusable: class ids of images that could not be used; they have no views.
    """

    parts: Parts
    labels_N: NDArray[np.int64]
    unusable: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledImages:
    """Images and their class ids. Iterates over (picture, class id), walking the images anew each time.

    Memory: four bytes an image, whatever their names.

    Attributes:
        images: what the user called them.
        image_set: all images there.
        class_ids_N: int32 (image,), in the order of the set; -1 for images that are left out.
        unknown: labels that are no class, with the reason.
        notes: lines that a person should see: what was left out, and values in the place of labels that are not labels.
    """

    images: str
    image_set: ImageSet
    class_ids_N: NDArray[np.int32]
    unknown: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @staticmethod
    def open(
        images: str,
        class_names: Sequence[str],
        *,
        what: str,
        option: str | None = None,
        kind: SampleKind = IMAGES,
    ) -> LabelledImages:
        """Find the images and match their labels; nothing is decoded yet.

        Args:
            images: a folder of class folders, a tar, a list, a folder of shards, or a split of a data set.
            class_names: in the order of the logits; see `ClassMatcher` for how labels match them.
            what: what they are for, as an error names them: "validation".
            option: the option that an error's hint says to leave out; None where they are needed.
            kind: of samples to look for.

        Raises:
            InputError: nothing there, or no label is a class name.
        """
        image_set, matcher = open_images(images, kind=kind), ClassMatcher(class_names)
        matches: dict[str, Match] = {}
        no_labels = NoLabels()
        ids = array("i")
        for picture in image_set.pictures():
            if picture.no_label:
                no_labels.add(picture.no_label, picture.path)
            if picture.label is not None and picture.label not in matches:
                matches[picture.label] = matcher.match(picture.label)
            class_id = None if picture.label is None else matches[picture.label].class_id
            ids.append(-1 if class_id is None else class_id)
        notice = no_labels_text(no_labels.to_json())
        labelled = LabelledImages(
            images=images,
            image_set=image_set,
            class_ids_N=np.frombuffer(ids, np.int32) if ids else np.empty(0, np.int32),
            unknown={label: match.reason for label, match in sorted(matches.items()) if match.class_id is None},
            notes=tuple(filter(None, (notice, left_out_text(image_set.left_out.to_json())))),
        )
        if not len(labelled):
            raise InputError(
                f"no label of the {what} images is the name of a class",
                code="labels-without-class",
                where=images,
                expected=f"names like {class_names[0]!r}",
                found=", ".join(repr(label) for label in sorted(matches)[:3])
                or notice
                or f"{len(ids)} images, no labels",
                hint="name the folders as the classes are named" + (f", or leave out {option}" if option else ""),
            )
        return labelled

    def __len__(self) -> int:
        return int((self.class_ids_N >= 0).sum())

    def __iter__(self) -> Iterator[tuple[Picture, int]]:
        """
        Raises:
            InputError: there are more or fewer images than before.
        """
        ids = iter(self.class_ids_N.tolist())
        for picture in self.image_set.pictures():
            class_id = next(ids, None)
            if class_id is None:
                raise self._changed()
            if class_id >= 0:
                yield picture, class_id
        if next(ids, None) is not None:
            raise self._changed()

    @property
    def found(self) -> int:
        """Images there, with or without such a label."""
        return len(self.class_ids_N)

    def keep(self, wanted_N: NDArray[np.bool_]) -> LabelledImages:
        """The same with only some of the images: bool (image,), in the order of the set."""
        return replace(self, class_ids_N=np.where(wanted_N, self.class_ids_N, np.int32(-1)))

    @property
    def digest(self) -> str:
        """blake2b-128 over keys and class ids, in hexadecimal."""
        state = hashlib.blake2b(digest_size=16)
        for picture, class_id in self:
            state.update(f"{picture.key} {class_id}\n".encode())
        return state.hexdigest()

    def _changed(self) -> InputError:
        return InputError(
            "the images changed while they were read",
            code="images-changed-meanwhile",
            where=self.images,
            hint="run it again",
        )

    def center_views(self, preprocess: Preprocess, pool: Pool) -> Iterator[CenterViews]:
        """All images in order, at the centre view of a model, decoded ahead in the pool; each once, usable or not."""
        work = PictureViews(
            files=self.image_set.files,
            kind=self.image_set.kind,
            limit=self.image_set.max_pixels,
            size=preprocess.size,
            view=preprocess.center_view(),
        )
        wanted = ((class_id, Wanted(file=picture.file)) for picture, class_id in self)
        for batch in picture_batches(pool, work, wanted, total=len(self), size=BATCH_SIZE):
            yield CenterViews(
                parts=batch.views.take(),
                labels_N=np.array([class_id for class_id, _ in batch.usable], np.int64),
                unusable=tuple(class_id for class_id, _ in batch.unusable),
            )
