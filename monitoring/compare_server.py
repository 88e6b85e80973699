"""The server behind the page on which raters compare: pairs out, choices in. It knows nothing that is not on the disk.

    GET  /                    the page
    GET  /state?rater=anna    how far anna is, and the pair that comes next
    POST /choose              {"rater", "pair", "choice", "seconds"}: written down, then as /state
    GET  /audio/KEY.wav       a pair's music; a browser asks for it by range

A page of another site that the rater's browser shows must neither read nor write here: the Host must be a name of ours (a rebound DNS name
is not), and what writes must come from our own page (its Origin).
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import socketserver
import sys
from collections.abc import Callable
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from monitoring.pairs import Pair, Pairs, Unreadable
from pipeline.choices import SCRIPTED_JUDGE, UNDO, append_choice, check_rater, read_rater
from pipeline.errors import UserError

LARGEST_BODY = 4096  # bytes; a choice has 150
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",  # the rest of it stands in the page
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Refused(Exception):
    """A request that is not served; the message is for whoever sent it."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Table:
    """What the raters are given and give back. For any number of threads; raters do not wait for one another's disk."""

    def __init__(self, run: Path, pairs: Pairs, say: Callable[[str], None]) -> None:
        self._run, self.pairs, self._say = run, pairs, say
        self._unreadable: dict[str, str] = {}  # by key: why
        self._told: set[str] = set()
        for sentence in pairs.trouble:
            self._tell(sentence)

    def state(self, rater: str) -> dict[str, Any]:
        """How far ``rater`` is, and the pair that comes next (None after the last). Refused where that cannot be a rater's name."""
        _check_person(rater)
        chosen, trouble = read_rater(self._run, rater)
        for sentence in trouble:
            self._tell(sentence)
        own = [c.pair for c in chosen if c.pair in self.pairs]
        left = set(self.pairs.keys) - set(own)
        pair = self._first_of(left)
        skipped = [why for key, why in self._unreadable.items() if key in left]
        return {
            "done": len(own),
            "total": len(self.pairs.keys) - len(skipped),
            "pair": _shown(pair) if pair else None,
            "last": own[-1] if own else None,
            "notes": [*self.pairs.trouble, *skipped, *trouble],
        }

    def choose(self, rater: str, pair: str, choice: str, seconds: float) -> dict[str, Any]:
        """Write a choice down; then as ``state``. OSError where the disk does not take it."""
        _check_person(rater)
        if pair not in self.pairs:
            raise Refused(HTTPStatus.NOT_FOUND, f"there is no pair {pair}; load the page again.")
        rated = {c.pair for c in read_rater(self._run, rater)[0]}
        if choice != UNDO or pair in rated:  # else it was taken back by a request whose answer was lost
            append_choice(self._run, rater, pair, choice, seconds)
        return self.state(rater)

    def wav(self, key: str) -> bytes:
        try:
            return self.pairs.read(key).wav
        except (KeyError, Unreadable) as error:
            raise Refused(HTTPStatus.NOT_FOUND, f"no pair {key} can be played.") from error

    def _first_of(self, keys: set[str]) -> Pair | None:
        for key in self.pairs.keys:
            if key in keys and key not in self._unreadable:
                try:
                    return self.pairs.read(key)
                except Unreadable as error:
                    self._unreadable[key] = str(error)
                    self._tell(str(error))
        return None

    def _tell(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            self._say(f"note: {sentence}")


def _check_person(rater: str) -> None:
    try:
        check_rater(rater)
    except UserError as error:
        raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from error
    if rater == SCRIPTED_JUDGE:
        raise Refused(HTTPStatus.BAD_REQUEST, f"'{rater}' is the name of a program; take your own.")


def _shown(pair: Pair) -> dict[str, Any]:
    facts = asdict(pair)
    del facts["wav"]  # is asked for by its address
    return {**facts, "audio": f"/audio/{quote(pair.key, safe='')}.wav"}


class Server(ThreadingHTTPServer):
    """Serves ``page`` and ``table`` at ``host``, a thread a connection. OSError where host or port cannot be had."""

    request_queue_size = 64
    page = b""

    def __init__(self, host: str, port: int, table: Table) -> None:
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        self.table = table
        self.names = own_names(host)
        super().__init__((host, port), Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # the class between asks the DNS for our name, which may take long
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(
            sys.exception(), ConnectionError | TimeoutError
        ):  # a browser that went away is no error of ours
            super().handle_error(request, client_address)


def own_names(host: str) -> set[str]:
    """The names, besides addresses, by which browsers may reach a server at ``host``."""
    here = {"localhost"}
    return here if is_loopback(host) else here | {host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what answers at ``host``."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_ours(host: str, names: set[str]) -> bool:
    """Whether what a browser takes us for, its Host header, is an address or one of ``names``."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name in names or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds for a request to come, and for an answer to go
    server_version, sys_version = "slurmphony", ""

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, respond: Callable[[], None]) -> None:
        try:
            self._body = self._read_body()
            self._check_host()
            respond()
        except Refused as error:
            self._refuse(error.status, str(error))
        except (ConnectionError, TimeoutError):  # nobody is left to tell
            raise
        except OSError as error:
            sentence = f"{error.filename or self.path}: {error.strerror}. Nothing was written down; mend that and choose again."
            print(f"failed: {sentence}", file=sys.stderr, flush=True)
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, sentence)

    def _check_host(self) -> None:
        """Against DNS rebinding, by which another site's name comes to mean this machine: an address or a name of ours, and no other."""
        if not is_ours(self.headers.get("Host", ""), self.server.names):
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, "this server is not called by that name.")

    def _get(self) -> None:
        path, _, query = self.path.partition("?")
        if path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
        elif path == "/state":
            self._send_json(HTTPStatus.OK, self.server.table.state(parse_qs(query).get("rater", [""])[0]))
        elif path.startswith("/audio/"):
            self._send_audio(self.server.table.wav(unquote(path.removeprefix("/audio/").removesuffix(".wav"))))
        else:
            raise Refused(HTTPStatus.NOT_FOUND, "there is nothing here; the page is at /.")

    def _post(self) -> None:
        body = self._choice()
        if self.path != "/choose":
            raise Refused(HTTPStatus.NOT_FOUND, "choices go to /choose.")
        match body:
            case {
                "rater": str(rater),
                "pair": str(pair),
                "choice": str(choice),
                "seconds": int(seconds) | float(seconds),
            }:
                try:
                    state = self.server.table.choose(rater, pair, choice, round(seconds, 2))
                except ValueError as error:
                    raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from error
                self._send_json(HTTPStatus.OK, state)
            case _:
                raise Refused(HTTPStatus.BAD_REQUEST, "a choice has a rater, a pair, a choice and seconds.")

    def _read_body(self) -> bytes:
        """Read also where the request will be refused: what is left of it would be taken for the next one."""
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > LARGEST_BODY:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a choice has at most {LARGEST_BODY} bytes.")
        return self.rfile.read(int(length))

    def _choice(self) -> Any:
        """The request's JSON, where our own page sent it."""
        if self.headers.get("Origin") != f"http://{self.headers['Host']}":
            raise Refused(HTTPStatus.FORBIDDEN, "choices are taken from this server's own page only.")
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "choices are JSON.")
        try:
            return json.loads(self._body)
        except ValueError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, "that is no JSON.") from error

    def _send_audio(self, wav: bytes) -> None:
        """The whole file, or the range of it that was asked for (RFC 9110, section 14)."""
        total = len(wav)
        match = RANGE.fullmatch(self.headers.get("Range", ""))
        if not match or not any(match.groups()):
            self._send(HTTPStatus.OK, "audio/wav", wav, {"Accept-Ranges": "bytes"})
            return
        first, last = match.groups()
        start = int(first) if first else max(0, total - int(last))
        end = min(int(last) + 1, total) if first and last else total
        if start >= end:
            self._send(
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "audio/wav", b"", {"Content-Range": f"bytes */{total}"}
            )
            return
        more = {"Accept-Ranges": "bytes", "Content-Range": f"bytes {start}-{end - 1}/{total}"}
        self._send(HTTPStatus.PARTIAL_CONTENT, "audio/wav", wav[start:end], more)

    def _send_json(self, status: HTTPStatus, tree: Any) -> None:
        self._send(status, "application/json", json.dumps(tree).encode())

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        self.close_connection = True
        self._send_json(status, {"error": sentence})

    def _send(self, status: HTTPStatus, kind: str, body: bytes, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **HEADERS, **(more or {})}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent: what matters is said by the table."""
