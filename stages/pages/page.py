"""Owns a page as one HTML file: its parts, and how they become text; whatever comes from data is escaped here."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import math
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from ...pipeline.storage import Location
from ...storage_schemas.errors import InputError, MissingDependency
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.plain_text import printable, typed

#: Bytes that a page may take: it is mailed, and opened on slow machines.
MOST_BYTES = 5_000_000


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A number that stands out."""

    value: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart; `spec` is Vega-Lite. `wide`: it takes both columns."""

    id: str
    title: str
    spec: dict[str, Any]
    caption: str = ""
    wide: bool = False
    height: int = 190


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names and values."""

    rows: list[tuple[str, str]]
    kind: str = "facts"


@dataclass(frozen=True, kw_only=True)
class Charts:
    """Charts beside each other, so many in a line."""

    charts: list[Chart]
    columns: int = 2
    kind: str = "charts"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table that opens. `head`: (name, `l` or `r`) of each column."""

    title: str
    head: list[tuple[str, str]]
    rows: list[list[str]]
    filter: bool = False
    open: bool = False
    kind: str = "table"


@dataclass(frozen=True, kw_only=True)
class GalleryPlace:
    """Where the galleries of `data` are shown; a page has one."""

    kind: str = "gallery"


Block = Facts | Charts | Table | GalleryPlace


@dataclass(frozen=True, kw_only=True)
class Section:
    """A titled part of a page."""

    id: str
    title: str
    words: list[str] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Page:
    """All that a page says.

    Attributes:
        kicker, title, lead: above everything: what it is, its name, and a sentence.
        problems, notes: lines for people.
        data: for page.js: `samples`, `classes`, `galleries`, `images`, `whole`, `sprite`, `command`, `all_here`.
        has_find: whether samples can be searched.
    """

    kicker: str
    title: str
    lead: str
    tiles: list[Tile] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    has_find: bool = False

    def to_bytes(self) -> bytes:
        """The file.

        Raises:
            MissingDependency: `teachonce[page]` is not installed.
        """
        jinja2, library = _library()
        charts = [c for s in self.sections for block in s.blocks if isinstance(block, Charts) for c in block.charts]
        data = {"charts": {chart.id: chart.spec for chart in charts}, **self.data}
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, finalize=_finalize)
        template = environment.from_string(_resource("page.html"))
        safe = environment.filters["safe"]
        text: str = template.render(
            page=self,
            css=safe(_resource("page.css")),
            js=safe(_resource("page.js")),
            library=safe(library.replace("</script", "<\\/script")),
            data=safe(script_json(data)),
            version=importlib.metadata.version("teachonce"),
        )
        return text.encode("utf-8", "replace")


def script_json(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element, and what a terminal would act on is escaped."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    unsafe = {c for c in set(text) if c in "<>&\u2028\u2029" or not c.isprintable()}
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in unsafe if ord(c) < 0x10000})


def _finalize(value: Any) -> Any:
    """Text without control characters; what the page itself is made of has its escaping done."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _finite(value: Any) -> Any:
    """NaN and infinities as null, which is what JSON has for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def shown(value: Json) -> str:
    """A value of JSON as text for people."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, dict):
        named = ((printable(str(name)), shown(item)) for name, item in value.items() if item not in ({}, []))
        return ", ".join(f"{name} {text}" for name, text in named)
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    return str(value)


def check_installed() -> None:
    """Fail at once, not after the store was read, where what pages need is lacking.

    Raises:
        MissingDependency: `teachonce[page]` is not installed.
    """
    for name in ("jinja2", "sklearn", "vl_convert"):
        if importlib.util.find_spec(name) is None:  # importing takes seconds
            raise MissingDependency(f"pages need {name}", "pip install 'teachonce[page]'")


def page_location(file: Location | str) -> Location:
    """Where a page is written.

    Raises:
        InputError: a folder, or in a folder that is not there.
    """
    location = Location.of(file)
    if location.is_dir():
        raise InputError(
            "a page is one file",
            code="page-is-folder",
            where=location,
            found="a folder",
            hint=f"--html {typed(location / 'page.html')}",
        )
    return location


def _library() -> tuple[Any, str]:
    """jinja2, and Vega-Lite as one script that makes `vegaEmbed`."""
    check_installed()
    import jinja2
    import vl_convert

    return jinja2, _bundle(vl_convert)


@functools.cache
def _bundle(vl_convert: Any) -> str:
    """Making it takes longer than all the rest of a page; it is the same each time."""
    return str(vl_convert.javascript_bundle())


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
