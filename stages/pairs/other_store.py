"""Owns another teacher's store as a source of targets: the same images in the same views, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ...pipeline.storage import Location
from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError, MismatchError
from ...storage_schemas.plain_text import counted, typed
from ...storage_schemas.store_description import StoreDescription, TargetSpec
from ...storage_schemas.target_store import Arrays, OpenArrays, read_marks, read_params
from ..corpora.shards import ShardSet
from ..views.spec import ViewSpec
from .join import as_made
from .local_copies import LocalCache, StoreCopies
from .sources import ShardRows, Values
from .store import StoreFacts, open_store, store_facts, vectors_if_any
from .target_rows import TargetRows

#: What stands between the name of a store and that of one of its targets: `clip-l:embedding`.
OF = ":"


@dataclass(frozen=True, kw_only=True)
class OtherStore:
    """The targets of a store beside the one that is trained from. They are called NAME:TARGET.

    Attributes:
        name: what the user calls it.
        fingerprint: digest of everything that decided its bytes.
        facts: of the store.
        vectors: its class vectors; None where it has none.
    """

    name: str
    fingerprint: str
    facts: StoreFacts = field(compare=False, repr=False)
    vectors: ClassVectors | None = field(compare=False, repr=False)

    @staticmethod
    def named(given: str, shards: ShardSet, first: Location, about: StoreDescription, num_views: int) -> OtherStore:
        """The store that a user names NAME=PATH.

        Args:
            shards: the corpus, in any state.
            first: the store that is trained from.
            about: what that is; so many of its views are read.

        Raises:
            InputError: not such a text, no store there, or one of other views.
            IncompleteError: `teachonce cache` has not finished there.
            MismatchError: it was made from another corpus, or another state of it.
        """
        name, equals, path = given.partition("=")
        if not (equals and path and name and name.replace("-", "").replace("_", "").isalnum()):
            raise InputError(
                "another store is given with a name",
                code="other-store-malformed",
                where=f"--also {given}",
                expected="NAME=STORE, the name of letters, digits, - and _",
                found=given,
            )
        store = Location.of(path)
        facts = store_facts(store)
        as_made(shards, store, facts)
        if facts.corpus_id != about.corpus_id:
            raise MismatchError(
                "two stores are of different states of the corpus",
                code="stores-other-corpus",
                where=f"--also {given}",
                expected=f"corpus id {about.corpus_id} (as {first})",
                found=facts.corpus_id,
                hint=f"teachonce cache {typed(shards.location)} --teacher … --out STORE --grow brings a store up to date",
            )
        _check_views(given, facts, first, about, num_views)
        return OtherStore(
            name=name, fingerprint=facts.fingerprint, facts=facts, vectors=vectors_if_any(open_store(store), store)
        )

    @property
    def layouts(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        return {spec.name: ("f4", spec.shape) for spec in self.specs}

    @property
    def specs(self) -> tuple[TargetSpec, ...]:
        """Its targets, by the names that they have here."""
        return tuple(replace(spec, name=f"{self.name}{OF}{spec.name}") for spec in self.facts.spec.targets)

    @property
    def identity(self) -> Any:
        return {"name": self.name, "store": self.fingerprint}

    @property
    def note(self) -> str:
        names = ", ".join(spec.name for spec in self.specs)
        return f"beside it {self.facts.store}: {names}"

    def open(self, rows: ShardRows, names: Sequence[str]) -> Mapping[str, Values]:
        """
        Raises:
            MismatchError: its rows are other samples, or other views of them, or it has none of one.
        """
        arrays, spec, shard = self._arrays, self.facts.spec, rows.shard
        marks = read_marks(arrays, spec, shard)
        params_N = read_params(arrays, spec, shard, (rows.view,), marks)[:, 0]
        keys_N, valid_N = marks
        for wrong_N, what, expected in (
            (keys_N != rows.keys_N, "two stores have other samples in the same row", "the same keys"),
            (~valid_N, "another store has no targets of an image", "targets of all images that the first store has"),
            (params_N != rows.params_N, "two stores have other views of an image", "the same box and colours"),
        ):
            places = np.flatnonzero(wrong_N & rows.valid_N)
            if len(places):
                raise MismatchError(
                    what,
                    code="stores-other-rows",
                    where=f"{self.facts.store}, row {spec.rows(shard).start + int(places[0])}, view {rows.view}",
                    expected=expected,
                    found=counted(len(places), "row") + f" of shard {shard}",
                    hint="cache both from the same shards with the same options of views",
                )
        own = {name: name.removeprefix(f"{self.name}{OF}") for name in names}
        return {name: TargetRows(arrays, spec, shard, target, rows.view) for name, target in own.items()}

    def kept_in(self, cache: LocalCache, names: tuple[str, ...]) -> tuple[OtherStore, StoreCopies]:
        copies = StoreCopies.of(cache, self.facts, tuple(name.removeprefix(f"{self.name}{OF}") for name in names))
        return replace(self, facts=copies.facts), copies

    @cached_property
    def _arrays(self) -> Arrays:
        return OpenArrays(open_store(self.facts.store, self.facts.generation))

    def __getstate__(self) -> Mapping[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_arrays"}


def path_of(given: str) -> str | None:
    """The store's path in NAME=PATH; None where there is none."""
    return given.partition("=")[2] or None


def _check_views(given: str, facts: StoreFacts, first: Location, about: StoreDescription, num_views: int) -> None:
    """Both have the same views, but for their number and for the filter that each teacher's pixels were made with.

    Raises:
        InputError: they differ; names a field.
    """
    here, there = ViewSpec.from_json(about.views, where=first).to_json(), facts.views.to_json()
    for name in sorted({*here, *there} - {"count", "interpolation"}):
        if here.get(name) != there.get(name):
            raise InputError(
                "two stores are of different views of the images",
                code="stores-other-views",
                where=f"--also {given}: field 'views.{name}'",
                expected=f"{here.get(name)} (as {first})",
                found=there.get(name),
                hint="cache both with the same options of views; a target belongs to the pixels that its teacher saw",
            )
    if facts.spec.num_views < num_views:
        raise InputError(
            "another store has fewer views",
            code="stores-other-views",
            where=f"--also {given}",
            expected=counted(num_views, "view"),
            found=facts.spec.num_views,
            hint=f"--views {facts.spec.num_views} reads the first of both; or let it grow: teachonce cache … --views "
            f"{num_views} --grow",
        )
