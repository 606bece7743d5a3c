"""Owns the versions of what is written to disk: one for each format, so that a change of one refuses nothing of another's.

`docs/formats.md` says what each version holds. A version goes up when an older reader would misread the new files; a field
that older readers may pass over changes none.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import MismatchError


@dataclass(frozen=True, kw_only=True)
class Format:
    """One kind of files that belong together.

    Attributes:
        name: as text, for errors.
        kind: the name by which the files are recognised; None where their file names do that.
        version: that is written.
        oldest: that can still be read.
    """

    name: str
    kind: str | None = None
    version: int = 1
    oldest: int = 1

    def check(self, found: object, *, where: object, hint: str) -> None:
        """Refuse files that this code cannot read.

        Args:
            found: the version that they have.
            where: the file that has it.
            hint: what to do about files that are too old, or of no version at all.

        Raises:
            MismatchError: too old, too new, or no version.
        """
        is_version = isinstance(found, int) and not isinstance(found, bool)
        if is_version and self.oldest <= found <= self.version:  # type: ignore[operator]
            return
        newer = is_version and found > self.version  # type: ignore[operator]
        read = f"{self.version}" if self.oldest == self.version else f"{self.oldest} to {self.version}"
        raise MismatchError(
            f"{self.name} of {'a later' if newer else 'another'} version of teachonce",
            code="format-version-unknown",
            where=f"{where}: field 'schema_version'",
            expected=f"{read} (this version)",
            found=f"{found} (the files)",
            hint="update teachonce here" if newer else hint,
        )


#: Manifest, `corpus.json`, tars and their indexes. Version 2 has a history: images were added since, or mended. In version 3 tars
#: are used in place. Others are written as version 1.
SHARDS = Format(name="shards", version=3)

#: Arrays of rows, and the root group that describes them. Version 2 has targets of more than one axis beside sample and view. Version 3
#: has targets with encodings of their own, a short shard in the middle, later generations, or fewer views in a chunk
#: than there are. Version 4 derives the parameters of views on reading. A store is written as the lowest version that has it.
TARGET_STORE = Format(name="a target store", kind="target store", version=4)

#: Arrays of classes, in a target store. They have no version of their own on disk; it is part of the fingerprint of `vectors`.
CLASS_VECTORS = Format(name="class vectors")

#: A folder of learned prompts.
PROMPTS_FOLDER = Format(name="a folder of prompts", kind="prompts")

#: A student with its class vectors. Version 2 may lack these, and may have levels; a bundle that is as before is written as
#: version 1.
BUNDLE = Format(name="a student bundle", kind="student bundle", version=2)

#: Labels of a corpus' rows, as often as they were made.
LABELS = Format(name="labels", kind="labels")

#: Embeddings of a corpus' captions.
CAPTIONS = Format(name="captions", kind="captions")
