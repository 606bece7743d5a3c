"""teachonce: its own shards and target store, then TargetStream, or the same stream without decoding and drawing."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

from pillow_view import BATCH, SIZE
from serve import serve

sys.path.append(str(Path(__file__).parents[1]))

from stores import make_shards, make_store

#: Views take turns, so that an epoch reads its targets from the store as the peers read theirs.
VIEWS = 2


def make(given):
    from teachonce import TargetStream

    out = Path(given["out"])
    make_shards(Path(given["images"]), out / "shards", shard_size=given["shard_size"])
    make_store(out / "shards", out / "store", views=VIEWS, threads=1)

    def epochs(mode, workers):
        stream = TargetStream(
            out / "shards", out / "store", image_size=SIZE, batch_size=BATCH, drop_last=False, num_workers=workers
        )
        return Bytes(stream) if mode == "bytes" else Epochs(stream)

    return epochs


class Epochs:
    def __init__(self, stream):
        self._stream = stream

    def __iter__(self):
        return ((batch.images_NCHW, batch.targets["logits"]) for batch in self._stream)


class Bytes(Epochs):
    """Order, join, reading with its checks, and gathering; what is read is neither decoded nor drawn. In this process only."""

    def __iter__(self):
        with ExitStack() as without:
            for name in ("decode", "draw"):
                target = f"teachonce.stages.samples.images.Images.{name}"
                without.enter_context(mock.patch(target, new=_nothing))
            yield from super().__iter__()


def _nothing(*arguments):
    return None


if __name__ == "__main__":
    serve(make, ("teachonce", "torch", "pillow"))
