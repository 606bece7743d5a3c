"""Owns the charts of pages, as Vega-Lite specifications; colours and fonts are the page's, in light and in dark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...storage_schemas.fingerprint import Json

_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # the name of the language: nothing is fetched

Spec = dict[str, Any]


def _chart(values: list[Json], height: int | Spec, **more: Any) -> Spec:
    return {
        "$schema": _SCHEMA,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": values},
        **more,
    }


def histogram(edges: Sequence[float], counts: Sequence[int], title: str) -> Spec:
    """Bars of counts over the equal parts of a range."""
    total = max(sum(counts), 1)
    values: list[Json] = [
        {"from": a, "to": b, "n": n, "share": n / total} for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    return _chart(
        values,
        150,
        mark={"type": "bar", "binSpacing": 1},
        encoding={
            "x": {"field": "from", "type": "quantitative", "bin": "binned", "title": title},
            "x2": {"field": "to"},
            "y": {"field": "share", "type": "quantitative", "axis": {"format": "%", "tickCount": 4}, "title": None},
            "tooltip": [
                {"field": "from", "format": ".3~f"},
                {"field": "to", "format": ".3~f"},
                {"field": "n", "title": "views", "format": ","},
                {"field": "share", "format": ".1%"},
            ],
        },
    )


def bars(rows: Sequence[tuple[str, float]], title: str, *, form: str = ",.0f", second: str = "") -> Spec:
    """Horizontal bars in the order given.

    Args:
        rows: (name, number).
        title: of the numbers; `form`: their format; `second`: what a bar stands for, in its tooltip.
    """
    values: list[Json] = [{"name": name, "value": value, "order": i} for i, (name, value) in enumerate(rows)]
    name = {
        "field": "name",
        "type": "nominal",
        "sort": {"field": "order"},
        "title": None,
        "axis": {"labelLimit": 190, "ticks": False, "domain": False, "grid": False},
    }
    return _chart(
        values,
        {"step": 19},
        mark={"type": "bar", "height": {"band": 0.72}, "cornerRadiusEnd": 2},
        encoding={
            "y": name,
            "x": {"field": "value", "type": "quantitative", "title": title, "axis": {"tickCount": 4, "format": form}},
            "tooltip": [
                {"field": "name", "title": second or "class"},
                {"field": "value", "title": title, "format": form},
            ],
        },
    )


def pairs(values: list[Json], runs: Sequence[str], title: str) -> Spec:
    """Two bars for each name, one a run.

    Args:
        values: of `name`, `run` and `value`, a share of 1.
        runs: the two, in their order.
    """
    name = {"field": "name", "type": "nominal", "sort": None, "title": None}
    return _chart(
        values,
        {"step": 9},
        mark={"type": "bar", "cornerRadiusEnd": 2},
        encoding={
            "y": {**name, "axis": {"labelLimit": 190, "ticks": False, "domain": False, "grid": False}},
            "yOffset": {"field": "run", "sort": list(runs)},
            "x": {"field": "value", "type": "quantitative", "title": title, "axis": {"format": "%", "tickCount": 5}},
            "color": {
                "field": "run",
                "type": "nominal",
                "title": None,
                "scale": {"domain": list(runs)},
                "legend": {"orient": "top"},
            },
            "tooltip": [
                {"field": "name", "title": "class"},
                {"field": "run"},
                {"field": "value", "title": title, "format": ".1%"},
            ],
        },
    )


def columns(rows: Sequence[tuple[str, float]], title: str, what: str) -> Spec:
    """Upright bars in the order given, of shares."""
    values: list[Json] = [{"name": name, "share": share, "order": i} for i, (name, share) in enumerate(rows)]
    return _chart(
        values,
        150,
        mark={"type": "bar", "width": {"band": 0.8}, "cornerRadiusEnd": 2},
        encoding={
            "x": {
                "field": "name",
                "type": "ordinal",
                "sort": {"field": "order"},
                "title": what,
                "axis": {"labelAngle": 0, "labelOverlap": True},
            },
            "y": {"field": "share", "type": "quantitative", "axis": {"format": "%", "tickCount": 4}, "title": None},
            "tooltip": [{"field": "name", "title": what}, {"field": "share", "title": title, "format": ".1%"}],
        },
    )


def heatmap(names: Sequence[str], values_NN: Sequence[Sequence[float]], title: str) -> Spec:
    """A square of numbers between names, all in one order on both sides; what is on the diagonal does not matter."""
    values: list[Json] = [
        {"a": names[i], "b": names[j], "v": round(value, 4)}
        for i, row in enumerate(values_NN)
        for j, value in enumerate(row)
        if i != j
    ]
    order = list(names)
    axis = {
        "ticks": False,
        "domain": False,
        "grid": False,
        "labelLimit": 110,
        "labelFontSize": 9,
        "labelOverlap": False,
    }
    return {
        **_chart(values, {"step": 10}),
        "width": {"step": 10},
        "autosize": {"type": "pad"},
        "mark": {"type": "rect"},
        "encoding": {
            "x": {
                "field": "a",
                "type": "nominal",
                "sort": order,
                "title": None,
                "axis": {**axis, "labelAngle": -60},
            },
            "y": {"field": "b", "type": "nominal", "sort": order, "title": None, "axis": axis},
            "color": {
                "field": "v",
                "type": "quantitative",
                "title": None,
                "scale": {"zero": False},
                "legend": {"orient": "top", "gradientLength": 160, "gradientThickness": 9, "tickCount": 4},
            },
            "tooltip": [
                {"field": "a", "title": "class"},
                {"field": "b", "title": "and"},
                {"field": "v", "title": title},
            ],
        },
    }


def coverage(shards: list[Json]) -> Spec:
    """A cell for each shard or run of shards: whether it is done, and how sure the teacher is there."""
    columns_ = 50 if len(shards) > 50 else max(len(shards), 1)
    values: list[Json] = [
        {**shard, "x": i % columns_, "y": i // columns_}  # type: ignore[dict-item]
        for i, shard in enumerate(shards)
    ]
    return _chart(
        values,
        {"step": 18},
        mark={"type": "rect", "cornerRadius": 2, "strokeWidth": 2},
        encoding={
            "x": {"field": "x", "type": "ordinal", "axis": None},
            "y": {"field": "y", "type": "ordinal", "axis": None},
            "color": {
                "condition": {"test": "datum.done < datum.of", "value": {"expr": "missing"}},
                "field": "confidence",
                "type": "quantitative",
                "scale": {"zero": True},  # shards differ little, and none is to look empty
                "legend": None,
            },
            "tooltip": [
                {"field": "name", "title": "shards"},
                {"field": "state", "title": "state"},
                {"field": "valid", "title": "valid rows", "format": ","},
                {"field": "confidence", "title": "mean confidence", "format": ".3f"},
            ],
        },
        params=[{"name": "missing", "value": "#8886"}],
    )


def scatter(points: list[Json], names: list[Json], groups: Sequence[str], colors: Sequence[str]) -> Spec:
    """The map: a point for each sample, coloured by group, one over the other in their order; names where groups are.

    Args:
        points: of `x`, `y`, `row` and group `g`.
        names: of `x`, `y` and `name`.
        groups: with their `colors`; `css:--c0` is the page's own.
    """
    scale = {"zero": False, "nice": False, "padding": 26}
    place: Spec = {
        "x": {"field": "x", "type": "quantitative", "axis": None, "scale": scale},
        "y": {"field": "y", "type": "quantitative", "axis": None, "scale": scale},
    }
    dots: Spec = {
        "params": [
            {
                "name": "zoom",
                "select": {"type": "interval", "zoom": "wheel![event.shiftKey]"},
                "bind": "scales",
            },
        ],
        "mark": {"type": "point", "filled": True, "cursor": "pointer", "size": 44, "opacity": 0.8},
        "encoding": {
            **place,
            "color": {
                "field": "g",
                "type": "nominal",
                "scale": {"domain": list(groups), "range": list(colors)},
                "legend": None,
            },
            "tooltip": {"field": "row"},
        },
    }
    halo: Spec = {"type": "text", "fontSize": 11, "fontWeight": 600, "dy": -11}
    text: Spec = {"field": "name"}
    layers: list[Json] = [
        dots,
        *(
            {
                "data": {"values": names},
                "mark": {**halo, **mark, "tooltip": False},
                "encoding": {**place, "text": text},
            }
            for mark in (
                {"stroke": "css:--card", "strokeWidth": 3, "strokeJoin": "round", "color": "css:--card"},
                {"color": "css:--ink"},
            )
        ),
    ]
    return _chart(points, 520, layer=layers)


def lines(values: list[Json], title: str, *, by_run: bool = False, form: str = ".3~g") -> Spec:
    """A curve over steps, or one for each run.

    Args:
        values: of `step`, `value`, `epoch` and, with `by_run`, `run`.
    """
    color: Spec = {"color": {"field": "run", "type": "nominal", "title": None, "legend": {"orient": "top"}}}
    encoding: Spec = {
        "x": {"field": "step", "type": "quantitative", "title": "step", "axis": {"tickCount": 6, "format": "~s"}},
        "y": {
            "field": "value",
            "type": "quantitative",
            "title": None,
            "scale": {"zero": False},
            "axis": {"tickCount": 5, "format": form},
        },
        "tooltip": [
            *([{"field": "run"}] if by_run else []),
            {"field": "step", "format": ","},
            {"field": "epoch"},
            {"field": "value", "title": title, "format": ".4~g"},
        ],
    }
    return _chart(
        values,
        210,
        mark={"type": "line", "strokeWidth": 2, "point": len(values) <= 120},
        encoding={**encoding, **(color if by_run else {})},
    )
