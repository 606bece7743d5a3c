"""Owns the tables of a benchmark of VL2V-ADiP: for a terminal, and as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...pipeline.tables import seconds_text, section, table
from ...storage_schemas.plain_text import counted, printable
from .table import Rows, markdown_table, spread


def vl2v_text(facts: Mapping[str, Any]) -> str:
    """What `vl2v_results.facts_of` returned, for a terminal."""
    parts = [
        section(title, table(rows, head=head, align=align), *notes)
        for title, head, align, rows, notes in _tables(facts)
    ]
    return "\n\n".join([_title(facts), *parts])


def page(facts: Mapping[str, Any]) -> str:
    """The same, as Markdown."""
    parts = [f"# {_title(facts)}\n"]
    for title, head, _, rows, notes in _tables(facts):
        parts += [f"## {title}\n", markdown_table(head, rows), *(f"{note}\n" for note in notes)]
    return "\n".join(parts)


def _title(facts: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(str, facts["seeds"]))
    return printable(
        f"VL2V-ADiP, {facts['dataset']}; teacher {facts['teacher']}; student {facts['student']}; seeds {seeds}"
    )


def _tables(facts: Mapping[str, Any]) -> list[tuple[str, list[str], str, Rows, list[str]]]:
    """(title, head, alignment, rows, notes) of each table that has rows."""
    rows: Rows = [[row["left_out"], spread(row), str(row["images"]), _valleys(row)] for row in facts["rows"]]
    if facts["average"] is not None and len(facts["rows"]) > 1:
        rows.append([f"average of {len(facts['rows'])}", spread(facts["average"]), "", ""])
    notes = [
        "Mean ± standard deviation over seeds (of the sample), on all images of a domain that no training has seen."
    ]
    for row in facts["rows"]:
        if row["unusable_images"]:
            notes.append(f"{row['left_out']}: images that could not be used: {row['unusable_images']}.")
        if len(row["seeds"]) < len(facts["seeds"]):
            notes.append(f"{row['left_out']}: seeds {', '.join(map(str, row['seeds']))} only.")
    if facts["teacher_sees_students_normalization"]:
        notes.append(
            "The teacher's images were normalised with ImageNet's mean and deviation, as in the authors' code."
        )
    failed = [[failure["what"], failure["error"]] for failure in facts["failed"]]
    tables = [
        ("Accuracy in percent", ["left out", "accuracy", "images", "epochs that SWAD averages"], "lrrl", rows, notes),
        ("FAILED", ["student", "why"], "ll", failed, []),
    ]
    passes = facts["teacher_passes"]
    if passes is not None:
        tables.insert(1, ("The teacher's work", *_passes(passes)))
    return [whole for whole in tables if whole[3]]


def _passes(passes: Mapping[str, Any]) -> tuple[list[str], str, Rows, list[str]]:
    once, in_loop = passes["teacher_images"], passes["teacher_images_in_the_loop"]
    rows = [
        [
            "here, once",
            f"{passes['images']} × {passes['views']} = {once}",
            seconds_text(passes["teacher_seconds"]),
        ],
        [
            f"in the loop of {counted(passes['trainings'], 'training')}",
            str(in_loop),
            f"{seconds_text(passes['predicted_teacher_seconds_in_the_loop'])}*",
        ],
    ]
    students = passes["student_seconds"]
    notes = [
        f"One pass of the teacher served {counted(passes['trainings'], 'training')} (domains × seeds × stages): "
        f"{passes['passes_saved']} passes saved. In the loop it would have looked at {in_loop / once:.1f} times as many images.",
        "* Predicted from the measured seconds, for no teacher was in any loop.",
    ]
    if students:
        notes.append(f"A training took {seconds_text(sum(students) / len(students))} on average.")
    return ["teacher", "images", "seconds"], "lrr", rows, notes


def _valleys(row: Mapping[str, Any]) -> str:
    """Of each seed: the epochs whose weights are averaged."""
    return ", ".join(map(_valley, (run["stages"][1]["swad"] for run in row["runs"])))


def _valley(swad: Mapping[str, Any] | None) -> str:
    if swad is None:
        return "—"
    return "the last" if swad["threshold"] is None else f"{swad['first']} to {swad['last']}"
