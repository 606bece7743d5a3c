"""Owns anomaly maps: where a decoder did not give a teacher's maps back.

Deng and Li, CVPR 2022, arXiv 2201.10703, and their code: at each level 1 - cosine along the channels, brought to the image's size
(bilinear, corners aligned), summed over levels, and smoothed. An image's score is the largest value.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

#: Standard deviation of the smoothing, in pixels; and where its weights end, in these (as `scipy.ndimage.gaussian_filter` has it).
SIGMA, TRUNCATE = 4.0, 4.0


def anomaly_maps(teacher: Mapping[str, Tensor], student: Mapping[str, Tensor], size: int) -> Tensor:
    """Smoothed anomaly maps, fp32 (N, size, size), from 0 to twice the number of levels.

    Args:
        teacher, student: maps fp32 (N, C, Y, X) by level, of the same shapes.
        size: pixels of a side of the images.
    """
    levels = []
    for name, teacher_NCYX in teacher.items():
        distance_NYX = 1 - F.cosine_similarity(student[name], teacher_NCYX, dim=1)
        levels.append(F.interpolate(distance_NYX[:, None], size, mode="bilinear", align_corners=True)[:, 0])
    total_NYX = torch.stack(levels).sum(dim=0)
    blur = _blur(size, SIGMA).to(total_NYX)
    smooth_NYX: Tensor = blur @ total_NYX @ blur.T
    return smooth_NYX


@functools.lru_cache(maxsize=4)
def _blur(size: int, sigma: float) -> Tensor:
    """Smoothing along one axis, as a matrix (size, size): beyond its ends the axis is mirrored, the outermost number twice."""
    radius = int(TRUNCATE * sigma + 0.5)
    weights = [math.exp(-((offset / sigma) ** 2) / 2) for offset in range(-radius, radius + 1)]
    total, matrix = sum(weights), torch.zeros(size, size, dtype=torch.float64)
    for place in range(size):
        for offset, weight in zip(range(-radius, radius + 1), weights, strict=True):
            at = (place + offset) % (2 * size)
            matrix[place, min(at, 2 * size - 1 - at)] += weight / total
    return matrix
