"""`teachonce retry-failed` in stores: the teacher sees the images that were mended since, and just their rows get its targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..pipeline.storage import Location
from .corpora.shards import ShardSet
from .grow import plan_growth
from .growth.room import Step
from .models.teacher_config import TeacherConfig
from .pairs.join import as_made
from .pairs.store import open_store, read_description, store_receipts
from .settings.cache import CacheSettings
from .settings.store_teacher import StoreTeacherSettings
from .verifying.repair import cache_again
from .verifying.teacher_name import teacher_config
from .verifying.whole import Whole
from .views.spec import ViewSpec


@dataclass(frozen=True)
class StoreTeacher:
    """A store, and the teacher that it was made with.

    Attributes:
        store: where it is.
        config: of the teacher.
    """

    store: Location
    config: TeacherConfig


def store_teacher(store: Location | str, asked: StoreTeacherSettings) -> StoreTeacher:
    """The teacher of a store; nothing is loaded.

    Raises:
        InputError: no store; or it does not say where its teacher is, and `asked` does not either.
    """
    location = Location.of(store)
    description = read_description(open_store(location), location)
    config = teacher_config(
        description,
        location,
        model=asked.model,
        pretrained=asked.pretrained,
        backbone=asked.backbone,
        rehash=asked.rehash,
    )
    return StoreTeacher(location, config)


def fill_mended(shards: Location | str, teacher: StoreTeacher) -> Iterator[Step]:
    """The generations that a store needs to have targets of all mended images; `finish` each before the next is taken.

    Images that were added before the last of them are cached too: a store's generations come in the order of the corpus's states.

    Args:
        shards: folder of the shards, as they are now.
        teacher: of the store.

    Raises:
        InputError, IncompleteError, MismatchError: see `plan_growth`.
    """
    steps = None
    while whole := _lagging(ShardSet.open(shards), teacher.store):
        if steps is None:
            again = cache_again(whole, teacher.config)
            steps = plan_growth(
                shards,
                again.config,
                out=teacher.store,
                views=again.views,
                view_interpolation=again.interpolation,
                settings=CacheSettings(targets=again.targets, batch_size=again.batch_size),
                compute=again.compute,
            )
        yield next(steps)


def _lagging(shards: ShardSet, store: Location) -> Whole | None:
    """Shards and store, where images of the store were mended since it was made; None where none were."""
    description = read_description(open_store(store), store)
    then = as_made(shards, store, description)
    if not then.changed_since()[0]:
        return None
    views = ViewSpec.from_json(description.views, where=store)
    receipts = store_receipts(store, description.generation)
    return Whole(shards=shards, store=store, description=description, views=views, receipts=receipts, vectors=None)
