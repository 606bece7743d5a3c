"""What the page of a store says of it in tables: images that cannot be used, what encodings cost, and how it grew."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.cache import plan_cache
from teachonce.stages.grow import plan_growth
from teachonce.stages.inspect import write_page
from teachonce.stages.measures.stored import Stored
from teachonce.stages.models.compute import Compute
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.views.spec import ViewSpec


def tables(page: Path) -> dict[str, list[list[str]]]:
    """The cells of each table by its title."""
    boxes = re.findall(r"<summary>(.*?)</summary>(.*?)</details>", page.read_text(), re.S)
    return {
        unescape(title): [
            [unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)]
            for row in re.findall(r"<tr>(.*?)</tr>", body, re.S)[1:]
        ]
        for title, body in boxes
    }


@pytest.fixture(scope="module")
def made(tiny_clip_teacher, picture_shards, tmp_path_factory):
    """`made(encoding)`: a store of embeddings and of what they are stored in; `grow`: another view of each image."""
    teacher = TeacherConfig(model=f"local-dir:{tiny_clip_teacher}")

    def options(out: Path, views: int, encoding: str) -> dict:
        return {
            "out": str(out),
            "views": ViewSpec(kind="random_resized_crop", count=views, seed=3),
            "settings": CacheSettings(batch_size=32, targets="embedding", encoding=encoding),
            "compute": Compute(device="cpu", precision="fp32", threads=1),
        }

    def make(encoding: str = "fp16", *, grow: bool = False) -> Path:
        out = tmp_path_factory.mktemp("about") / "s.zarr"
        stage = plan_cache(str(picture_shards.location), teacher, **options(out, 2, encoding))
        run_stage(stage, stage.store, SerialExecutor(), progress=False)
        if grow:
            for step in plan_growth(str(picture_shards.location), teacher, **options(out, 3, encoding)):
                run_stage(step.stage, step.store, SerialExecutor(), progress=False)
        return out

    return make


def test_unusable_images_and_what_an_encoding_costs(made, tmp_path) -> None:
    store = made("embedding=int8")
    facts = write_page(Stored.open(str(store)), str(tmp_path / "page.html"))
    found = tables(tmp_path / "page.html")
    (failed,) = [rows for title, rows in found.items() if title.startswith("Unusable images: ")]
    assert len(failed) == facts["coverage"]["invalid"] > 0  # type: ignore[index,call-overload]
    assert all(path and reason and stage == "shard" for _, path, reason, stage in failed)
    costs = found["What the encoding costs, as measured on the first shards"]
    measured = facts["encoding"]["targets"]["embedding"]  # type: ignore[index,call-overload]
    assert [row[:2] for row in costs] == [["embedding", "int8"]] * len(costs)
    assert costs[-1][3:] == ["1 - cosine", *(f"{measured['cosine_distance'][c]:.3g}" for c in ("mean", "p99", "max"))]
    assert "embeddings in int8" in (tmp_path / "page.html").read_text()


def test_a_store_that_grew_tells_of_its_generations(made, tmp_path) -> None:
    store = made(grow=True)
    write_page(Stored.open(str(store)), str(tmp_path / "page.html"))
    rows = tables(tmp_path / "page.html")["2 generations"]
    assert [(row[0], row[1], row[3]) for row in rows] == [
        ("1", "the store as it began: embedding, 48 rows, 2 views", "2"),
        ("2", "2 to 3 views", "3"),
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", row[4]) for row in rows)
    command = ["inspect", str(store), "--generation", "1", "--html", str(tmp_path / "first.html")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.stderr
    assert not any("generations" in title for title in tables(tmp_path / "first.html"))
    assert "seen in 2 random crops each" in (tmp_path / "first.html").read_text()
    assert "seen in 3 random crops each" in (tmp_path / "page.html").read_text()
