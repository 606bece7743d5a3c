"""Owns building the student that a bundle describes: from its data alone, and never larger than its weights are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ...pipeline.storage import Location
from ...storage_schemas.bundle import CONFIG, WEIGHTS
from ...storage_schemas.errors import DamagedError, InputError
from ...storage_schemas.fingerprint import Json
from ..models.building import unfilled
from ..models.hub import quiet_libraries
from ..models.preprocess import Preprocess
from ..models.probe import few_images
from ..models.vision_config import MOST_PIXELS
from ..models.weights import brief, check_fit, fit_weights
from .decoder import check_shapes
from .described import OpenClipBackbone, check_backbone
from .head import Head
from .map_student import MapStudent, new_map_student
from .registry import rebuild_backbone
from .student import Student


def rebuild_student(
    folder: Location,
    backbone: Mapping[str, Json],
    preprocess: Preprocess,
    head: Head,
    weights: dict[str, Tensor],
) -> Student:
    """The student with its weights, on the CPU; one image has gone through it.

    Its parts are first built without memory, and names and shapes compared with the weights: what needs more than the
    file holds is refused before room is made for it.

    Args:
        folder: the bundle, as errors name it; nothing in it is opened.
        backbone, preprocess, head: from its configuration.
        weights: those of its file; emptied as they become the student's.

    Raises:
        DamagedError: a description that is not allowed, that cannot be built, or that its weights do not fit.
    """
    where, file = folder / CONFIG, folder / WEIGHTS
    about = check_backbone(backbone, where=where)
    if preprocess.size > MOST_PIXELS:
        raise _damaged(where, f"images of at most {MOST_PIXELS} pixels a side", f"images of {preprocess.size} pixels")
    if isinstance(about, OpenClipBackbone):
        _check_sizes(about, weights, where)

    def build() -> Student:
        return Student(rebuild_backbone(backbone, where=where), preprocess, head)

    with torch.random.fork_rng(devices=[]):
        with _one_line(where), torch.device("meta"):
            draft = build()
        with _one_line(file):
            check_fit(draft, weights, what="the bundle's model", where=file)
        with _one_line(where), unfilled():
            student = build().eval()
        with _one_line(file):
            fit_weights(student, weights, what="the bundle's model", where=file, consume=True)
    with _one_line(where), torch.no_grad():
        shape = tuple(student(few_images(1, preprocess.size)).shape)
    if shape != (1, head.embed_dim):
        raise _damaged(where, f"one vector of {head.embed_dim} channels an image", f"shape {shape}")
    return student


def rebuild_map_student(
    folder: Location, backbone: Mapping[str, Json], head: Head, weights: dict[str, Tensor]
) -> MapStudent:
    """The student that reads maps, with its weights, on the CPU; `rebuild_student` says how, and what the arguments are.

    No map goes through it: its convolutions take maps of any size, which the weights do not bound.

    Raises:
        DamagedError: as in `rebuild_student`.
    """
    where, file = folder / CONFIG, folder / WEIGHTS
    about = check_backbone(backbone, where=where)
    shapes = {level.target: level.shape for level in head.levels}
    if not shapes or any(len(shape) != 3 or max(shape[1:]) > MOST_PIXELS for shape in shapes.values()):
        raise _damaged(where, f"maps of at most {MOST_PIXELS} rows and columns", f"maps of {list(shapes.values())}")
    with torch.random.fork_rng(devices=[]):
        with _one_line(where), torch.device("meta"):
            check_shapes(shapes)
            draft = new_map_student(about.name, head)
        with _one_line(file):
            check_fit(draft, weights, what="the bundle's model", where=file)
        with _one_line(where), unfilled():
            student = new_map_student(about.name, head).eval()
        with _one_line(file):
            fit_weights(student, weights, what="the bundle's model", where=file, consume=True)
    return student


def _check_sizes(about: OpenClipBackbone, weights: Mapping[str, Tensor], where: object) -> None:
    """What even a tower without memory would take long over, or numpy make room for: layers, and positions by width."""
    config = about.vision_cfg
    if config.timm_model_name is not None:
        return  # timm's registry decides
    layers = config.layers if isinstance(config.layers, int) else sum(config.layers)
    if layers > len(weights):
        raise _damaged(where, f"no more layers than the {len(weights)} weights are for", f"{layers} layers")
    if isinstance(config.layers, int):
        sides = zip(_pair(config.image_size), _pair(config.patch_size or 1), strict=True)
        (rows, columns), elements = (side // patch for side, patch in sides), _count(weights)
        if rows * columns * config.width > elements:
            raise _damaged(
                where,
                f"no more positions than {elements} numbers in the weights are for",
                f"{rows * columns} positions of {config.width} channels",
            )


def _pair(size: int | list[int]) -> list[int]:
    return [size, size] if isinstance(size, int) else size


def _count(weights: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in weights.values())


@contextlib.contextmanager
def _one_line(where: object) -> Iterator[None]:
    """Inside, libraries print nothing, and whatever they raise on a description (they share no base class) is one line."""
    try:
        with quiet_libraries():
            yield
    except DamagedError:
        raise
    except InputError as error:
        raise DamagedError(
            error.what, code=error.code, where=where, expected=error.expected, found=error.found
        ) from error
    except Exception as error:
        raise _damaged(where, "parts that fit together", brief(error)) from error


def _damaged(where: object, expected: str, found: str) -> DamagedError:
    return DamagedError(
        "the bundle's model cannot be built",
        code="bundle-model-unbuildable",
        where=where,
        expected=expected,
        found=found,
        hint="copy the bundle again, or ask whoever made it",
    )
