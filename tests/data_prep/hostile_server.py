"""A server on this machine that offers a folder and can be told to misbehave in the ways that real ones do."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@dataclass
class Behaviour:
    """``cuts``: after how many bytes of each of the next bodies the connection breaks. ``requests``: (path, Range) as they came."""

    cuts: list[int] = field(default_factory=list)
    busy: int = 0  # answers of 503 before the first good one
    ranges: bool = True
    tag: str | None = '"one"'
    flip: int | None = None  # byte of the file that comes out wrong
    claim: bool = False  # name the sha256 of the true file, as the hub does
    redirect: str | None = None
    no_length: bool = False
    delay: float = 0.0  # seconds before every 64 KB
    requests: list[tuple[str, str | None]] = field(default_factory=list)


@contextmanager
def serve(folder: Path, behaviour: Behaviour) -> Iterator[str]:
    """The base address."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Not to the terminal."""

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            behaviour.requests.append((self.path, asked))
            if behaviour.busy:
                behaviour.busy -= 1
                return self._head(503, {"Content-Length": "0"})
            if behaviour.redirect:
                return self._head(302, {"Location": behaviour.redirect, "Content-Length": "0"})
            path = folder / unquote(self.path.lstrip("/"))
            if not path.is_file():
                return self._head(404, {"Content-Length": "0"})
            return self._send(path.read_bytes(), asked)

        def _send(self, body: bytes, asked: str | None) -> None:
            headers = {"ETag": behaviour.tag} if behaviour.tag else {}
            if behaviour.claim:
                headers["X-Linked-ETag"] = f'"{hashlib.sha256(body).hexdigest()}"'
            if behaviour.flip is not None:
                body = body[: behaviour.flip] + bytes([body[behaviour.flip] ^ 1]) + body[behaviour.flip + 1 :]
            first, status = 0, 200
            if asked and behaviour.ranges and self.headers.get("If-Range") == behaviour.tag:
                first = int(asked.removeprefix("bytes=").rstrip("-"))
                if first >= len(body):
                    return self._head(416, headers | {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"})
                status = 206
                headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
            rest = body[first:]
            self._head(status, headers if behaviour.no_length else headers | {"Content-Length": str(len(rest))})
            end = behaviour.cuts.pop(0) if behaviour.cuts else len(rest)
            for at in range(0, end, 1 << 16):
                time.sleep(behaviour.delay)
                self.wfile.write(rest[at : min(end, at + (1 << 16))])
            if end < len(rest):
                self.wfile.flush()
                self.connection.close()
            return None

        def _head(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
