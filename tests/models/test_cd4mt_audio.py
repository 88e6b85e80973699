"""CD4MT on a tiny dataset: figures, audio and pictures, and every way to ask for something else."""

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from models.cd4mt import codec_cost, coherence, evaluate, generate, inputs, separation
from models.cd4mt import data as facts
from models.cd4mt.external import load_external
from models.cd4mt.showing import to_audio, write_stems
from models.cd4mt.statistics import Comparison, spectra_of_audio, spectra_of_mels
from models.cd4mt.train_module import TrainModule
from models.features import AUDIOLDM2, log_mel, loudest
from pipeline.errors import UserError
from pipeline.loader import Evaluation
from pipeline.manifest import read_manifest
from tests.models.cd4mt_data import FRAMES, SEGMENT, TINY, arguments, stems, tiny_info, write_latents
from tests.models.helpers import load

STEMS = ["bass", "drums", "guitar", "piano"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_latents(tmp_path_factory.mktemp("data"), {"train": [3], "valid": [2], "test": [2, 2]})


@pytest.fixture(scope="module")
def module():
    return TrainModule(load("cd4mt_demo", *TINY), tiny_info()).eval()


@pytest.fixture
def recordings(tmp_path):
    """drums.wav and a bass of another name, 0.3 s of the first sample's length and less."""
    for name, number, length in (("drums", 1, 9000), ("take3", 0, 5000)):
        wave = np.tile(stems(0)[number], 2)[:length]
        soundfile.write(tmp_path / f"{name}.wav", wave, 44100, subtype="PCM_16")
    return tmp_path / "drums.wav", f"bass={tmp_path / 'take3.wav'}"


def made(module, data, out, *words):
    return {path.name for path in generate.generate(module, arguments(*words, "--steps", 2), data, out)}


PICTURES = {"waveforms.png", "spectrograms.png"}


def test_four_stems_of_any_length(module, data, tmp_path):
    files = made(module, data, tmp_path, "--seconds", 0.25)
    assert files == {f"{name}.wav" for name in (*STEMS, "mix")} | PICTURES == {p.name for p in tmp_path.iterdir()}
    mix, rate = soundfile.read(tmp_path / "mix.wav")
    assert rate == 44100 and len(mix) == 22 * 512
    parts = sum(soundfile.read(tmp_path / f"{name}.wav")[0] for name in STEMS)
    assert np.abs(mix - parts).max() < 1e-3  # one gain for all: the balance holds


def test_own_stems_are_accompanied_and_kept(module, data, tmp_path, recordings):
    assert (
        made(module, data, tmp_path / "out", "--given", *recordings, "--make", "piano")
        == {"mix.wav", "piano.wav"} | PICTURES
    )
    audio, _ = soundfile.read(tmp_path / "out/piano.wav")
    assert len(audio) == 9000
    wanted = inputs.task(module, arguments("--given", *recordings), data)
    assert wanted.given == ["drums", "bass"] and wanted.make == ["guitar", "piano"] and wanted.frames == 18
    latents = generate.continued(module, wanted, 2, 0)
    assert torch.equal(latents[:, :2], wanted.known.latents[:, :2])
    assert (latents[:, 2:, :, -1] != 0).all()


def test_a_held_out_sample_gives_the_stems_that_are_not_made(module, data, tmp_path):
    wanted = inputs.task(module, arguments("--sample", 3, "--make", "drums"), data)
    assert wanted.given == ["bass", "guitar", "piano"] and wanted.samples == SEGMENT and wanted.frames == FRAMES
    assert made(module, data, tmp_path, "--sample", 3, "--make", "drums") == {"mix.wav", "drums.wav"} | PICTURES


def test_a_longer_piece_goes_on_from_what_was_made(module, monkeypatch):
    asked = []

    def draw(numbers, frames, steps, known, seed):
        asked.append((int(numbers[0]), None if known is None else known.mask[0, 0, 0].tolist()))
        new = torch.full((1, 4, 64, frames), float(numbers[0] + 1))
        return new if known is None else known.put(new)

    monkeypatch.setattr(module, "draw", draw)
    whole = generate.continued(module, inputs.task(module, arguments("--seconds", 16 * 512 / 44100), None), None, 0)
    assert whole[0, 0, 0].tolist() == [1.0] * 8 + [2.0] * 4 + [3.0] * 4
    assert asked == [(0, None), (1, [True] * 4 + [False] * 4), (2, [True] * 4 + [False] * 4)]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_others_are_loaded_by_name(module, tmp_path, suffix):
    other = TrainModule(load("cd4mt_demo", *TINY), tiny_info())
    state = {f"module.{name}": value + 1 for name, value in module.denoiser.network.state_dict().items()}
    path = tmp_path / f"ema{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    load_external(other, path)
    loaded = other.denoiser.network.state_dict()
    assert all(torch.equal(loaded[name.removeprefix("module.")], value) for name, value in state.items())


def test_weights_that_do_not_fit_are_listed_one_and_all(module, tmp_path):
    state = module.denoiser.network.state_dict()
    names = list(state)[:9]
    wrong = {k: v for k, v in state.items() if k not in names} | {f"extra.{i}": torch.zeros(1) for i in range(7)}
    wrong["out.2.bias"] = torch.zeros(3)
    torch.save(wrong, tmp_path / "ema.pth")
    before = {k: v.clone() for k, v in state.items()}
    with pytest.raises(UserError) as caught:
        load_external(module, tmp_path / "ema.pth")
    said = str(caught.value)
    assert all(f"missing {name}" in said for name in names) and all(f"unknown extra.{i}" in said for i in range(7))
    assert "reshaped out.2.bias" in said
    assert all(torch.equal(v, before[k]) for k, v in module.denoiser.network.state_dict().items())


class Evil:
    def __reduce__(self):
        return print, ("unpickled",)


def test_files_that_are_no_tables_of_tensors_are_refused(module, tmp_path, capsys):
    for name, content in (("evil.pth", Evil()), ("nested.pth", {"ema": {}}), ("list.pth", [1])):
        torch.save(content, tmp_path / name)
    (tmp_path / "noise.safetensors").write_bytes(b"no weights at all")
    for name in ("evil.pth", "nested.pth", "list.pth", "noise.safetensors", "none.pth"):
        with pytest.raises(UserError) as caught:
            load_external(module, tmp_path / name)
        assert "\n" not in str(caught.value)
    assert "unpickled" not in capsys.readouterr().out


def test_wrong_inputs_are_told_in_one_sentence_and_write_nothing(module, data, tmp_path, recordings):
    drums, bass = recordings
    cases = [
        (("--given", tmp_path / "drum.wav"), "there is no such stem. Did you mean 'drums'"),
        (("--given", drums, drums), "drums twice"),
        (("--given", drums, "--make", "drums"), "given and to be made"),
        (("--given", drums, bass, f"piano={drums}", f"guitar={drums}"), "all stems are given"),
        (("--given", "piano=none.wav"), "not there"),
        (("--given", drums, "--sample", 1), "one of them"),
        (("--sample", 1), "say which to --make"),
        (("--sample", 1, "--make", *STEMS), "gives nothing"),
        (("--sample", 4, "--make", "drums"), r"0\.\.3"),
        (("--make", "violin"), "no such stem"),
        (("--separate", drums), "data.codec=meldct"),
        (("--separate", drums, "--make", "drums"), "leave out --given"),
        (("--seconds", 0), "more than 0"),
        (("--steps", 0), r"1\.\.1000"),
        (("--weights", tmp_path / "none.pth"), "no such file"),
    ]
    for words, says in cases:
        with pytest.raises(UserError, match=says) as caught:
            generate.generate(module, arguments(*words), data, tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_loud_stems_are_turned_down_together(tmp_path):
    waves = {"bass": torch.full((44100,), 0.9), "drums": torch.full((44100,), 0.45)}
    write_stems(tmp_path, waves, 44100)
    middle = {name: soundfile.read(tmp_path / f"{name}.wav")[0][22050] for name in ("bass", "drums", "mix")}
    assert middle["mix"] == pytest.approx(0.99, abs=1e-3) and middle["bass"] / middle["drums"] == pytest.approx(
        2, abs=1e-3
    )


def test_stems_that_belong_together_agree_more_than_shuffled_ones():
    random = np.random.default_rng(0)
    waves = torch.zeros(4, 3, 66150)
    for song in waves:
        for at in random.integers(0, 60000, 6):
            song[:, at : at + 3000] = torch.from_numpy(random.normal(0, 0.3, (3, 3000))).float()
    features, heard = coherence.onsets(waves, 44100), coherence.audible(waves)
    own = coherence.agreement(features, heard)
    foreign = coherence.agreement(coherence.shuffled(features), coherence.shuffled(heard))
    assert (own > 0.7).all() and (foreign < 0.4).all()
    waves[0, 1:] = 0
    assert coherence.agreement(coherence.onsets(waves, 44100), coherence.audible(waves))[0].isnan()


def test_chroma_knows_a_fifth_from_an_octave():
    time = torch.arange(88200) / 44100
    note, octave, fifth = (torch.sin(2 * torch.pi * hertz * time) for hertz in (220.0, 440.0, 330.0))
    found = coherence.chroma(torch.stack([note, octave, fifth]), 44100)
    same, other = (torch.nn.functional.cosine_similarity(found[0], found[i], dim=0) for i in (1, 2))
    assert same > 0.8 > 0.3 > other


def test_the_mel_of_a_mixture_is_that_of_what_sounds():
    mels = torch.full((1, 3, 64, 40), -20.0)
    mels[:, 1] = torch.linspace(-8, 1, 64)[:, None]
    found = spectra_of_mels(mels, AUDIOLDM2)
    assert found.log_mels.shape == (1, 4, 32, 40) and found.rate == 100
    torch.testing.assert_close(found.log_mels[:, 3], found.log_mels[:, 1], atol=2e-3, rtol=0)
    assert found.log_mels[:, 0].unique().tolist() == [pytest.approx(np.log(1e-5))]
    mels[:, 2] = mels[:, 1]
    louder = spectra_of_mels(mels, AUDIOLDM2).log_mels[:, 3] - found.log_mels[:, 3]
    assert louder.mean() == pytest.approx(np.log(2) / 2, abs=1e-2)


def test_a_mel_that_is_too_high_is_no_bang():
    tone = torch.sin(2 * torch.pi * 60 / 16000 * torch.arange(16000))
    assert loudest(AUDIOLDM2) - 0.3 < log_mel(tone, AUDIOLDM2).max() < loudest(AUDIOLDM2)
    module = TrainModule(load("cd4mt_demo"), facts.typical_data(load("cd4mt_demo")))
    latents = torch.zeros(1, 4, 128, 10)
    latents[:, 1, 0, 4] = 30.0  # e^7.5 times a full-scale sine
    wave = to_audio(module, latents, 2)
    assert wave.shape == (1, 4, 6400) and 0.1 < wave[:, 1].abs().max() < 10


def test_statistics_are_of_windows_of_a_third_of_a_second():
    waves = 0.1 * torch.randn(2, 4, 32768)
    found = spectra_of_audio(waves, 44100)
    assert found.statistics().shape == (5, 4, 64)
    same = Comparison(STEMS, found).one("x", found)
    assert set(same) == {f"x_frechet_{name}" for name in (*STEMS, "stems", "total")} and max(same.values()) < 1e-6
    louder = Comparison(STEMS, found).one("x", spectra_of_audio(2 * waves, 44100))
    assert louder["x_frechet_total"] == pytest.approx(
        32 * np.log(2) ** 2, rel=1e-3
    )  # deviations stay, means move by ln 2


@pytest.mark.parametrize("objective", ["ect", "edm"])
def test_figures(objective, data, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "SEEDS", 3)
    monkeypatch.setattr(evaluate, "DRAWS", 4)
    monkeypatch.setattr(evaluate, "BATCH", 4)
    monkeypatch.setattr("models.cd4mt.sampling.DIFFUSION_STEPS", 2)
    name = {"ect": "cd4mt_demo", "edm": "cd4mt_demo_edm"}[objective]
    facts = tiny_info()
    facts["latent"]["source"] = read_manifest(data.with_name("slakh_stems_demo")).identity
    found = evaluate.evaluate(TrainModule(load(name, *TINY), facts), data, tmp_path)
    ways = {"ect": {"one_step": 1, "two_steps": 2}, "edm": {"diffusion": 3}}[objective]
    for way, count in ways.items():
        assert found[f"{way}_evaluations"] == count and found[f"{way}_seconds_a_sample"] > 0
        for track in (*STEMS, "stems", "total"):
            figure = found[f"{way}_frechet_{track}"]
            assert figure["low"] <= figure["value"] <= figure["high"] and figure["count"] == 3
    memory = found["training_songs_frechet_total"]["value"]
    assert min(found["noise_frechet_total"]["value"], found["mean_stem_frechet_total"]) > memory
    assert not any("si_sdr" in name for name in found)  # mdct: nothing is separated
    assert found["codec_median_snr_db"] > 20 and found["codec_log_mel_error_db"] < 10
    assert found["codec_frechet_total"] < found["noise_frechet_total"]["value"]
    assert {"data_beat_agreement", "imputation_beat_above_shuffled", "imputation_harmony_agreement"} <= found.keys()
    assert {p.name for p in tmp_path.iterdir()} == PICTURES


def test_the_codecs_cost_is_of_each_sample_with_itself(module, data, monkeypatch):
    """A pass over the latents may come in another order than one over the recordings: samples are paired by their numbers."""
    facts = tiny_info()
    facts["latent"]["source"] = read_manifest(data.with_name("slakh_stems_demo")).identity
    paired = TrainModule(load("cd4mt_demo", *TINY), facts)
    right = codec_cost.codec_cost(paired, data, "test")["codec_median_snr_db"]
    whole = codec_cost._by_number
    turned = lambda manifest, split, field, count: whole(manifest, split, field, count).roll(int(field == "stems"), 0)  # noqa: E731
    monkeypatch.setattr(codec_cost, "_by_number", turned)
    assert codec_cost.codec_cost(paired, data, "test")["codec_median_snr_db"] < 3 < 20 < right
    assert codec_cost.codec_cost(TrainModule(load("cd4mt_demo", *TINY), tiny_info()), data, "test") == {}


SMALL = ("model.unet.channels=16", "model.unet.head_channels=8", "model.frames=10")


class Knowing(torch.nn.Module):
    """The exact denoiser of stems that are of one sound each, some of deviation 1 about ``sounds`` (S, C, L)."""

    def __init__(self, sounds):
        super().__init__()
        self.sounds = sounds

    def forward(self, x, sigma):
        share = 0.25 / (0.25 + sigma.reshape(-1, 1, 1, 1) ** 2)
        return self.sounds + share * (x - self.sounds)


@pytest.fixture(scope="module")
def in_bands():
    """A module with that denoiser: the stems lie in bands of their own, and how loud they are is not known."""
    config = load("cd4mt_demo", *SMALL)
    info = facts.typical_data(config)
    module = TrainModule(config, info).eval()
    mels = torch.full((1, 4, 64, 40), -9.0)
    for stem in range(4):
        mels[:, stem, 16 * stem : 16 * stem + 16] = -1.0
    sounds = module.scale.apply(facts.arranged(separation.analytic_codec(module).encode_mel(mels)))
    module.denoiser = Knowing(sounds[0])
    return module, mels


@pytest.mark.parametrize("objective", ["ect", "edm"])
def test_sampling_is_led_to_stems_that_sound_like_the_mixture(in_bands, objective, monkeypatch):
    module, mels = in_bands
    monkeypatch.setattr(module, "model_config", module.model_config.model_copy(update={"objective": objective}))
    louder = mels + torch.tensor([0.6, -0.6, 0.3, 0.0]).reshape(1, 4, 1, 1)
    mixture = separation.added(louder)
    found = separation.mels_of(module, separation.separated(module, mixture, 6))
    free = separation.mels_of(module, module.draw(torch.arange(1), 10, 2))
    off = [(separation.added(x) - mixture).abs().mean() for x in (found, free)]
    assert off[0] < 0.05 < 0.3 < off[1]
    for stem in range(4):
        own = slice(16 * stem, 16 * stem + 16)
        torch.testing.assert_close(found[0, stem, own].mean(), louder[0, stem, own].mean(), atol=0.05, rtol=0)


def test_what_is_separated_adds_up_to_the_recording(in_bands, tmp_path, data):
    module, _ = in_bands
    wave = 0.1 * np.random.default_rng(0).normal(size=9000)
    soundfile.write(tmp_path / "mix.wav", wave, 16000, subtype="FLOAT")
    files = made(module, data, tmp_path / "out", "--separate", tmp_path / "mix.wav")
    assert files == {f"{name}.wav" for name in (*STEMS, "mix")} | PICTURES
    stems = [soundfile.read(tmp_path / f"out/{name}.wav")[0] for name in STEMS]
    assert all(len(stem) == 9000 for stem in stems)
    assert np.abs(sum(stems) - wave)[400:-400].max() < 1e-3  # what is written is faded in and out
    centroids = [np.fft.rfftfreq(9000) @ np.abs(np.fft.rfft(stem)) / np.abs(np.fft.rfft(stem)).sum() for stem in stems]
    assert centroids == sorted(centroids)  # each stem has its own bands


def test_figures_of_separation_lie_between_other_draws_and_the_stems_own_mels(in_bands):
    module, mels = in_bands
    waves = separation.analytic_codec(module).vocode(
        mels.expand(2, -1, -1, -1) + torch.tensor([0.0, 0.5]).reshape(2, 1, 1, 1)
    )
    found = separation.separation(module, waves)
    above = {name: found[f"{name}_si_sdr_above_mixture_db"]["value"] for name in ("separated", "oracle")}
    assert above["oracle"] > 10 and above["separated"] > 5
    assert found["separated_log_mel_error_db"]["value"] < found["equal_log_mel_error_db"]["value"]
    assert found["separated_si_sdr_above_mixture_db_piano"]["count"] == 2


def test_what_training_shows(module, data, tmp_path):
    module.sample(next(iter(Evaluation(read_manifest(data), "valid", batch_size=2))), tmp_path, 10)
    assert {p.name for p in tmp_path.iterdir()} == {f"{name}.wav" for name in (*STEMS, "mix")} | PICTURES
