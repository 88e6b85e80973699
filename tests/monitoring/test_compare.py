"""The page on which raters compare, used as they use it: in a real browser, by keyboard alone, with the server killed in the middle."""

from __future__ import annotations

import http.client
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from monitoring import compare
from pipeline.choices import append_choice, choices_file, read_choices
from pipeline.errors import UserError
from pipeline.files import write_json
from tests.browser import Page
from tests.monitoring.pair_factory import EVIL, FRAME_RATE, pair, run_with_pairs, write_pairs
from tests.monitoring.run_factory import make_run

SCRIPT = Path(compare.__file__)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(run, port: int, *words: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """The page's address and the server, as a user starts it."""
    command = [sys.executable, str(SCRIPT), str(run.path), "--port", str(port), "--no-browser", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address == f"http://127.0.0.1:{port}/", process.communicate()[1]
        yield address, process
    finally:
        process.kill()
        process.communicate()


def begin(page: Page, address: str, rater: str, expected: str) -> None:
    """Type a name where the focus is, and Enter."""
    page.open(address)
    page.press(rater, "\n")
    page.wait(lambda: ready(page) and page.text("count") == expected)


def ready(page: Page) -> bool:
    return page.run("return document.querySelector('[data-choice=left]').ariaDisabled") == "false"


def choose(page: Page, key: str, expected: str) -> None:
    page.press(key)
    page.wait(lambda: ready(page) and page.text("count") == expected)


def chosen(run) -> list[tuple[str, str, str]]:
    return [(c.rater, c.pair, c.choice) for c in read_choices(run.path)[0]]


ARROW_LEFT, ARROW_RIGHT = "\ue012", "\ue014"  # WebDriver's names of these keys


def test_rated_by_keyboard_alone_while_the_server_is_killed(page: Page, tmp_path):
    run, port = run_with_pairs(tmp_path, 6, left="b"), free_port()
    with served(run, port, "--next", f"type {EVIL}") as (address, _):
        begin(page, address, "anna", "1 of 6")
        page.wait(lambda: page.run("return document.getElementById('music').currentTime > 0"))  # it began by itself
        assert page.text("song") == EVIL and page.run("return document.title") == "Compare · cqtml_demo/1f3a9c2e"
        choose(page, "11", "2 of 6")  # a double stroke is one choice
        choose(page, ARROW_RIGHT, "3 of 6")
        choose(page, "t", "4 of 6")
        choose(page, "s", "5 of 6")
        choose(page, "u", "4 of 6")
        assert page.complaints() == []
    page.press(ARROW_LEFT)  # nobody answers
    page.wait(lambda: "kept here" in page.text("trouble") and f"--port {port}" in page.text("trouble"))
    page.press("2")  # the choice has been made
    with served(run, port, "--next", f"type {EVIL}") as (address, _):
        page.wait(lambda: ready(page) and page.text("count") == "5 of 6")
        assert page.text("trouble") == ""
        begin(page, address + "#anna", "", "5 of 6")
        choose(page, "2", "6 of 6")
        page.press("s")
        page.wait(lambda: "All 6 pairs are rated. Thank you, anna." in page.text("thanks"))
        assert f"type {EVIL}" in page.text("end") and page.run("return document.activeElement.id") == "end"
        page.wait(lambda: page.run("return document.querySelector('#end button').ariaDisabled") == "false")
        page.press("u")
        page.wait(lambda: ready(page) and page.text("count") == "6 of 6")
        assert page.complaints() == []
    expected = [("p000", "b"), ("p001", "a"), ("p002", "tie"), ("p003", "b"), ("p004", "a")]  # a is shown on the right
    assert chosen(run) == [("anna", *c) for c in expected]
    seconds = [json.loads(line)["seconds"] for line in choices_file(run.path, "anna").read_text().splitlines()]
    assert all(0 < s < 60 for s in seconds[:4])


def test_two_raters_a_torn_line_and_no_way_out_of_the_folder(page: Page, tmp_path):
    run = run_with_pairs(tmp_path, 4)
    append_choice(run.path, "bo", "p000", "tie", 1)
    with choices_file(run.path, "bo").open("a") as file:
        file.write('{"pair": "p001", "cho')
    with served(run, free_port(), "--rater", "anna") as (address, process):
        page.open(address)
        assert page.run("return document.getElementById('rater').value") == "anna"
        page.press("../x\n")
        page.wait(lambda: "cannot name a rater" in page.text("refused"))
        page.press("anna\n")  # replaces what was refused
        page.wait(lambda: ready(page) and page.text("count") == "1 of 4")
        assert page.text("who") == "anna" and page.text("notes") == ""
        choose(page, "1", "2 of 4")
        page.driver.switch_to.new_window("tab")
        page.open(f"{address}#bo")
        page.press("\n")
        page.wait(lambda: page.text("count") == "2 of 4" and ready(page))
        assert page.text("who") == "bo" and "bo.jsonl: 1 line left out" in page.text("notes")
        choose(page, "2", "3 of 4")
        page.driver.switch_to.window(page.driver.window_handles[0])
        choose(page, "1", "3 of 4")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 0 and "bo.jsonl: 1 line left out" in said and said.endswith("choices: anna 2, bo 2.\n")
    assert chosen(run) == [("anna", "p000", "a"), ("anna", "p001", "a"), ("bo", "p000", "tie"), ("bo", "p001", "b")]


def test_lights_follow_the_music_and_keys_belong_to_what_has_the_focus(page: Page, tmp_path):
    """Lamp 1 on the left is as bright as the song is far, on the right as it is not: so it tells which moment is shown."""
    run, seconds = make_run(tmp_path, "cqtml_demo"), 4.0
    sample = pair(0, seconds)
    ramp = np.linspace(0, 1, sample["a"].shape[1], dtype=np.float16)
    sample["a"][0], sample["b"][0] = ramp, 1 - ramp
    write_pairs(run, {"train": [("p000", sample), ("p001", sample)]})
    with served(run, free_port()) as (address, _):
        begin(page, address, "anna", "1 of 2")
        page.wait(lambda: page.run("return document.getElementById('music').currentTime > 0.2"))
        measured = page.driver.execute_async_script("""
            const done = arguments[0], seen = [];
            const level = (id) => Number(document.querySelector(`#${id} .lamp`).style.getPropertyValue("--level"));
            const look = () => {
              seen.push([document.getElementById("music").currentTime, level("left"), level("right")]);
              seen.length < 40 ? requestAnimationFrame(look) : done(seen);
            };
            requestAnimationFrame(look);""")
        last = len(ramp) / FRAME_RATE
        apart = [abs(at - left * last) for at, left, _ in measured]
        assert max(apart) < 0.05 and measured[-1][0] > measured[0][0], (
            f"lights are {1000 * max(apart):.0f} ms off the music"
        )
        assert all(left + right == pytest.approx(1, abs=0.01) for _, left, right in measured)
        page.press(" ")
        page.wait(lambda: page.text("play") == "Play")
        page.press("r")
        page.wait(lambda: page.text("play") == "Pause")
        page.press("\t")  # the first button that Tab reaches
        assert page.run("return document.activeElement.matches('[data-choice=left]:focus-visible')")
        page.press(" ")  # works the button, not the music
        page.wait(lambda: page.text("count") == "2 of 2")
        assert page.run("return document.activeElement.id") == "compare"
    assert chosen(run) == [("anna", "p000", "a")]


def test_who_asks_for_less_motion_gets_slow_lights_and_nothing_starts_by_itself(page: Page, tmp_path):
    run = make_run(tmp_path, "cqtml_demo")
    sample = pair(0, 2.0)
    sample["a"][:] = np.arange(sample["a"].shape[1]) % 2  # flickers from frame to frame
    write_pairs(run, {"train": [("p000", sample)]})
    page.ask_for_less_motion()
    try:
        with served(run, free_port()) as (address, _):
            begin(page, address, "anna", "1 of 1")
            assert page.run("return document.getElementById('music').paused")
            page.press(" ")
            levels = set()
            for _ in range(10):
                levels.add(
                    page.run("return Number(document.querySelector('#left .lamp').style.getPropertyValue('--level'))")
                )
            assert all(0.45 < level < 0.55 for level in levels), levels
    finally:
        page.ask_for_less_motion("no-preference")


@pytest.mark.soak
def test_whenever_the_server_is_killed_what_it_answered_is_kept(tmp_path):
    run, port, kills = run_with_pairs(tmp_path, 150, seconds=0.1), free_port(), 0
    answered: dict[str, str] = {}
    rating = threading.Thread(target=rate_everything, args=(port, answered), daemon=True)
    rating.start()
    while rating.is_alive():
        with served(run, port):
            enough = len(answered) + random.randrange(
                1, 20
            )  # by count: a fast machine is done before a clock would kill
            while rating.is_alive() and len(answered) < enough:
                rating.join(random.uniform(0, 0.01))
        kills += rating.is_alive()
    choices, trouble = read_choices(run.path)
    assert {c.pair: c.choice for c in choices} == answered and len(answered) == 150
    assert kills > 5 and len(trouble) <= 1


def rate_everything(port: int, answered: dict[str, str]) -> None:
    """As a browser does it: what was not answered is asked again."""
    here, pair = f"http://127.0.0.1:{port}", None
    headers = {"Origin": here, "Content-Type": "application/json"}
    while True:
        choice = {"rater": "anna", "pair": pair, "choice": random.choice(["a", "b", "tie"]), "seconds": 1}
        asked = urllib.request.Request(f"{here}/choose", json.dumps(choice).encode(), headers)
        try:
            with urllib.request.urlopen(asked if pair else f"{here}/state?rater=anna", timeout=10) as reply:
                state = json.load(reply)
        except (OSError, http.client.HTTPException):
            time.sleep(0.02)
            continue
        if pair:
            answered[pair] = choice["choice"]
        if state["pair"] is None:
            return
        pair = state["pair"]["key"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "0"], "is no port"),
        (["--rater", "../anna"], "cannot name a rater"),
        (["--host", "no such host"], "is no address of this machine"),
        (["--host", "192.0.2.1", "--port", "5999"], "192.0.2.1:5999 cannot be used"),
    ],
)
def test_users_mistakes_are_one_sentence(tmp_path, words, said):
    run = run_with_pairs(tmp_path, 1)
    with pytest.raises(UserError, match=re.escape(said)):
        compare.main([str(run.path), "--no-browser", *words])


def test_the_usual_port_may_be_taken_and_is_then_another(tmp_path, monkeypatch):
    run = run_with_pairs(tmp_path, 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(compare, "PORT", taken.getsockname()[1])
        with compare.serve(run, compare.parse([str(run.path)])) as server:
            assert server.server_port != compare.PORT
            assert f"monitoring/compare.py {run.path} --port {server.server_port}" in server.page.decode()
            assert compare.learning(run) in server.page.decode()
        with pytest.raises(UserError, match="cannot be used"):
            compare.serve(run, compare.parse([str(run.path), "--port", str(compare.PORT)]))


def test_whoever_is_let_in_from_elsewhere_is_told_of(tmp_path, capfd):
    run = run_with_pairs(tmp_path, 1)
    with compare.serve(run, compare.parse([str(run.path), "--host", "0.0.0.0", "--port", str(free_port())])) as server:
        assert "no password" in capfd.readouterr().err and socket.gethostname().lower() in server.names
        assert "--host 0.0.0.0" in server.page.decode()


def test_a_run_without_pairs_says_how_to_make_them(tmp_path):
    run = make_run(tmp_path, "cqtml_demo")
    run.config_file.write_text("model: {system: cqtml}\n")
    with pytest.raises(
        UserError, match=r"no pairs to compare yet .*python jobs/generate.py cqtml_demo/1f3a9c2e --pairs"
    ):
        compare.main([str(run.path)])
    other = make_run(tmp_path, "dismix_demo")
    other.config_file.write_text("model: {system: dismix}\n")
    with pytest.raises(
        UserError, match=r"is a run of dismix, and what is compared are light shows: name a run of cqtml"
    ):
        compare.main([str(other.path)])


def test_a_pulled_run_is_rated_where_it_is_from(tmp_path):
    run = run_with_pairs(tmp_path / "mycluster", 1)
    (tmp_path / "mycluster" / ".sync").mkdir()
    write_json(tmp_path / "mycluster" / ".sync" / "seen.json", {"host": "mycluster", "time": 0.0})
    with pytest.raises(UserError, match=r"pulled from mycluster, .*ssh -L 5001:127.0.0.1:5001 mycluster"):
        compare.main([str(run.path)])


def test_help_is_there_at_once():
    slow = {"numpy", "jinja2", "http.server", "torch"}
    program = f"import sys, monitoring.compare; sys.exit(bool({slow} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
