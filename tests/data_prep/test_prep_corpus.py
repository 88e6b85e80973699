"""The demo corpus: CocoChorales' real layout with its traps, real instruments, the same bytes for the same seed."""

import collections
import hashlib
import itertools
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from data_prep import demo_slakh
from data_prep.chorales import Note, compose
from data_prep.cocochorales_reader import read_notes
from data_prep.demo_cocochorales import DEMO_INSTRUMENTS, PITCHES, PROGRAMS, _render_track, plan, render
from data_prep.synth import Player
from pipeline.errors import UserError


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("corpus")
    assert list(render(out, 6, 3, workers=2))[-1] == 6
    return out


def test_the_layout_is_the_real_one_in_both_spellings(corpus):
    tracks = sorted((corpus / "main_dataset").glob("*/*"))
    assert [t.parent.name for t in tracks] == ["test"] * 2 + ["train"] * 2 + ["valid"] * 2
    assert [t.name[-6:] for t in tracks] == ["216001", "216002", "000001", "000002", "192001", "192002"]
    spellings = collections.Counter()
    for track in tracks:
        tree = yaml.safe_load((track / "metadata.yaml").read_text())
        assert list(tree["instrument_name"]) == [0, 1, 2, 3]
        midi = next(p for p in track.iterdir() if p.name in ("stems_midi", "stems_MIDI"))
        base = 0 if midi.name == "stems_MIDI" else 1
        names = [f"{i + base}_{tree['instrument_name'][i]}" for i in range(4)]
        assert sorted(p.stem for p in midi.iterdir()) == names
        assert sorted(p.stem for p in (track / "stems_audio").iterdir()) == names
        assert sorted(p.name for p in track.iterdir()) == sorted(
            ["metadata.yaml", "mix.mid", "mix.wav", "stems_audio", midi.name]
        )
        spellings[midi.name] += 1
    assert spellings == {"stems_MIDI": 3, "stems_midi": 3}
    assert not [p for p in corpus.iterdir() if p.name.startswith(".")]


def test_the_mix_is_the_sum_of_its_stems_and_does_not_clip(corpus):
    for track in (corpus / "main_dataset").glob("*/*"):
        mix, rate = soundfile.read(track / "mix.wav", dtype="int16")
        stems = [soundfile.read(p, dtype="int16")[0] for p in (track / "stems_audio").iterdir()]
        assert rate == 16000
        np.testing.assert_array_equal(mix, np.sum(stems, axis=0, dtype=np.int32))
        assert 25000 < np.abs(mix.astype(int)).max() <= 29300  # -1 dB


def test_the_same_seed_gives_the_same_bytes_for_any_number_of_processes(corpus, tmp_path):
    list(render(tmp_path / "one", 6, 3, workers=1))
    assert hashes(tmp_path / "one") == hashes(corpus)
    assert plan(6, 4)[0].chorale != plan(6, 3)[0].chorale


def test_the_same_corpus_is_not_rendered_twice(corpus):
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    assert list(render(corpus, 6, 3)) == []
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before


def test_a_killed_rendering_leaves_nothing_behind(tmp_path):
    rendering = render(tmp_path, 6, 3, workers=1)
    next(rendering)
    left = next(tmp_path.glob(".main_dataset-*"))
    earlier = f"{left.name[:-1]}{(int(left.name[-1]) + 5) % 10}"  # the same pid, begun at another moment
    shutil.copytree(left, left.with_name(earlier))  # as one of a process that is no more
    list(rendering)
    assert len(list(tmp_path.glob(".main_dataset-*"))) == 1
    shutil.rmtree(tmp_path / "main_dataset")
    list(render(tmp_path, 6, 3, workers=1))
    assert not list(tmp_path.glob(".main_dataset-*"))


def test_what_was_played_before_leaves_no_trace(tmp_path):
    notes = (Note(0.1, 0.7, 60, 90), Note(0.7, 1.1, 64, 70))
    fresh = Player(16000).play(notes, 40, 1.5, 5.0)
    used = Player(16000)
    for program in (73, 56, 71):
        used.play((Note(0.0, 0.9, 72, 112), Note(0.9, 0.95, 50, 30)), program, 1.0, -8.0)
    np.testing.assert_array_equal(used.play(notes, 40, 1.5, 5.0), fresh)


def test_every_instrument_sounds_at_the_pitch_it_is_given():
    """The fundamental of a rendered note is within half a semitone, for all programs, in the middle of the range."""
    player = Player(16000)
    for name, program in PROGRAMS.items():
        tone = player.play((Note(0.0, 1.0, 60, 100),), program, 1.0)[4000:12000]
        assert np.sqrt(np.mean(tone**2)) > 0.01, name
        lags = np.fft.irfft(np.abs(np.fft.rfft(tone, 32768)) ** 2)[:400]
        lag = 30 + lags[30:100].argmax()
        assert 12 * np.log2(16000 / lag / 261.63) == pytest.approx(0, abs=0.6), name


def test_midi_and_audio_agree(corpus):
    track = next((corpus / "main_dataset/train").iterdir())
    wav, mid = sorted((track / "stems_audio").iterdir())[0], sorted(next(track.glob("stems_[mM]*")).iterdir())[0]
    audio, notes = soundfile.read(wav)[0], read_notes(mid.read_bytes(), mid.name)
    assert len(audio) / 16000 == pytest.approx(notes[-1].end + 0.5, abs=0.02)
    assert np.abs(audio[: int(notes[0].start * 16000) - 16]).max() < 1e-4


def test_chorales_keep_the_rules():
    rng = random.Random(1)
    parallels = steps = 0
    for tonic in range(12):
        chorale = compose(rng, 24, tonic)
        assert all(a.end <= b.start + 0.011 for line in chorale.voices for a, b in itertools.pairwise(line))
        at = [n.start + 0.3 for n in max(chorale.voices, key=len)]
        chords = [[next((n.pitch for n in line if n.start <= t < n.end), 0) for line in chorale.voices] for t in at]
        for before, now in itertools.pairwise(chords):
            assert now[0] > now[1] > now[2] > now[3], "voices do not cross"
            steps += 1
            for i in range(4):
                for j in range(i + 1, 4):
                    same = (before[i] - before[j]) % 12 == (now[i] - now[j]) % 12
                    parallels += same and (now[i] - now[j]) % 12 in (0, 7) and before[i] != now[i]
    assert parallels < 0.15 * steps


def test_instrument_and_pitch_are_independent_in_every_split():
    low, high = PITCHES
    for split, least in (("train", 0.6), ("valid", 0.3)):
        seconds = collections.Counter()
        for track in plan(120, 0):
            if track.split == split and set(track.instruments) == set(DEMO_INSTRUMENTS):
                for name, line in zip(track.instruments, track.chorale.voices, strict=True):
                    for note in line:
                        seconds[name, note.pitch] += note.end - note.start
        table = np.array([[seconds[name, p] for p in range(low, high + 1)] for name in DEMO_INSTRUMENTS])
        assert table.min() > least * table.mean() / 2, split
        assert table.min() > 0
        shares = table.sum(axis=1) / table.sum()
        assert shares == pytest.approx([0.25] * 4, abs=0.03)


def test_a_name_with_a_space_occurs():
    tracks = [t for t in plan(48, 0) if "double bass" in t.instruments]
    assert tracks
    assert all(t.ensemble == "random" for t in tracks)


def test_mistakes_are_one_sentence(corpus, tmp_path):
    with pytest.raises(UserError, match="6 at least"):
        list(render(tmp_path, 5, 0))
    with pytest.raises(UserError, match="holds another demo corpus already"):
        list(render(corpus, 6, 0))
    with pytest.raises(UserError, match="holds another demo corpus already"):
        list(demo_slakh.render(corpus, 6, 0))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        list(render(tmp_path / "file", 6, 0))
    assert _render_track.__module__ == "data_prep.demo_cocochorales", "what crosses processes does not live in __main__"
