"""Sockets of Ray lie where their paths are short, however long TMPDIR is."""

from __future__ import annotations

import pytest
from teachonce.pipeline import sockets
from teachonce.storage_schemas.errors import InputError


def test_a_short_folder_is_kept_and_a_long_one_replaced(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    assert sockets.folder_for_sockets("/tmp", 70, "RAY_TMPDIR") == "/tmp"
    assert sockets.folder_for_sockets(str(long), 32, "TMPDIR") == "/tmp"
    monkeypatch.setattr(sockets, "_SHORT_FOLDERS", ("/nowhere",))
    with pytest.raises(InputError) as caught:
        sockets.folder_for_sockets(str(long), 32, "TMPDIR")
    assert caught.value.fields == {
        "code": "socket-path-too-long",
        "where": str(long),
        "expected": f"a path of at most {sockets._LONGEST - 32} bytes",
        "found": str(len(str(long))),
        "hint": "export TMPDIR=/short/folder",
    }
