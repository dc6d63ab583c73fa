"""A web server for tests, at this machine alone: it gives out parts of files, or does not, and remembers requests."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Web:
    """`files` by path; each request is noted with the range that it asks for."""

    files: Mapping[str, bytes | bytearray]
    ranges: bool = True
    fails: bool = False
    url: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)


@contextmanager
def web_server(files: Mapping[str, bytes | bytearray]) -> Iterator[Web]:
    web = Web(files)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            wanted = self.headers.get("Range")
            web.requests.append((self.command, self.path, wanted))
            data = web.files.get(self.path.partition("?")[0])
            if data is None or (web.fails and body):
                self.send_response(404 if data is None else 500)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start, end, status = 0, len(data), 200
            if wanted is not None and web.ranges:
                found = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
                assert found is not None
                start, end, status = int(found[1]), min(int(found[2]) + 1, len(data)), 206
                self.send_response(status)
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
            else:
                self.send_response(status)
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            if body:
                self.wfile.write(data[start:end])

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        web.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield web
        finally:
            server.shutdown()
            thread.join()
