"""Owns the tables of a benchmark's results: for a terminal, and as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...pipeline.tables import seconds_text, section, table
from ...storage_schemas.plain_text import printable
from .results import FIGURES
from .settings import BASE2NOVEL

_SHORT = {"base": "base", "novel": "novel", "harmonic_mean": "HM", "accuracy": "accuracy"}
_NAMES = {BASE2NOVEL: "base-to-novel", "cross-dataset": "cross-dataset"}

Rows = list[list[str]]


def facts_text(facts: Mapping[str, Any]) -> str:
    """What `results.facts_of` returned, for a terminal."""
    parts = []
    for title, head, rows, notes in _tables(facts):
        align = "l" * (len(head) if title == _FAILED else 2) + "r" * len(head)
        parts.append(section(title, table(rows, head=head, align=align), *notes))
    return "\n\n".join([f"{_title(facts)}\n{facts['selection']}", *parts])


def page(facts: Mapping[str, Any]) -> str:
    """The same, as Markdown."""
    parts = [f"# {_title(facts)}\n", f"{facts['selection']}\n"]
    for title, head, rows, notes in _tables(facts):
        parts += [f"## {title}\n", markdown_table(head, rows), *(f"{_plain(note)}\n" for note in notes)]
    return "\n".join(parts)


def markdown_table(head: Sequence[str], rows: Rows) -> str:
    """A table as Markdown has them."""
    lines = [_line(head), _line(["---"] * len(head)), *(_line(row) for row in rows)]
    return "\n".join(lines) + "\n"


def _plain(note: str) -> str:
    """A note without Markdown's meaning of an asterisk at its beginning, which would make it an item of a list."""
    return f"\\{note}" if note.startswith("*") else note


_ACCURACY, _COSTS, _FAILED = "Accuracy in percent", "What it took", "FAILED"


def _tables(facts: Mapping[str, Any]) -> list[tuple[str, list[str], Rows, list[str]]]:
    """(title, head, rows, notes) of each table that has rows."""
    tables = [
        (_ACCURACY, *_accuracy(facts), _accuracy_notes(facts)),
        (_COSTS, *_costs(facts), _costs_notes(facts)),
        (_FAILED, ["data set", "what", "why"], [[f["dataset"], f["what"], f["error"]] for f in facts["failed"]], []),
    ]
    return [whole for whole in tables if whole[2]]


def _title(facts: Mapping[str, Any]) -> str:
    prompts = f"prompts in {facts['prompts']}" if facts["prompts"] else ""
    teacher = ", ".join(part for part in (facts["teacher"], prompts) if part)
    seeds = ", ".join(map(str, facts["seeds"]))
    marked = " SELECTED ON TEST IMAGES" if facts["selected_on_test"] else ""
    return printable(f"PromptKD, {_NAMES[facts['protocol']]}; teacher {teacher}; seeds {seeds}{marked}")


def _accuracy(facts: Mapping[str, Any]) -> tuple[list[str], Rows]:
    names = FIGURES[facts["protocol"]]
    short = [_SHORT[name] for name in names]
    head = ["data set", "student", *short]
    head += [f"paper: {short[0]}", *short[1:], f"teacher: {short[0]}", *short[1:]]
    rows = []
    for row in [*facts["rows"], *facts["averages"]]:
        name = f"average of {row['datasets']}" if "datasets" in row else row["dataset"]
        rows.append(
            [
                name,
                row["student"],
                *(spread(row[figure]) for figure in names),
                *(_percent(row["published"][figure]) for figure in names),
                *("—" if row["teacher"] is None else _percent(row["teacher"][figure]) for figure in names),
            ]
        )
    return head, rows


def _accuracy_notes(facts: Mapping[str, Any]) -> list[str]:
    notes = ["Mean ± standard deviation over seeds (of the sample). The paper's: ViT-L/14 teaches ViT-B/16."]
    if facts["averages"] and facts["protocol"] == BASE2NOVEL:
        notes.append("Averages' HM is that of the average base and novel accuracy, as in the paper.")
    for row in facts["rows"]:
        if row["unusable_test_images"]:
            notes.append(f"{row['dataset']}: test images that could not be used: {row['unusable_test_images']}.")
        if len(row["seeds"]) < len(facts["seeds"]):
            notes.append(f"{row['dataset']}, {row['student']}: seeds {', '.join(map(str, row['seeds']))} only.")
    return list(dict.fromkeys(notes))


def _costs(facts: Mapping[str, Any]) -> tuple[list[str], Rows]:
    head = [
        "data set",
        "images × views",
        "prompts",
        "text tower",
        "image tower",
        "a student",
        "runs",
        "online teacher, a run*",
        "break-even*",
        "speed-up*",
    ]
    rows = []
    for dataset, costs in facts["costs"].items():
        runs = costs["student_seconds"]
        pretrain = costs["pretrain_seconds"]
        rows.append(
            [
                dataset,
                f"{costs['samples']} × {costs['views']}",
                "—" if pretrain is None else seconds_text(pretrain),
                seconds_text(costs["text_seconds"]),
                seconds_text(costs["image_seconds"]),
                seconds_text(sum(runs) / len(runs)),
                str(len(runs)),
                seconds_text(costs["predicted_teacher_online_seconds"]),
                f"{costs['break_even_students']:.2f} runs",
                f"{costs['predicted_speed_up']:.2f}×",
            ]
        )
    return head, rows


def _costs_notes(facts: Mapping[str, Any]) -> list[str]:
    costs = list(facts["costs"].values())
    devices = {(c["teacher_device"], c["student_device"]) for c in costs}
    costs_in_words = [
        _device(teacher) if teacher == student else f"{_device(teacher)} of the teacher, {_device(student)} of students"
        for teacher, student in sorted(devices)
    ]
    notes = [f"Seconds are {'; '.join(costs_in_words)}. The text and image towers ran once, for all runs."]
    if facts["shared_pretrain_seconds"] is not None:
        notes.append(f"Prompts for all data sets: {seconds_text(facts['shared_pretrain_seconds'])}.")
    once = sum(c["teacher_once_seconds"] for c in costs)
    online = sum(c["predicted_teacher_online_seconds"] * len(c["student_seconds"]) for c in costs)
    notes.append(
        f"The teacher took {seconds_text(once)} in all; in the loop of every run it would have taken "
        f"{seconds_text(online)}*."
    )
    notes.append(
        "* Predicted from the measured seconds, for no teacher was in any loop: online, the image tower sees every image "
        "of every epoch and the text tower runs in every step."
    )
    return notes


def _device(device: str) -> str:
    return "GPU-seconds" if device == "cuda" else f"{device.upper()} worker seconds"


def spread(figure: Mapping[str, Any]) -> str:
    """A mean with its deviation over seeds, shares of 1, in percent."""
    mean, std = figure["mean"], figure["std"]
    assert mean is not None
    return f"{_percent(mean)} ± {'—' if std is None else _percent(std)}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(printable(cell).replace("|", "\\|") for cell in cells) + " |"
