"""Audio files to arrays and back: decoded to the last sample, resampled with soxr VHQ, never read at another rate than their own.

Shape legend: C channels, n samples.
"""

from __future__ import annotations

import io

import numpy as np

from data_prep.stage import BadInput

BLOCK = 1 << 20  # samples decoded at a time, beyond what the header says
LONGEST = 1 << 26  # samples for which the header is believed; what is not there costs address space alone
LOSSLESS = ("WAV", "WAVEX", "RF64", "FLAC", "AIFF")  # their headers say how long they are
STREAMED = (0, 0xFFFFFFFF)  # the size a RIFF header has where its writer could not know it
FULL_SCALE = 32768  # of PCM16
HEADROOM = 0.999  # of full scale, so that the rounded stems of a mixture can be added up in 16 bits


def decode(raw: bytes, name: str, exact_at: int | None = None) -> tuple[np.ndarray, int]:
    """(C, n) float32, full scale 1, and the sample rate in Hz, of a WAV, FLAC, MP3 or whatever else libsndfile reads.

    A file of 16 bits and the rate ``exact_at`` is given as it is: int16, full scale 32768. Decoded from the first block to the last: a
    header's length is believed of no file. Raises BadInput for what is no audio, is cut off, holds no sample, or numbers that are none.
    """
    import soundfile

    blocks = []
    try:
        with soundfile.SoundFile(io.BytesIO(raw)) as file:
            rate, kind, declared = file.samplerate, file.format, file.frames
            dtype = "int16" if rate == exact_at and file.subtype == "PCM_16" else "float32"
            size = min(declared, LONGEST)
            while len(block := file.read(size or BLOCK, dtype=dtype, always_2d=True)):
                blocks.append(block)
                size = BLOCK
    except soundfile.LibsndfileError as error:
        raise BadInput(f"{name} is not readable audio: {error.error_string}") from None  # str() holds a memory address
    except (RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise BadInput(f"{name} is not readable audio: {type(error).__name__}") from None
    audio = (blocks[0] if len(blocks) == 1 else np.concatenate(blocks)).T if blocks else np.zeros((1, 0), np.float32)
    if kind in LOSSLESS and (audio.shape[1] < declared or _riff_is_cut(raw)):
        raise BadInput(f"{name} is cut off: its header promises more than the {audio.shape[1] / rate:.2f} s it holds")
    if audio.shape[1] == 0:
        raise BadInput(f"{name} holds no audio")
    if audio.dtype != np.int16 and not np.isfinite(audio).all():
        raise BadInput(f"{name} holds samples that are not numbers")
    return audio, rate


def as_float(audio: np.ndarray) -> np.ndarray:
    """Whole numbers of full scale 32768 -> float32 of full scale 1; float32 stays. Exact below 512 times full scale."""
    return audio if audio.dtype == np.float32 else audio.astype(np.float32) / np.float32(FULL_SCALE)


def resample(audio: np.ndarray, rate: int, to: int) -> np.ndarray:
    """(C, n) at ``rate`` -> (C, about n * to / rate) at ``to``, float32, by soxr's VHQ recipe."""
    if rate == to:
        return audio
    import soxr

    return np.ascontiguousarray(soxr.resample(audio.T, rate, to, quality="VHQ").T, np.float32)


def decode_at(raw: bytes, name: str, to: int) -> np.ndarray:
    """(C, n) float32 at ``to`` Hz. Raises BadInput as ``decode`` does, and for a lower rate: nothing is upsampled."""
    return _at(decode(raw, name), name, to)


def decode_mono_at(raw: bytes, name: str, to: int) -> np.ndarray:
    """(n,) at ``to`` Hz: the very int16 samples of a mono 16-bit file of that rate, full scale 32768; else float32, full scale 1.

    Raises BadInput as ``decode_at`` does.
    """
    audio = _at(decode(raw, name, exact_at=to), name, to)
    return audio[0] if len(audio) == 1 else mono(as_float(audio))


def _at(decoded: tuple[np.ndarray, int], name: str, to: int) -> np.ndarray:
    audio, rate = decoded
    if rate < to:
        raise BadInput(f"{name} has {rate} Hz, {to} Hz are needed and nothing is upsampled")
    return resample(audio, rate, to)


def mono(audio: np.ndarray) -> np.ndarray:
    """(C, n) -> (n,), the mean of the channels."""
    return audio[0] if len(audio) == 1 else audio.mean(axis=0, dtype=np.float32)


def fitting_gain(*peaks: float) -> float:
    """1, or where the largest of these absolute peaks exceeds HEADROOM, what brings it there."""
    return min(1.0, HEADROOM / max(*peaks, 1e-9))


def peak(audio: np.ndarray) -> float:
    """The largest absolute sample, on the scale of ``audio``; 0 of none."""
    return max(float(audio.max(initial=0)), -float(audio.min(initial=0)))


def pcm16(audio: np.ndarray, gain: float = 1.0) -> np.ndarray:
    """``audio`` of full scale 1, times ``gain``, as int16; the caller has seen to it that nothing exceeds full scale."""
    scaled = audio * np.float32(gain)
    scaled *= np.float32(FULL_SCALE)
    return np.rint(scaled, out=scaled).astype(np.int16)


def _riff_is_cut(raw: bytes) -> bool:
    size = int.from_bytes(raw[4:8], "little")
    return raw[:4] == b"RIFF" and size not in STREAMED and size + 8 > len(raw)
