"""Owns what concerns shards and a caption store as a whole: what describes them, against itself and each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...pipeline.ledger import Ledger
from ...pipeline.storage import Location
from ...storage_schemas.caption_store import CaptionSpec, check_caption_arrays, identity_of, read_caption_spec
from ...storage_schemas.caption_texts import TextsReader, texts_digest
from ...storage_schemas.errors import DamagedError, IncompleteError, InputError, MismatchError, TeachonceError
from ...storage_schemas.plain_text import typed
from ...storage_schemas.samples import shard_name
from ..corpora.shards import ShardSet
from ..pairs.caption_store import CAPTIONS, TEXTS_FILE, open_caption_root
from .finding import Findings
from .ledgers import strangers, unfinished
from .shard_folder import described_shards, shard_strangers
from .whole import contradiction, recorded_compute


@dataclass(frozen=True, kw_only=True)
class CaptionsWhole:
    """Shards and captions that belong together, as far as what describes them says so; can be pickled.

    Attributes:
        shards: as they were when the captions were made.
        store: of the captions.
    """

    shards: ShardSet
    store: Location
    spec: CaptionSpec

    @property
    def store_ledger(self) -> Ledger:
        return Ledger(self.store, CAPTIONS)

    @property
    def num_shards(self) -> int:
        return self.shards.corpus.num_shards

    def rows(self, shard: int) -> range:
        """The rows of a shard."""
        return self.shards.corpus.rows(shard)

    @property
    def recorded(self) -> Mapping[str, Any]:
        """The fingerprint of the run that made the captions; empty where its plan is gone."""
        plan = self.store_ledger.plan()
        return {} if plan is None else plan.fingerprint.fields

    @property
    def recorded_compute(self) -> Mapping[str, Any]:
        """How its teacher computed, as far as that is recorded."""
        return recorded_compute(self.recorded)


def texts_of(store: Location) -> TextsReader:
    """The texts beside the embeddings.

    Raises:
        DamagedError: they are gone, or cannot be read.
    """
    file = store / TEXTS_FILE
    try:
        return TextsReader(file.open(), file)
    except FileNotFoundError as error:
        raise DamagedError(
            "the texts of the captions are gone",
            code="caption-texts-damaged",
            where=file,
            hint="restore them from a copy, or run the same `teachonce captions` command again",
        ) from error


def check_texts(texts: TextsReader, spec: CaptionSpec) -> None:
    """
    Raises:
        DamagedError: they are not those that were embedded.
    """
    if texts_digest(texts) != spec.texts:
        raise texts.damaged(f"other texts than those that were embedded ({spec.texts})")


def look_at_captions(shards: Location | str, store: Location) -> tuple[CaptionsWhole | None, Findings]:
    """The two, and what is wrong with what describes them; None where it is so wrong that their shards cannot be compared.

    Raises:
        InputError: no shards there.
    """
    findings = Findings()
    shard_set = described_shards(shards, findings)
    try:
        root = open_caption_root(store)
        spec = read_caption_spec(root, store)
        check_caption_arrays(root, spec, store)
        plan = Ledger(store, CAPTIONS).plan()
    except InputError:
        raise
    except TeachonceError as error:
        findings.note(error)
        return None, findings
    if plan is not None:
        recorded = plan.fingerprint.fields
        said = {name: value for name, value in identity_of(spec).items() if name in recorded}
        findings.note_all(contradiction({name: recorded[name] for name in said}, said, where=store))
    if shard_set is None:
        return None, findings
    try:
        shard_set = _as_captioned(shard_set, store, spec)
    except MismatchError as error:
        findings.note(error)
        return None, findings
    whole = CaptionsWhole(shards=shard_set, store=store, spec=spec)
    findings.note_all(_of_ledgers(whole))
    try:
        texts = texts_of(store)
        if plan is not None and texts.num_shards != whole.num_shards:
            raise texts.damaged(f"texts of {texts.num_shards} shards")
    except TeachonceError as error:
        findings.note(error)
    return whole, findings


def _as_captioned(shards: ShardSet, store: Location, spec: CaptionSpec) -> ShardSet:
    """The shards as they were when the captions were made.

    Raises:
        MismatchError: the captions are of another corpus; names the field.
    """
    then = shards.as_of(spec.corpus_id)
    corpus = (then or shards).corpus
    for field, expected, found in (
        ("corpus_id", corpus.corpus_id, spec.corpus_id),
        ("num_rows", corpus.num_rows, spec.num_rows),
        ("shard_size", corpus.shard_size, spec.shard_size),
    ):
        if then is None or expected != found:
            raise MismatchError(
                "the captions are of another corpus",
                code="captions-other-corpus",
                where=f"{store}: field '{field}'",
                expected=f"{expected} (as in {shards.location})",
                found=f"{found} (the captions)",
                hint="give the shards that the captions were made of, or run "
                f"`teachonce captions {typed(shards.location)} --from TABLE --teacher … --out OTHER`",
            )
    assert then is not None
    return then


def _of_ledgers(whole: CaptionsWhole) -> Iterator[TeachonceError]:
    """Plans and receipts must count the shards that there are."""
    ledger, keys = whole.store_ledger, {shard_name(shard) for shard in range(whole.num_shards)}
    if ledger.plan() is None:
        yield IncompleteError(
            "captions has not run here",
            code="stage-not-run",
            where=whole.store,
            hint="run the same `teachonce captions` command again",
        )
    else:
        yield from unfinished(ledger, keys, where=whole.store, command=CAPTIONS, hint=ledger.again)
    yield from shard_strangers(whole.shards)
    yield from strangers(ledger, keys)
