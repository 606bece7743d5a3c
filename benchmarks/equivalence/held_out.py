"""Owns measuring on held-out images: a student's outputs for their centre views, against labels and teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from task import Task
from teachonce.stages.corpora.images import decode
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.inputs.class_match import base_classes
from teachonce.stages.measures.metrics import Accuracy, Agreement, harmonic_mean
from teachonce.stages.measures.stored import Stored
from teachonce.stages.models.preprocess import Preprocess
from teachonce.stages.students.bundle import load_student
from teachonce.stages.students.infer import student_logits
from teachonce.stages.views.render import draw, fill_planes

_CENTER = np.zeros(5, np.int32)


class HeldOut:
    """Held-out images of a task, decoded once for each student's size.

    Attributes:
        labels_N: class ids.
        teacher_NC: the teacher's logits, fp32.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._shards = ShardSet.open(str(task.held_out_shards))
        stored = Stored.open(str(task.held_out_store), str(task.held_out_shards))
        assert stored.vectors is not None
        names = stored.vectors.names
        done = stored.shards_done()
        self.teacher_NC = np.concatenate([stored.logits(shard, 0) for shard in done])
        ids = {name.replace(" ", "_"): i for i, name in enumerate(names)}
        entries = [entry for shard in done for entry in self._shards.manifest().shard(shard)]
        self.labels_N = np.array([ids[str(entry.label).replace(" ", "_")] for entry in entries], np.int64)
        self._base_C = base_classes(str(task.folder / "base-classes.txt"), names) if task.base else None
        self._pixels: dict[Preprocess, NDArray[np.uint8]] = {}

    def logits(self, bundle: Path) -> NDArray[np.float32]:
        """A student's logits (image, class), fp32."""
        student = load_student(str(bundle))
        pixels_NCHW = self._rendered(student.preprocess)
        batches = ((start, [pixels_NCHW[start : start + 250]]) for start in range(0, len(pixels_NCHW), 250))
        return np.concatenate([logits for _, logits in student_logits(student, batches, self._task.student_compute)])

    def measured(self, logits_NC: NDArray[np.float32]) -> dict[str, float]:
        """Accuracy (base and novel too, where the task has them), agreement with the teacher, KL(teacher ‖ student)."""
        accuracy, agreement = Accuracy(logits_NC.shape[1], self._base_C), Agreement()
        accuracy.add(logits_NC, self.labels_N)
        agreement.add(self.teacher_NC, logits_NC)
        found = {
            "accuracy": accuracy.top1.rate,
            "agreement": agreement.top1.rate,
            "kl": agreement.kl.mean,
        }
        if self._base_C is not None:
            found |= {
                "base": accuracy.base.rate,
                "novel": accuracy.novel.rate,
                "harmonic_mean": harmonic_mean(accuracy.base, accuracy.novel).mean,
            }
        return found

    def _rendered(self, preprocess: Preprocess) -> NDArray[np.uint8]:
        if preprocess not in self._pixels:
            spec, size = preprocess.center_view(), preprocess.size
            pixels_NCHW = np.empty((len(self.labels_N), 3, size, size), np.uint8)
            for shard in range(self._shards.corpus.num_shards):
                reader: Any = self._shards.reader(shard)
                for row in self._shards.corpus.rows(shard):
                    image = decode(reader.read(row), self._shards.corpus.max_pixels)
                    fill_planes(pixels_NCHW[row], draw(image, _CENTER, size, spec))
                reader.close()
            self._pixels[preprocess] = pixels_NCHW
        return self._pixels[preprocess]
