"""Classify images over HTTP with a student bundle: the standard library and the bundle, no teacher and no network.

python examples/serve.py demo-run/kd --port 8000
curl --data-binary @photo.jpg 'http://127.0.0.1:8000/?top=3'
"""

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import torch
from teachonce import load_student

LARGEST = 32 << 20  # bytes of an image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder of `teachonce distill --out`")
    parser.add_argument("--port", type=int, default=8000, help="0 for one that is free")
    args = parser.parse_args()
    bundle = load_student(args.bundle, device="cuda" if torch.cuda.is_available() else "cpu")

    class Handler(BaseHTTPRequestHandler):
        """One client; each has a thread of its own, and all share the student."""

        def do_POST(self) -> None:
            size, options = int(self.headers.get("Content-Length") or 0), parse_qs(urlsplit(self.path).query)
            top = options.get("top", ["5"])[0]
            if size > LARGEST or not top.isdecimal():
                return self.answer(400, {"error": f"an image of at most {LARGEST} bytes, and a whole number as top"})
            seen = bundle.predict(self.rfile.read(size), keep_unusable=True)  # bytes: nothing is opened or fetched
            if seen.reason:
                return self.answer(400, {"error": seen.reason})
            return self.answer(200, {"top": [{"class": n, "probability": p} for n, p in seen.top(int(top))]})

        def answer(self, status: int, found: object) -> None:
            body = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", args.port), Handler) as server:
        print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
