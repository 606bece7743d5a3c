"""`teachonce captions`: the teacher's text tower embeds all captions of a corpus once; it is never needed again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..pipeline.ledger import Ledger, record_outputs
from ..pipeline.output import check_output, claim_output
from ..pipeline.settings import check
from ..pipeline.storage import Location
from ..pipeline.types import Resources, RunUnit, Timer, Unit
from ..storage_schemas.caption_store import DTYPES, CaptionSpec, create_caption_store, identity_of, write_captions
from ..storage_schemas.caption_texts import TextsReader, texts_digest, write_texts
from ..storage_schemas.errors import DamagedError, InputError
from ..storage_schemas.fingerprint import Fingerprint, Json
from ..storage_schemas.formats import CAPTIONS
from ..storage_schemas.plain_text import counted
from ..storage_schemas.receipt import Receipt
from ..storage_schemas.samples import shard_name
from .corpora.shards import ShardSet
from .inputs.caption_match import MatchedCaptions
from .inputs.caption_table import CaptionFiles
from .models.compute import Compute
from .models.teacher_config import TeacherConfig
from .pairs.caption_store import CAPTIONS as STAGE
from .pairs.caption_store import TEXTS_FILE, open_caption_root
from .settings.captions import CaptionSettings
from .teachers import load_teacher
from .teachers.caption_facts import caption_facts
from .teachers.same_weights import check_weights
from .teachers.text_tower import TextTower

#: Captions that are looked at for a note on those that the text tower cuts.
_LOOKED_AT = 1000


@dataclass(frozen=True, kw_only=True)
class CaptionsStage:
    """One unit a shard. Made by `plan_captions`.

    Attributes:
        shards: the corpus.
        config: the teacher.
        spec: of the store.
        batch_size: captions in a forward pass.
        notes: lines that a person should see before it starts.
    """

    out: Location
    shards: ShardSet
    config: TeacherConfig
    spec: CaptionSpec
    compute: Compute
    batch_size: int
    notes: tuple[str, ...]

    name = STAGE

    @property
    def fingerprint(self) -> Fingerprint:
        fields: dict[str, Json] = {
            "schema_version": CAPTIONS.version,
            **identity_of(self.spec),
            "compute": self.compute.to_json(),
            "batch_size": self.batch_size,
        }
        return Fingerprint(fields=fields)

    @property
    def resources(self) -> Resources:
        return Resources(cpus=self.compute.threads, gpus=float(self.compute.device == "cuda"))

    def plan(self) -> Iterator[Unit]:
        for shard in range(self.shards.corpus.num_shards):
            rows = self.shards.corpus.rows(shard)
            yield Unit(key=shard_name(shard), rows=len(rows), inputs={"shard": shard})

    def open(self) -> RunUnit:
        import torch

        teacher = load_teacher(self.config).to(torch.device(self.compute.device))
        check_weights(teacher.spec, self.spec.teacher["weights_digest"], where=self.config.model)
        texts = self.out / TEXTS_FILE
        return _Embedding(stage=self, tower=teacher.text_tower(), texts=TextsReader(texts.open(), texts))


@dataclass(frozen=True, kw_only=True)
class _Embedding:
    """Embeds the captions of one shard after another."""

    stage: CaptionsStage
    tower: TextTower
    texts: TextsReader
    one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, unit: Unit, timer: Timer) -> Receipt:
        with self.one_at_a_time:
            return self._embed(unit, timer)

    def _embed(self, unit: Unit, timer: Timer) -> Receipt:
        stage, shard = self.stage, unit.inputs["shard"]
        spec, rows = stage.spec, stage.shards.corpus.rows(shard)
        with timer("read"):
            found = self.texts.shard(shard)
        with timer("forward"):
            vectors_TD = self._vectors(found.texts)
        if not np.isfinite(vectors_TD).all():
            raise InputError(
                "the teacher gave NaN or infinity",
                code="teacher-not-finite",
                where=f"captions of shard {shard}",
                hint="run `teachonce captions` with --precision fp32",
            )
        offset_T = found.rows_T - rows.start
        count_N = np.bincount(offset_T, minlength=len(rows)).astype(np.int32)
        first_N = np.concatenate([[0], np.cumsum(count_N)])[:-1]
        embedding_NKD = np.zeros((len(rows), spec.captions, spec.embed_dim), np.float32)
        embedding_NKD[offset_T, np.arange(len(offset_T)) - first_N[offset_T]] = vectors_TD
        with timer("write"):
            root = open_caption_root(stage.out, mode="a")
            paths, digest = write_captions(root, spec, shard, embedding_NKD, count_N)
            outputs = record_outputs(stage.out, paths)
        timer.advance(unit.rows)
        return Receipt(
            key=unit.key,
            outputs=outputs,
            rows=unit.rows,
            invalid_rows=(),
            digest=digest,
            fingerprint=stage.fingerprint.digest,
        )

    def _vectors(self, texts: list[str]) -> NDArray[np.float32]:
        """fp32 (caption, channel). A text that stands several times in the shard goes through the tower once."""
        different = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        order = list(different)
        found_UD = np.empty((len(order), self.stage.spec.embed_dim), np.float32)
        for first in range(0, len(order), self.stage.batch_size):
            batch = order[first : first + self.stage.batch_size]
            with self.stage.compute.inference():
                found_UD[first : first + len(batch)] = self.tower.embed(batch).cpu().numpy()
        return found_UD[[different[text] for text in texts]]


def plan_captions(
    shards: Location | str,
    config: TeacherConfig,
    *,
    out: Location | str,
    settings: CaptionSettings,
    compute: Compute,
    write: bool = True,
) -> CaptionsStage:
    """The stage that embeds captions; makes the caption store if it is not there.

    Args:
        shards: finished shards.
        config: the teacher, that of the target store.
        out: the caption store.
        settings: which captions, and how they are stored.
        compute: of the text tower.
        write: False to look only.

    Raises:
        InputError: no such files, tables that cannot be used, no caption of this corpus; a teacher that embeds no text.
        IncompleteError: the shards are not finished.
    """
    check(settings)
    check(config, "teacher")
    place = Location.of(out)
    if not settings.files:
        raise InputError(
            "where the captions are is not said",
            code="option-needs-another",
            where="teachonce captions",
            expected="--from TABLE",
            found="nothing",
            hint="name a table with the columns path and caption: --from captions.parquet",
        )
    check_output(place, STAGE, inputs=(shards, *settings.files), names=(config.model, config.pretrained))
    shard_set = ShardSet.open(shards)
    files = CaptionFiles.of(settings.files, settings.path_column, settings.caption_column)
    captions = MatchedCaptions.of(shard_set, files, most=settings.captions, match=settings.match)
    teacher = load_teacher(config)
    tower = teacher.text_tower()
    corpus = shard_set.corpus
    spec = CaptionSpec(
        corpus_id=corpus.corpus_id,
        num_rows=corpus.num_rows,
        shard_size=corpus.shard_size,
        captions=captions.most,
        encoding="fp32" if settings.encoding == "fp32" else "fp16",
        texts=texts_digest(captions),
        counts=captions.counts,
        **caption_facts(teacher),
    )
    stage = CaptionsStage(
        out=place,
        shards=shard_set,
        config=config,
        spec=spec,
        compute=compute,
        batch_size=settings.batch_size,
        notes=(f"teacher {teacher.loaded}", *captions.notes, *_cut_notes(tower, captions)),
    )
    if write:
        claim_output(place, STAGE)
        begun = Ledger(place, STAGE).plan()
        if begun is None:
            create_caption_store(open_caption_root(place, mode="a"), spec)
        if begun is None or begun.fingerprint == stage.fingerprint:
            _keep_texts(place / TEXTS_FILE, captions, spec)
    return stage


def _keep_texts(file: Location, captions: MatchedCaptions, spec: CaptionSpec) -> None:
    """Write the texts, unless they are there."""
    if file.exists():
        try:
            if texts_digest(TextsReader(file.open(), file)) == spec.texts:
                return
        except DamagedError:
            pass  # written anew
    with file.create() as out:
        write_texts(out, captions)


def _cut_notes(tower: TextTower, captions: MatchedCaptions) -> tuple[str, ...]:
    looked_at = list(dict.fromkeys(captions.texts[:_LOOKED_AT]))
    cut = tower.cut(looked_at)
    if not cut:
        return ()
    return (
        f"of the first {counted(len(looked_at), 'caption')}, {len(cut)} {'is' if len(cut) == 1 else 'are'} longer than the "
        f"{tower.tokenizer.context_length} tokens that the text tower reads; what is beyond them is not read; the first: {looked_at[cut[0]][:60]!r}",
    )


def plan_facts(stage: CaptionsStage) -> dict[str, Json]:
    """What the store has, as JSON: numbers of captions and images, and the bytes of its embeddings."""
    spec = stage.spec
    size = np.dtype(DTYPES[spec.encoding]).itemsize * spec.captions * spec.embed_dim * spec.num_rows
    return {
        "captions": {**asdict(spec.counts), "of_an_image": spec.captions},
        "bytes": size + 4 * spec.num_rows,
        "texts": spec.texts,
    }
