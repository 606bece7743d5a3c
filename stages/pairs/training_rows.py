"""Owns which rows of a corpus train: not those of domains that are left out, nor those held out; and in which groups they are drawn."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.near_names import did_you_mean
from ...storage_schemas.target_store import OpenArrays, read_marks
from ..corpora.shards import ShardSet
from .balanced_order import BalancedOrder, balanced_window
from .manifest_labels import domain_of, sorted_domains
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

    def holds_out(self, keys_N: NDArray[np.bytes_]) -> NDArray[np.bool_]:
        """bool (sample,): which samples are held out where they would train otherwise."""
        if not self.hold_out:
            return np.zeros(len(keys_N), np.bool_)
        return np.fromiter((_is_held_out(key, self) for key in keys_N.tolist()), np.bool_)

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

    def positions(self, shards: ShardSet, shard: int, keys_N: NDArray[np.bytes_], valid_N: NDArray[np.bool_]) -> Ints:
        """Positions among the usable rows of a shard of those that train, domain after domain, int64 (row,)."""
        domains_N = np.zeros(len(keys_N), np.int64)
        if self.domains:
            places = {domain: place for place, domain in enumerate(self.domains)}
            paths = shards.manifest().paths_of(shard)[: len(keys_N)]
            domains_N = np.fromiter((places.get(domain_of(path), -1) for path in paths), np.int64)
        groups_N = np.where(self.rule.holds_out(keys_N), -1, domains_N)[valid_N]
        order = np.argsort(groups_N, kind="stable")
        return order[groups_N[order] >= 0]


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
        root, spec, ids = OpenArrays(open_store(facts.store, facts.generation)), facts.spec, dict(rule.complete)
        manifest, met = shards.manifest(), set[str]()
        counts: list[Counter[str]] = []
        seen: defaultdict[str, set[int]] = defaultdict(set)
        held = np.zeros(spec.rows(spec.num_shards - 1).stop, np.bool_)
        for shard in range(spec.num_shards):
            keys_N, valid_N = read_marks(root, spec, shard)
            names = [""] * len(keys_N)
            if rule.by_domain:
                names = [domain_of(path) for path in manifest.paths_of(shard)[: len(keys_N)]]
            train_N = np.fromiter((name not in rule.leave_out for name in names), np.bool_)
            held_N = held[spec.rows(shard)] = rule.holds_out(keys_N) & valid_N & train_N
            counts.append(Counter(compress(names, (valid_N & ~held_N).tolist())))
            met |= set(names)
            if ids and rule.by_domain:
                for name, label in set(zip(names, manifest.labels_of(shard), strict=False)):
                    if label in ids:
                        seen[name].add(ids[label])
        domains = _training_domains(shards, rule, met) if rule.by_domain else ()
        rows = TrainingRows(
            listing=RowListing(rule=rule, domains=domains),
            rows_SG=np.array([[count[name] for name in domains or ("",)] for count in counts], np.int64),
            held=np.packbits(held).tobytes(),
        )
        rows._check(shards, [seen[name] for name in domains], ids)
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


def _training_domains(shards: ShardSet, rule: RowRule, met: Collection[str]) -> tuple[str, ...]:
    """The domains that train, of those that were met; '' among them is an image in none."""
    found = sorted_domains(shards, met)
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
    if "" in met:
        manifest = shards.manifest()
        paths = (path for shard in range(manifest.num_shards) for path in manifest.paths_of(shard))
        raise InputError(
            "an image lies in no domain",
            code="domain-missing",
            where=shards.location,
            expected="DOMAIN/CLASS/IMAGE",
            found=next(path for path in paths if not domain_of(path)),
            hint="shard the folder that the domains' folders lie in, and nothing beside them",
        )
    return left


def _is_held_out(key: bytes, rule: RowRule) -> bool:
    digest = hashlib.blake2b(f"hold out/{rule.seed}/".encode() + key, digest_size=8).digest()
    return int.from_bytes(digest, "little") < int(rule.hold_out * 2**64)
