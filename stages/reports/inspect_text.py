"""Owns how `inspect` reads on a terminal: the facts of a store, and of single samples, as tables."""

from __future__ import annotations

from typing import Any

from ...pipeline.tables import bar, bytes_text, clip, histogram, section, table
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.params_form import DERIVED
from ...storage_schemas.plain_text import counted, printable
from ...storage_schemas.view_params import COLOR_FACTORS
from ..models.settings import precision_name

#: What centre views take their share of, by kind.
_CENTERED = {"center": "the shorter side", "squash": "both sides, squashed", "border": "the longer side"}

#: Columns of a terminal that reports fit.
COLUMNS = 80

#: Views that get a column of their own; `--json` has all.
_VIEW_COLUMNS = 8


def store_text(facts: dict[str, Json]) -> str:
    """What `inspect_store` found."""
    parts = [f"Target store {facts['store']}, schema version {facts['schema_version']}"]
    if facts["problems"]:
        parts.append(section("PROBLEMS", *(f"  ! {problem}" for problem in facts["problems"])))
    if "coverage" in facts:
        parts += [_coverage(facts["coverage"]), _fingerprint(facts)]
    else:
        parts.append(section("Class vectors", table(_class_vectors(facts["class_vectors"]), width=COLUMNS)))
    parts.append(_arrays(facts["arrays"]))
    if facts.get("values"):
        parts.append(_values(facts))
    if facts.get("soft_labels"):
        parts += _soft_labels(facts["soft_labels"])
    parts += [f"Note: {printable(note)}" for note in facts["notes"]]
    return "\n\n".join(parts)


def _coverage(coverage: dict[str, Any]) -> str:
    left = coverage["shards"] - coverage["shards_done"]
    rows = [
        [
            "shards",
            f"{coverage['shards_done']} of {coverage['shards']} done" + (f", {left} left" if left else ""),
        ],
        [
            "rows",
            f"{coverage['rows_done']} of {coverage['rows']} done: "
            f"{coverage['valid']} valid, {coverage['invalid']} invalid",
        ],
        *(["", f"{count} × {reason}"] for reason, count in coverage["reasons"].items()),
    ]
    examples = [[f"row {bad['row']}", bad["path"], bad["reason"]] for bad in coverage["examples"]]
    return section("Coverage", table(rows, width=COLUMNS), table(examples, indent=4, width=COLUMNS) if examples else "")


def _fingerprint(facts: dict[str, Any]) -> str:
    return section(f"Fingerprint {facts['fingerprint_digest']}", table(_described(facts), width=COLUMNS))


def described(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values of what the fingerprint says, or of the class vectors where there is nothing else yet."""
    rows = _described(facts) if "fingerprint" in facts else _class_vectors(facts["class_vectors"])
    joined: list[tuple[str, str]] = []
    for name, value in rows:
        if name or not joined:
            joined.append((name, printable(value)))
        else:
            joined[-1] = joined[-1][0], f"{joined[-1][1]}; {printable(value)}"
    return joined


def _described(facts: dict[str, Any]) -> list[list[str]]:
    """The fingerprint for people; every field of it is either described here or listed as it is."""
    fields, teacher, views = dict(facts["fingerprint"]), facts["teacher"], facts["views"]
    compute, preprocess = fields["compute"], teacher["preprocess"]
    corpus = f"'{facts['corpus_name']}', " if facts["corpus_name"] else ""
    rows = [
        [
            "teacher",
            f"{teacher['family']} {teacher['model']}, {teacher['embed_dim']} channels"
            + (", L2-normalised" if teacher["normalized"] else ""),
        ],
        ["weights", teacher["weights_digest"]],
        [
            "preprocessing",
            f"{preprocess['size']} px, {preprocess['interpolation']}, "
            f"mean {_numbers(preprocess['mean'])}, std {_numbers(preprocess['std'])}",
        ],
        [
            "precision",
            f"{precision_name(compute['precision'])} on {compute['device']}"
            + (f", {compute['threads']} threads" if "threads" in compute else "")
            + (f", {compute['batch_size']} images a batch" if "batch_size" in compute else ""),
        ],
        ["views", _views(views) + ("; derived on reading" if fields.get("view_params") == DERIVED else "")],
        ["pixels", _pixels(facts["pixels"])],
        [
            "encoding",
            _declared(" and ".join(fields["targets"]), facts["encoding"])
            if "name" in facts["encoding"]
            else "; ".join(_encoded(name, one) for name, one in facts["encoding"]["targets"].items()),
        ],
        ["corpus", f"{corpus}id {fields['corpus_id']}"],
    ]
    if facts["recoded"] is not None:
        rows.append(["made from", _recoded(facts["recoded"])])
    if growth := fields.get("growth"):
        what = "mended images" if growth["what"] == "mended" else f"more {growth['what']}"
        rows.append(["grown", f"{what}, behind the generation {growth['parent']}"])
    if facts["class_vectors"] is None:
        rows.append(["class vectors", "none yet"])
    else:
        rows += _class_vectors(facts["class_vectors"])
    if facts["versions"]:
        rows.append(["versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())])
    worded = {
        "schema_version",
        "pixels",
        "corpus_id",
        "teacher",
        "views",
        "targets",
        "encoding",
        "compute",
        "class_vectors",
        "growth",
        "recoded",
        "view_params",
    }
    rows += [[name, str(value)] for name, value in sorted(fields.items()) if name not in worded]
    return rows


def _declared(targets: str, encoding: dict[str, Any]) -> str:
    """The one encoding of all targets, and what it costs at most where that is known beforehand."""
    budget = encoding["kl_budget"]
    cost = "" if budget is None else f", costs at most {budget:g} nats of KL divergence"
    return f"{targets} in {encoding['name']}{cost}"


def _encoded(target: str, facts: dict[str, Any]) -> str:
    """The encoding of one target, and what it was measured to cost on the first shards."""
    text = f"{target} in {facts['name']}"
    if "bytes_per_view" in facts:
        text += f", {facts['bytes_per_view']:g} bytes a view"
    for name, of in (("kl", "KL divergence"), ("cosine_distance", "distance")):
        if of == "distance" and target == "logits":
            continue  # their divergence says it better
        spread = facts.get(name, {}).get("1") if name == "kl" else facts.get(name)
        if spread:
            text += f", {of} {spread['mean']:g} on average, {spread['p99']:g} at p99, {spread['max']:g} at most"
    return text


def _views(views: dict[str, Any]) -> str:
    if views["kind"] in _CENTERED:
        padded = f", padded with the colour {_numbers(views['fill'])}" if "fill" in views else ""
        share = f"{views['crop_pct']:.4g} of {_CENTERED[views['kind']]}"
        return f"1, the centre: {share}{padded}, {views['interpolation']}"
    jitter = gray = ""
    if "jitter" in views:
        strengths = zip(COLOR_FACTORS, views["jitter"], strict=True)
        jitter = ", colours jittered by " + ", ".join(f"{name} {value:g}" for name, value in strengths if value)
        jitter += f" with probability {views['jitter_probability']:g}"
    if "grayscale" in views:
        gray = f", gray with probability {views['grayscale']:g}"
    return (
        f"{views['count']} random resized crops: {_numbers(views['scale'], ' to ')} of the area, "
        f"ratio {_numbers(views['ratio'], ' to ')}, mirrored with probability {views['flip']:g}{jitter}{gray}, "
        f"{views['interpolation']}, seed {views['seed']}"
    )


def _recoded(recoded: dict[str, Any]) -> str:
    """The store that a recoded one was made from, and what of it."""
    samples = recoded.get("samples", {})
    taken = [
        f"views {', '.join(map(str, recoded['views']))}" if "views" in recoded else "",
        f"{counted(samples['count'], 'chosen row')}" if "count" in samples else "",
        f"samples with confidence {_numbers(samples['confidence'], ' to ')}" if "confidence" in samples else "",
        f"logits of the classes {recoded['classes']}" if "classes" in recoded else "",
    ]
    return f"{recoded['from']}, fingerprint {recoded['store']}: {'; '.join(filter(None, taken)) or 'all of it'}"


def _pixels(pixels: dict[str, Any] | None) -> str:
    if pixels is None:
        return "no rendered views recorded to compare with"
    recorded = f"{pixels['views']} rendered views recorded, digest {pixels['digest']}; "
    if pixels["same_here"] is None:
        return f"{recorded}not compared: {printable(pixels['not_compared'])}"
    if pixels["same_here"]:
        return f"{recorded}this machine renders the same"
    first, more = pixels["differences"][0], len(pixels["differences"]) - 1
    others = f" and {more} more" if more else ""
    return (
        f"{recorded}THIS MACHINE RENDERS OTHERS: row {first['row']}, view {first['view']}{others}; "
        f"{pixels['versions_that_differ']}"
    )


def _class_vectors(vectors: dict[str, Any]) -> list[list[str]]:
    origin = vectors["origin"]
    form = f"{vectors['classes']} classes × {vectors['channels']} channels, "
    form += f"logit scale {vectors['logit_scale']:.6g}" + (", with bias" if vectors["bias"] else "")
    rows = [
        ["class vectors", form],
        ["", f"digest {vectors['digest']}"],
    ]
    if isinstance(origin, dict) and isinstance(origin.get("teacher"), dict):
        templates = origin.get("templates", [])
        several = f"{len(templates)} templates, such as" if len(templates) > 1 else "the template"
        how = f"{several} '{templates[0]}'" if templates else "the weights of its classifier"
        rows.append(["", f"from {origin['teacher'].get('family')} {origin['teacher'].get('model')}, {how}"])
    else:
        rows.append(["", f"from {origin}"])
    names = vectors["names"]
    rows.append(["", "such as " + "; ".join(clip(name) for name in names[:4])])
    return rows


def _arrays(arrays: list[dict[str, Any]]) -> str:
    """What fits; `--json` has axes and codecs too."""
    rows = [
        [
            clip(a["name"], 20),
            " × ".join(map(str, a["shape"])),
            a["dtype"],
            " × ".join(map(str, a["chunks"])),
            bytes_text(a["bytes_on_disk"]),
            f"{a['ratio']:.2f}" if a["ratio"] else "",
        ]
        for a in arrays
    ]
    total = sum(a["bytes_on_disk"] for a in arrays)
    head = ["name", "shape", "type", "chunk", "on disk", "ratio"]
    return section(f"Arrays, {bytes_text(total)} on disk", table(rows, head=head, align="llllrr"))


def _values(facts: dict[str, Any]) -> str:
    rows = []
    for name, value in facts["values"].items():
        numbers = [f"{value[column]:.4g}" if column in value else "" for column in ("min", "mean", "max", "std")]
        derived = " (derived)" if name == "logits" and facts["logits_derived"] else ""
        rows.append([name + derived, *numbers, str(value["nan"]), str(value["infinite"])])
    head = ["target", "min", "mean", "max", "std", "NaN", "infinite"]
    return section("Values in valid rows", table(rows, head=head, align="lrrrrrr"))


def _soft_labels(soft: dict[str, Any]) -> list[str]:
    if not soft["samples"]:
        return ["Soft labels: no valid sample yet"]
    columns = ("mean", "min", "q25", "median", "q75", "max")
    rows = [[name, *(f"{soft[name][c]:.3f}" for c in columns)] for name in ("confidence", "entropy")]
    head = ["", "mean", "min", "25 %", "median", "75 %", "max"]
    agree = (
        f"  {soft['views_agree']:.1%} of the samples have the same top class in every view;\n"
        f"  {soft['classes_seen']} of {soft['classes']} classes are some sample's top class"
    )
    limit = f"{soft['entropy_of_uniform']:.2f}"
    title = "Soft labels of each view (confidence: largest probability; entropy: nats)"
    ends = {"confidence": "1", "entropy": limit}
    drawn = [
        [name, "0", histogram(soft["histograms"][name]["counts"]), ends[name]] for name in ("confidence", "entropy")
    ]
    most = max((c["samples"] for c in soft["top_classes"]), default=1)
    classes = [
        [
            clip(c["class"]),
            str(c["samples"]),
            f"{c['samples'] / soft['samples']:.1%}",
            bar(c["samples"] / most),
        ]
        for c in soft["top_classes"]
    ]
    return [
        section(title, table(rows, head=head, align="lrrrrrr"), table(drawn), agree),
        section("Most frequent top classes", table(classes, align="lrr")),
        section("Most confident samples", _samples(soft["most_confident"])),
        section("Least confident samples", _samples(soft["least_confident"])),
    ]


def _samples(samples: list[dict[str, Any]]) -> str:
    rows = [
        [f"{s['probability']:.3f}", clip(s["class"], 26), f"row {s['row']}", s["path"] or s["key"]] for s in samples
    ]
    return table(rows, align="rlrl", width=COLUMNS)


def sample_text(facts: dict[str, Any]) -> str:
    """What `inspect_sample` found of one sample."""
    label = [["label", facts["label"]]] if facts["label"] is not None else []
    rows = [
        ["key", facts["key"]],
        ["row", f"{facts['row']} (shard {facts['shard']})"],
        *label,
        ["state", "valid" if facts["valid"] else f"invalid: {facts['reason']}"],
    ]
    parts = [section(printable(facts["path"] or facts["key"]), table(rows))]
    if facts["path"] is None:
        parts.append(f"Note: {printable(facts['no_path'])}")
    if facts["valid"]:
        parts.append(_boxes(facts["views"]))
        if facts["classes"] is not None:
            parts.append(_classes(facts["classes"]))
        else:
            parts.append(f"Note: no soft labels to show: {facts['no_classes']}")
    return "\n\n".join(parts)


def _boxes(views: list[dict[str, Any]]) -> str:
    rows = [
        [
            *(str(v[name]) for name in ("view", "top", "left", "height", "width")),
            "yes" if v["flip"] else "no",
            *([_colors(v)] if "colors" in v else []),
            *([clip(v["class"]), f"{v['probability']:.3f}", f"{v['entropy']:.3f}"] if "class" in v else []),
        ]
        for v in views
    ]
    head, align = ["view", "top", "left", "height", "width", "mirrored"], "rrrrrl"
    if views and "colors" in views[0]:
        head, align = [*head, "colours, in this order"], align + "l"
    if views and "class" in views[0]:
        head += ["top class", "probability", "entropy"]
    return section("Views (boxes in pixels of the image)", table(rows, head=head, align=align + "lrr"))


def _colors(view: dict[str, Any]) -> str:
    """What is done to a view's colours: factors, and the hue's shift in turns."""
    done = [
        f"hue {one['factor']:+.3f}" if one["operation"] == "hue" else f"{one['operation']} ×{one['factor']:.3f}"
        for one in view["colors"]
    ]
    return ", ".join([*done, "gray"] if view["grayscale"] else done or ["as they are"])


def _classes(classes: list[dict[str, Any]]) -> str:
    views = len(classes[0]["by_view"]) if classes else 0
    shown = min(views, _VIEW_COLUMNS)
    rows = [
        [clip(c["class"]), f"{c['mean']:.3f}", *(f"{p:.3f}" for p in c["by_view"][:shown]), bar(c["mean"])]
        for c in classes
    ]
    head = ["class", "mean", *(f"view {v}" for v in range(shown)), ""]
    more = f"  and {views - shown} more views: --json has them all" if views > shown else ""
    title = "Top classes (probabilities, mean over views)"
    return section(title, table(rows, head=head, align="l" + "r" * (shown + 1)), more)


def _numbers(values: list[float], separator: str = " ") -> str:
    return separator.join(f"{value:.4g}" for value in values)
