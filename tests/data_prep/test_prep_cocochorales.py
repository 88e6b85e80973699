"""What a prepared sample is, against the audio that it came from; and the leaks and traps that must not get through."""

import dataclasses
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from data_prep.cocochorales import RECIPES
from data_prep.cocochorales_reader import Note, held_chords, read_instruments, read_track, scan_tracks
from data_prep.demo_cocochorales import render
from data_prep.engine import prepare
from data_prep.stage import BadInput
from models.features import SIMPLE, log_mel
from pipeline.errors import UserError
from pipeline.manifest import read_manifest
from tests.data_prep import building
from tests.data_prep.building import samples, tree

ROOT = Path(__file__).resolve().parents[2]
STAGE = dataclasses.replace(RECIPES["cocochorales_simple_demo"], inputs_per_shard=4)
FLOOR = np.log(1e-5)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("corpus")
    list(render(out, 14, 5, workers=1))
    return out


@pytest.fixture(scope="module")
def prepared(corpus, tmp_path_factory) -> Path:
    return build(corpus, tmp_path_factory.mktemp("prepared") / STAGE.recipe)[0]


def build(source: Path, folder: Path, stage=STAGE) -> tuple[Path, dict[str, str]]:
    return building.build(source, folder, stage)


def stems(corpus: Path, track: str) -> dict[str, np.ndarray]:
    """Instrument -> audio."""
    folder = next((corpus / "main_dataset").glob(f"*/{track}"))
    return {path.stem.split("_")[1]: soundfile.read(path)[0] for path in (folder / "stems_audio").iterdir()}


def test_fields_shapes_types_and_counts(prepared):
    manifest = read_manifest(prepared)
    info = manifest.info
    assert info["instruments"] == ["violin", "flute", "clarinet", "trumpet"]
    assert (info["pitch_low"], info["pitch_high"], info["sources"], info["queries"]) == (48, 72, 2, 2)
    assert (info["sample_rate"], info["frames"], info["seconds"]) == (16000, 10, 0.32)
    assert info["mel"]["bands"] == 128
    every = samples(prepared)
    assert {split: len([s for s in every if s["split"] == split]) for split in info["samples"]} == info["samples"]
    assert min(info["samples"].values()) > 50
    for sample in every:
        assert sample["mixture"].shape == (128, 10)
        assert sample["sources"].shape == (2, 128, 10)
        assert sample["queries"].shape == (2, 2, 128, 10)
        assert {sample[k].dtype for k in ("mixture", "sources", "queries")} == {np.dtype(np.float32)}
        assert sample["pitch"].dtype == sample["instrument"].dtype == np.int64
        assert sample["pitch"].shape == sample["instrument"].shape == (2,)
        assert ((sample["pitch"] >= 48) & (sample["pitch"] <= 72)).all()
        assert sample["instrument"][0] != sample["instrument"][1], "a query must identify one source"
        assert all(np.isfinite(sample[k]).all() for k in ("mixture", "sources", "queries"))
    assert len({s["__key__"] for s in every}) == len(every)


def test_mean_and_std_are_those_of_the_training_split(prepared):
    values = np.concatenate(
        [np.concatenate([s["mixture"][None], s["sources"]]).ravel() for s in samples(prepared, "train")]
    )
    info = read_manifest(prepared).info
    assert info["mean"] == pytest.approx(values.mean(dtype=np.float64), abs=1e-4)
    assert info["std"] == pytest.approx(values.std(dtype=np.float64), abs=1e-4)


def test_mels_are_those_of_the_audio(corpus, prepared):
    """Computed again from the stems: the mixture from the summed waveforms, the sources with the mixture's gain."""
    names = read_manifest(prepared).info["instruments"]
    for sample in samples(prepared)[::29]:
        meta = sample["meta"]
        audio = stems(corpus, meta["track"])
        at = round(meta["start"] * 16000)
        cuts = [audio[names[i]][at : at + 5120 + 2 * SIMPLE.margin] * meta["gain"] for i in sample["instrument"]]
        assert np.sqrt(np.mean(np.sum(cuts, axis=0) ** 2)) == pytest.approx(0.1, rel=1e-9)
        fresh = log_mel(torch.from_numpy(np.stack([np.sum(cuts, axis=0), *cuts])), SIMPLE, context=True).numpy()
        np.testing.assert_allclose(sample["mixture"], fresh[0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(sample["sources"], fresh[1:], rtol=0, atol=1e-5)


def test_pitch_labels_are_what_sounds(corpus, prepared):
    """The planted truth: a source's periodicity is its MIDI note's, by autocorrelation of the very stretch that was cut."""
    names = read_manifest(prepared).info["instruments"]
    right = total = 0
    for sample in samples(prepared)[::7]:
        audio = stems(corpus, sample["meta"]["track"])
        at = round(sample["meta"]["start"] * 16000)
        for pitch, instrument in zip(sample["pitch"], sample["instrument"], strict=True):
            cut = audio[names[instrument]][at : at + 5632]
            lags = np.fft.irfft(np.abs(np.fft.rfft(cut * np.hanning(len(cut)), 16384)) ** 2)
            expected = 16000 / (440 * 2 ** ((pitch - 69) / 12))
            near = [lags[round(expected * 2 ** (d / 12))] for d in (-2, -1, 0, 1, 2)]
            right += int(np.argmax(near)) == 2
            total += 1
    assert right / total > 0.97


def test_crops_lie_in_the_sustain_of_every_source(corpus, prepared):
    tracks = {item.name: item for item in scan_tracks(corpus)}
    for sample in samples(prepared)[::17]:
        meta = sample["meta"]
        voices = read_track(tracks[meta["track"]], lambda path: (corpus / path).read_bytes())
        first, last = meta["start"], meta["start"] + 5632 / 16000
        for voice, pitch in zip(meta["voices"], sample["pitch"], strict=True):
            note = next(n for n in voices[voice].notes if n.start < first < n.end)
            assert note.pitch == pitch
            assert note.start + 0.149 <= first
            assert last <= note.end - 0.009


def test_queries_are_the_same_instrument_on_another_track_of_the_same_split(corpus, prepared):
    split_of = {item.name: item.split for item in scan_tracks(corpus)}
    names = read_manifest(prepared).info["instruments"]
    pitches = set()
    for sample in samples(prepared):
        meta = sample["meta"]
        assert split_of[meta["track"]] == sample["split"]
        for source, drawn in enumerate(meta["queries"]):
            for row, (track, _, _, pitch) in enumerate(drawn):
                assert track != meta["track"]
                assert split_of[track] == sample["split"]
                assert not np.array_equal(sample["queries"][source, row], sample["sources"][source])
                pitches.add(pitch - sample["pitch"][source])
    assert len(pitches) > 20, "a query's pitch says nothing about the target's"
    sample = samples(prepared)[3]
    track, _, start, _ = sample["meta"]["queries"][0][0]
    cut = stems(corpus, track)[names[sample["instrument"][0]]][round(start * 16000) :][:5632]
    cut = cut * (0.1 / np.sqrt(2) / np.sqrt(np.mean(cut**2)))
    fresh = log_mel(torch.from_numpy(cut), SIMPLE, context=True).numpy()
    np.testing.assert_allclose(sample["queries"][0, 0], fresh, rtol=0, atol=1e-5)


def test_no_track_lies_in_two_splits(prepared):
    seen = {}
    for sample in samples(prepared):
        assert seen.setdefault(sample["meta"]["track"], sample["split"]) == sample["split"]


def test_neighbours_in_a_shard_are_not_of_one_chord(prepared):
    every = samples(prepared, "train")
    chords = [(s["meta"]["track"], s["meta"]["start"]) for s in every]
    same = [a[0] == b[0] and abs(a[1] - b[1]) < 0.3 for a, b in itertools.pairwise(chords)]
    assert np.mean(same) < 0.1


def test_kill_the_command_and_type_it_again(corpus, tmp_path):
    """One worker, killed; then two: the bytes of an uninterrupted preparation in this very process."""
    recipe = "cocochorales_simple_demo"
    expected = tree(build(corpus, tmp_path / "whole" / recipe, RECIPES[recipe])[0])
    line = [
        sys.executable,
        "data_prep/prepare.py",
        "cocochorales",
        "--recipe",
        recipe,
        "--source",
        corpus,
        "--out",
        tmp_path / "out",
    ]
    process = subprocess.Popen([*line, "--workers", "1"], cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out/*/*.tar")):  # one shard is there, others are in the making
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again = subprocess.run([*line, "--workers", "2"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert tree(tmp_path / "out" / recipe) == expected


def test_the_papers_four_sources_come_out_of_the_same_corpus(corpus, tmp_path):
    folder, _ = build(corpus, tmp_path / "four", RECIPES["cocochorales_simple"])
    every = samples(folder)
    assert len(every) > 20
    for sample in every:
        assert sample["sources"].shape == (4, 128, 10)
        assert sample["queries"].shape == (4, 4, 128, 10)
        assert len(set(sample["instrument"])) == 4
    info = read_manifest(folder).info
    assert info["pitch_high"] - info["pitch_low"] + 1 == 52
    assert len(info["instruments"]) == 13


# --- spellings --------------------------------------------------------------------------------------------------------------------


def track_folder(corpus: Path, documented: bool) -> Path:
    name = "stems_MIDI" if documented else "stems_midi"
    return next(p for p in sorted((corpus / "main_dataset/train").iterdir()) if name in {q.name for q in p.iterdir()})


@pytest.fixture
def copy(corpus, tmp_path) -> Path:
    """A corpus of one's own to spoil."""
    shutil.copytree(corpus, tmp_path / "copy")
    return tmp_path / "copy"


def test_both_spellings_give_the_same_samples(corpus, copy, prepared, tmp_path):
    """Every track rewritten the other way round: the shards' samples stay equal (their inputs' names do not)."""
    for track in (copy / "main_dataset").glob("*/*"):
        midi = next(p for p in track.iterdir() if p.name in ("stems_midi", "stems_MIDI"))
        step = 1 if midi.name == "stems_MIDI" else -1
        for part in (midi, track / "stems_audio"):
            for path in sorted(part.iterdir(), reverse=step > 0):
                number, name = path.name.split("_")
                path.rename(part / f"{int(number) + step}_{name}")
        midi.rename(track / ("stems_midi" if step > 0 else "stems_MIDI"))
    other, _ = build(copy, tmp_path / "other")
    assert [s.tar_hash for s in read_manifest(other).shards] == [s.tar_hash for s in read_manifest(prepared).shards]


def test_a_folder_in_both_spellings_and_a_name_with_an_underscore_are_read(copy):
    track = track_folder(copy, documented=True)
    (track / "stems_midi").mkdir()
    shutil.copy(next((track / "stems_MIDI").glob("0_*")), track / "stems_midi")
    (track / "metadata.yaml").write_text((track / "metadata.yaml").read_text().replace("0: ", "0: Double_", 1))
    for part in ("stems_MIDI", "stems_audio", "stems_midi"):
        for path in (track / part).glob("0_*"):
            path.rename(path.with_name(path.name.replace("0_", "0_double ")))
    voices = read_track(
        next(i for i in scan_tracks(copy) if i.name == track.name), lambda path: (copy / path).read_bytes()
    )
    assert voices[0].instrument.startswith("double ")
    assert [len(v.notes) > 5 for v in voices] == [True] * 4


def test_metadata_keys_count_from_zero_and_may_be_text():
    assert read_instruments(b"instrument_name: {'1': viola, '0': Violin}") == ("violin", "viola")
    for raw in (
        b"instrument_name: {1: violin, 2: viola}",
        b"instrument_name: [violin]",
        b"tempo: 3",
        b"",
        b"[",
        b"\xff\x00",
    ):
        with pytest.raises(BadInput, match="metadata"):
            read_instruments(raw)


def test_the_main_dataset_folder_itself_may_be_the_source(corpus):
    assert len(scan_tracks(corpus / "main_dataset")) == len(scan_tracks(corpus)) == 14


# --- traps ------------------------------------------------------------------------------------------------------------------------


def test_every_planted_trap_is_quarantined_with_its_reason(copy, tmp_path):
    tracks = sorted((copy / "main_dataset/train").iterdir())

    def stem(track: int, voice: int = 1) -> Path:
        return sorted((tracks[track] / "stems_audio").iterdir())[voice]

    stem(0).write_bytes(b"<html>404 Not Found</html>" * 100)
    stem(1).unlink()
    (tracks[2] / "metadata.yaml").write_text("instrument_name: {0: violin")
    soundfile.write(stem(3), soundfile.read(stem(3))[0][:48000], 16000, subtype="PCM_16")
    (tracks[4] / "metadata.yaml").unlink()
    soundfile.write(stem(5), np.repeat(soundfile.read(stem(5))[0], 2), 32000, subtype="PCM_16")
    midi = next(p for p in (tracks[6]).glob("*/*.mid"))
    midi.write_bytes(midi.read_bytes()[:200])
    soundfile.write(stem(7), 0 * soundfile.read(stem(7))[0], 16000, subtype="PCM_16")
    swapped = sorted((tracks[8] / "stems_audio").iterdir())[:2]
    names = [
        path.name.replace(path.stem[2:], other.stem[2:]) for path, other in zip(swapped, swapped[::-1], strict=True)
    ]
    aside = [path.rename(path.with_suffix(".aside")) for path in swapped]
    for path, name in zip(aside, names, strict=True):
        path.rename(path.with_name(name))
    valid = sorted((copy / "main_dataset/valid").iterdir())[0]
    whole = sorted((valid / "stems_audio").iterdir())[2]
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    stage = dataclasses.replace(STAGE, inputs_per_shard=20)
    plan, _ = prepare(stage, copy, tmp_path / "out", 0, 0.9)
    reasons = {entry["input"]: entry["reason"] for entry in finish_without_samples(stage, plan, tmp_path / "out")}
    expected = {
        tracks[0].name: "is not readable audio: ",
        tracks[1].name: "stems_audio has 3 of 4 stems",
        tracks[2].name: "metadata.yaml is not valid YAML",
        tracks[3].name: "is shorter than expected: 3.00 s, its last note ends at",
        tracks[4].name: "metadata.yaml is missing",
        tracks[5].name: "has 32000 Hz and 1 channels, expected 16000 Hz and 1",
        tracks[6].name: "is not a whole MIDI file",
        tracks[7].name: "is silent throughout",
        tracks[8].name: "does not fit metadata.yaml",
        valid.name: "is cut off: its header promises more than",
    }
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in reasons[name], name
        assert "0x" not in reasons[name], "a memory address would change the bytes from run to run"


def finish_without_samples(stage, plan, folder):
    from data_prep.commits import done

    return [entry for shard in plan.shards for entry in done(folder, shard).quarantined]


def test_one_bad_track_leaves_the_others_untouched(corpus, copy, tmp_path):
    bad = sorted((copy / "main_dataset/valid").iterdir())[0]
    next(bad.glob("stems_audio/*")).write_bytes(b"")
    spoiled, quarantined = build(copy, tmp_path / "spoiled")
    assert list(quarantined) == [bad.name]
    keys = [s["__key__"] for s in samples(spoiled)]
    shutil.rmtree(bad)
    without, quarantined = build(copy, tmp_path / "spoiled")
    assert quarantined == {}
    assert [s["__key__"] for s in samples(without)] == keys


def test_two_voices_of_one_instrument_never_share_a_mixture(copy, tmp_path):
    """As in a string ensemble, whose first two voices are violins: a query could not say which is meant."""
    for track in (copy / "main_dataset/train").iterdir():
        for path in [track / "metadata.yaml", *track.glob("*/*_flute.*")]:
            if path.suffix == ".yaml":
                path.write_text(path.read_text().replace(": flute", ": violin"))
            else:
                path.rename(path.with_name(path.name.replace("_flute", "_violin")))
    folder, quarantined = build(copy, tmp_path / "out")
    assert quarantined == {}
    pairs = {tuple(sorted(sample["instrument"])) for sample in samples(folder, "train")}
    assert pairs == {(0, 2), (0, 3), (2, 3)}


def test_leaks_between_splits_are_refused(copy, tmp_path):
    train = sorted((copy / "main_dataset/train").iterdir())[0]
    shutil.copytree(train, copy / "main_dataset/test" / train.name)
    with pytest.raises(UserError, match=f"{train.name} lies in two splits"):
        build(copy, tmp_path / "out")
    (copy / "main_dataset/test" / train.name).rename(copy / "main_dataset/test/random_track239999")
    with pytest.raises(UserError, match=f"one recording lies under the names .*{train.name}"):
        build(copy, tmp_path / "out")


def test_other_layouts_are_named(tmp_path, corpus):
    for made, message in (
        ("absent", "is not a folder"),
        ("empty", "is empty"),
        ("Track00001/stems", "is not CocoChorales: expected main_dataset.*found Track00001"),
        ("main_dataset/random_track000001/stems_audio", "is not CocoChorales"),
    ):
        source = tmp_path / made.replace("/", "_")
        if made != "absent":
            (source / (made if made != "empty" else "")).mkdir(parents=True)
        with pytest.raises(UserError, match=message):
            prepare(STAGE, source, tmp_path / "out", 0, 0.05)
    assert not (tmp_path / "out").exists(), "a wrong source leaves no trace"


# --- chords -----------------------------------------------------------------------------------------------------------------------


def test_held_chords_are_where_nothing_changes():
    soprano = [Note(0.0, 1.0, 72), Note(1.0, 1.5, 74), Note(1.5, 2.5, 76)]
    bass = [Note(0.02, 1.5, 48), Note(1.5, 2.5, 50)]
    rests = [Note(0.0, 1.0, 60)]
    double = [Note(0.0, 2.5, 64), Note(1.5, 2.5, 67)]
    found = held_chords([soprano, bass, rests, double], 0.4)
    assert [(c.start, c.end) for c in found] == [(0.02, 1.0), (1.0, 1.5), (1.5, 2.5)]
    assert [c.pitches for c in found] == [(72, 48, 60, 64), (74, 48, None, 64), (76, 50, None, None)]
    assert held_chords([[], []], 0.1) == []


def test_a_tied_note_counts_from_its_own_onset(corpus):
    """A note may sound longer than the chord, never shorter: every voice of a chord covers it."""
    for item in scan_tracks(corpus)[:3]:
        voices = read_track(item, lambda path: (corpus / path).read_bytes())
        for chord in held_chords([v.notes for v in voices], 0.5):
            for voice, pitch in zip(voices, chord.pitches, strict=True):
                covers = [n for n in voice.notes if n.start <= chord.start and n.end >= chord.end]
                assert pitch is None or [n.pitch for n in covers] == [pitch]
