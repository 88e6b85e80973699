"""Jingle_D on a tiny dataset: audio, pictures, figures, and every way to ask for something else."""

import numpy as np
import pytest
import soundfile
import torch

from models.jingle_d import evaluate, generate, sampling
from models.jingle_d.agreement import agreement, heard
from models.jingle_d.data import onset_mel
from models.jingle_d.train_module import TrainModule
from pipeline.errors import UserError
from pipeline.loader import Evaluation
from pipeline.manifest import read_manifest
from tests.models.helpers import load
from tests.models.jingle_d_data import HOP, RATE, SEGMENT, TINY, arguments, recordings, tiny_info, write_latents

FILES = {"output.wav", "average.wav", "spectrograms.png", "masks.png"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_latents(tmp_path_factory.mktemp("data") / "audio_pairs_demo-mdct", {"train": [2], "valid": [4, 2]})


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return TrainModule(load("jingle_d_demo", *TINY), tiny_info()).eval()


@pytest.fixture
def files(tmp_path):
    """A stereo recording at 44.1 kHz, and a shorter one at 16 kHz."""
    first, second = (wave.astype(np.float32) / 32768 for wave in recordings(7))
    soundfile.write(tmp_path / "a.wav", np.tile(np.stack([first, 0.5 * first], 1), (3, 1)), 44100)
    soundfile.write(tmp_path / "b.flac", second[:9000], 16000)
    return tmp_path / "a.wav", tmp_path / "b.flac"


def test_own_recordings_of_any_length_rate_and_channels(module, files, tmp_path):
    out = tmp_path / "out"
    written = generate.generate(module, arguments("--input", files[0], "--target", files[1]), tmp_path / "none", out)
    assert {path.name for path in written} == FILES == {p.name for p in out.iterdir()}
    audio, rate = soundfile.read(out / "output.wav")
    seconds = 3 * SEGMENT / 44100
    assert rate == RATE and audio.ndim == 1 and 0 <= len(audio) / RATE - seconds < HOP / RATE
    assert np.sqrt(np.mean(audio**2)) > 0.01


def test_windows_leave_no_seam(module):
    """A piece that does not change is rendered as it is, wherever windows meet."""
    torch.manual_seed(1)
    given, target = torch.randn(2, 1, 128, 1).expand(2, 1, 128, 100)
    rendered = sampling.render(module, given, target)
    with torch.no_grad():
        alone = module.mixer(given[..., :32], target[..., :32], module.scale)
    middle = rendered.input_mask[0, :, 40:60]
    assert rendered.wave.shape == (1, 100 * HOP) and rendered.input_mask.shape == (1, 128, 100)
    assert float((middle - alone.input_mask[0, :, 16:17]).abs().max()) < 0.05
    steps = rendered.input_mask.diff(dim=-1).abs().mean(1)[0]
    assert float(steps.max()) < 5 * float(steps.median()) + 0.01


def test_short_targets_begin_again():
    latent = torch.arange(3.0).expand(1, 2, 3)
    assert sampling.as_long_as(latent, 7)[0, 0].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert sampling.as_long_as(latent, 2)[0, 0].tolist() == [0, 1]


def test_held_out_pairs_and_their_targets_shuffled(module, data):
    def audio(*words):
        return generate.mixed(module, arguments("--sample", 1, *words), data)[2].wave[0]

    own = audio()
    assert len(own) == SEGMENT
    drawn = [audio("--shuffle-targets", "--draw", seed) for seed in range(4)]
    assert all((other - own).abs().max() > 1e-3 for other in drawn), "never its own target"
    assert torch.equal(drawn[0], audio("--shuffle-targets")) and any(not torch.equal(x, drawn[0]) for x in drawn)


def test_wrong_inputs_are_told_in_one_sentence_and_write_nothing(module, data, tmp_path, files):
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(RATE), RATE)
    cases = [
        ((), data, "nothing to mix"),
        (("--input", files[0]), data, "--input alone is no pair"),
        (("--input", files[0], "--target", tmp_path / "c.wav"), data, "not there"),
        (("--input", files[0], "--target", silent), data, "silent"),
        (("--input", files[0], "--target", files[1], "--shuffle-targets"), data, "give --sample K"),
        (("--input", files[0], "--sample", 1), data, "leave out --input"),
        (("--sample", 6), data, r"0\.\.5"),
        (("--sample", 0), tmp_path / "none", "--data"),
    ]
    for words, folder, says in cases:
        with pytest.raises(UserError, match=says) as caught:
            generate.generate(module, arguments(*words), folder, tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_training_shows(module, data, tmp_path):
    module.sample(next(iter(Evaluation(read_manifest(data), "valid", batch_size=2))), tmp_path, 10)
    assert {p.name for p in tmp_path.iterdir()} == FILES


# -- figures ---------------------------------------------------------------------------------------------------------------


def test_agreement_tells_rhythm_from_harmony():
    torch.manual_seed(0)
    time = torch.arange(4 * RATE) / RATE
    clicks = [torch.randn(4 * RATE) * torch.exp(-(time % pace) / 0.02) for pace in (0.31, 0.5)]
    chords = [
        sum(torch.sin(2 * torch.pi * 220 * 2 ** (n / 12) * time) for n in notes) for notes in ((0, 4, 7), (1, 5, 10))
    ]
    given, target = (0.2 * (click + chord) for click, chord in zip(clicks, chords, strict=True))
    mixes = torch.stack([0.2 * (clicks[0] + chords[1]), (given + target) / 2, 0.2 * (clicks[1] + chords[0])])
    mel = onset_mel(tiny_info(), 2048, 480)
    found = agreement(*(heard(waves, mel) for waves in (mixes, given.expand(3, -1), target.expand(3, -1))))
    for name in ("onset_correlation", "beat_correlation", "chroma_similarity", "chroma_correlation"):
        right, plain, wrong = found[name].tolist()
        assert right > plain > wrong and right > 0.9, name


def test_figures(module, data, tmp_path):
    found = evaluate.evaluate(module, data, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == FILES
    for name in (
        "input_onset_correlation",
        "target_chroma_similarity",
        "input_beat_correlation",
        "target_envelope_target",
    ):
        assert found[name]["value"] == pytest.approx(1.0, abs=1e-4) and found[name]["count"] == 3, (
            "six samples of three pairs"
        )
    assert found["random_complementarity"]["value"] == pytest.approx(0.75, abs=0.01)
    assert found["random_normalised_complementarity"]["value"] == pytest.approx(0.0, abs=0.02)
    assert 0.05 < found["random_mask_variance"]["value"] < 1 / 12, (
        "windows overlap, and uniform noise is averaged there"
    )
    above = found["onset_correlation_above_average"]
    assert above["value"] == pytest.approx(
        found["output_onset_correlation"]["value"] - found["average_onset_correlation"]["value"]
    )
    assert above["low"] < above["value"] < above["high"]
    assert found["crossover_chroma_similarity"]["value"] > found["average_chroma_similarity"]["value"]
    assert found["output_frechet"] > 0 and -70 <= found["output_loudness_lufs"]["value"] < 0


def test_one_pair_has_no_interval(module, tmp_path):
    folder = write_latents(tmp_path / "one", {"train": [2], "valid": [2]})
    with pytest.raises(UserError, match="has 1 pairs"):
        evaluate.evaluate(module, folder, tmp_path / "out")
