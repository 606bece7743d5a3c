"""What a user may bring: several sources, named and told apart."""

from __future__ import annotations

import pytest
from teachonce.pipeline.user_files import UserFile
from teachonce.stages.inputs.sources import open_sources
from teachonce.storage_schemas.errors import InputError, Unreachable


def test_sources_are_mixed_named_and_told_apart(tmp_path):
    for name in ("x/a", "y/a"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(InputError) as error:
        open_sources([str(tmp_path / "x/a"), str(tmp_path / "y/a")])
    assert (error.value.code, str(error.value.where), str(error.value.hint)) == (
        "source-name-twice",
        "a",
        "name them apart: a-a=PATH a-b=PATH",
    )
    named = open_sources([f"two={tmp_path / 'x/a'}", f"one={tmp_path / 'y/a'}"])
    assert [source.name for source in named] == ["one", "two"]
    with pytest.raises(InputError) as error:
        open_sources([str(tmp_path / "nothing")])
    assert (error.value.code, str(error.value.hint)) == ("corpus-missing", "check the path")
    assert str(error.value.where).endswith("nothing")


def test_a_source_that_cannot_be_looked_at_is_not_called_missing(tmp_path, monkeypatch):
    """Who runs this may look at everything, so the system is made to refuse."""

    def refuses(self):
        raise PermissionError(13, "Permission denied", str(self.path))

    monkeypatch.setattr(UserFile, "exists", refuses)
    with pytest.raises(Unreachable) as error:
        open_sources([str(tmp_path / "c")])
    assert (error.value.code, str(error.value.found)) == ("unreachable-now", "Permission denied")
    assert str(error.value.where).endswith("/c")
    assert str(error.value.hint).startswith("mend the cause")
