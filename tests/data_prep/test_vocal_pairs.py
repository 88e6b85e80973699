"""Raw and mixed vocals: lags found, stereo kept, references that are no leak, and every trap by its name."""

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import sosfreqz

from data_prep import demo_vocal_styles
from data_prep.alignment import estimate_lag
from data_prep.band import compose
from data_prep.demo_vocal_pairs import TAKEN_BACK, TASTE, plan
from data_prep.demo_vocals import STYLE, gather_settings, raw_take, render_take
from data_prep.effects import Band, biquad, process
from data_prep.vocal_pairs import RECIPES
from data_prep.voice import sing
from pipeline.errors import UserError
from pipeline.manifest import read_manifest
from tests.data_prep.building import build, samples, tree

STAGE = dataclasses.replace(RECIPES["vocal_pairs_demo"], segment=48000, inputs_per_shard=3)
RATE = 48000


def voice(seed: int, seconds: float = 4.0) -> np.ndarray:
    return sing(compose(random.Random(seed), 2, tempo=120).parts["lead"], seconds, RATE, str(seed))


def mixed(take: np.ndarray, seed: int, latency: int) -> np.ndarray:
    """(2, n) by the demo's chain."""
    wave = process(take, dataclasses.replace(STYLE, latency=latency, pan=0.1), RATE, seed, 0.5)
    return 0.9 / np.abs(wave).max() * wave


def write(path: Path, audio: np.ndarray, rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, rate, subtype="PCM_16")


@pytest.fixture(scope="module")
def takes() -> list[tuple[np.ndarray, np.ndarray]]:
    return [(take := voice(seed), mixed(take, seed, (0, 1024, 4096, 700)[seed])) for seed in range(4)]


def write_corpus(folder: Path, takes) -> Path:
    for number, (take, processed) in enumerate(takes):
        write(folder / f"raw/No. {number} lead.wav", take)
        write(folder / f"mixed/No. {number} lead.wav", processed.T)
    return folder


@pytest.fixture
def corpus(takes, tmp_path) -> Path:
    """To spoil."""
    return write_corpus(tmp_path / "vocals", takes)


@pytest.fixture(scope="module")
def prepared(takes, tmp_path_factory) -> tuple[Path, Path]:
    """Where the files lie and where the shards."""
    corpus = write_corpus(tmp_path_factory.mktemp("vocals"), takes)
    folder, quarantined = build(corpus, tmp_path_factory.mktemp("prepared") / STAGE.recipe, STAGE)
    assert quarantined == {}
    return corpus, folder


def test_pairs_are_aligned_stereo_is_kept_and_the_lag_recorded(prepared):
    corpus, folder = prepared
    info = read_manifest(folder).info
    assert (info["sample_rate"], info["seconds"], info["tracks"]) == (RATE, 1.0, ["raw", "mixed", "reference"])
    lags, splits = {}, {}
    for sample in samples(folder):
        meta = sample["meta"]
        assert sample["raw"].shape == (1, RATE)
        assert sample["mixed"].shape == sample["reference"].shape == (2, RATE)
        assert sample["lag"] == meta["lag"]
        lags[meta["name"]] = meta["lag"]
        assert splits.setdefault(meta["name"], (sample["split"], int(sample["song"]))) == (
            sample["split"],
            sample["song"],
        )
        source = soundfile.read(corpus / f"mixed/{meta['name']}.wav", dtype="int16")[0].T
        at = meta["start"] + meta["lag"]
        np.testing.assert_array_equal(sample["mixed"], source[:, at : at + RATE])
        assert not np.array_equal(sample["mixed"][0], sample["mixed"][1])
        take = soundfile.read(corpus / f"raw/{meta['name']}.wav", dtype="int16")[0]
        np.testing.assert_array_equal(sample["raw"][0], take[meta["start"] :][:RATE])
    assert lags == {"No. 0 lead": 0, "No. 1 lead": 1024, "No. 2 lead": 4096, "No. 3 lead": 700}
    assert len({song for _, song in splits.values()}) == 4
    assert {split for split, _ in splits.values()} == {"train", "valid", "test"}


def test_a_reference_is_another_section_of_the_same_song(prepared):
    corpus, folder = prepared
    for sample in samples(folder):
        meta = sample["meta"]
        assert sample["has_reference"]
        assert abs(meta["reference_start"] - meta["start"]) >= RATE
        source = soundfile.read(corpus / f"mixed/{meta['name']}.wav", dtype="int16")[0].T
        at = meta["reference_start"] + meta["lag"]
        np.testing.assert_array_equal(sample["reference"], source[:, at : at + RATE])


def test_a_song_of_one_segment_has_no_reference_and_says_so(corpus, tmp_path):
    stage = dataclasses.replace(STAGE, segment=4 * RATE)
    folder, _ = build(corpus, tmp_path / "out", stage)
    for sample in samples(folder):
        assert not sample["has_reference"]
        assert not sample["reference"].any()
        assert sample["pad"] == 0, "raw has 4 s, mixed more"
    short = dataclasses.replace(STAGE, segment=5 * RATE)
    assert {int(s["pad"]) for s in samples(build(corpus, tmp_path / "short", short)[0])} == {RATE}


def test_known_settings_come_with_each_sample_of_their_song(corpus, tmp_path):
    (corpus / "settings.json").write_text(json.dumps({"No. 1 lead": {"ratio": 4.0}}))
    folder, _ = build(corpus, tmp_path / "out", STAGE)
    for sample in samples(folder):
        assert sample["meta"]["settings"] == ({"ratio": 4.0} if sample["meta"]["name"] == "No. 1 lead" else None)
    for text, sentence in (("{", "not readable as JSON"), ("[]", "must map each song's name")):
        (corpus / "settings.json").write_text(text)
        with pytest.raises(UserError, match=sentence):
            STAGE.scan(corpus)


def test_every_planted_trap(corpus, takes, tmp_path):
    (corpus / "mixed/No. 0 lead.wav").unlink()
    write(corpus / "mixed/Found later.wav", takes[0][1].T)
    write(corpus / "raw/Wrong song.wav", takes[1][0][::-1])
    write(corpus / "mixed/Wrong song.wav", np.roll(takes[3][1], RATE // 3, axis=1).T)
    soundfile.write(corpus / "raw/No. 1 lead.flac", takes[1][0], RATE)
    write(corpus / "raw/Quad.wav", takes[2][0][: 2 * RATE])
    write(corpus / "mixed/Quad.wav", np.repeat(takes[2][1][:, : 2 * RATE], 2, axis=0).T)
    write(corpus / "raw/Empty.wav", np.zeros(RATE))
    write(corpus / "mixed/Empty.wav", np.zeros(RATE))
    _, quarantined = build(corpus, tmp_path / "out", STAGE)
    assert {name: reason[:40] for name, reason in quarantined.items()} == {
        "No. 0 lead": "it is in raw only: no file of that name ",
        "Found later": "it is in mixed only: no file of that nam",
        "Wrong song": "raw and mixed do not belong together: al",
        "No. 1 lead": "it has two files in raw: No. 1 lead.flac",
        "Quad": "mixed/Quad has 4 channels, 1 or 2 are re",
        "Empty": "raw and mixed do not belong together: al",
    }


def test_mono_mixed_and_stereo_raw_and_another_rate(corpus, takes, tmp_path):
    import soxr

    processed = takes[1][1]
    write(corpus / "mixed/No. 1 lead.wav", processed.mean(axis=0))
    write(corpus / "raw/No. 2 lead.wav", np.stack([takes[2][0]] * 2, axis=1))
    write(corpus / "raw/No. 3 lead.wav", soxr.resample(takes[3][0], RATE, 96000, quality="VHQ"), 96000)
    folder, quarantined = build(corpus, tmp_path / "out", STAGE)
    assert quarantined == {}
    by_name = {s["meta"]["name"]: s for s in samples(folder)}
    mono = by_name["No. 1 lead"]
    np.testing.assert_array_equal(mono["mixed"][0], mono["mixed"][1])
    assert mono["meta"]["mixed_channels"] == 1
    assert by_name["No. 2 lead"]["meta"]["raw_channels"] == 2
    assert by_name["No. 3 lead"]["lag"] == 700


def resampled(wave: np.ndarray, rate: int) -> np.ndarray:
    import soxr

    return soxr.resample(wave.T, RATE, rate, quality="VHQ").T


PAIRS = {  # what may come, as (raw, mixed, sample rate of raw, of mixed) made of a take and its mix
    "100 ms late": lambda raw, mix: (raw, np.pad(mix, ((0, 0), (4800, 0))), RATE, RATE),
    "early": lambda raw, mix: (np.pad(raw, (700, 0)), mix, RATE, RATE),
    "mixed is shorter": lambda raw, mix: (raw, mix[:, : 3 * RATE], RATE, RATE),
    "raw is shorter": lambda raw, mix: (raw[: 3 * RATE], mix, RATE, RATE),
    "raw 44.1 kHz": lambda raw, mix: (resampled(raw, 44100), mix, 44100, RATE),
    "both 96 kHz": lambda raw, mix: (resampled(raw, 96000), resampled(mix, 96000), 96000, 96000),
    "clipped": lambda raw, mix: (np.clip(4 * raw, -1, 1), np.clip(4 * mix, -1, 1), RATE, RATE),
    "1 s": lambda raw, mix: (raw[:RATE], mix[:, :RATE], RATE, RATE),
    "silent raw": lambda raw, mix: (0 * raw, mix, RATE, RATE),
    "silent mix": lambda raw, mix: (raw, 0 * mix, RATE, RATE),
}
LAGS = {"100 ms late": 4800, "early": -700}


def test_every_pair_that_may_come_is_aligned_or_refused(takes, tmp_path):
    for number, (name, change) in enumerate(PAIRS.items()):
        gain = 1 - 0.01 * number  # one recording under two names would be refused
        raw, mix, raw_rate, mixed_rate = change(gain * takes[0][0], gain * takes[0][1])
        write(tmp_path / f"in/raw/{name}.wav", raw, raw_rate)
        write(tmp_path / f"in/mixed/{name}.wav", mix.T, mixed_rate)
    folder, quarantined = build(tmp_path / "in", tmp_path / "out", STAGE)
    assert set(quarantined) == {"silent raw", "silent mix", "raw 44.1 kHz"}
    assert "48000 Hz are needed and nothing is upsampled" in quarantined["raw 44.1 kHz"]
    assert all("do not belong together" in quarantined[name] for name in ("silent raw", "silent mix"))
    found: dict[str, list] = {}
    for sample in samples(folder):
        found.setdefault(sample["meta"]["name"], []).append(sample)
    assert set(found) == PAIRS.keys() - quarantined.keys()
    for name, own in found.items():
        assert {int(s["lag"]) for s in own} == {LAGS.get(name, 0)}, name
    assert not any(s["has_reference"] for s in found["1 s"]) and len(found["1 s"]) == 1
    assert any(s["clipped"][0] for s in found["clipped"])


@pytest.mark.soak  # in `make test` Slakh and CocoChorales show it for all: the engine is the same
def test_two_workers_write_the_bytes_of_one(prepared, tmp_path):
    corpus, folder = prepared
    assert tree(build(corpus, tmp_path / STAGE.recipe, STAGE, workers=2)[0]) == tree(folder)


def test_one_take_under_two_names_is_refused(corpus, tmp_path):
    by_split = {item.split: item.name for item in STAGE.scan(corpus)}
    for side in ("raw", "mixed"):
        raw = (corpus / side / f"{by_split['train']}.wav").read_bytes()
        (corpus / side / f"{by_split['test']}.wav").write_bytes(raw)
    with pytest.raises(UserError, match="one recording lies under the names"):
        build(corpus, tmp_path / "out", STAGE)


@pytest.mark.parametrize("lag", [-4321, -1, 0, 1, 48000])
def test_lags_are_found_to_the_sample_of_either_sign_and_polarity(lag):
    take = voice(9)
    later = np.pad(take, (max(lag, 0), 0))[max(-lag, 0) :]
    found = estimate_lag(take, -0.3 * later, 48000)
    assert found.lag == lag
    assert found.correlation == pytest.approx(-1, abs=1e-6)


def test_strangers_do_not_correlate():
    assert abs(estimate_lag(voice(1), voice(2), 48000).correlation) < 0.12
    assert estimate_lag(voice(1), np.zeros(RATE), 48000).correlation == 0


def test_other_layouts_are_named(tmp_path):
    (tmp_path / "raw").mkdir()
    with pytest.raises(UserError, match="has no folder mixed"):
        STAGE.scan(tmp_path)
    (tmp_path / "mixed").mkdir()
    with pytest.raises(UserError, match="has no audio files"):
        STAGE.scan(tmp_path)


# --- the demo corpus and its known effects ----------------------------------------------------------------------------------------


def test_the_demo_corpus_holds_its_traps_and_the_settings(tmp_path):
    takes = plan(5, 1)
    root = tmp_path / "vocal_pairs"
    root.mkdir()
    for take in takes[1:]:
        render_take(root, take)
    gather_settings(root)
    settings = json.loads((root / "settings.json").read_text())
    assert set(settings) == {take.name for take in takes[1:]}
    sides = {side: {p.stem for p in (root / side).iterdir()} for side in ("raw", "mixed")}
    assert sides["raw"] ^ sides["mixed"] == {takes[3].name, takes[4].name}
    assert soundfile.info(root / f"mixed/{takes[2].name}.wav").channels == 1
    render_take(tmp_path, takes[2])
    for side in ("raw", "mixed"):
        name = f"{side}/{takes[2].name}.wav"
        assert (tmp_path / name).read_bytes() == (root / name).read_bytes(), "the same seed, the same bytes"
    for take in takes[1:3]:
        raw, late = (soundfile.read(root / f"{side}/{take.name}.wav", dtype="float32")[0] for side in sides)
        late = late if late.ndim == 1 else late.mean(axis=1)
        # an equaliser that answers a strong colour delays by some samples of its own
        assert estimate_lag(raw, late, RATE).lag == pytest.approx(settings[take.name]["latency"], abs=24)


def test_the_demos_engineer_answers_what_the_take_is_coloured_by():
    """The rule holds, and it can be heard: a take with less air has a duller spectrum and a higher shelf."""
    takes = plan(60, 3)
    for band, taste in enumerate(TASTE):
        colour = np.array([take.colour[band].decibels for take in takes])
        answer = np.array([take.settings.bands[band + 1].decibels for take in takes])
        unexplained = answer - (taste - TAKEN_BACK * colour)
        assert unexplained.std() < 0.45 and unexplained.std() < 0.35 * answer.std(), (
            "what nobody can foretell is small beside what one can"
        )
    dullest, brightest = (pick(takes[:20], key=lambda t: t.colour[2].decibels) for pick in (min, max))
    air = [np.abs(np.fft.rfft(raw_take(t)))[round(8000 * t.song.seconds) :].mean() for t in (dullest, brightest)]
    assert air[0] < 0.5 * air[1]


def test_styles_are_no_function_of_the_voice():
    takes = demo_vocal_styles.plan(200, 3)
    assert all(take.colour == () for take in takes)
    drawn = np.array(
        [
            [t.settings.pan, t.settings.reverb_send, t.settings.make_up, *(b.decibels for b in t.settings.bands[1:])]
            for t in takes
        ]
    )
    assert drawn.std(axis=0).min() > 0.3
    assert np.abs(np.corrcoef(drawn.T) - np.eye(6)).max() < 0.25
    assert {t.settings.pan for t in takes if t.trap == "mono mixed"} == {0.0}


def test_filters_do_what_their_settings_say():
    def gain(band: Band, hertz: float) -> float:
        response = sosfreqz(biquad(band, RATE)[None], [hertz], fs=RATE)[1]
        return 20 * np.log10(abs(response[0]))

    assert gain(Band("peak", 3000, 5.0, 1.0), 3000) == pytest.approx(5, abs=0.01)
    assert gain(Band("peak", 3000, 5.0, 1.0), 100) == pytest.approx(0, abs=0.1)
    assert gain(Band("high_pass", 90, 0.0, 0.7071), 90) == pytest.approx(-3, abs=0.1)
    assert gain(Band("high_shelf", 8000, 4.0, 0.7), 20000) == pytest.approx(4, abs=0.3)
    with pytest.raises(ValueError, match="no band of kind"):
        biquad(Band("notch", 100, 0, 1), RATE)


def test_the_compressor_holds_what_exceeds_the_threshold():
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(2 * RATE) / RATE)
    flat = dataclasses.replace(
        STYLE, bands=(Band("peak", 1000, 0, 1),), reverb_send=-200.0, make_up=0.0, threshold=-26, ratio=4.0
    )
    out = process(tone, flat, RATE, 0, 0.0)[:, RATE:]
    expected = -6.02 - (1 - 1 / 4) * (26 - 6.02) - 3.01  # dB of the peak, and a centre panned by constant power
    assert 20 * np.log10(np.abs(out).max()) == pytest.approx(expected, abs=0.1)


def test_the_voice_sings_its_notes():
    from data_prep.chorales import Note

    for pitch in (48, 55, 64):
        wave = sing([Note(0.1, 1.4, pitch, 100)], 1.5, RATE, "x")[RATE // 2 : RATE]
        lags = np.fft.irfft(np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 1 << 16)) ** 2)
        expected = RATE / (440 * 2 ** ((pitch - 69) / 12))
        near = [lags[round(expected * 2 ** (d / 12))] for d in (-2, -1, 0, 1, 2)]
        assert int(np.argmax(near)) == 2
