"""Owns anomaly maps as pictures: the image as the teacher saw it, the map over it, and the mask beside them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..corpora.images import BadImage
from ..pairs.join import JoinedShard
from ..pairs.store import open_store
from ..samples.images import IMAGES
from .results import AnomalyResults, Scored
from .shard_maps import ShardMaps
from .stage import AnomalyStage
from .truth import MaskReader, has_defect

#: Colours of a map from its lowest value to the highest: red, green and blue at these places.
_PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)
_COLOURS = np.array([(0, 0, 96), (0, 128, 255), (64, 224, 128), (255, 208, 0), (224, 0, 0)], np.float32)

#: How much of the image shows through the map.
_IMAGE_SHARE = 0.5

#: White columns between the parts of a picture.
GAP = 4

#: In place of a mask where it is not known whether and where there is a defect.
UNKNOWN = 128


def write_pictures(stage: AnomalyStage, results: AnomalyResults, count: int) -> list[str]:
    """Write the images with the highest scores to `pictures`, and return the files' names.

    All have one scale of colours: from the median of a usual map to the highest score.

    Raises:
        DamagedError: tar and store disagree, or bytes changed.
    """
    chosen = sorted(results.images, key=lambda image: (-image.score, image.path))[:count]
    if not chosen:
        return []
    low = float(np.median([image.median for image in results.images]))
    high = max(chosen[0].score, low + 1e-6)
    names = {id(image): _name(rank, image) for rank, image in enumerate(chosen, 1)}
    for image, array in _drawn(stage, chosen, low, high):
        data = io.BytesIO()
        Image.fromarray(array).save(data, "PNG")
        (stage.out / "pictures" / names[id(image)]).write_bytes(data.getvalue())
    return list(names.values())


def heat(map_YX: NDArray[np.floating], low: float, high: float) -> NDArray[np.uint8]:
    """A map in colours, uint8 (Y, X, 3)."""
    place_YX = np.clip((map_YX.astype(np.float32) - low) / (high - low), 0, 1)
    channels = [np.interp(place_YX, _PLACES, _COLOURS[:, channel]) for channel in range(3)]
    colours: NDArray[np.uint8] = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    return colours


def _drawn(
    stage: AnomalyStage, chosen: list[Scored], low: float, high: float
) -> Iterator[tuple[Scored, NDArray[np.uint8]]]:
    """Each image with its picture, shard by shard."""
    root = open_store(stage.facts.store, stage.facts.generation)
    reader = None if stage.masks is None else MaskReader(stage.masks)
    size, views = stage.image_size, stage.facts.views
    for shard in sorted({image.shard for image in chosen}):
        maps, joined = ShardMaps.read(stage.out, shard), JoinedShard(stage.shards, root, stage.facts, shard, ()).show(0)
        for image in (image for image in chosen if image.shard == shard):
            params = joined.view_params[image.place]
            planes = np.empty((3, size, size), np.uint8)
            try:
                decoded = IMAGES.decode(joined.read(int(joined.rows[image.place])), stage.shards.corpus.max_pixels)
            except BadImage:
                continue  # the tar changed: whoever trains on it says so
            IMAGES.draw(planes, decoded, params, size, views)
            picture = planes.transpose(1, 2, 0)
            colours = heat(maps.maps_NYX[image.place], low, high)
            parts = [picture, (_IMAGE_SHARE * picture + (1 - _IMAGE_SHARE) * colours).astype(np.uint8)]
            if reader is not None:
                mask_YX = reader.mask(image.path, params, size, views)
                parts.append(_in_grey(mask_YX, image.label, size))
            yield image, _side_by_side(parts)
        joined.close()


def _in_grey(mask_YX: NDArray[np.bool_] | None, label: str | None, size: int) -> NDArray[np.uint8]:
    """A mask, uint8 (Y, X, 3): a defect is white, what is faultless black."""
    if mask_YX is None:
        return np.full((size, size, 3), 0 if has_defect(label) is False else UNKNOWN, np.uint8)
    return np.repeat(np.where(mask_YX, 255, 0).astype(np.uint8)[..., None], 3, axis=2)


def _side_by_side(parts: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Parts (Y, X, 3) in one row."""
    gap = np.full((len(parts[0]), GAP, 3), 255, np.uint8)
    row = [array for part in parts for array in (gap, part)][1:]
    return np.concatenate(row, axis=1)


def _name(rank: int, image: Scored) -> str:
    """A file's name: how high the image scores, and what of its path is plain."""
    return f"{rank:04d}-{re.sub(r'[^A-Za-z0-9._-]+', '-', image.path.rpartition('.')[0])[-80:]}.png"
