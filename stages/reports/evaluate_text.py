"""Owns the report of an evaluation: as JSON, and as aligned tables for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...pipeline.tables import section, table
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.plain_text import counted
from ..measures.evaluation import Evaluation
from ..measures.metrics import Mean, Rate, harmonic_mean

#: Lists for people stop here; JSON holds everything.
_SHOWN = 20


def evaluation_json(result: Evaluation) -> Json:
    """Everything that was measured. Rates are shares of 1; what could not be measured is null."""
    accuracy, agreement = result.accuracy, result.agreement
    facts: dict[str, Json] = {
        "images": {
            "found": result.found,
            "usable": result.usable,
            "labelled": accuracy.top1.total,
            "unusable": [{"path": path, "reason": reason} for path, reason in result.unusable],
            "left_out": result.left_out.to_json(),
        },
        "labels": {
            "matched": {
                label: result.class_names[match.class_id]
                for label, match in sorted(result.matches.items())
                if match.class_id is not None
            },
            "unmatched": [
                {"label": label, "images": result.labels[label], "reason": reason}
                for label, reason in result.unmatched.items()
            ],
            "unlabelled_images": result.unlabelled,
            "no_labels": result.no_labels.to_json(),
        },
        "accuracy": None,
        "base_novel": None,
        "agreement": None,
        "classes": [],
    }
    if accuracy.top1.total:
        facts["accuracy"] = {
            "top1": _rate_json(accuracy.top1),
            "top5": _rate_json(accuracy.top5),
            "mean_per_class": _mean_json(accuracy.per_class),
        }
        facts["classes"] = [_class_json(result, i) for i, total in enumerate(accuracy.total_C.tolist()) if total]
        if accuracy.base_C is not None:
            facts["base_novel"] = {
                "base_classes": int(accuracy.base_C.sum()),
                "novel_classes": int((~accuracy.base_C).sum()),
                "base": _rate_json(accuracy.base),
                "novel": _rate_json(accuracy.novel),
                "harmonic_mean": _mean_json(harmonic_mean(accuracy.base, accuracy.novel)),
            }
    if agreement is not None:
        facts["agreement"] = {
            "images": agreement.top1.total,
            "not_in_store": result.not_in_store,
            "other_pictures": result.other_pictures,
            "top1": _rate_json(agreement.top1),
            "kl_nats": _mean_json(agreement.kl),
        }
    return facts


def _class_json(result: Evaluation, class_id: int) -> Json:
    accuracy = result.accuracy
    taken = accuracy.most_taken_for(class_id)
    total = int(accuracy.total_C[class_id])
    side = None if accuracy.base_C is None else "base" if accuracy.base_C[class_id] else "novel"
    return {
        "class": result.class_names[class_id],
        "images": total,
        "top1": int(accuracy.top1_C[class_id]) / total,
        "top5": int(accuracy.top5_C[class_id]) / total,
        "split": side,
        "most_taken_for": None if taken is None else {"class": result.class_names[taken[0]], "images": taken[1]},
    }


def _rate_json(rate: Rate) -> Json:
    return {
        "rate": _number(rate.rate),
        "stderr": _number(rate.stderr),
        "correct": rate.correct,
        "total": rate.total,
    }


def _mean_json(mean: Mean) -> Json:
    return {"mean": _number(mean.mean), "stderr": _number(mean.stderr), "total": mean.total}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def evaluation_text(facts: Mapping[str, Any]) -> str:
    """Tables of what `evaluation_json` returned."""
    parts = [_images_text(facts), _accuracy_text(facts), _agreement_text(facts), _classes_text(facts)]
    return "\n\n".join(part for part in parts if part)


def _images_text(facts: Mapping[str, Any]) -> str:
    images, labels = facts["images"], facts["labels"]
    unmatched = labels["unmatched"]
    rows = [["images", str(images["found"])], ["usable", str(images["usable"])]]
    rows.append(["with a label that is a class", str(images["labelled"])])
    if labels["unlabelled_images"]:
        rows.append(["without a label", str(labels["unlabelled_images"])])
    parts = [section("Images", table(rows, align="lr"))]
    renamed = [[label, name] for label, name in labels["matched"].items() if label != name]
    if renamed:
        head = "Labels taken for the class of another spelling"
        parts.append(section(head, table(renamed[:_SHOWN], head=("label", "class")), _more(renamed)))
    if unmatched:
        rows = [[u["label"], str(u["images"]), u["reason"]] for u in unmatched]
        count = sum(u["images"] for u in unmatched)
        title = f"LEFT OUT of every accuracy: {counted(count, 'image')} of {counted(len(unmatched), 'label')} that are no class"
        parts.append(section(title, table(rows[:_SHOWN], head=("label", "images", "why"), align="lrl"), _more(rows)))
    if images["unusable"]:
        rows = [[bad["path"], bad["reason"]] for bad in images["unusable"]]
        parts.append(section(f"Unusable images: {len(rows)}", table(rows[:_SHOWN]), _more(rows)))
    return "\n\n".join(parts)


def _accuracy_text(facts: Mapping[str, Any]) -> str:
    accuracy, split = facts["accuracy"], facts["base_novel"]
    if accuracy is None:
        return ""
    rows = [
        ["top-1", *_percent(accuracy["top1"])],
        ["top-5", *_percent(accuracy["top5"])],
        ["mean over classes", *_percent(accuracy["mean_per_class"], "class")],
    ]
    if split is not None:
        rows += [
            [f"base, among {counted(split['base_classes'], 'base class')}", *_percent(split["base"])],
            [f"novel, among {counted(split['novel_classes'], 'novel class')}", *_percent(split["novel"])],
            ["harmonic mean of base and novel", *_percent(split["harmonic_mean"])],
        ]
    return section("Accuracy", table(rows, head=("", "%", "± s.e.", "of"), align="lrrr"))


def _agreement_text(facts: Mapping[str, Any]) -> str:
    agreement = facts["agreement"]
    if agreement is None:
        return ""
    kl = agreement["kl_nats"]
    mean = "no images" if kl["mean"] is None else f"{kl['mean']:.4f}"
    spread = "" if kl["stderr"] is None else f"{kl['stderr']:.4f}"
    rows = [
        ["same first class, %", *_percent(agreement["top1"])],
        ["KL(teacher ‖ student), nats", mean, spread, counted(kl["total"], "image")],
    ]
    title = "Agreement with the stored teacher, on the store's first view"
    notes = [
        f"  {what}: {counted(agreement[left], 'image')}"
        for left, what in (("not_in_store", "not in the store"), ("other_pictures", "other pictures than the store's"))
        if agreement[left]
    ]
    return section(title, table(rows, head=("", "", "± s.e.", "of"), align="lrrr"), "\n".join(notes))


def _classes_text(facts: Mapping[str, Any]) -> str:
    rows = []
    for one in facts["classes"]:
        taken = one["most_taken_for"]
        wrong = "" if taken is None else f"{taken['class']} ({taken['images']})"
        rates = [f"{100 * one[kind]:.1f}" for kind in ("top1", "top5")]
        rows.append([one["class"], str(one["images"]), *rates, one["split"] or "", wrong])
    head = ("class", "images", "top-1 %", "top-5 %", "split" if facts["base_novel"] else "", "most taken for")
    return section("Classes", table(rows, head=head, align="lrrrll")) if rows else ""


def _percent(value: Mapping[str, Any], unit: str = "image") -> list[str]:
    rate = value["rate"] if "rate" in value else value["mean"]
    shown, spread = ("" if number is None else f"{100 * number:.2f}" for number in (rate, value["stderr"]))
    return [shown or "no images", spread, counted(value["total"], unit)]


def _more(rows: list[list[str]]) -> str:
    return f"  … and {len(rows) - _SHOWN} more (see --json)" if len(rows) > _SHOWN else ""
