"""Lights for other programs: curves as npz and CSV, and values for a lighting desk.

``lights.csv`` has a row a frame: seconds, light_1 ... light_4, each in [0, 1]. ``dmx.csv`` has a row for every frame and light: frame,
seconds, universe, channel, value. Universes count from 0 as in Art-Net 4, channels from 1 as in DMX512-A (ANSI E1.11), values go from 0 to
255; the four lights are dimmers on neighbouring channels. A DMX line sends at most 44 frames a second, so ``--fps`` is 40 unless told
otherwise.

Shapes: T frames of the network, F frames of the tables, 4 lights.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from models.cqtml.config import FRAME_RATE, LIGHTS
from pipeline.errors import UserError

UNIVERSES = 32768  # of Art-Net: 15 bits
CHANNELS = 512
DMX_RATE = 44.0  # frames a second that 512 channels leave time for


def at_rate(lights: np.ndarray, fps: float) -> np.ndarray:
    """(4, T) at FRAME_RATE -> (4, F) at ``fps`` frames a second, by straight lines, from 0 to the last frame."""
    seconds = (lights.shape[-1] - 1) / FRAME_RATE
    wanted = np.arange(int(seconds * fps) + 1) / fps
    given = np.arange(lights.shape[-1]) / FRAME_RATE
    return np.stack([np.interp(wanted, given, curve) for curve in lights]).astype(np.float32)


def check_place(fps: float, universe: int, channel: int) -> None:
    """UserError for a frame rate, universe or first channel that no desk takes."""
    if not 1 <= fps <= FRAME_RATE:
        raise UserError(
            f"--fps {fps:g} is not a frame rate here; give 1 to {FRAME_RATE:.0f} (DMX: at most {DMX_RATE:.0f})."
        )
    if not 0 <= universe < UNIVERSES:
        raise UserError(f"--universe {universe} is none; Art-Net has 0 to {UNIVERSES - 1}.")
    if not 1 <= channel <= CHANNELS - LIGHTS + 1:
        raise UserError(f"--channel {channel} leaves no room for {LIGHTS} lights; give 1 to {CHANNELS - LIGHTS + 1}.")


def write_tables(folder: Path, suffix: str, curves: np.ndarray, fps: float, universe: int, channel: int) -> list[Path]:
    """``lights<suffix>.npz`` (brightness (4, F), fps), ``lights<suffix>.csv`` and ``dmx<suffix>.csv``; the files."""
    arrays, plain, desk = (
        folder / f"{name}{suffix}.{kind}" for name, kind in (("lights", "npz"), ("lights", "csv"), ("dmx", "csv"))
    )
    np.savez_compressed(arrays, brightness=curves, fps=np.float64(fps))
    with plain.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["seconds", *(f"light_{n + 1}" for n in range(LIGHTS))])
        rows.writerows([f"{frame / fps:.4f}", *(f"{b:.4f}" for b in values)] for frame, values in enumerate(curves.T))
    with desk.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["frame", "seconds", "universe", "channel", "value"])
        for frame, values in enumerate(np.rint(255 * curves.T).astype(int).tolist()):
            rows.writerows(
                [frame, f"{frame / fps:.4f}", universe, channel + n, value] for n, value in enumerate(values)
            )
    return [arrays, plain, desk]
