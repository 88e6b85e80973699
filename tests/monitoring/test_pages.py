"""MLflow's own pages in a real browser, headless: curves, parameters, a picture and a sound of a mirrored run are on them."""

from __future__ import annotations

import math
import os
import subprocess
import time
import wave
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import numpy as np
import psutil
import pytest

from monitoring.system import system_file
from pipeline.journal import Journal
from tests.browser import BROWSER
from tests.monitoring.conftest import Bench
from tests.monitoring.run_factory import attempt, end, make_run
from tests.monitoring.test_dashboard import started, wait_for

PAGES = {  # of a run: what must stand in the page when its scripts have run
    "": ["Finished", "train/loss", "model.system"],
    "/model-metrics": ["learning_rate", "js-plotly-plot"],
    "/system-metrics": ["cpu_utilization_percentage", "js-plotly-plot"],
    "/artifacts/samples/step_000000100/mixture.png": ["step_000000100/mixture.png", "<img"],
    "/artifacts/samples/step_000000100/mixture.wav": ["step_000000100/mixture.wav", "audio-artifact-preview"],
}


def add_real_samples(folder: Path) -> None:
    folder.mkdir()
    matplotlib.image.imsave(folder / "mixture.png", np.add.outer(np.arange(60), np.arange(90)) % 7)
    with wave.open(str(folder / "mixture.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16000)
        sound.writeframes((9000 * np.sin(np.arange(32000) * 440 * 2 * math.pi / 16000)).astype("<i2").tobytes())


@pytest.fixture
def address(bench: Bench, tmp_path) -> Iterator[str]:
    if BROWSER is None:
        pytest.skip("NOT TESTED: no chromium on this machine, so nobody looks at MLflow's pages; install it: chromium")
    run = make_run(bench.runs)
    attempt(run, 0, 200)
    end(run, "complete", 200)
    beside = Journal(system_file(run, 1, 0), 1, 0)
    beside.log(100, {"system/cpu_utilization_percentage": 50.0})
    beside.close()
    add_real_samples(run.samples / "step_000000100")
    with started(bench, tmp_path) as process:
        wait_for(lambda: (tmp_path / "out").read_text() or process.poll() is not None, 180)
        yield (tmp_path / "out").read_text().strip()
        process.send_signal(psutil.signal.SIGTERM)


def page(address: str, tmp_path: Path) -> str:
    """The page as it stands when its scripts have run."""
    words = ["--headless=new", "--disable-gpu", "--virtual-time-budget=25000", f"--user-data-dir={tmp_path}/browser"]
    words += ["--no-sandbox"] if os.getuid() == 0 else []
    done = subprocess.run([BROWSER, *words, "--dump-dom", address], capture_output=True, text=True, timeout=180)
    return done.stdout


def must_show(where: str, wanted: list[str], tmp_path: Path) -> None:
    deadline = time.monotonic() + 120
    while missing := [text for text in wanted if text not in (shown := page(where, tmp_path))]:
        assert time.monotonic() < deadline, f"{where} lacks {missing}: {shown[-2000:]}"


@pytest.mark.soak
def test_the_pages_show_curves_parameters_pictures_and_sounds(bench: Bench, address: str, tmp_path):
    run_id = bench.run().info.run_id
    for end_of_address, wanted in PAGES.items():
        where = f"{address}/#/experiments/1/runs/{run_id}{end_of_address}?workflowType=machine_learning"
        must_show(where, wanted, tmp_path)
    (said,) = [line for line in (tmp_path / "err").read_text().splitlines() if "MLflow shows" in line]
    front = next(word for word in said.split() if word.startswith(address))
    must_show(front, ["dismix_demo/1f3a9c2e", "Duration", "train/loss"], tmp_path)
