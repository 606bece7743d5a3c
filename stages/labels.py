"""`teachonce labels`: clusters a store's embeddings and gives each cluster a name of a large vocabulary (S3A); one label an image."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..pipeline.ledger import Ledger, record_outputs
from ..pipeline.output import check_output, claim_output
from ..pipeline.settings import check
from ..pipeline.storage import Location
from ..pipeline.types import Resources, RunUnit, Timer, Unit
from ..storage_schemas.class_vectors import ClassVectors, origin_model, read_origin
from ..storage_schemas.errors import InputError, MismatchError
from ..storage_schemas.fingerprint import Fingerprint, Json, digest_json
from ..storage_schemas.formats import LABELS
from ..storage_schemas.label_store import (
    NO_LABEL,
    GenerationAbout,
    LabelSpec,
    create_label_store,
    labels_digest,
    write_generation,
)
from ..storage_schemas.plain_text import counted, typed
from ..storage_schemas.receipt import Receipt
from .inputs.classes import DEFAULT_TEMPLATES
from .measures.stored import Stored
from .models.compute import Compute
from .models.teacher_config import TeacherConfig
from .naming.accuracy import LabelNumbers, matched_accuracy
from .naming.clusters import cluster, in_blocks, too_few
from .naming.embeddings import CentreEmbeddings, Floats, unit
from .naming.prompts import CANDIDATES, Candidates, candidates_of, phrases_of, prompt_scores, read_prompts
from .naming.votes import ROUNDS, Named, assign, check_vocabulary, realign, rounds
from .pairs.label_store import LABELS as STAGE
from .pairs.label_store import UNIT, OpenLabels, ledger_name, open_label_root
from .pairs.store import open_store, read_description, read_vectors
from .settings.labels import LabelsSettings

#: The names that clusters were likeliest to get, to be described by phrases; beside the labels of generation 0.
CANDIDATES_FILE = "prompts/candidates.json"


@dataclass(frozen=True, kw_only=True)
class LabelsStage:
    """One unit: one generation of labels. Made by `plan_labels`.

    Attributes:
        embeddings: of all images at their centre view.
        vectors: the vocabulary.
        spec: of the label store.
        identity: everything that decides the labels.
        number: of the generation.
        clusters: to make; None where those of `begin` are taken.
        prompts: phrases by name; None where that step is left out.
        teacher: reads them.
        templates: that phrases are put into.
        begin: where generation 0 lies, whose clusters a later one begins with.
        notes: lines that a person should see before it starts.
    """

    out: Location
    embeddings: CentreEmbeddings
    vectors: ClassVectors
    spec: LabelSpec
    identity: Mapping[str, Json]
    origin: Mapping[str, Json]
    number: int
    clusters: int | None
    seed: int
    starts: int
    prompts: Mapping[str, list[str]] | None
    teacher: TeacherConfig | None
    templates: tuple[str, ...]
    begin: Location | None
    compute: Compute
    notes: tuple[str, ...]

    name = STAGE

    @property
    def ledger(self) -> str:
        """The name of its ledger: each generation has one."""
        return ledger_name(self.number)

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(fields=self.identity)

    @property
    def resources(self) -> Resources:
        return Resources(cpus=1)

    def plan(self) -> Iterator[Unit]:
        yield Unit(key=UNIT, rows=self.embeddings.num_samples)

    def open(self) -> RunUnit:
        return self._make

    def _make(self, unit_: Unit, timer: Timer) -> Receipt:
        with timer("read"):
            rows_N = self.embeddings.rows()
        with timer("cluster"):
            partition_N = self._partition(rows_N)
        with timer("name"):
            named = rounds(self.embeddings, self.vectors, partition_N)
            candidates = candidates_of(named.shares_CV)
            labels_N = named.labels_N if self.prompts is None else self._prompted(named, candidates)
        labels_R = np.full(self.spec.num_rows, NO_LABEL, np.int32)
        labels_R[rows_N] = labels_N
        present, counts = np.unique(labels_N, return_counts=True)
        names = [(n, self.vectors.names[n], c) for n, c in zip(present.tolist(), counts.tolist(), strict=True)]
        with timer("write"):
            root = open_label_root(self.out, mode="a")
            about = GenerationAbout(names=names, origin=dict(self.origin))
            paths = write_generation(root, self.spec, self.number, labels_R, about)
            if self.number == 0:
                self._write_candidates(candidates)
                paths.append(CANDIDATES_FILE)
            outputs = record_outputs(self.out, paths)
        return Receipt(
            key=unit_.key,
            outputs=outputs,
            rows=unit_.rows,
            invalid_rows=(),
            digest=labels_digest(labels_R),
            fingerprint=self.fingerprint.digest,
        )

    def _partition(self, rows_N: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.begin is None:
            assert self.clusters is not None
            return cluster(self.embeddings, self.clusters, self.seed, self.starts)
        first = OpenLabels.of(self.begin, generation=0)
        return first.all_rows()[rows_N].astype(np.int64)

    def _prompted(self, named: Named, candidates: Candidates) -> NDArray[np.int64]:
        assert self.prompts is not None
        phrases = phrases_of(candidates, self.prompts, self.vectors.names, where="--prompts")
        texts = sorted({phrase.text for row in phrases for phrase in row})
        scores_CV = prompt_scores(
            self.embeddings, named.voters_N, phrases, self._text_vectors(texts), self.vectors.num_classes
        )
        return realign(self.embeddings, self.vectors, assign(scores_CV))

    def _text_vectors(self, texts: list[str]) -> dict[str, Floats]:
        import torch

        from .teachers import load_teacher

        assert self.teacher is not None
        teacher = load_teacher(self.teacher).to(torch.device(self.compute.device))
        _refuse_other_teacher(self.embeddings, teacher.spec.weights_digest, teacher.spec.model)
        with self.compute.inference():
            found = teacher.class_vectors(texts, self.templates)
        return dict(zip(texts, unit(found.vectors_CD), strict=True))

    def _write_candidates(self, candidates: Candidates) -> None:
        """Each name with no phrases yet: what a file for --prompts is to have, filled in."""
        names = sorted({self.vectors.names[name] for row in candidates for name in row})
        text = json.dumps({name: [] for name in names}, indent=1, ensure_ascii=False)
        (self.out / CANDIDATES_FILE).write_bytes(text.encode() + b"\n")


def plan_labels(
    store: Location | str, *, out: Location | str, settings: LabelsSettings, compute: Compute
) -> LabelsStage:
    """The stage that makes a generation of labels; makes the label store if it is not there.

    Args:
        store: a finished target store with embeddings of the centre view.
        out: the label store.
        settings: how clusters get names.
        compute: of the text tower that reads phrases.

    Raises:
        InputError: no such store, no embeddings, fewer names or images than clusters, or options that do not go together.
        MismatchError: random views; class vectors, labels or prompts of another teacher, vocabulary or corpus.
        IncompleteError: the store, or the generation before, is not finished.
    """
    check(settings)
    _check_options(settings)
    location, label_store = Location.of(store), Location.of(out)
    check_output(label_store, LabelsStage.name, inputs=(location, settings.vectors, settings.prompts))
    embeddings = CentreEmbeddings.of(location, settings.generation)
    vectors, source = _vocabulary(embeddings, settings)
    facts = embeddings.facts
    spec = LabelSpec(
        corpus_id=facts.corpus_id,
        num_rows=facts.spec.num_rows,
        shard_size=facts.spec.shard_size,
        vocabulary=vectors.digest,
        num_names=vectors.num_classes,
    )
    identity: dict[str, Json] = {
        "schema_version": LABELS.version,
        "corpus_id": spec.corpus_id,
        "store": facts.fingerprint,
        "class_vectors": spec.vocabulary,
        "rounds": ROUNDS,
    }
    root = open_store(location, settings.generation)
    origin: dict[str, Json] = {"teacher": read_description(root, location).teacher, "store": facts.fingerprint}
    if settings.append:
        check_vocabulary(vectors, 1, embeddings.width, where=source)
        number, begin = _next(label_store, spec, identity)
        origin["begins_with"] = 0
        notes = (f"generation {number} begins with the clusters of generation 0",)
        return LabelsStage(
            out=label_store,
            embeddings=embeddings,
            vectors=vectors,
            spec=spec,
            identity={**identity, "begin": begin},
            origin=origin,
            number=number,
            clusters=None,
            seed=settings.seed,
            starts=settings.starts,
            prompts=None,
            teacher=None,
            templates=(),
            begin=label_store,
            compute=compute,
            notes=notes,
        )
    assert settings.classes is not None
    check_vocabulary(vectors, settings.classes, embeddings.width, where=source)
    _check_images(embeddings, settings.classes)
    blocks = in_blocks(embeddings)
    made: dict[str, Json] = {"classes": settings.classes, "seed": settings.seed}
    made |= {"kmeans": "minibatch"} if blocks else {"kmeans": "full", "starts": settings.starts}
    prompts = None if settings.prompts is None else read_prompts(settings.prompts)
    templates: tuple[str, ...] = ()
    teacher = None
    if prompts is not None:
        assert settings.teacher is not None
        teacher = TeacherConfig.of(settings.teacher, settings.teacher_pretrained)
        vectors_root = open_store(source) if source != location else root
        templates = tuple(read_origin(vectors_root, source).get("templates") or DEFAULT_TEMPLATES)
        made["prompts"] = {
            "file": digest_json(prompts),
            "templates": list(templates),
            "candidates": CANDIDATES,
            "compute": compute.to_json(),
        }
    claim_output(label_store, LabelsStage.name)
    stage = LabelsStage(
        out=label_store,
        embeddings=embeddings,
        vectors=vectors,
        spec=spec,
        identity={**identity, **made},
        origin={**origin, **made},
        number=0,
        clusters=settings.classes,
        seed=settings.seed,
        starts=settings.starts,
        prompts=prompts,
        teacher=teacher,
        templates=templates,
        begin=None,
        compute=compute,
        notes=_notes(embeddings, vectors, settings, blocks),
    )
    if Ledger(label_store, stage.name).plan() is None:
        create_label_store(open_label_root(label_store, mode="a"), spec)
    return stage


def _check_options(settings: LabelsSettings) -> None:
    if settings.append:
        given = {"--classes": settings.classes, "--prompts": settings.prompts}
        for name, value in given.items():
            if value is not None:
                raise InputError(
                    f"a later generation begins with the clusters that there are, so {name} means nothing",
                    code="options-exclude-each-other",
                    where=f"--append, {name}",
                    hint=f"leave out {name}",
                )
    elif settings.classes is None:
        raise InputError(
            "how many clusters to make is not said",
            code="option-needs-another",
            where="teachonce labels",
            expected="--classes N",
            found="nothing",
            hint="give the number of classes that you expect in the images",
        )
    if (settings.prompts is None) != (settings.teacher is None):
        there, other = ("--prompts", "--teacher") if settings.teacher is None else ("--teacher", "--prompts")
        raise InputError(
            "phrases are read by the teacher's text tower, and it reads nothing else here",
            code="option-needs-another",
            where=there,
            expected=f"{other} too",
            found="nothing",
            hint=f"add {other}, or leave out {there}",
        )


def _vocabulary(embeddings: CentreEmbeddings, settings: LabelsSettings) -> tuple[ClassVectors, Location]:
    """The class vectors, and the store that they are from."""
    facts = embeddings.facts
    own = settings.vectors is None
    source = facts.store if own else Location.of(str(settings.vectors))
    root = open_store(source, facts.generation if own else None)
    vectors = read_vectors(root, source)
    if not own and not settings.append:
        origin = origin_model(root, source)
        _refuse_other_teacher(embeddings, origin.weights_digest, origin.model, where=source)
    return vectors, source


def _refuse_other_teacher(embeddings: CentreEmbeddings, weights: str, model: str, where: object = "--teacher") -> None:
    store = embeddings.facts.store
    cached = read_description(open_store(store, embeddings.facts.generation), store).decided_by.teacher
    if cached.weights != weights:
        raise MismatchError(
            "the class vectors are another teacher's than the cached targets",
            code="vectors-other-teacher",
            where=f"{where}: field 'teacher.weights'",
            expected=f"{cached.model} {cached.weights} (the cached targets)",
            found=f"{model} {weights} (the class vectors)",
            hint="use the teacher that was cached",
        )


def _check_images(embeddings: CentreEmbeddings, clusters: int) -> None:
    if embeddings.num_samples < clusters:
        raise too_few(clusters, counted(embeddings.num_samples, "usable sample"))


def _next(out: Location, spec: LabelSpec, identity: Mapping[str, Json]) -> tuple[int, str]:
    """The number of the generation to make, and the digest of generation 0's labels. One of the same store is gone on with."""
    first = OpenLabels.of(out, generation=0)
    first.check(spec, "the store")
    begin = first.digest
    number = 1
    while (plan := Ledger(out, ledger_name(number)).plan()) is not None:
        ledger = Ledger(out, ledger_name(number))
        if ledger.plan() is not None and dict(plan.fingerprint.fields) == {**identity, "begin": begin}:
            return number, begin
        ledger.require_complete(
            f"run the `teachonce labels … --append --out {typed(out)}` that began it again, with its store"
        )
        number += 1
    return number, begin


def _notes(
    embeddings: CentreEmbeddings, vectors: ClassVectors, settings: LabelsSettings, blocks: bool
) -> tuple[str, ...]:
    notes = [
        f"{counted(settings.classes or 0, 'cluster')} of {counted(embeddings.num_samples, 'image')}, "
        f"a vocabulary of {counted(vectors.num_classes, 'name')}"
    ]
    if blocks:
        notes.append("more than 1 GiB of embeddings: minibatch k-means, in blocks")
    if settings.prompts is None:
        notes.append(
            f"no --prompts: names are not compared by descriptions; {CANDIDATES_FILE} will have those to describe"
        )
    return tuple(notes)


def summary(stage: LabelsStage) -> tuple[list[str], dict[str, Json]]:
    """A finished generation: lines for people, and the same as JSON. With labels of the corpus, where its shards are at hand."""
    labels = OpenLabels.of(stage.out, stage.number)
    by_size = sorted(labels.about.names, key=lambda one: (-one[2], one[0]))
    largest = ", ".join(f"{name!r} {count}" for _, name, count in by_size[:5])
    lines = [f"generation {stage.number}: {counted(len(by_size), 'name')}; most images: {largest}"]
    names: list[Json] = [{"name": name, "place": place, "images": count} for place, name, count in labels.about.names]
    facts: dict[str, Json] = {"generation": stage.number, "digest": labels.digest, "names": names}
    right, known = _matched(stage, labels)
    if known:
        lines.append(
            f"{right / known:.1%} of {counted(known, 'image')} lie right when each cluster is given one of the corpus's own labels, "
            "which nothing here has learned from"
        )
        facts["matched_accuracy"] = {"right": right, "of": known}
    return lines, facts


def _matched(stage: LabelsStage, labels: OpenLabels) -> tuple[int, int]:
    stored = Stored.open(stage.embeddings.facts.store, generation=stage.embeddings.facts.generation)
    if stored.shards is None:
        return 0, 0
    found, true, numbers = [], [], LabelNumbers()
    root = labels.open()
    for shard in range(stored.rows.num_shards):
        labels_N = labels.read(root, stored.rows.rows(shard))
        own = stored.labels(shard) or [None] * len(labels_N)
        found.append(labels_N)
        true.append(np.where(labels_N == NO_LABEL, -1, numbers.of(own)))
    return matched_accuracy(np.concatenate(found), np.concatenate(true))
