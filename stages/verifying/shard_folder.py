"""Owns what describes a folder of shards, looked at by itself: its corpus, its manifest, its ledger."""

from __future__ import annotations

from collections.abc import Iterator

from ...pipeline.storage import Location
from ...storage_schemas.errors import DamagedError, IncompleteError, InputError, MismatchError, TeachonceError
from ...storage_schemas.samples import shard_name
from ..corpora.shards import ShardSet
from .finding import Findings
from .ledgers import strangers


def described_shards(given: Location | str, findings: Findings) -> ShardSet | None:
    """Shards whose corpus and manifest can be read; None where they cannot. What is wrong is noted.

    Raises:
        InputError: no shards there.
    """
    try:
        shards = ShardSet.open(given)
    except IncompleteError as error:
        findings.note(error)
        shards = ShardSet(Location.of(given))
    except InputError:
        raise
    except TeachonceError as error:
        findings.note(error)
        return None
    try:
        corpus, plan = shards.corpus, shards.ledger.plan()
        shards.manifest()
    except FileNotFoundError:
        findings.note(
            DamagedError(
                "the manifest is missing",
                code="manifest-missing",
                where=shards.location,
                hint="restore manifest.parquet from a copy",
            )
        )
        return None
    except TeachonceError as error:
        findings.note(error)
        return None
    if plan is not None and plan.fingerprint.fields.get("corpus_id") != corpus.states[0].corpus_id:
        findings.note(
            MismatchError(
                "corpus.json is of another corpus than the ledger of its shards",
                code="corpus-other-run",
                where=f"{shards.location}/corpus.json: field 'corpus_id'",
                expected=f"{plan.fingerprint.fields.get('corpus_id')} (the ledger)",
                found=corpus.corpus_id,
                hint="restore corpus.json and manifest.parquet from a copy",
            )
        )
    return shards


def shard_strangers(shards: ShardSet) -> Iterator[TeachonceError]:
    """A receipt in the folder that is of none of the shards that it was made with."""
    count = shards.corpus.states[0].num_shards
    yield from strangers(shards.ledger, {shard_name(shard) for shard in range(count)})
