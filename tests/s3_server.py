"""Runs moto's S3 server on a free port of loopback: real HTTP, in memory, with conditional PUTs and multipart uploads."""

from __future__ import annotations

import logging
import sys

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

logging.getLogger("werkzeug").setLevel(logging.ERROR)  # not a line for each request
port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
server = make_server("127.0.0.1", port, DomainDispatcherApplication(create_backend_app), threaded=True)
print(f"Running on http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
