"""A window of DisMix's LDM case against the audio and the MIDI that it was cut from."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pretty_midi
import pytest
import soundfile
import torch

from data_prep.cocochorales import RECIPES
from data_prep.cocochorales_ldm import REST, frame_pitches
from data_prep.cocochorales_reader import Note, read_track, scan_tracks
from data_prep.demo_cocochorales import render
from data_prep.stage import BadInput
from models.features import AUDIOLDM2, log_mel
from pipeline.errors import UserError
from pipeline.manifest import read_manifest
from tests.data_prep.building import build, samples, tree

DUOS = dataclasses.replace(RECIPES["cocochorales_ldm_demo"], windows_per_track=2, inputs_per_shard=20)
STAGE = dataclasses.replace(DUOS, sources=4, choices_per_window=None)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("corpus")
    list(render(out, 8, 5, workers=1))
    return out


@pytest.fixture(scope="module")
def prepared(corpus, tmp_path_factory) -> Path:
    return build(corpus, tmp_path_factory.mktemp("prepared") / STAGE.recipe, STAGE)[0]


def voices(corpus: Path, track: str):
    item = next(item for item in scan_tracks(corpus) if item.name == track)
    return read_track(item, lambda path: (corpus / path).read_bytes())


def test_fields_shapes_types_and_counts(prepared):
    info = read_manifest(prepared).info
    assert (info["frames"], info["seconds"], info["sample_rate"], info["mel"]["bands"]) == (400, 4.0, 16000, 64)
    assert (info["rest"], info["pitch_classes"], info["sources"], info["queries"]) == (128, 129, 4, 1)
    every = samples(prepared)
    assert info["samples"] == {"train": 8, "valid": 4, "test": 4}
    for sample in every:
        assert sample["mixture"].shape == (64, 400)
        assert sample["sources"].shape == (4, 64, 400)
        assert sample["queries"].shape == (4, 1, 64, 400)
        assert {sample[k].dtype for k in ("mixture", "sources", "queries")} == {np.dtype(np.float32)}
        assert (sample["pitch"].shape, sample["pitch"].dtype) == ((4, 400), np.int64)
        assert sorted(sample["instrument"]) == [0, 1, 2, 3]
        assert ("wave" in sample) == (sample["split"] != "train"), "waves are stored where evaluation compares them"
    values = np.concatenate([s[k].ravel() for s in every if s["split"] == "train" for k in ("mixture", "sources")])
    assert info["mean"] == pytest.approx(values.mean(dtype=np.float64), abs=1e-4)
    assert info["std"] == pytest.approx(values.std(dtype=np.float64), abs=1e-4)


def test_mels_and_waves_are_those_of_the_audio(corpus, prepared):
    for sample in samples(prepared)[::3]:
        meta = sample["meta"]
        first = round(meta["start"] * 16000) - AUDIOLDM2.margin
        cut = np.stack([v.audio[first : first + 64000 + 2 * AUDIOLDM2.margin] for v in voices(corpus, meta["track"])])
        cut = meta["gain"] * cut
        assert np.sqrt(np.mean(cut.sum(axis=0) ** 2)) == pytest.approx(0.1, rel=1e-9)
        fresh = log_mel(torch.from_numpy(np.stack([cut.sum(axis=0), *cut])), AUDIOLDM2, context=True).numpy()
        np.testing.assert_allclose(sample["mixture"], fresh[0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(sample["sources"], fresh[1:], rtol=0, atol=1e-5)
        if "wave" in sample:
            inner = cut[:, AUDIOLDM2.margin : -AUDIOLDM2.margin]
            np.testing.assert_allclose(sample["wave"] / 32768, inner, rtol=0, atol=0.5001 / 32768)


def test_pitch_is_what_sounds_in_each_frame(corpus, prepared):
    """The planted truth: the periodicity of the stem around the middle of a frame is its label's; rests are quiet."""
    right = total = 0
    for sample in samples(prepared):
        audio = [v.audio for v in voices(corpus, sample["meta"]["track"])]
        for frame in range(20, 380, 24):
            centre = round(sample["meta"]["start"] * 16000 + (frame + 0.5) * 160)
            for voice, labels in enumerate(sample["pitch"]):
                held = labels[frame - 20 : frame + 20]
                if labels[frame] == REST or len(set(held)) > 1:
                    continue
                cut = audio[voice][centre - 1600 : centre + 1600]
                lags = np.fft.irfft(np.abs(np.fft.rfft(cut * np.hanning(len(cut)), 8192)) ** 2)
                expected = 16000 / (440 * 2 ** ((labels[frame] - 69) / 12))
                near = [lags[round(expected * 2 ** (d / 12))] for d in (-2, -1, 0, 1, 2)]
                right += int(np.argmax(near)) == 2
                total += 1
    assert total > 200
    assert right / total > 0.95


def test_labels_change_on_the_frame_whose_middle_has_crossed_the_onset():
    times = (np.arange(8) + 0.5) * 0.01
    notes = [Note(0.01, 0.03, 60), Note(0.0449, 0.06, 62), Note(0.05, 0.06, 64)]
    assert frame_pitches(notes, times).tolist() == [REST, 60, 60, REST, 62, 64, REST, REST]
    assert frame_pitches([], times).tolist() == [REST] * 8


def test_queries_come_from_other_tracks_of_the_same_split(corpus, prepared):
    split_of = {item.name: item.split for item in scan_tracks(corpus)}
    names = read_manifest(prepared).info["instruments"]
    for sample in samples(prepared):
        for source, drawn in enumerate(sample["meta"]["queries"]):
            for track, voice, _ in drawn:
                assert track != sample["meta"]["track"]
                assert split_of[track] == sample["split"]
                assert voices(corpus, track)[voice].instrument == names[sample["instrument"][source]]
                assert not np.array_equal(sample["queries"][source, 0], sample["sources"][source])
    sample = samples(prepared)[0]
    track, voice, start = sample["meta"]["queries"][1][0]
    first = round(start * 16000) - AUDIOLDM2.margin
    cut = voices(corpus, track)[voice].audio[first : first + 64000 + 2 * AUDIOLDM2.margin]
    cut = cut * (0.1 / 2 / np.sqrt(np.mean(cut**2)))
    fresh = log_mel(torch.from_numpy(cut), AUDIOLDM2, context=True).numpy()
    np.testing.assert_allclose(sample["queries"][1, 0], fresh, rtol=0, atol=1e-5)


def test_some_of_the_voices_are_a_mixture_of_their_own(corpus, tmp_path):
    every = samples(build(corpus, tmp_path / DUOS.recipe, DUOS)[0])
    assert len(every) == 3 * 16, "three of the six pairs of each window"
    assert len({tuple(sorted(s["instrument"])) for s in every}) == 6, "and not always the same three"
    pairs = set()
    for sample in every:
        assert sample["sources"].shape == (2, 64, 400) and sample["queries"].shape == (2, 1, 64, 400)
        pairs.add((sample["meta"]["track"], sample["meta"]["start"], tuple(sample["instrument"])))
    assert len(pairs) == len(every)
    sample = next(s for s in every if s["split"] == "test")
    stems = voices(corpus, sample["meta"]["track"])
    names = [RECIPES["cocochorales_ldm_demo"].instruments[i] for i in sample["instrument"]]
    first = round(sample["meta"]["start"] * 16000)
    parts = [next(v.audio for v in stems if v.instrument == name)[first : first + 64000] for name in names]
    heard = sample["meta"]["gain"] * np.stack(parts)
    np.testing.assert_allclose(sample["wave"] / 32768, heard, rtol=0, atol=0.5001 / 32768)
    margin = AUDIOLDM2.margin
    whole = sum(next(v.audio for v in stems if v.instrument == name) for name in names)
    mixture = sample["meta"]["gain"] * whole[first - margin : first + 64000 + margin]
    assert np.sqrt(np.mean(mixture**2)) == pytest.approx(0.1, rel=1e-9)
    fresh = log_mel(torch.from_numpy(mixture)[None], AUDIOLDM2, context=True).numpy()[0]
    np.testing.assert_allclose(sample["mixture"], fresh, rtol=0, atol=1e-5)


def test_two_workers_write_the_bytes_of_one(corpus, prepared, tmp_path):
    assert tree(build(corpus, tmp_path / STAGE.recipe, STAGE, workers=2)[0]) == tree(prepared)


def test_only_the_named_ensembles_are_used_and_repeated_instruments_are_left_out(corpus, tmp_path):
    with pytest.raises(UserError, match=r"no track of the ensembles brass, .*it has random"):
        dataclasses.replace(STAGE, ensembles=("brass",)).scan(corpus)
    item = scan_tracks(corpus)[0]

    def renamed(path: str) -> bytes:
        raw = (corpus / path).read_bytes()
        return raw.replace(b"flute", b"violin") if path.endswith("metadata.yaml") else raw

    files = tuple(dataclasses.replace(f, path=f.path) for f in item.files)
    with pytest.raises(BadInput, match="does not fit metadata"):
        STAGE.load(dataclasses.replace(item, files=files), renamed)
    few = dataclasses.replace(STAGE, instruments=("violin", "flute"))
    assert few.load(item, lambda path: (corpus / path).read_bytes()).mixtures == ()


def test_a_track_shorter_than_a_window_is_named(corpus):
    item = scan_tracks(corpus)[0]

    def cut(path: str) -> bytes:
        if not path.endswith(".wav"):
            return empty_midi() if path.endswith(".mid") else (corpus / path).read_bytes()
        audio, rate = soundfile.read(corpus / path, dtype="int16")
        out = io.BytesIO()
        soundfile.write(out, audio[: 3 * rate], rate, format="WAV", subtype="PCM_16")
        return out.getvalue()

    with pytest.raises(BadInput, match=r"its stems have 3\.00 s in common, a window needs 4\.05 s"):
        STAGE.load(item, cut)


def empty_midi() -> bytes:
    out = io.BytesIO()
    pretty_midi.PrettyMIDI().write(out)
    return out.getvalue()
