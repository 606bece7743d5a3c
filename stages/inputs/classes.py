"""Owns class lists and prompt templates: where they come from and what is refused."""

from __future__ import annotations

from collections.abc import Sequence

from ...pipeline.contents import Kind, kind_of
from ...pipeline.storage import Location, missing_hint
from ...pipeline.user_files import UserFile
from ...storage_schemas.errors import InputError
from ...storage_schemas.near_names import did_you_mean
from ..corpora.coop.source import dataset_classes
from ..corpora.name_list import read_names, with_indices
from ..corpora.spelling import has_classes

#: Used where no templates are named; CLIP's own for a single prompt.
DEFAULT_TEMPLATES = ("a photo of a {}.",)


def read_classes(source: str) -> tuple[str, ...]:
    """Class names in order: from a file as `read_names` takes it, `imagenet`, `coop:NAME=DATA` for those of a
    data set, or the labels of finished shards.

    Raises:
        InputError: no such list, an empty one, or a name in it that is empty or stands there twice.
    """
    if source == "imagenet":
        import open_clip

        return with_indices(open_clip.IMAGENET_CLASSNAMES)
    if has_classes(source):
        return _checked(dataset_classes(source), source)
    location = Location.of(source)
    if not location.exists():
        kinds = "one name a line, a JSON list, `imagenet`, `coop:NAME=DATA`, or a folder of shards"
        hint = did_you_mean(source, ["imagenet"], "") or missing_hint(location, kinds)
        raise InputError("no such class list", code="class-list-missing", where=location, hint=hint)
    return _checked(_labels(location) if location.is_dir() else read_names(UserFile.of(source)), location)


def classes_of(images: str, classes: str | None) -> tuple[str, ...]:
    """`read_classes(classes)`; for None the class list of the data set that IMAGES is a split of, or else the labels
    of the images in bytewise order.

    Raises:
        InputError: as `read_classes`, or images without labels.
    """
    if classes is not None:
        return read_classes(classes)
    if has_classes(images):
        return _checked(dataset_classes(images), images)
    from .image_set import open_images

    labels = {picture.label for picture in open_images(images).pictures() if picture.label is not None}
    if not labels:
        raise InputError(
            "these images have no labels",
            code="labels-missing",
            where=images,
            hint="put them into class folders",
        )
    return _checked(sorted(labels, key=str.encode), images)


def _checked(names: Sequence[str], where: object) -> tuple[str, ...]:
    """The names, if each has a text of its own: underscores are spaces in a prompt, so one of these alone has none.

    Raises:
        InputError: no name, an empty one, or one that stands there twice.
    """
    if not names:
        raise InputError("an empty class list", code="class-list-empty", where=where)
    seen: set[str] = set()
    for number, name in enumerate(names, 1):
        if not name.replace("_", " ").strip():
            raise InputError(
                "a class without a name",
                code="class-name-empty",
                where=f"{where}, entry {number}: {name!r}",
                hint="name it, or take it out; in prompts, underscores are spaces",
            )
        if name in seen:
            raise InputError(
                "a class name stands twice", code="class-name-twice", where=f"{where}, entry {number}: {name}"
            )
        seen.add(name)
    return tuple(names)


def read_templates(source: str | None) -> tuple[str, ...]:
    """Templates with `{}` for the class name: a file (one a line), `openai-imagenet` (80) or `simple-imagenet` (7).

    Raises:
        InputError: no such file or name, or a line without `{}`.
    """
    if source is None:
        return DEFAULT_TEMPLATES
    if source in ("openai-imagenet", "simple-imagenet"):
        import open_clip

        functions = (
            open_clip.OPENAI_IMAGENET_TEMPLATES if source == "openai-imagenet" else open_clip.SIMPLE_IMAGENET_TEMPLATES
        )
        return tuple(function("{}") for function in functions)
    location = UserFile.of(source)
    if not location.exists():
        kinds = ("openai-imagenet", "simple-imagenet")
        hint = did_you_mean(source, kinds, "") or missing_hint(location, f"a file, `{kinds[0]}` or `{kinds[1]}`")
        raise InputError("no such templates", code="templates-missing", where=source, hint=hint)
    templates = read_names(location, what="template")
    if not templates:
        raise InputError("no templates", code="templates-empty", where=location)
    for number, template in enumerate(templates, 1):
        if "{}" not in template:
            raise InputError(
                "a template without {}",
                code="template-without-slot",
                where=f"{location}, entry {number}: {template}",
            )
    return tuple(templates)


def _labels(location: Location) -> list[str]:
    from ..corpora.shards import ShardSet

    kind = kind_of(location)
    if kind != Kind.SHARDS:
        raise InputError(
            "not a class list",
            code="class-list-other-kind",
            where=location,
            expected=f"a file of names, or {Kind.SHARDS}",
            found=kind,
            hint="write the names to a file, one a line, and give that",
        )
    labels = {label for _, label in ShardSet.open(location).manifest().labels() if label is not None}
    if not labels:
        raise InputError(
            "these shards have no labels",
            code="labels-missing",
            where=location,
            hint="give a file of class names",
        )
    return sorted(labels)
