"""`shard --max-bytes`: what is longer is an unusable row, and a URL's body is left before it is read whole."""

from __future__ import annotations

import functools
import http.server
import json
import threading

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main


@pytest.mark.parametrize("by_url", [False, True])
def test_longer_files_are_unusable_rows(tmp_path, monkeypatch, by_url):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    Image.fromarray(noise).save("photos/long.png")
    Image.fromarray(noise[:8, :8]).save("photos/short.png")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "photos"))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        corpus = "photos"
        if by_url:
            base = f"http://127.0.0.1:{server.server_port}"
            (tmp_path / "list.txt").write_text(f"{base}/long.png\n{base}/short.png\n")
            corpus = "list.txt"
        command = ["shard", corpus, "--name", "c", "--out", "shards", "--executor", "serial"]
        done = CliRunner().invoke(main, [*command, "--max-bytes", "2000"])
        again = CliRunner().invoke(main, command)
        server.shutdown()
        thread.join()
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "shards/corpus.json").read_bytes())["max_bytes"] == 2000
    (receipt,) = (tmp_path / "shards/ledger/shard/receipts").glob("*.json")
    (row,) = json.loads(receipt.read_bytes())["invalid_rows"]
    assert "long.png" in str(row)
    assert "file too large" in str(row)
    assert again.exit_code == 1
    assert "max_bytes" in again.output
