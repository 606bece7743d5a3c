"""Owns reading single images that a user names: paths and URLs. What is wrong with one costs that one alone."""

from __future__ import annotations

from ...pipeline.user_files import UserFile, is_url, read_url
from ...storage_schemas.errors import TeachonceError
from ..corpora.images import BadImage


class TypedImages:
    """`PictureFiles` of what was typed."""

    def read(self, file: str) -> bytes:
        """
        Raises:
            BadImage: whatever keeps the bytes away, also at the moment only.
        """
        try:
            if is_url(file):
                return read_url(file)
            location = UserFile.of(file)
            if location.is_dir():
                raise BadImage("a folder, not an image; measure folders with `teachonce evaluate`")
            return location.read_file()
        except FileNotFoundError as error:
            raise BadImage("no such file") from error
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror}") from error
        except TeachonceError as error:
            raise BadImage(str(error)) from error

    def is_far(self, file: str) -> bool:
        return is_url(file)

    def close(self) -> None:
        pass  # nothing stays open
