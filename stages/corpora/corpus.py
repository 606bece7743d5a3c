"""Owns freezing a corpus: from sources to the manifest that decides every row before any work starts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from ...pipeline.progress import Progress
from ...pipeline.storage import Location, scratch_file
from ...storage_schemas.errors import InputError, MismatchError
from ...storage_schemas.fingerprint import Fingerprint, Json, canonical_json
from ...storage_schemas.manifest import Corpus, Entry, footer_digest, write_manifest
from ...storage_schemas.plain_text import counted
from ...storage_schemas.row_layout import RowLayout
from ...storage_schemas.samples import IMAGE, Order
from .corpus_sources import CorpusSource
from .draft import DRAFT, Draft
from .images import MAX_BYTES
from .key_order import by_key
from .left_out import LeftOut, left_out_text
from .listing import Listing, UnreachableCount, read_entries
from .manifest_file import CORPUS, MANIFEST, open_manifest


def freeze_corpus(
    sources: Sequence[CorpusSource],
    out: Location,
    *,
    name: str | None,
    shard_size: int,
    resize: int | None,
    max_pixels: int,
    sample_kind: str = IMAGE,
    max_bytes: int = MAX_BYTES,
    order: Order | None = None,
    give_up_on_unreachable: bool = False,
) -> Corpus:
    """Write `manifest.parquet`, then `corpus.json` under `out`; or check that the frozen ones still describe `sources`.

    Memory does not grow with the corpus, but for the names in one folder or one tar. Images are read in the sources' order,
    whatever that of the rows. Nothing is frozen while images cannot be read at the moment; a draft of the manifest then keeps
    what URLs gave, so that the next call asks for the others alone.

    Args:
        sample_kind: of the samples, as in `Corpus`.
        order: of the rows; None takes that of the frozen manifest, `hash` for a new one.

    Raises:
        InputError: no images.
        Unreachable: some cannot be read at the moment, and are not given up.
        MismatchError: `out` holds another corpus or other settings, or the sources have changed since.
    """
    names = [source.source.name for source in sources]
    name = name or "+".join(names)
    settings: dict[str, Any] = {
        "name": name,
        "shard_size": shard_size,
        "resize": resize,
        "max_pixels": max_pixels,
        "max_bytes": max_bytes,
        "sample_kind": sample_kind,
    }
    frozen = out / CORPUS
    if frozen.exists():
        (out / DRAFT).remove()
        corpus = Corpus.from_bytes(frozen.read_bytes(), where=frozen)
        check_frozen(corpus, out, **settings, order=order, in_place=False)
        listing = Listing(sources)
        for _ in listing:
            pass
        if listing.digest != corpus.listing_id and listing.missed is not None:
            raise listing.missed
        if listing.digest != corpus.listing_id:
            raise MismatchError(
                "the corpus has changed since its manifest was frozen",
                code="corpus-changed",
                where=", ".join(names),
                expected=f"{counted(corpus.num_samples, 'image')}, as in the manifest",
                found=f"{counted(listing.count, 'image')} with other names or sizes",
                hint="to add what is new, run the same command with --append; or write the changed corpus to another --out",
            )
        return corpus
    out.make_dir()
    settings["order"] = order = order or "hash"
    listing, missed = Listing(sources), UnreachableCount()
    manifest = out / MANIFEST
    with Progress("manifest", None) as bar, (manifest if order == "source" else out / DRAFT).create() as file:
        entries = read_entries(
            listing, name=name, at_once=shard_size, max_bytes=max_bytes, draft=Draft(out, DRAFT, MANIFEST), bar=bar
        )
        digest, count = write_manifest(file, missed.watch(entries))
        if count == 0:
            raise no_images(names, listing.left_out)
    if missed.count and not give_up_on_unreachable:
        raise missed.error(count)
    if order == "hash":
        digest = _write_by_key(out, count, shard_size)
    corpus = Corpus(
        **settings,
        corpus_id=corpus_id(name, RowLayout.of(shard_size, [count]), digest, order, sample_kind),
        listing_id=listing.digest,
        num_samples=count,
        num_shards=-(-count // shard_size),
        manifest_footer=footer_of(manifest),
        skipped=listing.left_out.skipped,
        left_out=listing.left_out.to_json(),
        no_labels=listing.no_labels.to_json(),
        sources=tuple(source.name for source in sources),
    )
    frozen.write_bytes(corpus.to_bytes())
    (out / DRAFT).remove()
    return corpus


def check_frozen(corpus: Corpus, out: Location, **settings: Any) -> None:
    """Refuse settings that are not those of the corpus in a folder; None is whatever that has.

    Raises:
        MismatchError: names the first that differs.
    """
    given = {name: value for name, value in settings.items() if value is not None or name == "resize"}
    Fingerprint(fields=given).check(
        {name: getattr(corpus, name) for name in given},
        what=f"{out} holds other shards",
        code="output-other-settings",
        where=out / CORPUS,
        hint="use the options of the first run, or another --out",
        whose=("this command", "the folder"),
    )


def corpus_id(name: str, layout: RowLayout, entries: str, order: Order, sample_kind: str) -> str:
    """What names a corpus: blake2b-128 over its name, shard size, the digest of all its entries, order, kind and parts.

    Args:
        layout: which rows the entries have.
        entries: what `write_manifest` gave, or `entries_digest`.
    """
    identity: list[Json] = [name, layout.shard_size, entries]
    if order == "hash":
        identity.append(order)
    if sample_kind != IMAGE:
        identity.append(sample_kind)
    if len(layout.parts) > 1:
        identity.append({"parts": list(layout.parts)})
    return hashlib.blake2b(canonical_json(identity), digest_size=16).hexdigest()


def footer_of(manifest: Location) -> str:
    with manifest.open() as file:
        return footer_digest(file, manifest)


def _write_by_key(out: Location, count: int, shard_size: int) -> str:
    """Write the manifest from its draft, in order of the keys. Returns the digest over all entries."""
    draft = open_manifest(out, None, DRAFT)
    with (
        Progress("rows in order", count, brief=True) as bar,
        scratch_file(out) as scratch,
        (out / MANIFEST).create() as file,
    ):
        rows = by_key(draft, count, scratch)

        def shards() -> Iterator[list[Entry]]:
            while entries := list(islice(rows, shard_size)):
                yield entries
                bar.advance(len(entries))

        digest, _ = write_manifest(file, shards())
    return digest


def no_images(names: Sequence[str], left_out: LeftOut) -> InputError:
    """The error for sources without one image."""
    found = left_out_text(left_out.to_json()).partition(": ")[2] or "nothing"
    return InputError(
        "no images",
        code="images-missing",
        where=", ".join(names),
        expected="at least one image file",
        found=found,
        hint="for a folder of tars, name the tars: teachonce shard FOLDER/*.tar --out …",
    )
