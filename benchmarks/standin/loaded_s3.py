"""moto's S3 server with a folder's files in it from the start, in the bucket `bench`; `GET /requests` gives how many there were, by method."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import make_server

BUCKET, PATH = "bench", "/requests"


def serve(root: Path) -> None:
    """On a free port of loopback, which is printed, until the process is ended."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    backend = s3_backends["123456789012"]["aws"]
    backend.create_bucket(BUCKET, "us-east-1")
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            backend.put_object(BUCKET, path.relative_to(root.parent).as_posix(), path.read_bytes())
    moto: Any = DomainDispatcherApplication(create_backend_app)
    seen: Counter[str] = Counter()

    def counted(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == PATH:
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(seen).encode()]
        seen[environ["REQUEST_METHOD"]] += 1
        return moto(environ, start_response)  # type: ignore[no-any-return]

    server = make_server("127.0.0.1", 0, counted, threaded=True)
    print(f"Running on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
