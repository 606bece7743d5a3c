"""Owns the settings of `teachonce recode`."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import option_name, setting, settings_of, with_default
from ...storage_schemas.encodings.spelling import KNOWN, usage
from ...storage_schemas.errors import InputError
from .cache import CacheSettings

SAMPLES = "Which samples"
EXPORT = "Export for other programs"

#: What `--to` takes, and the type of numbers in files of other programs.
LAYOUTS = ("parquet", "npy", "tars", "topk")
DTYPES = ("fp32", "fp16")


@dataclass(frozen=True, kw_only=True)
class RecodeSettings:
    """What is taken of a store, and how it is stored.

    Attributes:
        encoding, max_kl, max_bytes, fit_views: see `encodings.request.EncodingRequest`; a target keeps its own encoding if no other is
            asked for.
        view_params: one of `storage_schemas.params_form.VIEW_PARAMS`; None for the store's.
        targets: names, with commas; None for those of the store.
        views: see `recoding.view_choice.places_of`.
        generation: of a store that grew; None for the current one.
        samples: a file of keys or paths.
        label: classes of the corpus, any of them.
        confidence: least and largest probability of the teacher's first class.
        shards: folder of the shards, for paths and labels; None for the one that the store recorded.
        to: a layout of other programs; None for a store.
        dtype: of the numbers there.
        top: classes kept of each distribution, in `tars` and `topk`.
        packed: in `topk`: as bytes.
    """

    encoding: str | None = with_default(
        CacheSettings,
        "encoding",
        None,
        default_text="the store's",
        help=f"How targets are stored: {', '.join(map(usage, KNOWN))}; or one for some targets, as in "
        "logits=pca:0.85,embedding=int8: others stay as they are. See docs/encodings.md.",
    )
    max_kl: float | None = with_default(
        CacheSettings,
        "max_kl",
        None,
        help="Take the smallest encoding that costs no more divergence from the store (mean, T = 1).",
    )
    max_bytes: float | None = with_default(CacheSettings, "max_bytes", None)
    fit_views: int = with_default(
        CacheSettings,
        "fit_views",
        4096,
        help="Views of the first samples that encodings are fitted to and chosen by.",
    )
    view_params: str | None = with_default(
        CacheSettings,
        "view_params",
        None,
        default_text="as in the store",
        help="What becomes of the boxes and colours of views. `derived` takes the sizes of the images, of which readers draw them again, from "
        "the shards where the store does not have them.",
    )
    targets: str | None = setting(
        None,
        unit="NAMES",
        known=("embedding", "logits", "tokens"),
        default_text="all",
        help="Targets to keep, with commas. logits are formed from embeddings where the store has none.",
    )
    views: str | None = setting(
        None,
        unit="VIEWS",
        default_text="all",
        help="Views to keep: K for the first K, 0,2 for these by their numbers, `2,` for one alone.",
    )
    generation: str | None = setting(
        None,
        unit="NAME",
        default_text="the current one",
        help="Read this generation of a store that grew, such as 1 for what was there at first.",
    )
    classes_from: str | None = setting(
        None,
        unit="PATH",
        help="Form logits for the classes of this store, where `teachonce vectors` wrote class vectors of the same teacher.",
    )
    samples: str | None = setting(
        None, unit="PATH", group=SAMPLES, help="Keep these: a file with a key or a path a line."
    )
    label: tuple[str, ...] = setting(
        (), unit="CLASS", group=SAMPLES, help="Keep images that the corpus labels so. May be given several times."
    )
    confidence: tuple[float, float] | None = setting(
        None,
        least=0,
        most=1,
        unit="LEAST,LARGEST",
        group=SAMPLES,
        help="Keep samples whose first class has such a probability for the teacher (mean over the views kept).",
    )
    only_shards: tuple[int, ...] = setting(
        (),
        least=0,
        unit="NUMBERS",
        group=SAMPLES,
        help="Keep the samples of these shards, by their numbers, with commas.",
    )
    shards: str | None = setting(
        None,
        unit="FOLDER",
        group=SAMPLES,
        default_text="as `cache` recorded",
        help="The store's shards, for paths and labels.",
    )
    to: str | None = setting(
        None,
        choices=LAYOUTS,
        group=EXPORT,
        default_text="a target store",
        help="Write files for other programs: Parquet tables, NumPy arrays with tables beside, WebDataset tars with one set of members "
        "a sample, or Parquet with the top classes.",
    )
    dtype: str = setting("fp32", choices=DTYPES, group=EXPORT, help="Type of the numbers in these files.")
    top: int = setting(
        10, least=1, unit="CLASSES", group=EXPORT, help="Classes kept of each distribution, in tars and topk."
    )
    packed: bool = setting(False, group=EXPORT, help="In topk: bytes as DistillKit packs them, instead of plain lists.")


def output_form(settings: RecodeSettings) -> str:
    """The command, as output folders distinguish it: `recode` of a store into a store, or into files."""
    return "recode STORE" if settings.to is None else "recode"


def check_layout(settings: RecodeSettings) -> None:
    """Refuse options that mean nothing to what is written.

    Raises:
        InputError: names the option.
    """
    needs = {"dtype": LAYOUTS, "top": ("tars", "topk"), "packed": ("topk",)}
    for field, declared in settings_of(RecodeSettings):
        name, layouts = field.name, needs.get(field.name, ())
        if layouts and getattr(settings, name) != field.default and settings.to not in layouts:
            raise InputError(
                "an option of other layouts",
                code="option-needs-another",
                where=option_name(declared.name(name)),
                expected=f"--to {' or '.join(layouts)}",
                found="a target store" if settings.to is None else f"--to {settings.to}",
                hint="leave it out",
            )
    given = {"encoding": settings.encoding, "max-kl": settings.max_kl, "max-bytes": settings.max_bytes}
    given["view-params"] = settings.view_params
    given = {f"--{name}": value for name, value in given.items() if value is not None}
    if settings.to is not None and given:
        raise InputError(
            "files for other programs have no encoding",
            code="options-exclude-each-other",
            where=", ".join([*given, "--to"]),
            found=" ".join([*(f"{name} {value}" for name, value in given.items()), f"--to {settings.to}"]),
            hint="use --dtype for the type of their numbers",
        )
