"""What generation works on: a sample of the held-out split, or the user's own recording.

Shapes: C channels, n samples.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.manifest import Manifest, read_manifest
from pipeline.samples import SplitReader
from pipeline.shards import DamagedSample

SILENT = 1e-4  # RMS below which a recording holds nothing


def held_out_split(manifest: Manifest) -> str:
    """``test``; or ``valid``, where a dataset comes in two parts only."""
    return "test" if manifest.samples("test") else "valid"


def held_out_sample(
    number: int, data_folder: Path, option: str = "--sample", split: str = "test"
) -> tuple[Manifest, dict[str, Any]]:
    """Sample ``number`` of the held-out split, decoded, and the manifest it is of. UserError where there is none such."""
    manifest = read_manifest(data_folder)
    total = manifest.samples(split)
    if not 0 <= number < total:
        has = f"the samples 0..{total - 1}" if total else "no samples"
        raise UserError(f"{option} {number}: the held-out split of {data_folder} has {has}.")
    with closing(SplitReader(manifest, split)) as reader:
        try:
            return manifest, reader.sample(number)
        except DamagedSample as error:
            raise UserError(f"{option} {number}: {error}; prepare the data again.") from None


def read_recording(path: Path, sample_rate: int, *, channels: int | None = 1, shortest: float = 0.0) -> np.ndarray:
    """(C, n) float32, full scale 1, at ``sample_rate`` Hz, of any file that libsndfile reads.

    Args:
        channels: 1: the mean of all; 2: stereo, a mono recording on both sides; None: as many as there are.
        shortest: seconds that it must last.

    Raises UserError where the file is missing, no audio, of more than two channels where two are wanted, too short, silent or damaged.
    """
    import soundfile  # late, as soxr: nobody who only trains waits for them
    import soxr

    if not path.is_file():
        raise UserError(f"{path} is {'a folder' if path.is_dir() else 'not there'}; give a recording, WAV or FLAC.")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty; give a recording, WAV or FLAC.")
    try:
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        reason = error.error_string.rstrip(".")
        raise UserError(f"{path} is not audio that can be read ({reason}); give a WAV or FLAC.") from None
    if channels == 1:
        audio = audio.mean(axis=1, keepdims=True)
    elif channels == 2 and audio.shape[1] != 2:
        if audio.shape[1] > 2:
            raise UserError(f"{path} has {audio.shape[1]} channels; give a mono or stereo recording.")
        audio = np.repeat(audio, 2, axis=1)
    if rate != sample_rate:
        audio = soxr.resample(audio, rate, sample_rate, quality="VHQ")
    seconds = len(audio) / sample_rate
    if seconds < shortest or not len(audio):
        raise UserError(f"{path} lasts {seconds:.2f} s; at least {shortest:.2f} s are needed.")
    if not np.isfinite(audio).all() or rms(audio) < SILENT:
        raise UserError(f"{path} is silent or holds numbers that are no audio.")
    return np.ascontiguousarray(audio.T, np.float32)


def rms(audio: np.ndarray) -> float:
    """Root mean square over everything, in double precision."""
    return float(np.sqrt(np.mean(np.square(audio, dtype=np.float64))))
