"""Owns what a scheduler is asked for: the settings of `teachonce submit`, and the `submit` section of run files."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...storage_schemas.errors import InputError
from ..settings import impossible, setting


@dataclass(frozen=True, kw_only=True)
class SubmitSettings:
    """For every scheduler."""

    slices: int = setting(8, least=1, most=100_000, help="Tasks that share out the work of `shard`, and of `cache`.")
    cpus: int = setting(2, least=1, help="CPU cores for each task.")
    memory: int = setting(8, least=1, unit="GIB", help="Memory for each task.")
    gpus: int = setting(0, least=0, help="GPUs for each task of a stage that computes on them.")
    name: str | None = setting(None, default_text="the file's", help="Of the run, in the scheduler's lists.")

    def run_name(self, file: str) -> str:
        """The name of the run: lower-case letters, digits and hyphens, as all schedulers take it.

        Args:
            file: name of the run file, without what follows the dot.

        Raises:
            InputError: the name that was given is none.
        """
        if self.name is None:
            return re.sub("[^a-z0-9]+", "-", file.lower()).strip("-")[:30].rstrip("-") or "run"
        if not re.fullmatch("[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?", self.name):
            raise impossible("name", "up to 30 lower-case letters, digits and hyphens", self.name)
        return self.name


@dataclass(frozen=True, kw_only=True)
class SlurmSettings(SubmitSettings):
    """For Slurm."""

    partition: str | None = setting(None, default_text="Slurm's", help="Partitions, with commas between them.")
    time: str = setting("24:00:00", help="Time limit of each task, as Slurm has it: HH:MM:SS, or days and hours, D-HH.")

    def __post_init__(self) -> None:
        if self.partition is not None and not re.fullmatch(r"[\w.+-]+(,[\w.+-]+)*", self.partition, re.ASCII):
            raise impossible("partition", "names of partitions, with commas between them", self.partition)
        if not re.fullmatch(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}", self.time, re.ASCII):
            raise impossible("time", "a time such as 04:00:00 or 2-12", self.time)


@dataclass(frozen=True, kw_only=True)
class KubernetesSettings(SubmitSettings):
    """For Kubernetes."""

    image: str | None = setting(
        None, default_text="none; it is needed", help="Image with teachonce in it, see docker/."
    )
    claim: str | None = setting(
        None,
        default_text="none",
        help="PersistentVolumeClaim that is mounted at /data, where relative paths begin.",
    )
    secret: str | None = setting(
        None,
        default_text="none",
        help="Secret whose entries become environment variables, such as a bucket's credentials.",
    )
    namespace: str | None = setting(None, default_text="kubectl's", help="Namespace of the jobs.")

    def __post_init__(self) -> None:
        if self.image is not None and not re.fullmatch(r"[\w][\w.:/@-]*", self.image, re.ASCII):
            raise impossible("image", "an image such as HOST/NAME:TAG", self.image)
        for name in ("claim", "secret", "namespace"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch("[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", value):
                raise impossible(name, "a name of Kubernetes: lower-case letters, digits, hyphens and dots", value)

    @property
    def required_image(self) -> str:
        """The image.

        Raises:
            InputError: none was given.
        """
        if self.image is None:
            raise InputError(
                "no image is named",
                code="submit-without-image",
                where="--image",
                hint="build one with docker/Dockerfile, push it, and give --image HOST/NAME:TAG",
            )
        return self.image
