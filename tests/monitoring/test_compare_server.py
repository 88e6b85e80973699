"""The server of the page on which raters compare, asked as no page of ours would ask it."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from monitoring.compare_server import Server, Table, is_loopback, own_names
from monitoring.pairs import Pairs, Unreadable
from pipeline.choices import SCRIPTED_JUDGE, append_choice, choices_file, read_choices
from pipeline.errors import UserError
from pipeline.light_show.page import pack
from pipeline.runs import RunFolder
from tests.monitoring.pair_factory import EVIL, pair, run_with_pairs, write_pairs
from tests.monitoring.run_factory import make_run


class Client:
    """Sends what it is told, over a connection of its own each time."""

    def __init__(self, server: Server, said: list[str]) -> None:
        self.port, self.said = server.server_port, said
        self.here = f"127.0.0.1:{self.port}"

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, Any, bytes]:
        """Status, headers and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        reply = connection.getresponse()
        answer = reply.status, reply.headers, reply.read()
        connection.close()
        return answer

    def state(self, rater: str) -> dict[str, Any]:
        status, _, body = self.ask(f"/state?rater={rater}")
        assert status == 200, body
        return json.loads(body)

    def choose(self, tree: Any, **headers: str) -> tuple[int, Any]:
        """Status and answer to a choice, as our own page sends it but for ``headers``."""
        usual = {"Origin": f"http://{self.here}", "Content_Type": "application/json"}
        body = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
        status, _, answer = self.ask("/choose", "POST", body, **{**usual, **headers})
        return status, json.loads(answer)


@contextmanager
def serving(run: RunFolder) -> Iterator[Client]:
    said: list[str] = []
    with Server("127.0.0.1", 0, Table(run.path, Pairs(run.path, run.name), said.append)) as server:
        server.page = b"<p>page</p>"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Client(server, said)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return run_with_pairs(tmp_path, 3, seconds=0.5)


@pytest.fixture
def client(run) -> Iterator[Client]:
    with serving(run) as one:
        yield one


def choice(pair: str = "p000", choice: str = "a", rater: str = "anna", seconds: float = 2.5) -> dict[str, Any]:
    return {"rater": rater, "pair": pair, "choice": choice, "seconds": seconds}


def test_what_a_rater_is_told_and_what_not(client):
    state = client.state("anna")
    assert (state["done"], state["total"], state["last"], state["notes"]) == (0, 3, None, [])
    told = state["pair"]
    assert set(told) == {"key", "song", "seconds", "frame_rate", "left", "right", "audio"}
    assert (told["left"], told["right"]["side"]) == ({"side": "a", "lights": pack(pair(0, 0.5)["a"])}, "b")
    assert (told["key"], told["song"], told["seconds"]) == ("p000", EVIL, 0.5)
    status, headers, body = client.ask(told["audio"])
    with wave.open(io.BytesIO(body)) as file:
        assert (status, file.getparams()[:4]) == (200, (1, 2, 22050, 11025)) and headers["Content-Type"] == "audio/wav"
        assert np.array_equal(np.frombuffer(file.readframes(11025), "<i2"), pair(0, 0.5)["audio"])


def test_the_pair_says_which_side_is_on_the_left(tmp_path):
    run = make_run(tmp_path, "cqtml_demo")
    sample = pair(0, 0.5, left="b")
    plain = {**sample, "meta": {name: value for name, value in sample["meta"].items() if name != "left"}}
    write_pairs(run, {"train": [("p0", sample), ("p1", plain), ("p2", pair(0, 0.5, left="c"))]})
    pairs = Pairs(run.path, run.name)
    one = pairs.read("p0")
    assert (one.left.side, one.left.lights, one.right.side) == ("b", pack(sample["b"]), "a")
    assert pairs.read("p1").left.side == "a"
    with pytest.raises(Unreadable, match="p2 is left out"):
        pairs.read("p2")


def test_choices_are_on_the_disk_before_they_are_answered(client, run):
    status, state = client.choose(choice())
    assert (status, state["done"], state["last"], state["pair"]["key"]) == (200, 1, "p000", "p001")
    assert [(c.pair, c.choice, c.seconds) for c in read_choices(run.path)[0]] == [("p000", "a", 2.5)]
    client.choose(choice("p001", "tie"))
    assert client.choose(choice("p001", "undo"))[1]["last"] == "p000"
    before = choices_file(run.path, "anna").read_bytes()
    assert client.choose(choice("p001", "undo"))[0] == 200, "a browser asks again where the answer was lost"
    assert choices_file(run.path, "anna").read_bytes() == before
    assert client.choose(choice(choice="b"))[1]["done"] == 1, "the last choice of a pair counts"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example", "", "[", "a b"]
)
def test_a_name_that_is_not_ours_gets_nothing(client, run, host):
    """DNS rebinding: the browser thinks that our address is evil.example's."""
    host = host.format(port=client.port)
    for path in ("/", "/state?rater=anna", "/audio/p000.wav"):
        assert client.ask(path, Host=host)[0] == 421
    assert client.choose(choice(), Host=host, Origin=f"http://{host}")[0] == 421
    assert not read_choices(run.path)[0]


def test_names_that_are_ours(client):
    for host in (
        client.here,
        f"localhost:{client.port}",
        f"LOCALHOST:{client.port}",
        f"[::1]:{client.port}",
        "127.0.0.1",
    ):
        assert client.ask("/state?rater=anna", Host=host)[0] == 200
    assert own_names("::1") == own_names("localhost") == {"localhost"} < own_names("0.0.0.0")
    assert is_loopback("127.0.0.2") and not is_loopback("0.0.0.0") and not is_loopback("lab.example")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://{here}"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_another_sites_page_cannot_choose(client, run, headers, status):
    assert client.choose(choice(), **{k: v.format(here=client.here) for k, v in headers.items()})[0] == status
    assert client.ask("/choose", "POST", json.dumps(choice()).encode(), Content_Type="application/json")[0] == 403
    assert not (run.path / "choices").exists()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400), (b"\xff", 400), ([], 400), ({}, 400), (choice(seconds="1"), 400), (choice(choice="left"), 400),
        (choice(rater="../anna"), 400), (choice(rater=SCRIPTED_JUDGE), 400), (choice(seconds=-1), 400),
        (b'{"rater":"anna","pair":"p000","choice":"a","seconds":NaN}', 400),
        (b'{"rater":"anna","pair":"p000","choice":"a","seconds":Infinity}', 400),
        (choice(pair="p999"), 404), (choice(pair="x" * 5000), 413),
    ],
)  # fmt: skip
def test_what_is_no_choice_is_refused_in_a_sentence(client, run, body, status):
    got, answer = client.choose(body)
    assert got == status and len(answer["error"]) > 10
    assert not (run.path / "choices").exists()


@pytest.mark.parametrize(
    "path", ["/x", "/audio/p999.wav", "/audio/..%2F..%2Fconfig.yaml", "/../config.yaml", "/choose"]
)
def test_nothing_else_is_served(client, path):
    assert client.ask(path)[0] == 404


def test_answers_tell_browsers_to_keep_it_to_themselves(client):
    status, headers, body = client.ask("/")
    assert (status, body) == (200, b"<p>page</p>")
    assert (
        headers["X-Content-Type-Options"] == "nosniff"
        and "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    )
    assert headers["Cache-Control"] == "no-store" and headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_music_comes_in_the_pieces_that_a_browser_asks_for(client):
    whole = client.ask("/audio/p000.wav")[2]
    for asked, start, end in [
        ("bytes=0-", 0, len(whole)), ("bytes=100-199", 100, 200), ("bytes=-50", len(whole) - 50, len(whole)),
        ("bytes=0-999999999", 0, len(whole)), ("bytes=-999999999", 0, len(whole)),
    ]:  # fmt: skip
        status, headers, body = client.ask("/audio/p000.wav", Range=asked)
        assert (status, body) == (206, whole[start:end])
        assert headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(whole)}"
    for asked in (f"bytes={len(whole)}-", "bytes=9-2", "bytes=-0"):
        assert client.ask("/audio/p000.wav", Range=asked)[0] == 416
    for asked in ("bytes=-", "lines=1-2", "bytes=0-1,4-5"):
        assert client.ask("/audio/p000.wav", Range=asked)[::2] == (200, whole)


def test_slow_clients_hold_nobody_up(client):
    slow = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(40)]
    for number, one in enumerate(slow):
        head = f"POST /choose HTTP/1.1\r\nHost: {client.here}\r\nContent-Length: 400\r\n\r\n{{"
        one.sendall(head.encode()[: 20 + 20 * number])
    assert client.choose(choice())[1]["done"] == 1 and client.state("bo")["done"] == 0
    for one in slow:
        one.close()


def test_many_raters_at_once_lose_nothing(client, run):
    def rate(rater: str) -> None:
        for key in ("p000", "p001", "p002"):
            assert client.choose(choice(key, "b", rater))[0] == 200

    threads = [threading.Thread(target=rate, args=(f"r{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    chosen, trouble = read_choices(run.path)
    assert len(chosen) == 24 and not trouble and client.state("r3")["pair"] is None


def test_a_disk_that_takes_nothing_is_said_and_nothing_counts(client, run, capfd):
    (run.path / "choices").write_text("a file where the folder should be")
    status, answer = client.choose(choice())
    assert status == 500 and "Nothing was written down" in answer["error"]
    (run.path / "choices").unlink()
    assert client.choose(choice())[1]["done"] == 1
    assert "failed: " in capfd.readouterr().err


# -- pairs ---------------------------------------------------------------------------------------------------------


def flip(run: RunFolder, name: str, at: int) -> None:
    path = run.path / "pairs" / name
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def test_a_pair_that_cannot_be_shown_is_left_out_and_said(tmp_path):
    run = make_run(tmp_path, "cqtml_demo")
    good = pair(0, 0.8)
    bad = [
        {**good, "a": np.full_like(good["a"], 1.5)}, {**good, "b": good["b"] * np.float16("nan")}, {**good, "a": good["a"][:, :10]},
        {**good, "audio": good["audio"].astype(np.float32)}, {**good, "a": good["a"][:3]}, {**good, "meta": {}},
        {**good, "meta": {**good["meta"], "frame_rate": 0}}, {k: v for k, v in good.items() if k != "b"},
    ]  # fmt: skip
    write_pairs(run, {"train": [*((f"bad{i}", sample) for i, sample in enumerate(bad)), ("good", good)]})
    with serving(run) as client:
        state = client.state("anna")
        assert (state["pair"]["key"], state["total"]) == ("good", 1)
        assert len(state["notes"]) == len(client.said) == len(bad)
        assert client.choose(choice("good"))[1]["pair"] is None


def test_damage_is_found_where_it_is_read_and_a_lost_shard_costs_its_own_pairs(tmp_path):
    run = make_run(tmp_path, "cqtml_demo")
    samples = [(f"p{i}", pair(i, 0.3)) for i in range(4)]
    write_pairs(run, {"train": samples[:2], "valid": samples[2:3], "test": samples[3:]})
    flip(run, "train-000000.tar", 5000)
    (run.path / "pairs" / "valid-000000.tar").unlink()
    with serving(run) as client:
        state = client.state("anna")
        assert (state["total"], state["pair"]["key"]) == (2, "p3")
        assert any("p0 is left out" in n for n in state["notes"]) and any(
            "1 pairs are left out" in n for n in state["notes"]
        )


def test_who_stops_early_has_rated_some_of_each_split(tmp_path):
    run = make_run(tmp_path, "cqtml_demo")
    sample = pair(0, 0.1)
    splits = {"train": 8, "valid": 2, "test": 2}
    write_pairs(run, {split: [(f"{split}{i}", sample) for i in range(n)] for split, n in splits.items()})
    keys = Pairs(run.path, run.name).keys
    assert len(keys) == 12 and {key.rstrip("0123456789") for key in keys[:6]} == set(splits)


def test_pairs_under_one_key_or_none_are_refused(tmp_path):
    run = make_run(tmp_path, "cqtml_demo")
    sample = pair(0, 0.1)
    write_pairs(run, {"train": [("same", sample)], "valid": [("same", sample)]})
    with pytest.raises(UserError, match="under a key that another has"):
        Pairs(run.path, run.name)
    write_pairs(run, {"train": []})
    with pytest.raises(UserError, match="no pair that can be read"):
        Pairs(run.path, run.name)
    (run.path / "pairs" / "manifest.json").write_bytes(b"{}")
    with pytest.raises(UserError, match=r"is damaged .*generate.py cqtml_demo/1f3a9c2e --pairs"):
        Pairs(run.path, run.name)


def test_choices_of_pairs_that_are_no_more_do_not_count(client, run):
    append_choice(run.path, "anna", "of-older-pairs", "a", 1)
    assert client.state("anna")["done"] == 0
