"""Owns which rows of a corpus train: not those of domains that are left out, nor those held out; and in which groups they are drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.near_names import did_you_mean
from ...storage_schemas.target_store import OpenArrays, read_marks
from ..corpora.shards import ShardSet
from .balanced_order import BalancedOrder, balanced_window
from .manifest_labels import DOMAIN, ManifestLabels, domain_of
from .order import EpochOrder, Ints, Order, window_shards
from .store import StoreFacts, open_store


@dataclass(frozen=True, kw_only=True)
class RowRule:
    """What decides which rows train.

    Attributes:
        leave_out: domains none of whose rows train.
        hold_out: share of the other rows that do not train; a row is held out by its key and `seed` alone.
        per_domain: samples of each domain in a step, drawn with replacement; 0 reads each row once an epoch.
        steps: of an epoch, with `per_domain`; 0 for as many as draw as many samples as there are, or just more.
        complete: labels that are classes, with their ids, all of which each domain must have; empty for no such demand.
    """

    leave_out: tuple[str, ...] = ()
    hold_out: float = 0.0
    per_domain: int = 0
    steps: int = 0
    seed: int = 0
    complete: tuple[tuple[str, int], ...] = ()

    @property
    def chooses(self) -> bool:
        """Whether it decides anything."""
        return bool(self.leave_out or self.hold_out or self.per_domain)

    @property
    def by_domain(self) -> bool:
        """Whether rows are told apart by their domains."""
        return bool(self.leave_out or self.per_domain)

    def to_json(self) -> dict[str, Json]:
        """For fingerprints: nothing where it decides nothing."""
        if not self.chooses:
            return {}
        return {
            "rows": {
                "leave_out": sorted(self.leave_out),
                "hold_out": self.hold_out,
                "per_domain": self.per_domain,
                "steps": self.steps,
                "seed": self.seed,
            }
        }


@dataclass(frozen=True, kw_only=True)
class RowListing:
    """The rows of a shard that train. Small, and picklable.

    Attributes:
        rule: decides.
        domains: those that train, in bytewise order; empty where the rule does not tell them apart.
    """

    rule: RowRule
    domains: tuple[str, ...]

    def groups(self, shards: ShardSet, shard: int, keys_N: NDArray[np.bytes_]) -> tuple[Ints, NDArray[np.bool_]]:
        """Of a shard's rows, usable or not: the number of the domain, -1 where it does not train; and whether they are held out.

        Raises:
            InputError: an image that lies in no domain.
        """
        domains_N = np.zeros(len(keys_N), np.int64)
        if self.domains:
            places = {domain: place for place, domain in enumerate(self.domains)}
            paths = shards.manifest().paths_of(shard)[: len(keys_N)]
            domains_N = np.fromiter((places.get(self._domain(path, shards), -1) for path in paths), np.int64)
        if not self.rule.hold_out:
            return domains_N, np.zeros(len(keys_N), np.bool_)
        held = (_is_held_out(key, self.rule) for key in keys_N.tolist())
        return domains_N, np.fromiter(held, np.bool_) & (domains_N >= 0)

    def positions(self, shards: ShardSet, shard: int, keys_N: NDArray[np.bytes_], valid_N: NDArray[np.bool_]) -> Ints:
        """Positions among the usable rows of a shard of those that train, domain after domain, int64 (row,)."""
        domains_N, held_N = self.groups(shards, shard, keys_N)
        groups_N = np.where(held_N, -1, domains_N)[valid_N]
        order = np.argsort(groups_N, kind="stable")
        return order[groups_N[order] >= 0]

    def _domain(self, path: str, shards: ShardSet) -> str:
        domain = domain_of(path)
        if not domain:
            raise InputError(
                "an image lies in no domain",
                code="domain-missing",
                where=shards.location,
                expected="DOMAIN/CLASS/IMAGE",
                found=path,
                hint="shard the folder that the domains' folders lie in, and nothing beside them",
            )
        return domain


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingRows:
    """The rows of a corpus that train.

    Attributes:
        listing: of each shard.
        rows_SG: how many in each shard and domain, int64 (shard, domain); one column where domains are not told apart.
        held: `numpy.packbits` of bool (row,): usable rows that are held out.
    """

    listing: RowListing
    rows_SG: Ints
    held: bytes

    @staticmethod
    def of(shards: ShardSet, facts: StoreFacts, rule: RowRule) -> TrainingRows:
        """Look through manifest and store for the rows that train.

        Raises:
            InputError: no domains, no such domain, one without a class or without a row that trains; or nothing is left or held out.
        """
        listing = RowListing(rule=rule, domains=_domains(shards, rule) if rule.by_domain else ())
        root, spec, ids = OpenArrays(open_store(facts.store, facts.generation)), facts.spec, dict(rule.complete)
        groups = max(1, len(listing.domains))
        rows_SG = np.zeros((spec.num_shards, groups), np.int64)
        held = np.zeros(spec.rows(spec.num_shards - 1).stop, np.bool_)
        seen: list[set[int]] = [set() for _ in range(groups)]
        for shard in range(spec.num_shards):
            keys_N, valid_N = read_marks(root, spec, shard)
            domains_N, held_N = listing.groups(shards, shard, keys_N)
            held[spec.rows(shard)] = held_N & valid_N
            training_N = domains_N[valid_N & ~held_N]
            rows_SG[shard] = np.bincount(training_N[training_N >= 0], minlength=groups)
            if ids and listing.domains:
                _note_classes(seen, domains_N, shards.manifest().labels_of(shard), ids)
        rows = TrainingRows(listing=listing, rows_SG=rows_SG, held=np.packbits(held).tobytes())
        rows._check(shards, seen, ids)
        return rows

    @property
    def num_samples(self) -> int:
        """Rows that train."""
        return int(self.rows_SG.sum())

    @property
    def held_out(self) -> NDArray[np.bool_]:
        """bool (row,): usable rows that are held out; maybe some more at the end, False."""
        return np.unpackbits(np.frombuffer(self.held, np.uint8)).astype(np.bool_)

    @property
    def batch_size(self) -> int | None:
        """Samples of a step; None where the rule does not say."""
        return self.listing.rule.per_domain * self.rows_SG.shape[1] or None

    def order(self, seed: int) -> Order:
        """The order of the first epoch."""
        rule, rows_S = self.listing.rule, self.rows_SG.sum(axis=1)
        if self.batch_size is None:
            return EpochOrder(seed=seed, epoch=0, rows_per_shard=rows_S, window=window_shards(rows_S))
        steps = rule.steps or -(-self.num_samples // self.batch_size)
        return BalancedOrder(
            seed=seed,
            epoch=0,
            rows_SG=self.rows_SG,
            num_samples=steps * self.batch_size,
            window=balanced_window(self.rows_SG),
        )

    def note(self) -> str:
        """A line on what trains, for people; '' where the rule says nothing of it."""
        rule, found = self.listing.rule, []
        if self.listing.domains:
            counts = self.rows_SG.sum(axis=0).tolist()
            each = f"{rule.per_domain} of each a step: " if rule.per_domain else ""
            found.append(each + ", ".join(f"{d} ({n})" for d, n in zip(self.listing.domains, counts, strict=True)))
        if rule.leave_out:
            found.append(f"left out: {', '.join(sorted(rule.leave_out))}")
        if rule.hold_out:
            found.append(f"{int(self.held_out.sum())} held out")
        return "samples to train on: " + "; ".join(found) if found else ""

    def _check(self, shards: ShardSet, seen: Sequence[set[int]], ids: Mapping[str, int]) -> None:
        domains, wanted = self.listing.domains, set().union(*seen)
        names = {place: label for label, place in ids.items()}
        for domain, own in zip(domains, seen, strict=False):
            if missing := sorted(wanted - own):
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                raise InputError(
                    "a domain has no image of a class that other domains have",
                    code="domain-lacks-class",
                    where=f"{shards.location}, domain {domain}",
                    expected=f"images of {len(wanted)} classes",
                    found=f"none of {names[missing[0]]!r}{more}",
                    hint=f"add images of it, or train without this domain: --leave-out {domain}",
                )
        for domain, count in zip(domains, self.rows_SG.sum(axis=0).tolist(), strict=False):
            if not count:
                raise InputError(
                    "a domain has no sample to train on",
                    code="domain-empty",
                    where=f"{shards.location}, domain {domain}",
                    found="no usable image" + (" that is not held out" if self.listing.rule.hold_out else ""),
                    hint=f"see `teachonce status`, or train without it: --leave-out {domain}",
                )
        if not self.num_samples or (self.listing.rule.hold_out and not self.held_out.any()):
            raise InputError(
                "no sample is left to train on" if not self.num_samples else "no sample is held out",
                code="samples-none-left",
                where=f"--hold-out {self.listing.rule.hold_out:g}",
                found=f"{self.num_samples} to train on, {int(self.held_out.sum())} held out",
                hint="choose another share, or more images",
            )


def _domains(shards: ShardSet, rule: RowRule) -> tuple[str, ...]:
    """The domains that train."""
    found = ManifestLabels.of(shards, (DOMAIN,), None).domains
    for domain in rule.leave_out:
        if domain not in found:
            raise InputError(
                "no such domain",
                code="domain-unknown",
                where="--leave-out",
                expected=", ".join(found),
                found=domain,
                hint=did_you_mean(domain, found, "") or None,
            )
    left = tuple(domain for domain in found if domain not in rule.leave_out)
    if not left:
        raise InputError(
            "no domain is left to train on",
            code="domains-none-left",
            where="--leave-out",
            found=", ".join(found),
            hint="leave out fewer",
        )
    return left


def _is_held_out(key: bytes, rule: RowRule) -> bool:
    digest = hashlib.blake2b(f"hold out/{rule.seed}/".encode() + key, digest_size=8).digest()
    return int.from_bytes(digest, "little") < int(rule.hold_out * 2**64)


def _note_classes(
    seen: Sequence[set[int]], domains_N: Ints, labels: Iterable[str | None], ids: Mapping[str, int]
) -> None:
    for domain, label in zip(domains_N.tolist(), labels, strict=False):
        if domain >= 0 and label is not None and label in ids:
            seen[domain].add(ids[label])
