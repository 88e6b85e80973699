"""The page of a song: it plays the music with the four lights, above their curves; one file that opens offline in any browser."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from urllib.parse import quote

import numpy as np
import soundfile

from pipeline.files import write_atomic
from pipeline.light_show.page import pack, render

TEMPLATE = Path(__file__).with_name("page.html")
LARGEST_INSIDE = 16 << 20  # bytes: six minutes of 16-bit mono at 22,050 Hz; a larger page is hard to send
TOLERANCE = 0.5  # seconds by which light may be shorter or longer than the music


def write_page(
    folder: Path, wav: Path, curves: np.ndarray, frame_rate: float, title: str, name: str = "lights"
) -> Path:
    """Write ``folder/<name>.html`` and return it.

    ``curves``: brightness (4, T) in 0..1, frame i at i / ``frame_rate`` seconds. The music goes into the page, so that one file can be sent
    to anyone; a recording larger than LARGEST_INSIDE lies beside it, and is copied there where it does not. ValueError for curves that are
    none, or that do not last as long as the music; soundfile's LibsndfileError where ``wav`` is no recording.
    """
    packed = pack(curves)
    seconds, lit = soundfile.info(str(wav)).duration, curves.shape[1] / frame_rate
    if abs(seconds - lit) > TOLERANCE:
        raise ValueError(f"the lights last {lit:.2f} s and {wav.name} {seconds:.2f} s")
    page = render(
        TEMPLATE, "media-src 'self' file: data:",
        title=title, audio=_source(wav, folder), data={"curves": packed, "frame_rate": frame_rate},
    )  # fmt: skip
    path = folder / f"{name}.html"
    write_atomic(path, page.encode(), durable=False)
    return path


def _source(wav: Path, folder: Path) -> str:
    """The address that the page plays."""
    if wav.stat().st_size <= LARGEST_INSIDE:
        return f"data:audio/wav;base64,{base64.b64encode(wav.read_bytes()).decode()}"
    beside = folder / wav.name
    if not beside.exists() or not beside.samefile(wav):
        shutil.copyfile(wav, beside)
    return quote(wav.name)
