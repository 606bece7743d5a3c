"""clip-retrieval's inference over WebDataset tars, by the function that its command calls."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from clip_retrieval.clip_inference.main import main as clip_inference


def main(given: dict) -> None:
    # A loader without a tar of its own ends the run without an error, and without its end.
    tars = sorted(str(tar) for tar in Path(given["shards"]).glob("*.tar"))
    assert len(tars) >= given["loaders"], "fewer tars than loaders"
    clip_inference(
        f"{given['shards']}/{{{','.join(Path(tar).name for tar in tars)}}}",
        given["out"],
        input_format="webdataset",
        batch_size=given["batch"],
        num_prepro_workers=given["loaders"],
        enable_text=False,
        clip_model=f"open_clip:{given['model']}/{given['weights']}",
        output_partition_count=1,
    )
    keys = pq.read_table(f"{given['out']}/metadata/metadata_0.parquet")["image_path"].to_pylist()
    np.save(f"{given['out']}/embeddings.npy", np.load(f"{given['out']}/img_emb/img_emb_0.npy"))
    Path(given["out"], "names.json").write_text(json.dumps(keys))
    versions = {name: version(name) for name in ("clip-retrieval", "open_clip_torch", "torch", "pillow")}
    Path(given["out"], "versions.json").write_text(json.dumps(versions))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
