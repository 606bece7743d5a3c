"""Owns the request for a PromptKD benchmark, and what is refused of it before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ...pipeline.storage import Location
from ...pipeline.user_files import UserFile
from ...storage_schemas.errors import InputError
from ...storage_schemas.near_names import did_you_mean
from ...storage_schemas.plain_text import typed
from ...storage_schemas.prompts import CONFIG, PromptsConfig
from ..corpora.coop.dataset import Dataset
from ..corpora.coop.layouts import LAYOUTS
from ..corpora.coop.published import BASE_TO_NOVEL, CROSS_DATASET
from ..models.names import TIMM_PREFIX
from ..students.registry import family_of
from ..teachers.base import require_open_clip
from .folders import SOURCE
from .settings import BASE2NOVEL, CROSS, PRETRAINED, STUDENT, TEACHER, BenchmarkSettings


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model as `--teacher` or `--student` names it, and its weights; None where the name says which."""

    name: str
    pretrained: str | None

    @staticmethod
    def of(name: str, pretrained: str | None) -> Model:
        """With OpenAI's weights (timm: its default) where nothing says which."""
        implied = family_of(name).implies_weights(name)
        usual = "default" if name.startswith(TIMM_PREFIX) else PRETRAINED
        return Model(name=name, pretrained=pretrained or (None if implied else usual))

    @property
    def folder(self) -> str:
        """A name for a folder: the model's without what goes before it, and its weights' where they were named."""
        tag = "" if self.pretrained is None else f"-{self.pretrained.rstrip('/').rpartition('/')[2]}"
        return f"{self.name.rstrip('/').rpartition('/')[2].replace(':', '-')}{tag}"


@dataclass(frozen=True, kw_only=True)
class Request:
    """A benchmark.

    Attributes:
        protocol: one of `PROTOCOLS`.
        data: CoOp's root folder, as the user spelled it.
        datasets: names of those to measure on.
        out: folder for all of it.
        seeds: of the students.
        students: which.
        teacher: the model that gets prompts; with `prompts`, the model that they go with, or None for the one in their folder.
        teacher_seed: of the draw of shots and the prompts.
        prompts: folder of prompts to use instead (cross-dataset), or of a folder of them for each data set.
        shots: images of each class that prompts are learned on.
        epochs: of the students.
        views: of each image that the teacher sees.
        on_test: select the best epoch on the test images, as the authors' code does.
        compute: `device`, `precision`, `threads`; None for each command's own default.
        more: options to append to `pretrain`, `cache` and `distill`.
    """

    protocol: str
    data: str
    datasets: tuple[str, ...]
    out: Location
    seeds: tuple[int, ...]
    students: tuple[Model, ...]
    teacher: Model | None
    teacher_seed: int = BenchmarkSettings.teacher_seed
    prompts: str | None = None
    shots: int = BenchmarkSettings.shots
    epochs: int = BenchmarkSettings.epochs
    views: int = BenchmarkSettings.epochs
    on_test: bool = False
    compute: Mapping[str, str | int | None] = field(default_factory=dict)
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @staticmethod
    def of(
        settings: BenchmarkSettings,
        out: Location,
        *,
        compute: Mapping[str, str | int | None],
        more: Mapping[str, tuple[str, ...]],
        say: Callable[[str], None],
    ) -> Request:
        """The request that a user's settings make, with the paper's models where nothing else is named.

        Args:
            settings: as typed.
            out, compute, more: see the attributes.
            say: shows which data sets are left out because they are not there.

        Raises:
            InputError: see `choose_datasets` and `pair_students`; weights of no teacher.
        """
        teacher, prompts = settings.teacher, settings.prompts
        if settings.teacher_pretrained is not None and teacher is None and prompts is not None:
            raise InputError(
                "--teacher-pretrained needs --teacher beside --prompts",
                code="option-needs-another",
                where=settings.teacher_pretrained,
            )
        return Request(
            protocol=settings.protocol,
            data=settings.data,
            out=out,
            seeds=settings.seeds,
            prompts=prompts,
            datasets=choose_datasets(settings.datasets, settings.protocol, settings.data, say),
            students=pair_students(settings.students, settings.students_pretrained),
            teacher=None if prompts and teacher is None else Model.of(teacher or TEACHER, settings.teacher_pretrained),
            teacher_seed=settings.teacher_seed,
            shots=settings.shots,
            epochs=settings.epochs,
            views=settings.views or settings.epochs,
            on_test=settings.select_on_test,
            compute=compute,
            more=more,
        )

    def split(self, dataset: str, split: str) -> str:
        """A split as commands take it."""
        return f"coop:{dataset}/{split}={self.data}"

    @property
    def models(self) -> tuple[str | None, ...]:
        """Names of all models, and of their weights."""
        models = [*self.students, *([] if self.teacher is None else [self.teacher])]
        return tuple(text for model in models for text in (model.name, model.pretrained))

    def validation_split(self, dataset: str) -> str | None:
        """The split to find the best epoch on; None where there is none but the test images."""
        if self.on_test:
            return "test"
        return "val" if "val" in LAYOUTS[dataset].images else None

    def prompts_of(self, dataset: str) -> Location | None:
        """The folder of prompts to use as they are; None if they are to be learned."""
        if self.prompts is None:
            return None
        folder = Location.of(self.prompts)
        return folder if self.protocol == CROSS else folder / dataset

    def check(self) -> None:
        """Refuse what can be known to fail: missing data, folders that hold no prompts, names that collide.

        Raises:
            InputError: with the cause.
            DamagedError, MismatchError: a folder that holds no prompts, or those of another version.
        """
        if not self.students:
            raise InputError("no students", code="students-none-given", where="--student")
        _refuse_twice([model.folder for model in self.students], "--student", "two students of one name")
        if not self.seeds or min(self.seeds) < 0:
            raise InputError(
                "impossible seeds",
                code="setting-impossible",
                where="--seeds",
                hint="give numbers from 0 on, as in 1,2,3",
            )
        _refuse_twice([str(seed) for seed in self.seeds], "--seeds", "a seed stands twice")
        if self.teacher is not None:
            require_open_clip(self.teacher.name, "name the model without prompts; learned ones go to --prompts")
        for dataset in self.datasets:
            found = Dataset.below(UserFile.of(self.data), dataset)
            found.check(*found.layout.images)
            found.class_names()
        if self.protocol == CROSS and self.prompts is None:
            source = Dataset.below(UserFile.of(self.data), SOURCE)
            source.check("train")
            source.class_names()
        for dataset in self.datasets:
            folder = self.prompts_of(dataset)
            if folder is None:
                continue
            if not (folder / CONFIG).exists():
                below = "a folder for each data set below it" if self.protocol == BASE2NOVEL else "prompts in it"
                raise InputError(
                    "no prompts here",
                    code="prompts-missing",
                    where=folder,
                    expected=f"--prompts FOLDER with {below}",
                    found=f"no {CONFIG}",
                    hint="teachonce import … or teachonce pretrain …, or leave out --prompts",
                )
            PromptsConfig.from_bytes((folder / CONFIG).read_bytes(), where=folder / CONFIG)


def choose_datasets(given: str | None, protocol: str, data: str, say: Callable[[str], None]) -> tuple[str, ...]:
    """The data sets that the user names with commas, or those of the paper whose folders are there.

    Args:
        given: what the user typed, or None.
        protocol: one of `PROTOCOLS`.
        data: CoOp's root folder.
        say: shows which are left out because they are not there.

    Raises:
        InputError: no such folder or data set, one that this protocol does not use, or one that is named twice.
    """
    root = UserFile.of(data)
    if not root.is_dir():
        raise InputError(
            "no such folder",
            code="folder-missing",
            where=root,
            hint="name the folder that holds the data sets' folders",
        )
    usual = tuple(BASE_TO_NOVEL if protocol == BASE2NOVEL else CROSS_DATASET)
    if given is None:
        absent = [name for name in usual if not Dataset.below(root, name).root.exists()]
        if len(absent) == len(usual):
            raise InputError(
                "no data set that can be used",
                code="datasets-none-usable",
                where=root,
                hint=f"teachonce datasets {typed(data)}",
            )
        if absent:
            say(f"benchmark: left out, for they are not in {root}: {', '.join(absent)}")
        return tuple(name for name in usual if name not in absent)
    names = [name.strip() for name in given.split(",") if name.strip()]
    if not names:
        raise InputError(
            "no data sets",
            code="datasets-none-given",
            where="--datasets",
            hint=f"one or more of {', '.join(usual)}",
        )
    _refuse_twice(names, "--datasets", "a data set stands twice")
    for name in names:
        if name not in LAYOUTS:
            raise InputError(
                "no such data set",
                code="dataset-unknown",
                where=f"--datasets {name}",
                hint=did_you_mean(name, usual, f"one of {', '.join(usual)}"),
            )
        if tuple(LAYOUTS[name].images) == ("test",):
            raise InputError(
                "a data set with test images only",
                code="dataset-test-only",
                where=f"--datasets {name}",
                hint=f"measure a finished student on it: teachonce evaluate BUNDLE {typed(f'coop:{name}/test={data}')}",
            )
        if name not in usual:
            raise InputError(
                "the data set that prompts are learned on is no target",
                code="dataset-not-a-target",
                where=f"--datasets {name}",
                hint="leave it out, or use --protocol base2novel",
            )
    return tuple(name for name in usual if name in names)


def pair_students(names: tuple[str, ...], pretrained: tuple[str, ...]) -> tuple[Model, ...]:
    """The students, each with its weights: one for all, one for each, or none.

    Raises:
        InputError: another number of weights.
    """
    names = names or (STUDENT,)
    if len(pretrained) not in (0, 1, len(names)):
        raise InputError(
            "weights must be given once, or once for each --student",
            code="weights-count-wrong",
            where="--student-pretrained",
            expected="1" if len(names) == 1 else f"1 or {len(names)}",
            found=len(pretrained),
        )
    weights: tuple[str | None, ...] = (
        pretrained if len(pretrained) == len(names) else (pretrained or (None,)) * len(names)
    )
    return tuple(Model.of(name, tag) for name, tag in zip(names, weights, strict=True))


def _refuse_twice(names: Sequence[str], option: str, what: str) -> None:
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise InputError(what, code="given-twice", where=f"{option} {twice}", hint="name each once")
