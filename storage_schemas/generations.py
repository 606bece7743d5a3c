"""Owns the generations of a target store: which there are, and which one readers get; the root group's attribute `generations`.

The first one is the attribute `cache`, which stays as it was written. A store that never grew has no attribute of later ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import zarr

from .errors import DamagedError, InputError
from .fingerprint import Json
from .growth import FIRST
from .json_file import as_schema
from .plain_text import counted, typed
from .store_description import ATTRIBUTE, StoreDescription, tables_of

#: The attribute of the root group.
GENERATIONS_ATTRIBUTE = "generations"


@dataclass(frozen=True, kw_only=True)
class _Fields:
    current: str
    later: dict[str, Any]


@dataclass(frozen=True)
class Generations:
    """The generations of a store.

    Attributes:
        current: the name of the one that readers get. Behind it there may be one that was begun and is not finished.
        described: all of them by name, the first one first.
    """

    current: str
    described: Mapping[str, StoreDescription]

    @staticmethod
    def read(root: zarr.Group, where: object) -> Generations | None:
        """The generations of a store whose growth was begun at least; None for any other.

        Raises:
            DamagedError: they cannot be read, or changed since they were written.
        """
        attributes: dict[str, Any] = root.attrs.asdict()
        found, file = attributes.get(GENERATIONS_ATTRIBUTE), f"{where}/zarr.json"
        if found is None:
            return None
        about: dict[str, Any] = {
            "what": "not the generations of a store",
            "code": "generations-malformed",
            "where": file,
            "hint": "restore zarr.json from a copy",
        }
        fields = as_schema(found, _Fields, **about)
        described = {FIRST: StoreDescription.read(root, where)}
        for name, value in fields.later.items():
            described[name] = StoreDescription.from_json(value, file, tables_of(root, where))
        for name, description in described.items():
            growth = description.growth
            known = name == FIRST if growth is None else growth.name == name and growth.parent in described
            if not known or fields.current not in described:
                raise DamagedError(**about, found=f"generation {name} of {', '.join(described)}")
        return Generations(fields.current, described)

    @staticmethod
    def of(first: StoreDescription) -> Generations:
        """Of a store that never grew."""
        return Generations(FIRST, {FIRST: first})

    def one(self, name: str | None, where: object) -> StoreDescription:
        """The generation of this name, the current one for None.

        Raises:
            InputError: there is none.
        """
        name = name or self.current
        if name not in self.finished:
            raise no_generation(name, self.finished, where)
        return self.described[name]

    def chain(self, name: str) -> list[StoreDescription]:
        """A generation and those that it came of, the first one first."""
        description = self.described[name]
        growth = description.growth
        return [description] if growth is None else [*self.chain(growth.parent), description]

    @property
    def finished(self) -> list[str]:
        """Names of the current generation and those that it came of, the first one first."""
        return [description.generation for description in self.chain(self.current)]

    @property
    def begun(self) -> StoreDescription | None:
        """The one that is not finished, if there is one."""
        last = self.described[list(self.described)[-1]]
        return None if last.generation in self.finished else last

    @property
    def next_name(self) -> str:
        """The name for a generation behind the current one."""
        return str(1 + int(self.current))

    def begin(self, root: zarr.Group, description: StoreDescription) -> Generations:
        """Record a generation behind the current one, in place of another one that was begun. Readers do not get it yet."""
        later = {name: self.described[name] for name in self.finished}
        changed = replace(self, described={**later, description.generation: description})
        changed._write(root)
        return changed

    def forget(self, root: zarr.Group) -> Generations:
        """Without the one that was begun."""
        changed = replace(self, described={name: self.described[name] for name in self.finished})
        changed._write(root)
        return changed

    def finish(self, root: zarr.Group, name: str) -> Generations:
        """From now on readers get this one. One atomic write."""
        changed = replace(self, current=name)
        changed._write(root)
        return changed

    def _write(self, root: zarr.Group) -> None:
        later: Json = {name: one.to_json() for name, one in self.described.items() if name != FIRST}
        about: Any = root.attrs.asdict()["teachonce"]
        root.update_attributes(
            {
                # Arrays may from now on be larger than the attribute `cache` has them, which a reader of version 2 would not know.
                "teachonce": {
                    **about,
                    "schema_version": max(3, *(one.spec.version for one in self.described.values())),
                },
                GENERATIONS_ATTRIBUTE: {"current": self.current, "later": later},
            }
        )


def added_text(before: StoreDescription, description: StoreDescription) -> str:
    """What a generation added to the one that it came of, in words: `4 to 8 views`."""
    growth, spec, then = description.growth, description.spec, before.spec
    assert growth is not None
    if growth.what == "views":
        return f"{then.num_views} to {spec.num_views} views"
    if growth.what == "images":
        return f"{then.num_samples} to {spec.num_samples} images"
    if growth.what == "mended":
        return f"images that were mended, in {counted(len(list(growth.all_shards)), 'shard')}"
    widths = [{target.name: target.width for target in one.targets} for one in (then, spec)]
    if growth.what == "classes":
        return (
            "more classes" if "logits" not in widths[1] else f"{widths[0]['logits']} to {widths[1]['logits']} classes"
        )
    own = asked_encodings(description)
    return ", ".join(
        target.name + (f" in {spec.encoding_of(target).text}" if own else "")
        for target in spec.targets
        if target.name not in widths[0]
    )


def asked_encodings(description: StoreDescription) -> dict[str, Json] | None:
    """What decided the encodings of a store's targets (`EncodingRequest.to_json`); None where it has one for all of them."""
    found = description.fingerprint.get("encoding")
    return dict(found["asked"]) if isinstance(found, dict) else None


def no_generation(name: str, names: list[str], where: object) -> InputError:
    """For a generation that a store does not have."""
    return InputError(
        "the store has no such generation",
        code="generation-missing",
        where=where,
        expected=", ".join(names),
        found=name,
        hint=f"see `teachonce status {typed(where)}`",
    )


def attributes_of(attributes: Mapping[str, Json], description: StoreDescription) -> dict[str, Json]:
    """The root's attributes as readers of one generation get them."""
    return {**attributes, ATTRIBUTE: description.to_json()}
