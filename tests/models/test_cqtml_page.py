"""The page of a song, opened from the disk in a real browser: it plays, its lights follow, and it needs nothing else."""

from __future__ import annotations

import re

import numpy as np
import pytest
import soundfile

from models.cqtml import page as song_page
from models.cqtml.page import write_page
from tests.browser import Page
from tests.monitoring.pair_factory import EVIL

RATE, FRAME_RATE, SECONDS = 8000, 125.0, 12


@pytest.fixture
def wav(tmp_path):
    path = tmp_path / "slow train #1 & more.wav"
    time = np.arange(SECONDS * RATE) / RATE
    soundfile.write(path, 0.2 * np.sin(2 * np.pi * 330 * time), RATE, subtype="PCM_16")
    return path


def ramps() -> np.ndarray:
    """Lamp 1 tells the moment: 0 at the beginning, 1 at the end; the second tells it backwards."""
    up = np.linspace(0, 1, int(SECONDS * FRAME_RATE) + 1)
    return np.stack([up, 1 - up, 0 * up, 0 * up + 1])


def test_it_plays_and_seeks_by_keyboard_and_its_lights_follow(page: Page, wav, tmp_path):
    path = write_page(tmp_path, wav, ramps(), FRAME_RATE, f"Slow Train {EVIL}")
    wav.unlink()  # the page has it inside
    page.open(path.as_uri())
    assert page.run("return document.title") == f"Slow Train {EVIL}".strip()
    page.press(" ")
    page.wait(lambda: page.run("return document.getElementById('music').currentTime > 0.2"))
    page.press("\ue014")  # five seconds on
    page.wait(lambda: page.run("return document.getElementById('music').currentTime > 5.2"))
    page.press(" ")
    page.wait(lambda: page.text("play") == "Play")
    assert lights_are_where_the_music_is(page)
    page.press("r")
    page.wait(lambda: page.run("return document.getElementById('music').currentTime < 4"))
    page.press("\t", "\ue010")  # the scrub bar, to its end
    page.wait(lambda: page.run("const a = document.getElementById('music'); return a.duration - a.currentTime < 0.5"))
    assert page.complaints() == [] and page.text("trouble") == ""
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    drawn = """const c = document.getElementById("canvas");
               return [...c.getContext("2d").getImageData(c.width * 0.9, c.height * 0.06, 1, 1).data];"""
    red, _, blue, _ = page.run(drawn)
    assert red > 200 > blue, "the curve of the first lamp is high there, in its colour"


def lights_are_where_the_music_is(page: Page) -> bool:
    """As told by the first two lamps, within a twentieth of a second."""
    look = """const levels = [...document.querySelectorAll(".lamp")].map((lamp) => Number(lamp.style.getPropertyValue("--level")));
              return [document.getElementById("music").currentTime, ...levels];"""
    page.wait(lambda: abs((seen := page.run(look))[0] / SECONDS - seen[1]) < 0.05 / SECONDS)
    _, up, down, dark, bright = page.run(look)
    return abs(up + down - 1) < 0.01 and (dark, bright) == (0, 1)


def test_a_long_recording_lies_beside_the_page(page: Page, wav, tmp_path, monkeypatch):
    monkeypatch.setattr(song_page, "LARGEST_INSIDE", 1000)
    folder = tmp_path / "out"
    folder.mkdir()
    path = write_page(folder, wav, ramps(), FRAME_RATE, "long", name="long")
    assert path == folder / "long.html" and path.stat().st_size < 40_000
    assert (folder / wav.name).read_bytes() == wav.read_bytes()
    assert write_page(folder, folder / wav.name, ramps(), FRAME_RATE, "again").name == "lights.html"
    page.open(path.as_uri())
    page.press(" ")
    page.wait(lambda: page.run("return document.getElementById('music').currentTime > 0"))
    assert page.complaints() == []
    (folder / wav.name).unlink()
    page.driver.get("about:blank")
    page.driver.get(path.as_uri())
    page.wait(lambda: "must lie beside this page" in page.text("trouble"))


def test_the_page_runs_its_own_script_and_loads_nothing(wav, tmp_path):
    text = write_page(tmp_path, wav, ramps(), FRAME_RATE, EVIL).read_text()
    assert text.count("<script") == 2 and "<img" not in text
    assert "default-src 'none'" in text and "unsafe" not in text.split("</head>")[0]
    assert not re.findall(r"https?://", text)


@pytest.mark.parametrize(
    ("curves", "said"),
    [
        (ramps()[:3], "not (4, T)"),
        (ramps()[0], "not (4, T)"),
        (ramps()[:, :0], "not (4, T)"),
        (ramps() + 0.1, "outside 0..1"),
        (np.full((4, 1500), np.nan), "outside 0..1"),
        (ramps()[:, :1000], "the lights last 8.00 s"),
    ],
)
def test_what_is_no_light_show_is_not_written(wav, tmp_path, curves, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        write_page(tmp_path, wav, curves, FRAME_RATE, "none")
    assert not list(tmp_path.glob("*.html"))
