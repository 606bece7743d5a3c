"""A folder as a corpus: which files are found, in which order, and what each costs that is odd."""

from __future__ import annotations

from teachonce.stages.corpora.sources import open_sources


def paths(source) -> list[str]:
    return [found.path for found in source.walk() if found.is_image]


def labels(source) -> dict[str, str | None]:
    return {found.path: found.label for found in source.walk() if found.is_image}


def test_folders_come_in_bytewise_order_of_full_paths(tmp_path):
    names = [
        "b/1.jpg",
        "a/z.jpg",
        "a.jpg",
        "a-b/1.JPG",
        "a/b/c.png",
        "ü/1.webp",
        "B.jpeg",
        "notes.txt",
        ".hidden/1.jpg",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (source,) = open_sources([str(tmp_path)])
    expected = sorted((n for n in names if "notes" not in n and "hidden" not in n), key=lambda n: n.encode())
    assert paths(source) == expected
    assert labels(source)["a/b/c.png"] == "b"
    assert labels(source)["a.jpg"] is None
    assert [f.path for f in source.walk() if not f.is_image] == [".hidden", "notes.txt"]


def test_a_link_to_a_folder_above_ends(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"x")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (source,) = open_sources([str(tmp_path)])
    assert paths(source) == ["a/1.jpg"]
