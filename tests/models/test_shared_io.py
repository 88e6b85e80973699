"""What every system reads recordings, cuts windows and shows waveforms with."""

import resource

import numpy as np
import pytest
import soundfile
import torch

from models.inputs import read_recording
from models.showing import write_wave, write_waveforms
from models.windows import overlap_add, window_starts
from pipeline.errors import UserError


@pytest.mark.parametrize(("length", "window", "hop"), [(10, 10, None), (11, 10, None), (1000, 64, 16), (999, 64, 50)])
def test_windows_cover_all_and_add_up_without_a_seam(length, window, hop):
    starts = window_starts(length, window, hop)
    assert starts[0] == 0 and starts[-1] == length - window and starts == sorted(set(starts))
    whole = torch.randn(2, length, dtype=torch.float64)
    windows = torch.stack([whole[:, s : s + window] for s in starts])
    assert torch.allclose(overlap_add(windows, starts, length), whole, atol=1e-12)


def test_less_than_a_window_is_said():
    with pytest.raises(ValueError, match="9 points are less than a window of 10"):
        window_starts(9, 10)


def tone(path, rate, channels, seconds=0.5, level=0.1):
    time = np.arange(round(rate * seconds)) / rate
    audio = np.stack([level * np.sin(2 * np.pi * 440 * time + c) for c in range(channels)], axis=1)
    soundfile.write(path, audio, rate, subtype="PCM_24")
    return audio.T


def test_a_recording_comes_at_the_rate_and_channels_that_are_asked_for(tmp_path):
    stereo = tone(tmp_path / "stereo.wav", 48000, 2)
    assert np.allclose(read_recording(tmp_path / "stereo.wav", 48000, channels=2), stereo, atol=1e-6)
    assert np.allclose(read_recording(tmp_path / "stereo.wav", 48000), stereo.mean(0), atol=1e-6)
    assert read_recording(tmp_path / "stereo.wav", 24000, channels=None).shape == (2, 12000)
    tone(tmp_path / "mono.wav", 44100, 1)
    left, right = read_recording(tmp_path / "mono.wav", 44100, channels=2)
    assert np.array_equal(left, right)


def test_a_recording_that_cannot_be_used_gets_one_sentence(tmp_path):
    def refusal(name, **words):
        with pytest.raises(UserError) as refused:
            read_recording(tmp_path / name, 16000, **words)
        return str(refused.value)

    (tmp_path / "text.wav").write_text("no audio")
    tone(tmp_path / "three.wav", 16000, 3)
    tone(tmp_path / "quiet.wav", 16000, 1, level=1e-6)
    soundfile.write(tmp_path / "nan.wav", np.full(1600, np.nan), 16000, subtype="FLOAT")
    assert "is not there" in refusal("missing.wav")
    assert "is a folder" in refusal(".")
    assert "is not audio that can be read" in refusal("text.wav")
    assert "3 channels" in refusal("three.wav", channels=2)
    assert "lasts 0.50 s; at least 2.00 s" in refusal("three.wav", shortest=2.0)
    assert "silent" in refusal("quiet.wav") and "no audio" in refusal("nan.wav")


def test_waves_are_written_and_drawn(tmp_path):
    loud = torch.stack([torch.linspace(-3, 3, 8000), torch.zeros(8000)])
    audio, rate = soundfile.read(write_wave(tmp_path / "new" / "loud.wav", loud, 16000))
    assert rate == 16000 and audio.shape == (8000, 2) and 0.95 < np.abs(audio).max() < 1
    assert audio[0, 0] == 0 and audio[-1, 0] == 0, "faded"
    rows = [("stem", [("mono", loud[0]), ("stereo", loud)]), ("short", [("few samples", torch.zeros(3))])]
    assert write_waveforms(tmp_path / "waves.png", "Waves", rows, 16000).stat().st_size > 5000


def test_a_disk_that_fills_while_a_wave_is_written_is_an_error_of_the_disk(tmp_path):
    """A limit on file size is a write that fails for real; the trainer lives through an OSError, and nothing else, of its samples."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_wave(tmp_path / "long.wav", torch.zeros(100_000), 16000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
