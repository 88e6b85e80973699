"""Alerts: each trouble once, over a real socket and a real program, again where it was not sent, and nothing old at the first look."""

from __future__ import annotations

import json
import os
import re
import socketserver
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from monitoring.alerts import TOLD, Alerts, read_alerts
from monitoring.overview import look
from pipeline.errors import UserError
from tests.conftest import ROOT
from tests.monitoring.run_factory import attempt, end, finished_run, kill_writer, make_run


@pytest.fixture
def server():
    """(address, what was posted there): a web server that takes everything."""
    got: list[tuple[str, str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, self.headers.get("Title", ""), body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quietly."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()
    thread.join()
    server.server_close()


class Mail(socketserver.StreamRequestHandler):
    """As much of a mail server as a client needs to be served (RFC 5321); what came is kept."""

    got: list[str]

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline().strip().upper():
            if line == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                text = b"".join(iter(self.rfile.readline, b".\r\n"))
                self.got.append(text.decode())
            self.wfile.write(b"221 bye\r\n" if line == b"QUIT" else b"250 ok\r\n")


@pytest.fixture
def mail_server():
    """(host:port, the mails that came)."""
    handler = type("Kept", (Mail,), {"got": []})
    with socketserver.TCPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}", handler.got
        server.shutdown()
        thread.join()


def test_the_readmes_example_reaches_everybody(tmp_path, server, mail_server, monkeypatch):
    """As it stands there, but for the addresses: a push message, a chat's hook, a mail, a program."""
    address, got = server
    (example,) = re.findall(r"```yaml\n(to:.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert example.count("https://") == 2
    example = re.sub(r"https://[^/]+", address, example)
    example = example.replace("mail: me@example.org ", f"mail: me@example.org\n    smtp: {mail_server[0]}")
    window = tmp_path / "bin" / "notify-send"
    window.parent.mkdir()
    window.write_text(f'#!/bin/sh\nprintf "%s|%s" "$1" "$2" > "{tmp_path}/window"\n')
    window.chmod(0o755)
    monkeypatch.setenv("PATH", f"{window.parent}:{os.environ['PATH']}")
    told, root = config(tmp_path, example), tmp_path / "runs"
    run = make_run(root)
    attempt(run, 0, 20)
    Alerts(told, root).tell(look(root))
    end(run, "failed", 20, message="the loss is nan on rank 3 at step 20")
    for _ in range(2):
        Alerts(told, root).tell(look(root))
    name, text = run.name, "failed; the loss is nan on rank 3 at step 20"
    assert got == [
        ("/our-lab-4711", name, text.encode()),
        ("/hooks/abc", "", json.dumps({"text": f"{name}: {text}"}).encode()),
    ]
    (mail,) = mail_server[1]
    assert f"Subject: {name}" in mail and "To: me@example.org" in mail and text in mail
    assert (tmp_path / "window").read_text() == f"{name}|{text}"


def config(tmp_path: Path, text: str):
    path = tmp_path / "alerts.yaml"
    path.write_text(text)
    return read_alerts(path)


def test_each_trouble_is_told_once_and_what_was_over_before_never(tmp_path, server):
    address, got = server
    root = tmp_path / "runs"
    finished_run(root, "00000000")
    run = make_run(root)
    attempt(run, 0, 20)
    told = config(tmp_path, f"to:\n  - ntfy: {address}/ntfy\n  - webhook: {address}/hook\n")
    Alerts(told, root).tell(look(root))
    assert got == []
    run.record("data_fault", step=1, rank=0, message="x")
    for _ in range(2):
        Alerts(told, root).tell(look(root))
        run.record("data_fault", step=2, rank=0, message="y")  # one more of the same
    assert got == [
        ("/ntfy", "dismix_demo/1f3a9c2e", b"damaged samples replaced: 1"),
        ("/hook", "", json.dumps({"text": "dismix_demo/1f3a9c2e: damaged samples replaced: 1"}).encode()),
    ]
    kill_writer(run)
    Alerts(told, root).tell(look(root))
    assert got[2][2].startswith(b"killed; it ended without a word")


def test_what_was_not_sent_is_tried_again(tmp_path, capsys):
    root, out = tmp_path / "runs", tmp_path / "out"
    run = make_run(root)
    attempt(run, 0, 20)
    broken = config(tmp_path, "to:\n  - command: ['false', '{title}']\n")
    Alerts(broken, root).tell(look(root))
    end(run, "failed", 20, message="$(touch owned); `id`")
    Alerts(broken, root).tell(look(root))
    assert "was not sent" in capsys.readouterr().err
    works = config(tmp_path, f"to:\n  - command: [tee, '-a', '{out}.{{title}}']\n".replace("{title}", "log"))
    Alerts(works, root).tell(look(root))
    assert Path(f"{out}.log").exists() and not Path("owned").exists()
    (root / TOLD).write_text("{torn")
    Alerts(works, root).tell(look(root))
    assert json.loads((root / TOLD).read_text()), "a torn memory is a first look: nothing is told twice"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("to: []\n", "'to'"),
        ("to:\n  - mail: nobody\n", "to.0.mail"),
        ("to:\n  - command: [a]\n    ntfy: http://x\n", "names one of"),
        ("too: []\n", "Valid keys"),
    ],
)
def test_a_config_that_is_wrong_is_one_sentence(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        config(tmp_path, text)
